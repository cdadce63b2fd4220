"""A stopwatch around the parts of a decode step, put on from outside: the product carries no timing code.

While it is on, steps are not captured programs, and the device's model, sampler and input preparation are reached
through proxies that add up seconds.
A proxy costs about half a microsecond of clock reading on either side; it falls to `python between`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from albireo.gpu_worker import cpu_device
from albireo.gpu_worker.cpu_device import CpuDevice
from albireo.gpu_worker.step_inputs import build_inputs

PRODUCTS: Final = ("qkv", "o", "gate_up", "down")
PARTS: Final = (
    *PRODUCTS,
    "lm_head",
    "attention",
    "norms",
    "rope and KV write",
    "activation",
    "embedding",
    "sampling",
    "input preparation",
)


class _Timed:
    """An object whose named methods (and call) are timed; everything else is its own."""

    def __init__(self, target: object, stopwatch: "Stopwatch", parts: dict[str, str]) -> None:
        self._target = target
        for method, part in parts.items():
            setattr(self, method, stopwatch.timed(getattr(target, method), part))

    def __getattr__(self, name: str) -> object:
        return getattr(self._target, name)


class _TimedCall(_Timed):
    """The same for an object that is called."""

    def __init__(self, target: object, stopwatch: "Stopwatch", part: str) -> None:
        super().__init__(target, stopwatch, {"add_to": part} if hasattr(target, "add_to") else {})
        if not callable(target):
            raise TypeError(f"{type(target).__name__} cannot be called: expected a linear layer or an embedding")
        self._call = stopwatch.timed(target, part)

    def __call__(self, *args: object) -> object:
        return self._call(*args)


class _NoPrograms:
    """In place of the captured steps, which have no parts to be timed: the same kernels are called one by one."""

    def fit(self, num_rows: int) -> bool:
        return False


@contextmanager
def without_programs(device: CpuDevice) -> Iterator[None]:
    """Inside, the device's steps are not captured ones."""
    programs: Any = device._programs
    device._programs = _NoPrograms()  # type: ignore[assignment]
    try:
        yield
    finally:
        device._programs = programs


class Stopwatch:
    """Used as a context around one step; `seconds` then holds that step's, by part."""

    def __init__(self, device: CpuDevice, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds = dict.fromkeys(PARTS, 0.0)
        model: Any = device._model
        layers = [
            replace(layer, **{name: _TimedCall(getattr(layer, name), self, name) for name in PRODUCTS})
            for layer in model._layers
        ]
        ops = {
            "rms_norm": "norms",
            "rotate_and_store": "rope and KV write",
            "look_up": "rope and KV write",
            "silu_and_mul": "activation",
        }
        attention = {"attend": "attention"}
        swapped: list[tuple[Any, str, Any]] = [
            (model, "_layers", layers),
            (model, "ops", _Timed(model.ops, self, ops)),
            (model, "attention", _Timed(model.attention, self, attention)),
            (model, "_embedding", _TimedCall(model._embedding, self, "embedding")),
            (model, "_lm_head", _TimedCall(model._lm_head, self, "lm_head")),
            (device, "_sampler", _Timed(device._sampler, self, {"sample": "sampling"})),
            (device, "state", _Timed(device.state, self, {"apply": "input preparation"})),
            (device, "_programs", _NoPrograms()),
            (cpu_device, "build_inputs", self.timed(build_inputs, "input preparation")),
        ]
        self._swaps = [(owner, name, getattr(owner, name), timed) for owner, name, timed in swapped]

    def timed(self, function: Callable[..., object], part: str) -> Callable[..., object]:
        clock, seconds = self._clock, self.seconds

        def run(*args: object) -> object:
            start = clock()
            result = function(*args)
            seconds[part] += clock() - start
            return result

        return run

    def __enter__(self) -> None:
        for part in self.seconds:
            self.seconds[part] = 0.0
        for owner, name, _, timed in self._swaps:
            setattr(owner, name, timed)

    def __exit__(self, *_: object) -> None:
        for owner, name, original, _ in self._swaps:
            setattr(owner, name, original)
