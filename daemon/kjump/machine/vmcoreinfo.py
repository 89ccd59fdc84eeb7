# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO: the session's kernel's own description of where its structures lie.

Pure.  It is text with one fact a line: ``OSRELEASE=6.12.0``, ``SYMBOL(name)=hex``,
``NUMBER(name)=decimal`` (signed), ``SIZE``, ``OFFSET``, ``LENGTH`` (kernel/vmcore_info.c).
"""

from __future__ import annotations

from collections.abc import Mapping

from kjump.errors import MemoryUnreadable

OWNER = b"VMCOREINFO"


def parse(text: bytes) -> dict[str, str]:
    """All lines by key; lines without ``=`` are ignored."""
    out = {}
    for line in text.rstrip(b"\0").decode("ascii", "replace").splitlines():
        key, sign, value = line.partition("=")
        if sign:
            out[key] = value
    return out


def text(facts: Mapping[str, str]) -> str:
    """The reverse of `parse`: the facts as lines of text."""
    return "".join(f"{key}={value}\n" for key, value in facts.items())


def number(facts: Mapping[str, str], *keys: str, base: int = 10) -> int:
    """The value of the first of the keys that is there.  Raises `MemoryUnreadable` if none is."""
    for key in keys:
        if key in facts:
            try:
                return int(facts[key], base)
            except ValueError as error:
                raise MemoryUnreadable(f"VMCOREINFO: {key}={facts[key]}") from error
    raise MemoryUnreadable(
        f"VMCOREINFO of the session's kernel does not contain {' or '.join(keys)}."
    )


def symbol(facts: Mapping[str, str], *names: str) -> int:
    """Virtual address of a kernel symbol in the session's kernel."""
    return number(facts, *(f"SYMBOL({name})" for name in names), base=16)
