"""`albireo-run tune`: which tensor-parallel degree is best for this model, this machine and this traffic, measured."""
