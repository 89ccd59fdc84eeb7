# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO: how the session's kernel records where its structures lie.

Pure.  Text, a line a fact: ``OSRELEASE=6.12.0``, ``SYMBOL(name)=hex``, ``NUMBER(name)=decimal``
(signed), ``SIZE``, ``OFFSET``, ``LENGTH`` (kernel/vmcore_info.c).
"""

from __future__ import annotations

from collections.abc import Mapping

from kjump.errors import MemoryUnreadable

OWNER = b"VMCOREINFO"


def parse(text: bytes) -> dict[str, str]:
    """All lines by key; a line without ``=`` is passed over."""
    out = {}
    for line in text.rstrip(b"\0").decode("ascii", "replace").splitlines():
        key, sign, value = line.partition("=")
        if sign:
            out[key] = value
    return out


def text(facts: Mapping[str, str]) -> str:
    """The lines again, as `parse` read them."""
    return "".join(f"{key}={value}\n" for key, value in facts.items())


def number(facts: Mapping[str, str], *keys: str, base: int = 10) -> int:
    """The first of the keys that is there.  Raises `MemoryUnreadable` if none is."""
    for key in keys:
        if key in facts:
            try:
                return int(facts[key], base)
            except ValueError as error:
                raise MemoryUnreadable(f"VMCOREINFO: {key}={facts[key]}") from error
    raise MemoryUnreadable(
        f"The session's kernel does not record {' or '.join(keys)} (VMCOREINFO)."
    )


def symbol(facts: Mapping[str, str], *names: str) -> int:
    """Virtual address of a kernel symbol in the session's kernel."""
    return number(facts, *(f"SYMBOL({name})" for name in names), base=16)
