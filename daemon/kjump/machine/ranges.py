# SPDX-License-Identifier: GPL-2.0-or-later
"""Half-open ranges of addresses or page frame numbers, and arithmetic on sorted lists of them.

Pure; runs anywhere.  A range is ``(start, end)`` with start < end.
"""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]

PAGE = 4096
MIB = 1 << 20


def align_up(value: int, to: int = PAGE) -> int:
    return -(-value // to) * to


def align_down(value: int, to: int = PAGE) -> int:
    return value // to * to


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The ranges sorted and without overlap; adjacent ones are joined, empty ones dropped."""
    out: list[Range] = []
    for start, end in sorted(r for r in ranges if r[0] < r[1]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """What is in ``ranges`` and in none of ``holes``."""
    out: list[Range] = []
    cuts = merge(holes)
    for first, end in merge(ranges):
        start = first
        for cut_start, cut_end in cuts:
            if cut_end <= start or cut_start >= end:
                continue
            if start < cut_start:
                out.append((start, cut_start))
            start = cut_end
        if start < end:
            out.append((start, end))
    return out


def intersect(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What is in both."""
    both = merge(others)
    return [
        (max(a, c), min(b, d)) for a, b in merge(ranges) for c, d in both if max(a, c) < min(b, d)
    ]


def overlaps(one: Range, ranges: Iterable[Range]) -> bool:
    return any(one[0] < end and start < one[1] for start, end in ranges)


def whole_pages(ranges: Iterable[Range]) -> list[Range]:
    """The whole pages in each byte range; a range without a whole page is dropped."""
    return merge((align_up(start), align_down(end)) for start, end in ranges)
