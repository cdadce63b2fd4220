"""The scheduling process: continuous batching, KV blocks, prefix cache; writes step plans ahead of time."""
