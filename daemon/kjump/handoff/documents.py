# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents of the handoff: the session's orders to the helper.

The session writes them, the helper reads them; the fields are those of kjump-handoff(5), under the
same names.  Pure.  This module does not know how a document travels: see `kjump.handoff.note` and
`kjump.handoff.request`.

Each of them contains `MachineFacts`.  With a `SaveOrder` a helper saves the session (or only checks
whether it could); with a `WarmOrder` it gets ready and waits for a `SaveOrder`.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, fields

from kjump.errors import DamagedHandoff, KjumpError, WrongHandoffVersion
from kjump.handoff.cell import NONCE_SIZE
from kjump.handoff.fields import U64, Fields, JsonObject, as_json
from kjump.machine.memory import Entry
from kjump.machine.ranges import Range

SAVE, DRY_RUN, WARM = "", "dry-run", "warm"
"""The document's ``mode``; an order to save has none."""
COMPRESSIONS = ("auto", "none", "lz4", "zstd")
FREE_PAGES = ("skip", "zero")
LEVELS = 22
"""The highest of zstd."""

NOTE = "handoff note"


@dataclass(frozen=True)
class MachineFacts:
    """The session's machine, as it was when the helper was staged; addresses are physical bytes."""

    machine: str
    """Identity of the machine, see `kjump.machine.identity`."""
    release: str
    """Release of the session's kernel, for people."""
    levels: int
    """Levels of the session's page tables: 4 or 5."""
    window: Range
    low: tuple[Range, ...]
    """The ranges below 1 MiB that are staged with the window."""
    ram: tuple[Range, ...]
    firmware_map: tuple[Entry, ...]
    page_count: int
    """Pages that the kernel counts as present."""
    page_offset: int
    """Virtual address of physical 0 in the kernel's direct map; 0: not known."""
    report_page: int
    nonce: bytes
    """Nonce of the report page."""

    def to_json(self) -> dict[str, object]:
        return {
            **{f.name: as_json(getattr(self, f.name)) for f in fields(self)},
            "firmware_map": [[entry.start, entry.end, entry.kind] for entry in self.firmware_map],
            "nonce": self.nonce.hex(),
        }

    @classmethod
    def from_json(
        cls,
        document: object,
        name: str = NOTE,
        error: type[KjumpError] = DamagedHandoff,
    ) -> MachineFacts:
        """``name``: name of the document with these facts.  Raises ``error``, which names the
        field."""
        found = Fields(document, name, error)
        try:
            nonce = bytes.fromhex(found.text("nonce"))
        except ValueError:
            nonce = b""
        if len(nonce) != NONCE_SIZE:
            raise found.wrong("nonce")
        return cls(
            machine=found.text("machine"),
            release=found.text("release", ""),
            levels=found.integer("levels", least=4, most=5),
            window=found.range("window"),
            low=found.ranges("low"),
            ram=found.ranges("ram"),
            firmware_map=tuple(Entry(*x) for x in found.integers("firmware_map", 3, U64 + 1)),
            page_count=found.integer("page_count"),
            page_offset=found.integer("page_offset", default=0),
            report_page=found.page("report_page"),
            nonce=nonce,
        )


@dataclass(frozen=True)
class FileSystem:
    """A block device that the session has mounted, by its stable links."""

    type: str
    links: tuple[str, ...]

    @classmethod
    def from_fields(cls, found: Fields) -> FileSystem:
        return cls(found.text("type", ""), found.texts("links"))


@dataclass(frozen=True)
class TargetPlace:
    """How another kernel finds the target."""

    spec: str
    """The configured text."""
    links: tuple[str, ...]
    """Paths of the device; each of them is enough."""
    size: int
    """Bytes."""
    locator: int | None = None
    """Byte of the device at which the locator lies; None: the target is the whole device."""

    def to_json(self) -> dict[str, object]:
        return {key: as_json(x) for key, x in asdict(self).items() if x is not None}

    @classmethod
    def from_fields(cls, found: Fields) -> TargetPlace:
        return cls(
            spec=found.text("spec", ""),
            links=found.texts("links"),
            size=found.integer("size", default=0),
            locator=found.integer("locator") if "locator" in found else None,
        )


@dataclass(frozen=True)
class SaveOrder:
    """The order for one cycle: what to save, where to, and how."""

    facts: MachineFacts
    cycle: uuid.UUID
    target: TargetPlace
    deadline: float
    """Seconds of the helper's clock."""
    watchdog: int = 0
    """Seconds without progress after which the copy counts as hung; 0: nothing watches it."""
    level: int = 1
    """Level of zstd."""
    compression: str = "auto"
    free_pages: str = "skip"
    file_systems: tuple[FileSystem, ...] = ()
    kjump: str = ""
    """Version of the session's kjump."""
    requested: float = 0.0
    """Seconds since 1970."""
    hostname: str = ""
    mode: str = SAVE

    def to_json(self) -> dict[str, object]:
        own = {
            f.name: as_json(getattr(self, f.name))
            for f in fields(self)
            if f.name not in ("facts", "mode")
        }
        return {
            **self.facts.to_json(),
            **own,
            "cycle": str(self.cycle),
            "target": self.target.to_json(),
            "file_systems": [as_json(asdict(system)) for system in self.file_systems],
            **({"mode": self.mode} if self.mode else {}),
        }

    @classmethod
    def from_json(cls, document: object) -> SaveOrder:
        """Raises `DamagedHandoff`, which names the field, and `WrongHandoffVersion` for an unknown
        mode."""
        found = Fields(document, NOTE, DamagedHandoff)
        order = cls(
            facts=MachineFacts.from_json(document),
            cycle=_uuid(found, "cycle"),
            target=TargetPlace.from_fields(found.nested("target")),
            deadline=found.seconds("deadline"),
            watchdog=found.integer("watchdog", most=1 << 31, default=0),
            level=found.integer("level", least=1, most=LEVELS, default=1),
            compression=_one_of(found, "compression", COMPRESSIONS),
            free_pages=_one_of(found, "free_pages", FREE_PAGES),
            file_systems=tuple(map(FileSystem.from_fields, found.objects("file_systems"))),
            kjump=found.text("kjump", ""),
            requested=found.time("requested"),
            hostname=found.text("hostname", ""),
            mode=found.text("mode", SAVE),
        )
        if order.mode not in (SAVE, DRY_RUN):
            raise WrongHandoffVersion(
                f"The handoff asks for {order.mode[:40]!r}, which this helper does not know."
            )
        return order

    @property
    def hidden(self) -> list[Range]:
        """Physical ranges that are not the session's memory: the window and the low ranges."""
        return [self.facts.window, *self.facts.low]

    @property
    def links(self) -> list[str]:
        """Links of all devices that the helper must open."""
        return [*self.target.links, *(link for x in self.file_systems for link in x.links)]


@dataclass(frozen=True)
class WarmOrder:
    """The order to get ready and wait: where the request will be, and which devices to find."""

    facts: MachineFacts
    request_page: int
    """Physical address of the request page."""
    devices: tuple[str, ...]
    """Links of the target: the helper waits until its driver has found it."""

    def to_json(self) -> dict[str, object]:
        return {
            **self.facts.to_json(),
            "mode": WARM,
            "request_page": self.request_page,
            "devices": [*self.devices],
        }

    @classmethod
    def from_json(cls, document: object) -> WarmOrder:
        """Raises `DamagedHandoff`, which names the field."""
        found = Fields(document, NOTE, DamagedHandoff)
        return cls(
            MachineFacts.from_json(document), found.page("request_page"), found.texts("devices")
        )


def read(document: JsonObject) -> SaveOrder | WarmOrder:
    """The order in a note's document.  Raises `DamagedHandoff`, `WrongHandoffVersion`."""
    if document.get("mode") == WARM:
        return WarmOrder.from_json(document)
    return SaveOrder.from_json(document)


def differing(one: MachineFacts, other: MachineFacts) -> list[str]:
    """Names of the facts that differ."""
    names = [field.name for field in fields(MachineFacts)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def _uuid(found: Fields, key: str) -> uuid.UUID:
    try:
        return uuid.UUID(found.text(key))
    except ValueError as error:
        raise found.wrong(key) from error


def _one_of(found: Fields, key: str, words: tuple[str, ...]) -> str:
    """The field's word, which must be one of ``words``; the first of them if it is missing."""
    word = found.text(key, words[0])
    if word not in words:
        raise found.wrong(key)
    return word
