"""Where the pages of an image belong, and what a reader must refuse of them.

Pure; used by both ways of restoring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kjump.errors import ImageDamaged
from kjump.image.extents import Extents
from kjump.machine.ranges import PAGE, Range, subtract


def pieces(description: Mapping[str, Any]) -> list[Range]:
    """The memory an image may cover: RAM without the window and the low ranges, in pfns.

    Raises `ImageDamaged`.
    """
    try:
        ram = [(int(a) // PAGE, int(b) // PAGE) for a, b in description["ram"]]
        hidden = [
            (int(a) // PAGE, int(b) // PAGE)
            for a, b in (description["window"], *description["low"])
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ImageDamaged(f"The image's description lacks {error}.") from error
    return subtract(ram, hidden)


def check_pages(extents: Extents, description: Mapping[str, Any]) -> None:
    """Every page must be RAM outside the window: it would be written wherever it points.

    Raises `ImageDamaged`.
    """
    wrong = extents.outside(pieces(description))
    if wrong is not None:
        raise ImageDamaged(f"The image has a page {wrong.pfn:#x} that is not its to restore.")
