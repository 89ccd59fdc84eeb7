# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel reports, and the report page that carries it to the session.

Runs in all three kernels.  Pure.  The helper writes its report to the report page; the boot side
replaces that page in the restored memory.  The outcome of an image, in its superblock and its
locator, is a report as well.  Nothing here decides what a report means.

The report page is a page of the session's memory that does not move; the handoff contains its
physical address and its nonce.  Little-endian:

====== ==== =====================================================
offset size field
====== ==== =====================================================
0      8    magic ``KJUMPREP``
8      4    version, 1
12     4    length of the JSON document; 0 while nobody has reported
16     16   nonce, chosen by the session for this cycle
32     4    CRC-32 of the JSON document
36     4    zero
40     ..   JSON document, UTF-8, one object: a `Report`
====== ==== =====================================================

A writer first checks magic, version and nonce, and does not touch a page that differs.
"""

from __future__ import annotations

import json
import math
import struct
import time
import zlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeGuard

from kjump.errors import DamagedHandoff, KjumpError, from_report
from kjump.handoff.cell import NONCE_SIZE
from kjump.handoff.fields import (
    U64,
    JsonObject,
    clean,
    decode,
    is_integer,
    is_text,
    plain,
)

SIZE = 4096
MAGIC = b"KJUMPREP"
VERSION = 1
HEADER = struct.Struct(f"<8sII{NONCE_SIZE}sI4x")
ROOM = SIZE - HEADER.size
"""Largest JSON document, bytes."""

HELPER, RESUME = "helper", "resume"
"""Who reports."""
OK, RETURNED, RESTING, FAILED = "ok", "returned", "warm", "failed"
"""The result; ``ok`` from `RESUME` means that the session was restored."""
SNAPSHOT, IN_PLACE = "snapshot", "in-place"
"""How a session is restored: through /dev/snapshot, beside the boot kernel, or in place."""

Counts = Mapping[str, int]
Seconds = Mapping[str, float]

FIGURES = ("pages", "image", "memory", "map", "codecs", "profile")
"""The helper's figures of the copy, which the boot side passes on; each is an object."""


@dataclass(frozen=True)
class Report:
    """A report, or an image's outcome.  Unknown fields have their default and are not written."""

    by: str = ""
    result: str = ""
    error: str = ""
    """Name of the error, see `kjump.errors`; empty: none."""
    what: str = ""
    todo: str | None = None
    tries: int = 0
    """How often a resume was begun and did not finish; only in an outcome."""
    hostname: str = ""
    """Whose session the image will hold; only in the outcome of an empty image."""
    phases: Seconds = field(default_factory=dict)
    pages: Counts = field(default_factory=dict)
    """By kind."""
    map: Mapping[str, int | str] = field(default_factory=dict)
    """See `kjump.helper.states.States.coarse`."""
    image: Counts = field(default_factory=dict)
    """Bytes: ``size`` on the target, ``data`` of memory."""
    memory: Counts = field(default_factory=dict)
    """The helper's own memory, bytes."""
    processors: int = 0
    codecs: Counts = field(default_factory=dict)
    """Number of chunks for which each compression was chosen."""
    profile: Seconds = field(default_factory=dict)
    """Times of each step of the copy, summed over all threads."""
    rate: int = 0
    """Bytes of memory that the helper saved in a second."""
    jump_back: int = 0
    """The session's jump-back address; only from a helper that rests."""
    way: str = ""
    """How the session was restored: ``snapshot`` or ``in-place``."""
    saved: float = 0.0
    """Seconds since 1970, like ``resumed``."""
    resumed: float = 0.0
    boot_memory: Counts = field(default_factory=dict)
    """The boot kernel's memory, bytes."""
    shortened: bool = False
    """Whether something was left out so that the report fits its room."""
    others: JsonObject = field(default_factory=dict)
    """Further keys that another version of kjump wrote: for the history."""

    def to_json(self) -> dict[str, object]:
        own = {name: getattr(self, name) for name in NAMES}
        return {
            **{
                name: value for name, value in own.items() if value or (name, value) == ("todo", "")
            },
            **self.others,
        }

    @classmethod
    def from_json(cls, document: object) -> Report:
        """Raises `DamagedHandoff`, which names the field, if a text field has another type.

        Figures that make no sense are left out, so that the reason is not lost because of them.
        """
        if not isinstance(document, Mapping):
            raise DamagedHandoff("The report is not a JSON object.")
        known: dict[str, object] = {}
        others: dict[str, object] = {}
        for name, value in document.items():
            if name not in NAMES:
                if is_text(name):
                    others[name] = plain(value)
                continue
            sane = _sane(name, value)
            if sane is not None:
                known[name] = sane
        return cls(others=others, **known)  # type: ignore[arg-type]

    @property
    def is_blank(self) -> bool:
        """Whether it says nothing."""
        return self == Report()

    @property
    def cause(self) -> KjumpError:
        """The error in this report."""
        return from_report(self.to_json())

    @property
    def figures(self) -> dict[str, Mapping[str, object]]:
        """Those of the `FIGURES` that are present."""
        found = {name: getattr(self, name) for name in FIGURES}
        return {name: value for name, value in found.items() if value}

    @property
    def more(self) -> dict[str, object]:
        """What the history keeps in addition to result, error, phases and figures."""
        usual = (*FIGURES, "by", "result", "error", "what", "todo", "phases", "window")
        return {name: value for name, value in self.to_json().items() if name not in usual}

    def passed_on(self) -> Report:
        """Only the phases and figures, for another report on the same session."""
        return Report(phases=self.phases, **self.figures)  # type: ignore[arg-type]


NAMES = tuple(f.name for f in fields(Report) if f.name != "others")
_TEXTS = ("by", "result", "error", "what", "todo", "hostname", "way")
_COUNTS = ("tries", "processors", "rate", "jump_back")
_TIMES = ("saved", "resumed")
MOST = 64
"""Most bytes of a name, for example an error's; longer ones are cut."""


def _sane(name: str, value: object) -> object:
    """A field's value in the form that a report may have; None: leave it out."""
    if name in _TEXTS:
        if not isinstance(value, str):
            raise DamagedHandoff(f"In the report, `{name}` is not text.")
        return clean(value) if name in TEXTS else cut(clean(value), MOST)
    if name in _COUNTS:
        return value if _is_count(value) else None
    if name in _TIMES:
        return float(value) if _is_number(value) and value >= 0 else None
    if name == "shortened":
        return value is True
    if not isinstance(value, Mapping):
        return None
    entries = {key: x for key, x in value.items() if is_text(key)}
    if name in ("phases", "profile"):
        return {key: float(x) for key, x in entries.items() if _is_number(x)}
    if name == "map":
        return {key: x for key, x in entries.items() if is_text(x) or _is_count(x)}
    return {key: x for key, x in entries.items() if _is_count(x)}


def _is_count(value: object) -> TypeGuard[int]:
    return is_integer(value) and 0 <= value <= U64


def _is_number(value: object) -> TypeGuard[int | float]:
    if is_integer(value):
        return -U64 <= value <= U64
    return isinstance(value, float) and math.isfinite(value)


# -- what is reported ------------------------------------------------------------------------------


def failed(by: str, error: KjumpError) -> Report:
    """A report of a failure and its reason."""
    return Report(by, FAILED, error.name, error.what, error.todo)


def returned(pages: Counts, map: Mapping[str, int | str], processors: int) -> Report:
    """The report of a dry run: the helper read memory and target, wrote nothing, and came back."""
    return Report(HELPER, RETURNED, pages=pages, map=map, processors=processors)


def resting(jump_back: int, phases: Seconds, memory: Counts) -> Report:
    """The report of a warm helper that is ready, and jumps back until a request comes."""
    return Report(HELPER, RESTING, jump_back=jump_back, phases=dict(phases), memory=memory)


def restored(
    outcome: Report,
    way: str,
    saved: float,
    phases: Seconds,
    boot_memory: Counts | None = None,
) -> Report:
    """What a restored session finds: the figures of all kernels on the way.

    ``outcome``: of its image; ``phases``: those that are not in it yet.
    """
    return replace(
        outcome.passed_on(),
        by=RESUME,
        result=OK,
        way=way,
        saved=saved,
        resumed=time.time(),
        boot_memory=boot_memory or {},
        phases={**outcome.phases, **phases},
    )


# -- making it fit ---------------------------------------------------------------------------------

TEXTS = ("what", "todo")
"""What is shortened, if nothing else is left."""
KEPT = ("by", "result", "error", "tries", "jump_back", "shortened")
"""What is never left out."""


def encode(document: JsonObject) -> bytes:
    """As JSON in UTF-8; a surrogate on its own becomes a question mark."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def cut(text: str, room: int) -> str:
    """The longest start of ``text`` that takes at most ``room`` bytes in a JSON document."""

    def size(count: int) -> int:
        return len(encode({"": text[:count]})) - len(b'{"":""}')

    return text[: bisect_right(range(len(text) + 1), room, key=size) - 1]


def fit(report: Report, room: int) -> bytes:
    """The report as JSON of at most ``room`` bytes, which must be at least 400.

    A report that is too long loses its figures, the largest first; then its texts are cut.  It
    always keeps who reports, the result, the error's name, `Report.tries`, and as much of the texts
    as there is room for.
    """
    document = Report.from_json(report.to_json()).to_json()  # only what a reader accepts
    text = encode(document)
    if len(text) <= room:
        return text
    document["shortened"] = True
    spare = [name for name in document if name not in (*KEPT, *TEXTS)]
    for name in sorted(spare, key=lambda name: len(encode({name: document[name]})), reverse=True):
        del document[name]
        text = encode(document)
        if len(text) <= room:
            return text
    texts = {name: str(document[name]) for name in TEXTS if name in document}
    left = room - len(encode({**document, **dict.fromkeys(texts, "")}))
    for name in sorted(texts, key=lambda name: len(encode({name: texts[name]}))):
        # The shorter text first: the longer one gets the room that it leaves.
        document[name] = cut(texts[name], left // len(texts))
        left -= len(encode({"": document[name]})) - len(b'{"":""}')
        del texts[name]
    return encode(document)


def read(text: bytes) -> Report:
    """Read what `fit` wrote.  Raises `DamagedHandoff`."""
    return Report.from_json(decode(text, "report", DamagedHandoff))


def read_outcome(text: bytes) -> Report:
    """The outcome of an image; blank if it cannot be read: the image is valid without it."""
    try:
        return read(text) if text else Report()
    except DamagedHandoff:
        return Report()


# -- the report page -------------------------------------------------------------------------------


def blank(nonce: bytes) -> bytes:
    """The empty page (4,096 bytes) that the session prepares."""
    return HEADER.pack(MAGIC, VERSION, 0, nonce, 0).ljust(SIZE, b"\0")


def pack(nonce: bytes, report: Report) -> bytes:
    """A filled page."""
    text = fit(report, ROOM)
    head = HEADER.pack(MAGIC, VERSION, len(text), nonce, zlib.crc32(text))
    return (head + text).ljust(SIZE, b"\0")


def is_for(page: bytes, nonce: bytes) -> bool:
    """Whether this is the report page with this nonce."""
    if len(page) < HEADER.size:
        return False
    magic, version, _length, found, _crc = HEADER.unpack_from(page)
    return bool(magic == MAGIC and version == VERSION and found == nonce)


def unpack(page: bytes, nonce: bytes) -> Report | None:
    """The report on the page, or None if there is none (blank, other nonce, damaged)."""
    if not is_for(page, nonce):
        return None
    _magic, _version, length, _nonce, checksum = HEADER.unpack_from(page)
    text = page[HEADER.size : HEADER.size + length]
    if length == 0 or length > ROOM or zlib.crc32(text) != checksum:
        return None
    try:
        return read(text)
    except DamagedHandoff:
        return None
