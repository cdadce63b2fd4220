"""Whether there is a CUDA device that this process can use, and if not, why: in one line that says what to do."""

import importlib.util

import torch


class NoCudaError(Exception):
    """`--device cuda` cannot work here."""


def cuda_device_index(rank: int) -> int:
    """The device of a rank: one each, and from the first again where there are fewer. Raises NoCudaError."""
    if torch.version.cuda is None:
        raise NoCudaError(f"torch {torch.__version__} is built without CUDA: install a CUDA build, or use --device cpu")
    if not torch.cuda.is_available():
        raise NoCudaError(f"torch {torch.__version__} finds no CUDA device: is its driver loaded? Else --device cpu")
    if importlib.util.find_spec("triton") is None:
        raise NoCudaError("the package triton is missing: pip install 'albireo[cuda]'")
    return rank % torch.cuda.device_count()
