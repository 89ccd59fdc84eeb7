"""How hard to compress, found out while the image is written.

Runs in the helper; pure but for the measured times it is told.  An image is written at the pace of
whoever is slower: the processors, which bring pages together and compress them, or the target. So
what a byte of memory costs with a compression is the larger one of

- the seconds of one processor for it, shared among the processors, and
- the seconds the target takes for what is stored of it,

and besides what is stored is read again at the resume, with somebody waiting.  The compression that
costs least is chosen.  The first is known once a compression was used, and each is tried now and
then.  The second is measured between two writes that end while others wait; while none waits, the
target is taken to be ever faster, until either it is waited for again, or the processors have
nothing left to do less.

Memory is a mixture, and with what nothing compresses all compressions are alike.  So only chunks
that became smaller say what a compression is worth.
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
SLOWER = 2.0
"""No one write counts as so many times slower than the target is taken to be: now and then one has
to wait for something else."""
READ = 0.5
"""What a second of reading at the resume counts, beside one of saving.  (A target is read at least
as fast as it is written.)"""
SMALLER = 63 / 64
"""What is not stored in this share of its size did not become smaller; the rest is for the head."""
IN_VAIN = 8
"""Chunks after which a compression is tried again that nothing became smaller with yet."""
WEIGHT = 0.1
"""Of the newest measurement in an average."""
TRY_AGAIN = 64
"""Chunks after which another compression than the best one is tried again, where it did not cost
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
        self._since: dict[str, int] = dict.fromkeys(HARDER, IN_VAIN)
        self._stale: set[str] = set()
        """Easier ones that are tried again: what was known of them does not count, because an
        average comes down from a disturbance only slowly with so few trials."""
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
            other = self._worth_a_try(best, usable)
            if other is not None:
                since = self._since[other]
                if other in self._costs:
                    owed = since * self._cost(best) > TRY_AGAIN * self._cost(other)
                else:
                    owed = since > IN_VAIN
                if owed:
                    chosen = other
                    if HARDER.index(other) < HARDER.index(best):
                        self._stale.add(other)
            self._since[chosen] = 0
            return chosen

    def _worth_a_try(self, best: str, usable: tuple[str, ...]) -> str | None:
        """The next harder one where the target is waited for, else the next easier one: it may
        not be what it was taken for."""
        at = usable.index(best)
        if self._target and self._waits_for_target(best):
            return usable[at + 1] if at + 1 < len(usable) else None
        return usable[at - 1] if at else None

    def packed(self, name: str, size: int, stored: int, seconds: float) -> None:
        """``size`` bytes of memory became ``stored`` bytes in so many seconds of a processor."""
        if name != NONE and stored > SMALLER * size:
            return
        new = _Cost(seconds / size, stored / size)
        with self._lock:
            old = new if name in self._stale else self._costs.get(name, new)
            self._stale.discard(name)
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
                known = self._target or new
                self._target = _mixed(known, min(new, SLOWER * known))
            self._writing -= 1
            if self._writing < WAITING - 1:
                self._ended = None  # the next interval is no measure of the target

    def _cost(self, name: str) -> float:
        """Seconds for a byte of memory.  What was not tried yet costs nothing if it is the easiest,
        else more than anything that was."""
        cost = self._costs.get(name)
        if cost is None:
            return float(HARDER.index(name))
        target = cost.stored * self._target
        return max(self._seconds(name), target) + READ * target

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
