"""What values of flags may be: `type=` of argparse's arguments."""

import argparse
import json

DEVICES = ("auto", "cpu", "cuda", "null")


def in_range(low: int, high: int | None = None) -> "argparse._ActionType":
    """An int argument between two bounds, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            bound = f"at least {low}" if high is None else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{value} is out of range: {bound} is possible")
        return value

    parse.__name__ = "int"
    return parse


def size_in_bytes(text: str) -> int:
    """1073741824, 1024M, 1G, 1GiB: a number of bytes with an optional binary unit."""
    number = text.upper().removesuffix("IB").removesuffix("B")
    factor = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(number[-1:], 1)
    try:
        value = int(float(number.rstrip("KMGT")) * factor)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 1073741824, 512M and 4G are") from None
    if value < 1:
        raise argparse.ArgumentTypeError("a size must be positive")
    return value


def origins(text: str) -> list[str]:
    """One origin, or a JSON list of them, as vLLM takes it."""
    if not text.startswith("["):
        return [text]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON list: {error}") from None
    if not all(isinstance(each, str) for each in value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a list of texts")
    return list(value)


def device_name(text: str) -> str:
    """Whether there is such a spec is looked at later."""
    if text not in DEVICES and not text.startswith("sim:"):
        choices = ", ".join((*DEVICES, "sim:SPEC"))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {choices})")
    return text
