# SPDX-License-Identifier: GPL-2.0-or-later
"""How hard to compress, decided while the image is written.

Runs in the helper.  Pure; the caller passes the measured times.

Two sides work at the same time: the processors gather and compress pages, and the target stores
them.  The slower side sets the speed.  So with a given compression, a byte of memory costs the
larger of

- the processor time for it, divided by the number of processors, and
- the time that the target takes to store the result.

The resume reads everything that was stored, and that time counts as much.  If a compression would
keep the processors longer than the target, only some chunks get it and the others get an easier
one, so that neither side waits for the other.  The cheapest mix is chosen.

The processor time of a compression is known once it was used, and each is tried now and then.  The
target's time is measured between the ends of two writes, if the target was busy all that time.  If
it was not, it is assumed to be faster and faster, until it is always busy or the processors have
the least possible work.

Memory is a mixture, and for pages that nothing compresses, all compressions are alike.  So only
chunks that became smaller show what a compression is worth.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

NONE, LZ4, ZSTD = "none", "lz4", "zstd"
HARDER = (NONE, LZ4, ZSTD)
FASTER = 0.97
"""Each time the target is idle, its assumed time is multiplied by this."""
SLOWER = 2.0
"""A single write counts as at most this many times slower than the target's assumed time: now and
then a write has to wait for something else."""
SURE = 6
"""If this many writes in a row were all slower than that, it is no accident: the target's cache,
which takes the first tens of megabytes in no time, is full.  (A session's first pages are the ones
that compress.)"""
READ = 1.0
"""The weight of a second of reading at the resume, relative to a second of saving: a target is read
at least as fast as it is written, and then somebody certainly waits."""
SMALLER = 63 / 64
"""A chunk became smaller if it takes less than this share of its size; the rest is for the head."""
IN_VAIN = 8
"""Number of chunks before a compression that has not made anything smaller is tried again."""
WEIGHT = 0.1
"""Weight of the newest measurement in an average."""
FULL = 1 << 20
"""From this size in bytes a chunk or a write counts in full; smaller ones cost more for a byte."""
COVERED = 4
"""If only some chunks get the harder compression, it may take as long as this many writes of
uncompressed chunks."""
OWED = 2.0
"""Most chunks that the harder one of two may be owed, after many that nothing compresses."""
TRY_AGAIN = 64
"""Number of chunks before another compression than the best is tried again, if it did not cost
more; one that costs n times as much is tried n times less often."""


@dataclass
class _Cost:
    """The cost of a byte of memory: seconds of one processor, and bytes stored."""

    seconds: float
    stored: float
    weight: float = 0.0
    """Total weight of the measurements; 1 after many."""


@dataclass(frozen=True)
class _Mix:
    """A mix of two compressions; if it is only one, both are the same."""

    easier: str
    harder: str
    share: float
    """Share of the chunks that the harder one gets, 0 to 1."""
    cost: float
    """Seconds for a byte of memory."""


class Choice:
    """Chooses a compression for each chunk, and learns from each; for any number of threads."""

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._costs: dict[str, _Cost] = {}
        self._target = 0.0
        """Seconds that the target takes for a byte; 0: it was idle after each write so far."""
        self._writing = 0
        self._ended: float | None = None
        """When the last write ended, if another was under way then."""
        self._newest: deque[float] = deque(maxlen=SURE)
        self._owed = 0.0
        """Number of chunks that the harder one of two is still owed."""
        self._since: dict[str, int] = dict.fromkeys(HARDER, IN_VAIN)
        self._stale: set[str] = set()
        """Easier compressions that are being tried again: their old measurements do not count,
        because with so few trials an average recovers too slowly from a disturbance."""
        self._lock = threading.Lock()

    def choose(self, *, roomy: bool) -> str:
        """The compression for the next chunk.  ``roomy``: the target has room for uncompressed
        pages."""
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
        """All possible mixes, the easiest first."""
        for at, harder in enumerate(usable):
            yield self._alone(harder)
            if harder in self._costs:
                for easier in usable[:at]:
                    if easier in self._costs and (mix := self._balanced(easier, harder)):
                        yield mix

    def _alone(self, name: str) -> _Mix:
        """One compression for all chunks.  If it was not tried yet, it costs nothing if it is the
        easiest, else more than any that was tried."""
        if name not in self._costs:
            return _Mix(name, name, 1.0, float(HARDER.index(name)))
        target = self._costs[name].stored * self._target
        return _Mix(name, name, 1.0, max(self._seconds(name), target) + READ * target)

    def _balanced(self, easier: str, harder: str) -> _Mix | None:
        """The mix with which the processors take as long as the target.  None unless the target is
        the slower side with the easier one, and the processors with the harder one."""
        work, more_work = self._seconds(easier), self._seconds(harder)
        write = self._costs[easier].stored * self._target
        less_to_write = self._costs[harder].stored * self._target
        if not (work < write and less_to_write < more_work):
            return None
        if more_work * self._processors > COVERED * write:
            return None  # chunks are written in order: the target would have to wait
        share = (write - work) / ((write - work) + (more_work - less_to_write))
        both = work + share * (more_work - work)
        return _Mix(easier, harder, share, both + READ * both)

    def _worth_a_try(self, best: str, usable: tuple[str, ...]) -> str | None:
        """The next harder one if the target is the slower side, else the next easier one: its
        measured cost may be out of date."""
        at = usable.index(best)
        if self._target and self._waits_for_target(best):
            return usable[at + 1] if at + 1 < len(usable) else None
        return usable[at - 1] if at else None

    def packed(self, name: str, size: int, stored: int, seconds: float) -> None:
        """``size`` bytes of memory became ``stored`` bytes in ``seconds`` of one processor."""
        if name != NONE and stored > SMALLER * size:
            with self._lock:
                self._owed += 1.0  # this chunk did not count
            return
        with self._lock:
            old = self._costs.get(name)
            if old is None or name in self._stale:
                old = _Cost(0.0, 0.0)
            self._stale.discard(name)
            # A weighted average of all measurements, in which the newest count most.
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
        """A write of ``size`` bytes ended at the time ``now``, in seconds."""
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
            # After an idle time, the next end says nothing about the target.
            self._ended = now if self._writing else None

    def _seconds(self, name: str) -> float:
        """Seconds that all processors together take for a byte of memory.  A harder compression
        does everything that an easier one does, and more: if it seems faster, that was a
        disturbance."""
        harder = HARDER[HARDER.index(name) :]
        return min(c.seconds for n, c in self._costs.items() if n in harder) / self._processors

    def _waits_for_target(self, name: str) -> bool:
        """Whether the target is the slower side with this compression."""
        cost = self._costs.get(name)
        return cost is None or cost.stored * self._target > self._seconds(name)
