# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl image``: describe an image, verify it, or write it as an ELF core.

Runs in the session, as any user who may read the image.  Never writes to it and resumes nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump import settings as configuration
from kjump.cli import show
from kjump.cli.commands import add_command
from kjump.cli.completion import FILES, completes
from kjump.cli.terminal import Options, byte_progress, print_result
from kjump.errors import BadRequest, NoImage, NoTarget, TargetMapped, UnsuitableFile
from kjump.machine.udev import names_a_file

if TYPE_CHECKING:
    from kjump.image.read import Image


def add(subparsers: Any) -> None:
    """Add the commands to the command line."""
    text = "Look at an image."
    parser = subparsers.add_parser("image", help=text, description=text)
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    _add_path(add_command(commands, "info", info, "Describe the image on the target."))
    _add_path(add_command(commands, "verify", verify, "Read all of an image and check it."))
    sub = add_command(commands, "export", export_core, "Write an image as an ELF core.")
    core = sub.add_argument("core", metavar="FILE", help="the core to write; must not exist yet")
    completes(core, FILES)
    _add_path(sub)


def _add_path(parser: argparse.ArgumentParser) -> None:
    path = parser.add_argument(
        "path", nargs="?", metavar="PATH", help="default: the configured target"
    )
    completes(path, FILES)


# -- commands --------------------------------------------------------------------------------------


def info(options: Options) -> int:
    """Print an image's superblock and description."""
    from kjump.image import read
    from kjump.image.target import open_image

    path, locator = locate(options.path)
    try:
        found = read.describe(path, open_image(path, locator))
    except PermissionError as error:
        raise BadRequest(f"{path} cannot be read.", advice="Do it as root.") from error
    except OSError as error:
        raise NoImage(f"{path} cannot be read: {error.strerror}.") from error
    document = {"path": str(path), **found}
    print_result(options, document, lambda: show.table(rows(document)))
    return 0


def verify(options: Options) -> int:
    """Check every checksum."""
    from kjump.image import export

    with _opened(options) as image:
        progress = byte_progress(options, image.superblock.data_pages * 4096)
        size = export.verify(image, progress)
    print_result(
        options, {"verified": size}, lambda: f"Every checksum is right: {size >> 20} MiB of memory."
    )
    return 0


def export_core(options: Options) -> int:
    """Write the core."""
    from kjump.image import export

    out = Path(options.core)
    try:
        with _opened(options) as image:
            progress = byte_progress(options, image.superblock.data_pages * 4096)
            core = export.export(image, out, progress)
    except FileExistsError as error:
        raise BadRequest(f"{out} exists already.", advice="Choose another file.") from error
    missing = "" if core.window else "\nThe window's memory was not found; it reads as zeros."
    print_result(
        options,
        {"core": str(out), "size": core.size, "window": core.window},
        lambda: f"Written: {out}{missing}",
    )
    return 0


# -- finding the image -----------------------------------------------------------------------------


def locate(path: str | None) -> tuple[Path, int | None]:
    """(path, byte offset of the locator or None) of the image in ``path``, or on the target."""
    from kjump.image.target import link

    spec = str(path or configuration.load().target.path)
    if not spec:
        raise NoTarget("No target is configured, and no PATH was given.")
    if not path and not names_a_file(spec):
        return link(spec), None
    file = Path(spec)
    if not file.is_file() or _is_copy(file):
        return file, None
    # The content of an image file cannot be read through its file system.
    from kjump.session.target import devices

    try:
        found = devices.resolve(os.path.realpath(file))
    except (UnsuitableFile, TargetMapped):
        return file, None
    return found.path, found.locator


def _is_copy(path: Path) -> bool:
    """Whether a file is a copy of a target: a superblock can be read at its start."""
    from kjump.image import layout

    try:
        with path.open("rb") as file:
            head = file.read(2 * layout.BLOCK)
    except OSError:
        return True  # opening it as a copy reports why it cannot be read
    return any(head[at : at + len(layout.MAGIC)] == layout.MAGIC for at in layout.SLOTS)


@contextmanager
def _opened(options: Options) -> Iterator[Image]:
    """The image of the command line, open for reading."""
    from kjump.image.read import Image
    from kjump.image.target import open_image

    with open_image(*locate(options.path)) as device:
        yield Image(device)


def rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested document as rows of a table."""
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            out += rows(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 4:
            out.append((f"{prefix}{key}", f"({len(value)} entries)"))
        else:
            out.append((f"{prefix}{key}", str(value)))
    return out
