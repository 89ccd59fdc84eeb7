# SPDX-License-Identifier: GPL-2.0-or-later
"""How hard to compress, found out while the image is written.

Runs in the helper.  Pure, but for the measured times that it is given.

An image is written as fast as the slower one of two works: the processors bring pages together and
compress them, and the target stores them.  So with a compression, a byte of memory costs the larger
one of

- the seconds of one processor for it, shared among the processors, and
- the seconds that the target takes for what is stored of it.

What is stored is also read again at the resume, and counts as much there.  If a compression keeps
the processors longer than the target, only some chunks get it, and the others an easier one, so
that neither waits for the other.  The cheapest mix is chosen.

The processors' time is known once a compression was used, and each is tried now and then.  The
target's time is measured between the ends of two writes, if it was busy all the time.  If it was
not, it is assumed to be ever faster, until it always is busy, or the processors cannot have less to
do.

Memory is a mixture, and all compressions are alike for pages that nothing compresses.  So only
chunks that became smaller say what a compression is worth.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

NONE, LZ4, ZSTD = "none", "lz4", "zstd"
HARDER = (NONE, LZ4, ZSTD)
FASTER = 0.97
"""Each time the target has nothing to do, its seconds are taken to be that much fewer."""
SLOWER = 2.0
"""No one write counts as so many times slower than the target is taken to be: now and then one has
to wait for something else."""
SURE = 6
"""So many writes one after the other that were all slower than that are no accident: the target's
cache, which takes the first tens of megabytes in no time, is full.  A session's first pages are
those that become smaller."""
READ = 1.0
"""What a second of reading at the resume counts, beside one of saving: a target is read at least as
fast as it is written, and then somebody waits for sure."""
SMALLER = 63 / 64
"""What is not stored in this share of its size did not become smaller; the rest is for the head."""
IN_VAIN = 8
"""Chunks after which a compression is tried again that nothing became smaller with yet."""
WEIGHT = 0.1
"""Of the newest measurement in an average."""
FULL = 1 << 20
"""Bytes from which on a chunk or a write counts in full; smaller ones cost more for a byte."""
COVERED = 4
"""How many writes of chunks as they are one harder compression may take the time of, where only
some chunks get it."""
OWED = 2.0
"""The harder one of two is not owed more chunks than that, after many that nothing compresses."""
TRY_AGAIN = 64
"""Chunks after which another compression than the best one is tried again, if it did not cost
more; one that cost so many times as much is tried so many times as rarely."""


@dataclass
class _Cost:
    """Of a byte of memory: seconds of one processor, and bytes stored."""

    seconds: float
    stored: float
    weight: float = 0.0
    """Of all measurements; 1 after many."""


@dataclass(frozen=True)
class _Mix:
    """Two compressions beside each other, or one: both are the same then."""

    easier: str
    harder: str
    share: float
    """Of the harder one, 0 to 1."""
    cost: float
    """Seconds for a byte of memory."""


class Choice:
    """Chooses for each chunk, and learns from each; for any number of threads."""

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._costs: dict[str, _Cost] = {}
        self._target = 0.0
        """Seconds the target takes for a byte; 0: it has had a rest after each write so far."""
        self._writing = 0
        self._ended: float | None = None
        """When the last write ended, if another was under way then."""
        self._newest: deque[float] = deque(maxlen=SURE)
        self._owed = 0.0
        """Chunks that the harder one of two is to get yet."""
        self._since: dict[str, int] = dict.fromkeys(HARDER, IN_VAIN)
        self._stale: set[str] = set()
        """Easier ones that are tried again: what was known of them does not count, because an
        average comes down from a disturbance only slowly with so few trials."""
        self._lock = threading.Lock()

    def choose(self, *, roomy: bool) -> str:
        """The compression for the next chunk.  ``roomy``: the target has room for pages as they
        are."""
        with self._lock:
            if not self._writing:
                self._target *= FASTER
            usable = HARDER if roomy else HARDER[1:]
            best = min(self._mixes(usable), key=lambda mix: mix.cost)
            chosen = self._of(best)
            for name in HARDER:
                self._since[name] += 1
            other = self._worth_a_try(best.harder, usable) if best.share == 1.0 else None
            if other is not None:
                since = self._since[other]
                if other in self._costs:
                    owed = since * best.cost > TRY_AGAIN * self._alone(other).cost
                else:
                    owed = since > IN_VAIN
                if owed:
                    chosen = other
                    if HARDER.index(other) < HARDER.index(best.harder):
                        self._stale.add(other)
            self._since[chosen] = 0
            return chosen

    def _of(self, mix: _Mix) -> str:
        """One of the two: the harder one for its share of the chunks."""
        self._owed = min(self._owed + mix.share, OWED)
        if self._owed < 1.0:
            return mix.easier
        self._owed -= 1.0
        return mix.harder

    def _mixes(self, usable: tuple[str, ...]) -> Iterator[_Mix]:
        """All that can be chosen, the easiest first."""
        for at, harder in enumerate(usable):
            yield self._alone(harder)
            if harder in self._costs:
                for easier in usable[:at]:
                    if easier in self._costs and (mix := self._balanced(easier, harder)):
                        yield mix

    def _alone(self, name: str) -> _Mix:
        """One compression for all.  What was not tried yet costs nothing if it is the easiest, else
        more than anything that was."""
        if name not in self._costs:
            return _Mix(name, name, 1.0, float(HARDER.index(name)))
        target = self._costs[name].stored * self._target
        return _Mix(name, name, 1.0, max(self._seconds(name), target) + READ * target)

    def _balanced(self, easier: str, harder: str) -> _Mix | None:
        """So many of each that the processors take as long as the target, if the target is
        waited for with the easier one and the processors are with the harder one."""
        work, more_work = self._seconds(easier), self._seconds(harder)
        write = self._costs[easier].stored * self._target
        less_to_write = self._costs[harder].stored * self._target
        if not (work < write and less_to_write < more_work):
            return None
        if more_work * self._processors > COVERED * write:
            return None  # chunks are written in their order: the target would have to wait
        share = (write - work) / ((write - work) + (more_work - less_to_write))
        both = work + share * (more_work - work)
        return _Mix(easier, harder, share, both + READ * both)

    def _worth_a_try(self, best: str, usable: tuple[str, ...]) -> str | None:
        """The next harder one if the target is waited for, else the next easier one: it may
        not be what it was taken for."""
        at = usable.index(best)
        if self._target and self._waits_for_target(best):
            return usable[at + 1] if at + 1 < len(usable) else None
        return usable[at - 1] if at else None

    def packed(self, name: str, size: int, stored: int, seconds: float) -> None:
        """``size`` bytes of memory became ``stored`` bytes in so many seconds of a processor."""
        if name != NONE and stored > SMALLER * size:
            with self._lock:
                self._owed += 1.0  # that was nothing
            return
        with self._lock:
            old = self._costs.get(name)
            if old is None or name in self._stale:
                old = _Cost(0.0, 0.0)
            self._stale.discard(name)
            # The average of what was measured so far, of the newest most.
            share = WEIGHT * min(1.0, size / FULL)
            weight = old.weight + share * (1.0 - old.weight)
            new = share / weight
            self._costs[name] = _Cost(
                old.seconds + new * (seconds / size - old.seconds),
                old.stored + new * (stored / size - old.stored),
                weight,
            )

    def begins(self) -> None:
        """A write begins."""
        with self._lock:
            self._writing += 1

    def ends(self, size: int, now: float) -> None:
        """A write of ``size`` bytes ended at this moment, in seconds."""
        with self._lock:
            if self._ended is not None and size:
                new = (now - self._ended) / size
                known = self._target or new
                full = min(1.0, size / FULL)
                average = known + WEIGHT * full * (min(new, SLOWER * known) - known)
                self._newest.append(new * full)
                sure = min(self._newest) if len(self._newest) == SURE else 0.0
                self._target = max(average, sure)
            self._writing -= 1
            # After a rest the next end is no measure of the target.
            self._ended = now if self._writing else None

    def _seconds(self, name: str) -> float:
        """Of all processors for a byte of memory.  A harder compression does all that an easier one
        does, and more: what seems to be otherwise was a disturbance."""
        harder = HARDER[HARDER.index(name) :]
        return min(c.seconds for n, c in self._costs.items() if n in harder) / self._processors

    def _waits_for_target(self, name: str) -> bool:
        """Whether with this compression the target is what is waited for."""
        cost = self._costs.get(name)
        return cost is None or cost.stored * self._target > self._seconds(name)
