"""Shared memory between the engine's processes: segments, layouts, rings, counters. Leaves: they import no process."""
