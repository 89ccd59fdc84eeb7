# SPDX-License-Identifier: GPL-2.0-or-later
"""The measurements and what follows from them: medians, ratios, goals, the table.

Pure: values in, values and text out.  Times are seconds of the host's monotonic clock, sizes bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

MIB = 1 << 20
OURS, WARM, LZO, LZ4 = "ours", "warm", "lzo", "lz4"
SYSTEMS = (OURS, WARM, LZO, LZ4)
STOCK = (LZO, LZ4)
TITLES = {
    OURS: "kjump, cold",
    WARM: "kjump, warm helper",
    LZO: "kernel's own, LZO",
    LZ4: "kernel's own, LZ4",
}
QUIET = 0.1
"""What others may take of the host's processors."""
Span = tuple[str, float, float]
"""A phase: name, begin and end, from the request or from the power-on."""


@dataclass(frozen=True, order=True)
class Cell:
    """What all systems are measured with.  ``memory`` in MiB; ``fill``: percent of RAM in use;
    ``mix``: ``random`` or ``text``; ``throttle``: of the disk in MB/s, 0 for none."""

    memory: int
    fill: int
    mix: str
    throttle: int

    def name(self) -> str:
        disk = f"disk at {self.throttle} MB/s" if self.throttle else "disk as it is"
        return f"{self.memory} MiB, {self.fill} % in use, {self.mix}, {disk}"


@dataclass(frozen=True)
class Record:
    """One cycle of one system.

    ``off``: request to power off; ``running``: power on to the user's process answering;
    ``written``: to the disk, request to power off; ``helper``: memory the helper used, if there is
    one; ``image``: bytes of the image, ``copy``: seconds it was written in; ``plain``: bytes a
    second of a plain sequential direct write on the same disk; ``took``: seconds for all of it;
    ``others``: share of the host's processors that was not idle and not ours meanwhile;
    ``work_off`` and ``work_on``: processor seconds of QEMU in ``off`` and ``running``, which others
    on the host change little.
    """

    cell: Cell
    system: str
    pair: int
    off: float
    running: float
    written: int
    took: float
    helper: int | None = None
    image: int | None = None
    copy: float | None = None
    plain: float | None = None
    others: float | None = None
    work_off: float | None = None
    work_on: float | None = None
    way: str = ""
    saving: list[Span] = field(default_factory=list)
    resuming: list[Span] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> float | None:
        """Power on to every page of the fill read, seconds.  Until then the kernel's own still has
        to bring back what it had swapped out, so `running` alone flatters it."""
        found = self.facts.get("whole")
        return None if found is None else float(found)


def dump(records: Iterable[Record], about: dict[str, Any]) -> str:
    """results.json."""
    return json.dumps({"about": about, "records": [asdict(r) for r in records]}, indent=1) + "\n"


def load(text: str) -> tuple[list[Record], dict[str, Any]]:
    """What `dump` wrote.  Raises ValueError, KeyError, TypeError for anything else."""
    document = json.loads(text)
    records = []
    for fields in document["records"]:
        spans = {
            name: [(str(n), float(a), float(b)) for n, a, b in fields[name]]
            for name in ("saving", "resuming")
        }
        records.append(Record(**{**fields, **spans, "cell": Cell(**fields["cell"])}))
    return records, document["about"]


def chosen(records: Iterable[Record], cell: Cell, system: str) -> list[Record]:
    """The records of one system in one cell, by pair."""
    found = [r for r in records if r.cell == cell and r.system == system]
    return sorted(found, key=lambda r: r.pair)


def ratio(ours: Sequence[Record], theirs: Sequence[Record], value: str) -> float | None:
    """The median of our figure in each pair as a share of theirs in the same pair."""
    mine = {r.pair: getattr(r, value) for r in ours}
    other = {r.pair: getattr(r, value) for r in theirs}
    shares = [found / other[pair] for pair, found in mine.items() if found and other.get(pair)]
    return median(shares) if shares else None


def typical(records: Sequence[Record]) -> Record | None:
    """The record whose whole time is the median one: its phases are shown."""
    if not records:
        return None
    ordered = sorted(records, key=lambda r: r.off + r.running)
    return ordered[(len(ordered) - 1) // 2]


def middle(records: Sequence[Record], value: str) -> float | None:
    """The median of a figure; None where no record has it."""
    found = [getattr(r, value) for r in records if getattr(r, value) is not None]
    return median(found) if found else None


def copy_share(records: Sequence[Record]) -> float | None:
    """What the copy phase reaches, as a share of a plain write on the same disk: the median."""
    shares = [r.image / r.copy / r.plain for r in records if r.image and r.copy and r.plain]
    return median(shares) if shares else None


def per_gib(records: Sequence[Record]) -> float | None:
    """Seconds of the copy phase per GiB of RAM: the median."""
    found = [r.copy / (r.cell.memory / 1024) for r in records if r.copy]
    return median(found) if found else None


@dataclass(frozen=True)
class Goal:
    """One thing to reach: at most (``most``) or at least ``limit``."""

    what: str
    found: float
    limit: float
    most: bool = True

    @property
    def reached(self) -> bool:
        return self.found <= self.limit if self.most else self.found >= self.limit


def goals(records: Sequence[Record]) -> list[Goal]:
    """All goals that these records say something about."""
    out: list[Goal] = []
    for cell in sorted({r.cell for r in records}):
        for stock in STOCK:
            theirs = chosen(records, cell, stock)
            for system in (OURS, WARM):
                mine = chosen(records, cell, system)
                against = f"{TITLES[system]} / {TITLES[stock]}: {cell.name()}"
                off = ratio(mine, theirs, "off")
                if off is not None and cell.fill >= 85:
                    out.append(Goal(f"request to power off, {against}", off, 0.5))
                if off is not None and cell.fill <= 25 and system == WARM:
                    out.append(Goal(f"request to power off, {against}", off, 1.0))
                running = ratio(mine, theirs, "running")
                if running is not None:
                    out.append(Goal(f"power on to running, {against}", running, 1.0))
        for system in (OURS, WARM):
            share = copy_share(chosen(records, cell, system))
            if share is not None and cell.mix == "random" and cell.throttle:
                what = f"copy phase / plain direct write, {TITLES[system]}: {cell.name()}"
                out.append(Goal(what, share, 0.9, most=False))
    return out + growth(records)


def growth(records: Sequence[Record]) -> list[Goal]:
    """Seconds per GiB of each memory size as a share of those of the smallest, at the same fill."""
    out = []
    rest = sorted({(r.cell.fill, r.cell.mix, r.cell.throttle) for r in records})
    for fill, mix, throttle in rest:
        sizes = sorted({r.cell.memory for r in records})
        rates = {
            size: rate
            for size in sizes
            if (rate := per_gib(chosen(records, Cell(size, fill, mix, throttle), OURS)))
        }
        for size in list(rates)[1:]:
            first = min(rates)
            cell = Cell(size, fill, mix, throttle)
            what = f"copy phase per GiB / that with {first} MiB, {TITLES[OURS]}: {cell.name()}"
            out.append(Goal(what, rates[size] / rates[first], 1.1))
    return out


def number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def rows(records: Sequence[Record]) -> list[list[str]]:
    """The table: a heading and a row for each cell and system; medians."""
    out = [
        [
            "guest",
            "system",
            "cycles",
            "request to off, s",
            "power on to running, s",
            "to all of memory, s",
            "processor time off, on, s",
            "written, MiB",
            "helper used, MiB",
            "copy, MiB/s",
            "of a plain write",
            "way back",
            "host busy with others",
        ]
    ]
    for cell in sorted({r.cell for r in records}):
        for system in SYSTEMS:
            found = chosen(records, cell, system)
            if not found:
                continue
            rates = [r.image / r.copy / MIB for r in found if r.image and r.copy]
            written, helper = middle(found, "written"), middle(found, "helper")
            out.append(
                [
                    cell.name(),
                    TITLES[system],
                    str(len(found)),
                    number(middle(found, "off")),
                    number(middle(found, "running")),
                    number(middle(found, "whole")),
                    f"{number(middle(found, 'work_off'))}, {number(middle(found, 'work_on'))}",
                    number(None if written is None else written / MIB, ".0f"),
                    number(None if helper is None else helper / MIB, ".0f"),
                    number(median(rates) if rates else None, ".0f"),
                    number(copy_share(found), ".0%"),
                    " ".join(sorted({r.way for r in found})),
                    number(middle(found, "others"), ".0%"),
                ]
            )
    return out


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table for a page: the first row is the heading; columns aligned for the source."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def goal_rows(found: Sequence[Goal]) -> list[list[str]]:
    """The goals as a table."""
    out = [["goal", "found", "wanted", ""]]
    for goal in found:
        wanted = f"{'at most' if goal.most else 'at least'} {goal.limit:.2f}"
        verdict = "reached" if goal.reached else "MISSED"
        out.append([goal.what, f"{goal.found:.2f}", wanted, verdict])
    return out


def ratio_rows(records: Sequence[Record]) -> list[list[str]]:
    """Ours / the kernel's own with LZO, and with LZ4, for each cell that has them."""
    values = (
        ("off", "request to off"),
        ("running", "power on to running"),
        ("whole", "power on to all of memory"),
    )
    out = [["guest", *(f"{t}: {w}" for _, t in values for w in ("cold", "warm"))]]
    for cell in sorted({r.cell for r in records}):
        row = []
        for value, _ in values:
            for system in (OURS, WARM):
                mine = chosen(records, cell, system)
                found = [ratio(mine, chosen(records, cell, stock), value) for stock in STOCK]
                row.append(", ".join(number(share, ".2f") for share in found))
        if any(text.strip("-, ") for text in row):
            out.append([cell.name(), *row])
    return out


def phase_rows(records: Sequence[Record]) -> list[list[str]]:
    """Where the time goes: the phases of the typical cycle of each system in each cell."""
    out = [["guest", "system", "part", "phases, s"]]
    for cell in sorted({r.cell for r in records}):
        for system in SYSTEMS:
            record = typical(chosen(records, cell, system))
            if record is None:
                continue
            for part, spans in (("off", record.saving), ("on", record.resuming)):
                text = ", ".join(f"{name} {end - begin:.1f}" for name, begin, end in spans)
                out.append([cell.name(), TITLES[system], part, text])
    return out


def report(records: Sequence[Record], about: dict[str, Any]) -> str:
    """results.md."""
    facts = "".join(f"- {name}: {value}\n" for name, value in about.items())
    found = goals(records)
    parts = ["# make bench\n", facts, "Medians.\n", markdown(rows(records))]
    disturbed = [r for r in records if (r.others or 0) > QUIET]
    if disturbed:
        parts += [
            f"In {len(disturbed)} of {len(records)} cycles the host had other work to do, more than"
            f" {QUIET:.0%} of its processors: times, and ratios of them, are off.\n"
        ]
    if found:
        parts += ["Ratios are taken in each pair; these are their medians.\n"]
        parts += [markdown(goal_rows(found))]
    ratios = ratio_rows(records)
    if len(ratios) > 1:
        parts += ["kjump / the kernel's own with LZO, with LZ4:\n", markdown(ratios)]
    parts += ["Where the time goes, in the median cycle:\n", markdown(phase_rows(records))]
    return "\n".join(parts)
