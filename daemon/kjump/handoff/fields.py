# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading JSON that another kernel wrote: every field is checked before it is used.

Runs in all three kernels.  Pure.  Whatever the bytes, a reader raises only the error that the
caller chose, which names the field, and never another exception.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TypeGuard

from kjump.errors import KjumpError
from kjump.machine.ranges import PAGE, Range

JsonObject = Mapping[str, object]

U64 = (1 << 64) - 1
PHYSICAL = 1 << 52
"""Physical addresses on x86_64 are below this."""
SECONDS = float(1 << 31)
"""The longest time span in a document."""


def decode(text: bytes, name: str, error: type[KjumpError]) -> JsonObject:
    """The JSON object in ``text`` (UTF-8).  ``name``: the document's name, for the message.

    Raises ``error`` if it is not JSON, is nested too deeply, or is not an object.
    """
    try:
        found = json.loads(text.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as failure:
        raise error(f"The {name} holds no JSON.") from failure
    return _object(found, name, error)


def _refuse(constant: str) -> None:
    """Python accepts NaN and Infinity, but they are not JSON."""
    raise ValueError(constant)


def _object(found: object, name: str, error: type[KjumpError]) -> JsonObject:
    if not isinstance(found, Mapping):
        raise error(f"The {name} is not a JSON object.")
    return found


def is_integer(value: object) -> TypeGuard[int]:
    """Whether this is a whole number; Python would also accept a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> TypeGuard[str]:
    """Whether this is text that can be written anywhere: without lone surrogates."""
    return isinstance(value, str) and clean(value) == value


class Fields:
    """The fields of a JSON object.  Each method raises ``error`` if the field is missing (and has
    no default) or is not what it should be; the message names the field."""

    def __init__(self, document: object, name: str, error: type[KjumpError]) -> None:
        """``name``: the document's name, for the message."""
        self._document = _object(document, name, error)
        self._name = name
        self._error = error

    def __contains__(self, key: str) -> bool:
        return key in self._document

    def is_null(self, key: str) -> bool:
        """Whether the field is null or missing."""
        return self._document.get(key) is None

    def wrong(self, key: str) -> KjumpError:
        """The error for a field that makes no sense."""
        return self._error(f"In the {self._name}, `{key}` makes no sense.")

    def _get(self, key: str) -> object:
        if key not in self._document:
            raise self._error(f"The {self._name} lacks `{key}`.")
        return self._document[key]

    def integer(
        self, key: str, *, least: int = 0, most: int = U64, default: int | None = None
    ) -> int:
        if default is not None and key not in self:
            return default
        value = self._get(key)
        if not is_integer(value) or not least <= value <= most:
            raise self.wrong(key)
        return value

    def seconds(self, key: str, default: float | None = None, *, most: float = SECONDS) -> float:
        """A number that is not negative."""
        if default is not None and key not in self:
            return default
        value = self._get(key)
        # A whole number may be too large for a floating-point number.
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
            raise self.wrong(key)
        return float(value)

    def time(self, key: str) -> float:
        """Seconds since 1970; 0 if the field is missing."""
        return self.seconds(key, 0.0, most=1e12)

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and key not in self:
            return default
        value = self._get(key)
        if not is_text(value):
            raise self.wrong(key)
        return value

    def items(self, key: str, default: tuple[object, ...] | None = None) -> tuple[object, ...]:
        if default is not None and key not in self:
            return default
        value = self._get(key)
        if not isinstance(value, list | tuple):
            raise self.wrong(key)
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self.items(key)
        texts = tuple(x for x in found if is_text(x))
        if len(texts) != len(found):
            raise self.wrong(key)
        return texts

    def objects(self, key: str) -> tuple[Fields, ...]:
        """A list of objects; empty if the field is missing."""
        return tuple(
            Fields(entry, f"{self._name}'s `{key}`", self._error) for entry in self.items(key, ())
        )

    def nested(self, key: str) -> Fields:
        """An object in the object."""
        return Fields(self._get(key), f"{self._name}'s `{key}`", self._error)

    def integers(self, key: str, count: int, most: int) -> tuple[tuple[int, ...], ...]:
        """A list of tuples with ``count`` whole numbers each."""
        out = []
        for entry in self.items(key):
            if not isinstance(entry, list | tuple) or len(entry) != count:
                raise self.wrong(key)
            if not all(is_integer(x) and 0 <= x <= most for x in entry):
                raise self.wrong(key)
            out.append(tuple(entry))
        return tuple(out)

    def ranges(self, key: str) -> tuple[Range, ...]:
        """A list of physical byte ranges [start, end) in whole pages."""
        found = tuple((a, b) for a, b in self.integers(key, 2, PHYSICAL))
        if any(start >= end or (start | end) % PAGE for start, end in found):
            raise self.wrong(key)
        return found

    def range(self, key: str) -> Range:
        """Physical bytes [start, end) in whole pages."""
        (found,) = Fields({key: [self._get(key)]}, self._name, self._error).ranges(key)
        return found

    def page(self, key: str) -> int:
        """The physical address of a page; not 0."""
        address = self.integer(key, least=PAGE, most=PHYSICAL)
        if address % PAGE:
            raise self.wrong(key)
        return address


def plain(value: object, depth: int = 4) -> object:
    """A copy that can be written as JSON again: a value that is nested too deeply, or that JSON
    does not have, becomes None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -U64 <= value <= U64 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean(value)
    if depth and isinstance(value, Mapping):
        return {clean(key): plain(x, depth - 1) for key, x in value.items() if is_text(key)}
    if depth and isinstance(value, list | tuple):
        return [plain(x, depth - 1) for x in value]
    return None


def as_json(value: object) -> object:
    """A copy in JSON's types, for another kernel: tuples become lists, text is `clean`."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: as_json(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(x) for x in value]
    return value


def clean(text: str) -> str:
    """Text that can be written anywhere: each lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
