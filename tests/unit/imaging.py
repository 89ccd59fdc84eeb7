# SPDX-License-Identifier: GPL-2.0-or-later
"""Images for tests: written by the real writer out of pages that are given."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

from kjump.image import superblocks
from kjump.image.description import Description
from kjump.image.device import DirectDevice
from kjump.image.extents import Extents
from kjump.image.layout import Extent, Superblock
from kjump.image.read import Image
from kjump.image.write import Writer
from kjump.machine.pages import ZERO, Bundle, Kinds
from kjump.machine.ranges import PAGE

from . import samples

Pages = Iterable[tuple[int, bytes]]


def gather(span: tuple[int, bytes | int], bundle: Bundle) -> None:
    """A span is a pfn, and bytes of pages or how many there are of zeros."""
    pfn, content = span
    if isinstance(content, int):
        kinds = Kinds(bytearray([ZERO]) * content)
        with mmap.mmap(-1, content * PAGE) as memory:
            assert bundle.gather(memory, 0, content, kinds, 0, pfn) == content
        return
    count = len(content) // PAGE
    assert bundle.gather(content, 0, count, Kinds(bytearray(count)), 0, pfn) == count


def fill(
    device: DirectDevice,
    pages: Pages,
    zeros: Iterable[Extent] = (),
    *,
    description: Description = samples.DESCRIPTION,
    processors: int = 2,
    compression: str = "auto",
) -> Superblock:
    """A complete image on a prepared device; ``pages`` of each entry become a chunk."""
    found = superblocks.load(device)
    assert found is not None
    writer = Writer(device, found, compression=compression)
    writer.begin(description)
    spans: list[tuple[int, bytes | int]] = [*pages, *((e.pfn, e.pages) for e in zeros)]
    writer.fill(sorted(spans, key=lambda s: s[0]), gather, processors=processors)
    return writer.commit()


def content(image: Image, index: Extents, processors: int = 2) -> Iterator[tuple[int, bytes]]:
    """(pfn, page) of all data pages."""
    for chunk in image.chunks(index, processors=processors):
        at = 0
        for extent in chunk.extents:
            for pfn in range(extent.pfn, extent.pfn + extent.pages):
                yield pfn, bytes(chunk.data[at : at + PAGE])
                at += PAGE


def prepared(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path
