"""Which process other than a rank has stopped: its loop no longer turns, though it has not ended."""

from albireo.supervisor.rank_watch import MAX_TICK_NS


class ProcessWatch:
    """Remembers how long each process's beat (`layout.FLIGHT_HEAD`) has not moved."""

    def __init__(self, beats: dict[str, "memoryview[int]"], timeout_ns: int) -> None:
        """`beats`: by process name, each as `[0]` in shared memory; 0 until its loop turns."""
        self._beats = beats
        self._timeout_ns = timeout_ns
        self._last_beats = dict.fromkeys(beats, 0)
        self._silent_ns = dict.fromkeys(beats, 0)
        self._last_look_ns = 0

    def check(self, now_ns: int) -> list[str]:
        """To be called several times a second: names of those that have been silent for the timeout."""
        tick_ns = min(now_ns - self._last_look_ns, MAX_TICK_NS) if self._last_look_ns else 0
        self._last_look_ns = now_ns
        for name, beat in self._beats.items():
            is_silent = beat[0] and beat[0] == self._last_beats[name]
            self._silent_ns[name] = self._silent_ns[name] + tick_ns if is_silent else 0
            self._last_beats[name] = beat[0]
        return [name for name, silent_ns in self._silent_ns.items() if silent_ns >= self._timeout_ns]

    def has_begun(self, name: str) -> bool:
        """Whether its loop has turned, so that it is watched; who has no beat has nothing to begin."""
        return name not in self._beats or self._beats[name][0] != 0

    def forget(self, name: str) -> None:
        """Another process takes this one's place, and has not begun."""
        if name in self._beats:
            self._beats[name][0] = 0
            self._silent_ns[name] = 0
