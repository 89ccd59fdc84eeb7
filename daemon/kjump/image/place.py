# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the pages of an image belong, and what a reader must refuse of them.

Pure; used by both ways of restoring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kjump.errors import ImageDamaged
from kjump.image.extents import Extents
from kjump.machine.ranges import PAGE, Range, subtract


def ram(description: Mapping[str, Any]) -> list[Range]:
    """The session's RAM, in pfns.  Raises `ImageDamaged`."""
    return _ranges(description, lambda d: d["ram"])


def window(description: Mapping[str, Any]) -> list[Range]:
    """The window and the low ranges that were staged with it, in pfns.  Raises `ImageDamaged`."""
    return _ranges(description, lambda d: (d["window"], *d["low"]))


def _ranges(
    description: Mapping[str, Any], take: Callable[[Mapping[str, Any]], Iterable[Any]]
) -> list[Range]:
    try:
        return [(int(a) // PAGE, int(b) // PAGE) for a, b in take(description)]
    except (KeyError, TypeError, ValueError) as error:
        raise ImageDamaged(f"The image's description lacks {error}.") from error


def pieces(description: Mapping[str, Any]) -> list[Range]:
    """The memory an image may cover: RAM without the window and the low ranges, in pfns.

    Raises `ImageDamaged`.
    """
    return subtract(ram(description), window(description))


def check_pages(extents: Extents, description: Mapping[str, Any]) -> None:
    """Every page must be RAM outside the window: it would be written wherever it points.

    Raises `ImageDamaged`.
    """
    wrong = extents.outside(pieces(description))
    if wrong is not None:
        raise ImageDamaged(f"The image has a page {wrong.pfn:#x} that is not its to restore.")
