"""How hard to compress, found out while the image is written.

Runs in the helper; pure but for the measured times it is told.  An image is written at the pace of
whoever is slower: the processors, which bring pages together and compress them, or the target. So
what a byte of memory costs with a compression is the larger one of

- the seconds of one processor for it, shared among the processors, and
- the seconds the target takes for what is stored of it,

and the compression that costs least is chosen.  The first is known once a compression was used, and
each is tried now and then.  The second is measured between two writes that end while others wait;
while none waits, the target is taken to be ever faster, until either it is waited for again, or
the processors have nothing left to do less.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

NONE, LZ4, ZSTD = "none", "lz4", "zstd"
HARDER = (NONE, LZ4, ZSTD)
WAITING = 3
"""With so many writes under way the target is what is waited for."""
IDLE = 1
"""With no more than these it is not: any one write takes a while."""
FASTER = 0.97
"""Each time the target is not waited for, its seconds are taken to be that much fewer."""
WEIGHT = 0.1
"""Of the newest measurement in an average."""
TRY_AGAIN = 64
"""Chunks after which a harder compression than the best one is tried again, where it did not cost
more; one that cost so many times as much is tried so many times as rarely."""


@dataclass
class _Cost:
    """Of a byte of memory: seconds of one processor, and bytes stored."""

    seconds: float
    stored: float


class Choice:
    """Asked for each chunk, told of each; for any number of threads."""

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._costs: dict[str, _Cost] = {}
        self._target = 0.0
        """Seconds the target takes for a byte; 0: it was never waited for."""
        self._writing = 0
        self._ended: float | None = None
        self._since: dict[str, int] = dict.fromkeys(HARDER, 0)
        self._lock = threading.Lock()

    def choose(self, *, roomy: bool) -> str:
        """The compression for the next chunk.  ``roomy``: the target has room for pages as they
        are."""
        with self._lock:
            if self._writing <= IDLE:
                self._target *= FASTER
            usable = HARDER if roomy else HARDER[1:]
            chosen = best = min(usable, key=self._cost)
            for name in HARDER:
                self._since[name] += 1
            if best != HARDER[-1] and self._target and self._waits_for_target(best):
                harder = HARDER[HARDER.index(best) + 1]
                owed = self._since[harder] * self._cost(best) > TRY_AGAIN * self._cost(harder)
                if owed or harder not in self._costs:
                    chosen = harder
            self._since[chosen] = 0
            return chosen

    def packed(self, name: str, size: int, stored: int, seconds: float) -> None:
        """``size`` bytes of memory became ``stored`` bytes in so many seconds of a processor."""
        new = _Cost(seconds / size, stored / size)
        with self._lock:
            old = self._costs.get(name, new)
            self._costs[name] = _Cost(
                _mixed(old.seconds, new.seconds), _mixed(old.stored, new.stored)
            )

    def begins(self) -> None:
        """A write begins."""
        with self._lock:
            self._writing += 1

    def ends(self, size: int, now: float) -> None:
        """A write of ``size`` bytes ended at this moment, in seconds."""
        with self._lock:
            before, self._ended = self._ended, now
            if self._writing >= WAITING and before is not None and size:
                new = (now - before) / size
                self._target = _mixed(self._target or new, new)
            self._writing -= 1
            if self._writing < WAITING - 1:
                self._ended = None  # the next interval is no measure of the target

    def _cost(self, name: str) -> float:
        """Seconds for a byte of memory.  What was not tried yet costs nothing if it is the easiest,
        else more than anything that was."""
        cost = self._costs.get(name)
        if cost is None:
            return float(HARDER.index(name))
        return max(self._seconds(name), cost.stored * self._target)

    def _seconds(self, name: str) -> float:
        """Of all processors for a byte of memory.  A harder compression does all that an easier one
        does, and more: what seems to be otherwise was a disturbance."""
        harder = HARDER[HARDER.index(name) :]
        return min(c.seconds for n, c in self._costs.items() if n in harder) / self._processors

    def _waits_for_target(self, name: str) -> bool:
        """Whether with this compression the target is what is waited for."""
        cost = self._costs.get(name)
        return cost is None or cost.stored * self._target > self._seconds(name)


def _mixed(old: float, new: float) -> float:
    return old + WEIGHT * (new - old)
