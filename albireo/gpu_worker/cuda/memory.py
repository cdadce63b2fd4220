"""How much of a GPU's memory the KV cache gets."""

from dataclasses import dataclass

import torch

GIB = 2**30
GRAPH_RESERVE_BYTES = GIB // 2
"""Left for captured steps, whose largest is measured before, and for what libraries allocate by themselves."""


class OutOfDeviceMemoryError(Exception):
    """The model, or a KV cache for its longest sequence, does not fit; the text has the numbers and what to do."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes."""

    total: int
    free: int
    """What nobody has: neither this process nor another."""
    weights: int
    """Allocated by torch when the model was loaded, buffers included."""
    peak: int
    """Most that torch had allocated in the largest step, weights included."""
    reserved: int
    """What torch holds of the device."""

    @classmethod
    def measured(cls, device: torch.device, weights: int) -> "DeviceMemory":
        free, total = torch.cuda.mem_get_info(device)
        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.memory_reserved(device)
        return cls(total, free, weights, peak, reserved)


def check_weights_fit(weights: int, free: int, total: int) -> None:
    """Before anything is read. Raises OutOfDeviceMemoryError."""
    if weights > free:
        raise OutOfDeviceMemoryError(
            f"the weights need {weights / GIB:.1f} GiB, and {free / GIB:.1f} of the GPU's {total / GIB:.1f} GiB are "
            f"free: choose a smaller model, or spread it with --tensor-parallel-size"
        )


def kv_cache_bytes(memory: DeviceMemory, utilization: float, least_bytes: int) -> int:
    """What `--gpu-memory-utilization` of the device leaves beside the largest step, and what the device has free.

    Raises OutOfDeviceMemoryError when that is less than `least_bytes`, one sequence of the longest kind.
    """
    others = memory.total - memory.free - memory.reserved
    budget = int(memory.total * utilization) - others - memory.peak - GRAPH_RESERVE_BYTES
    room = min(budget, memory.free - GRAPH_RESERVE_BYTES)
    if room < least_bytes:
        raise OutOfDeviceMemoryError(
            f"the GPU has {memory.total / GIB:.1f} GiB, of which --gpu-memory-utilization {utilization:g} gives "
            f"{memory.total * utilization / GIB:.1f}: weights take {memory.weights / GIB:.1f}, the largest step "
            f"{(memory.peak - memory.weights) / GIB:.1f}, captured steps {GRAPH_RESERVE_BYTES / GIB:.1f}, other "
            f"programs {others / GIB:.1f}; {max(0, room) / GIB:.2f} GiB are left for the KV cache, and one sequence of "
            f"--max-model-len needs {least_bytes / GIB:.2f}: lower --max-model-len or --max-num-batched-tokens, or "
            f"raise --gpu-memory-utilization"
        )
    return room
