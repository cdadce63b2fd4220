"""Finding markers in text that comes in pieces: what may be the begin of one is held back until it is clear."""

from collections.abc import Sequence


def find_first(text: str, markers: Sequence[str]) -> tuple[int, str]:
    """Where the first of the markers stands, and which it is; (-1, "") where none is."""
    found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    return min(found, default=(-1, ""))


def num_held(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end of `text` may yet become a marker."""
    longest = max(map(len, markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(marker.startswith(end) for marker in markers):
            return length
    return 0
