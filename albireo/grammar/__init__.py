"""The grammar process: compiles what outputs must match, and says which tokens may come next."""
