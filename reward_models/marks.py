"""Many hashes in little memory: a set of numbers takes some 100 bytes each, this 16 to 32."""

from __future__ import annotations

from array import array

FEWEST = 1 << 10
ALL = (1 << 64) - 1


class Marks:
    """64-bit hashes with a small code each, by open addressing in one array.

    The code takes the place of a hash's upper bits, so of n hashes two different ones are taken
    for the same with probability n² / 2^(65 − bits): 10⁻⁵ for 10 million hashes and one bit.
    """

    def __init__(self, bits: int = 1):
        """bits: of the codes, which are from 1 to 2^bits − 1."""
        self._bits, self._code = bits, (1 << bits) - 1
        self._slots, self._free = array("Q", bytes(8 * FEWEST)), FEWEST // 2
        self._count = 0

    def __len__(self) -> int:
        """How many hashes there are."""
        return self._count

    def setdefault(self, mark: int, code: int = 1) -> int:
        """The code that a hash came with first; 0 where it is new, which keeps it and its code.

        mark: its lower 64 bits count.
        """
        word = (mark << self._bits | code) & ALL
        slots, last, bits = self._slots, len(self._slots) - 1, self._bits
        at = word >> bits & last
        while found := slots[at]:
            if found >> bits == word >> bits:
                return found & self._code
            at = (at + 1) & last
        slots[at] = word
        self._count += 1
        self._free -= 1
        if not self._free:
            self._grow()
        return 0

    def _grow(self) -> None:
        """Doubles the slots; at most half of them, then at least a quarter, are taken."""
        old, bits = self._slots, self._bits
        slots = array("Q", bytes(16 * len(old)))
        last = len(slots) - 1
        for word in old:
            if word:
                at = word >> bits & last
                while slots[at]:
                    at = (at + 1) & last
                slots[at] = word
        self._slots, self._free = slots, len(slots) // 2 - self._count
