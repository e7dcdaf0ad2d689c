"""Text that ends before a stop string, also when the string arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopCut:
    """Passes text on until one of `stops` comes; what may be the start of one waits.

    hit: whether one has come; nothing is passed on after that.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [s for s in stops if s]
        self.hit = False
        self._held = ""

    def feed(self, text: str) -> str:
        """What may be shown once `text` has come too."""
        if self.hit:
            return ""
        self._held += text
        places = [i for i in (self._held.find(s) for s in self.stops) if i >= 0]
        if places:
            self.hit = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = self._possible_start()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> str:
        """What waited, now that nothing follows."""
        shown, self._held = self._held, ""
        return shown

    def _possible_start(self) -> int:
        """Length of the longest end of what is held that starts a stop string."""
        longest = max((len(s) for s in self.stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-size:]) for s in self.stops):
                return size
        return 0
