"""Albireo: parallel LLM inference as a few processes over shared-memory rings. `docs/architecture.md` is the map."""

__version__ = "0.1.0"
