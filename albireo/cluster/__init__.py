"""Engines on several machines, placed and kept by Ray Serve: each of its replicas is one engine on one node."""
