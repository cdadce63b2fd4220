"""Simulated GPUs: what one can do, and how long a step of a model takes on t of them.

A leaf, without torch: `gpu_worker/sim_device.py` sleeps what is computed here, and a planner can ask without a device.

spec.py      a device's rates, sizes and power: files, presets, validation
presets/     GPUs, from their datasheets
roofline.py  a step's time from its rows, contexts and prompt tokens
memory.py    what a rank's memory holds beside its weights
"""
