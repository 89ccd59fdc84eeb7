# SPDX-License-Identifier: GPL-2.0-or-later
"""The description of an image: what a kernel that resumes from it must know.

Runs in all three kernels: the helper writes it, the boot side and the session read it.  Pure.  The
fields are those of kjump-image(5), under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from kjump.errors import ImageDamaged, KjumpError
from kjump.handoff.documents import FileSystem, MachineFacts
from kjump.handoff.fields import Fields, JsonObject, as_json, decode, is_text
from kjump.image.extents import Extents
from kjump.machine.ranges import PAGE, Range, subtract

NAME = "image's description"


@dataclass(frozen=True)
class SavedFileSystem(FileSystem):
    """A file system that was mounted when the session was saved."""

    fingerprint: str | None = None
    """See `kjump.image.fingerprint`; None: the helper could not read the device."""

    @classmethod
    def from_fields(cls, found: Fields) -> SavedFileSystem:
        fingerprint = None
        if not found.is_null("fingerprint"):
            fingerprint = found.text("fingerprint")
        return cls(found.text("type", ""), found.texts("links"), fingerprint)


@dataclass(frozen=True)
class Description:
    """What an image says about its session."""

    facts: MachineFacts
    jump_back: int
    """Physical address at which the session continues."""
    cycle: str = ""
    hostname: str = ""
    kjump: str = ""
    """Version of the kjump that wrote the image."""
    requested: float = 0.0
    """Seconds since 1970, like ``saved``."""
    saved: float = 0.0
    vmcoreinfo: str = ""
    """The lines of the session's kernel's VMCOREINFO; empty: not known."""
    watchdog_device: str = ""
    """The watchdog that restarts a helper that hangs, as a text for people; empty: none."""
    file_systems: tuple[SavedFileSystem, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            **self.facts.to_json(),
            **{f.name: as_json(getattr(self, f.name)) for f in fields(self) if f.name != "facts"},
            "file_systems": [as_json(asdict(system)) for system in self.file_systems],
        }

    @classmethod
    def from_json(cls, document: object) -> Description:
        """Raises `ImageDamaged`, which names the field."""
        found = Fields(document, NAME, ImageDamaged)
        return cls(
            facts=MachineFacts.from_json(document, NAME, ImageDamaged),
            jump_back=found.integer("jump_back"),
            cycle=found.text("cycle", ""),
            hostname=found.text("hostname", ""),
            kjump=found.text("kjump", ""),
            requested=found.time("requested"),
            saved=found.time("saved"),
            vmcoreinfo=found.text("vmcoreinfo", ""),
            watchdog_device=found.text("watchdog_device", ""),
            file_systems=tuple(map(SavedFileSystem.from_fields, found.objects("file_systems"))),
        )

    def pack(self) -> bytes:
        """The form in which it is stored."""
        return json.dumps(self.to_json(), separators=(",", ":")).encode()

    @property
    def ram(self) -> list[Range]:
        """The session's RAM, in pfns."""
        return _in_pages(self.facts.ram)

    @property
    def window(self) -> list[Range]:
        """The window and the low ranges that were staged with it, in pfns."""
        return _in_pages([self.facts.window, *self.facts.low])

    @property
    def pieces(self) -> list[Range]:
        """The memory an image may cover: RAM without the window and the low ranges, in pfns."""
        return subtract(self.ram, self.window)

    def check_pages(self, extents: Extents) -> None:
        """Check that every page is RAM outside the window: a restore would write it anywhere.

        Raises `ImageDamaged`.
        """
        wrong = extents.outside(self.pieces)
        if wrong is not None:
            raise ImageDamaged(f"The image has a page {wrong.pfn:#x} that it must not restore.")


def _in_pages(ranges: Iterable[Range]) -> list[Range]:
    return [(start // PAGE, end // PAGE) for start, end in ranges]


def unpack(text: bytes) -> Description:
    """Read a stored description.  Raises `ImageDamaged`."""
    return Description.from_json(decode(text, NAME, ImageDamaged))


@dataclass(frozen=True)
class Owner:
    """Whose session an image holds, as far as its description says; empty: it does not say."""

    machine: str = ""
    hostname: str = ""


def owner(text: bytes) -> Owner:
    """The owner named by a description that may be damaged elsewhere, or of an unknown version.

    Never raises: the answer protects another machine's session.
    """
    try:
        document: JsonObject = decode(text, NAME, ImageDamaged)
    except KjumpError:
        return Owner()
    machine, hostname = (document.get(key) for key in ("machine", "hostname"))
    return Owner(
        machine if is_text(machine) else "",
        hostname if is_text(hostname) else "",
    )
