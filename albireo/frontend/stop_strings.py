"""Stop strings in a stream: found across pieces, and no part of one is ever shown.

One Knuth-Morris-Pratt automaton per stop string: its state is how many of the string's characters the text ends with.
So each character is looked at once, the result does not depend on how the text was cut into pieces, and what must be
held back is exactly the longest state.
"""

from functools import lru_cache


class StopStrings:
    """Watches one sequence's text for a request's stop strings."""

    __slots__ = ("_first", "_held", "_include", "_states", "_stops", "matched")

    def __init__(self, stops: tuple[str, ...], include_in_output: bool) -> None:
        self._stops = [(stop, _failures(stop)) for stop in stops]
        self._first = frozenset(stop[0] for stop in stops)
        self._states = [0] * len(stops)
        self._include = include_in_output
        self._held = ""
        """The end of the text so far that may be the beginning of a stop string."""
        self.matched: str | None = None
        """The stop string that ended the text. Of several that end at the same character, the longest."""

    def feed(self, text: str, may_match: bool = True) -> str:
        """The text that may be shown now. Nothing may be fed once `matched` is set. Without `may_match` a string that
        is completed is text like any other."""
        if not self._held and self._first.isdisjoint(text):
            return text
        text = self._held + text
        for position in range(len(self._held), len(text)):
            if self._step(text[position], may_match):
                assert self.matched is not None
                self._held = ""
                return text[: position + 1 - (0 if self._include else len(self.matched))]
        shown = len(text) - max(self._states)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The held text, when the sequence ended without a match."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str, may_match: bool) -> bool:
        """Feeds one character to each automaton; True when a string is complete."""
        for index, (stop, failures) in enumerate(self._stops):
            state = self._states[index]
            while state and stop[state] != character:
                state = failures[state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop) and not may_match:
                state = failures[state - 1]
            self._states[index] = state
            if state == len(stop) and (self.matched is None or len(stop) > len(self.matched)):
                self.matched = stop
        return self.matched is not None


@lru_cache(maxsize=256)
def _failures(stop: str) -> list[int]:
    """Per prefix of `stop`: the length of its longest proper suffix that is a prefix too."""
    failures = [0] * len(stop)
    state = 0
    for position in range(1, len(stop)):
        while state and stop[position] != stop[state]:
            state = failures[state - 1]
        if stop[position] == stop[state]:
            state += 1
        failures[position] = state
    return failures
