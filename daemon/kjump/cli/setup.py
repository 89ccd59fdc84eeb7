# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl setup``: a target is chosen or made, and configured.

Runs in the session, as root.  `survey` reads, `choose` decides, and nothing is written before that
was shown.  An image file's blocks are only allocated, never written through the file
system: what the image puts there is read and written underneath, and whoever reads the file sees
zeros.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kjump import settings as configuration
from kjump.errors import (
    BadConfiguration,
    BadRequest,
    KjumpError,
    NoTarget,
    TargetTooSmall,
    UnsuitableFile,
)
from kjump.image.layout import BLOCK
from kjump.image.target import SMALLEST
from kjump.machine.ranges import align_up
from kjump.session.checks import readiness
from kjump.session.target import claim, devices, files
from kjump.session.target.mounts import Mount, read_mounts
from kjump.session.target.swaps import read_swaps

DROP_IN = Path("/etc/kjump/kjump.conf.d/90-target.conf")
LABEL = "kjump"
"""PARTLABEL of a partition that is there for us."""
NAME = "kjump.image"
LEFT = 1 << 30
"""Bytes that must be free on a file system when an image file was made on it."""
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Made:
    """The file; ``size`` in bytes."""

    path: Path
    size: int


def parse_size(text: str | None) -> int:
    """Bytes, in whole blocks, of ``16G`` and the like; None: enough for any image of this machine.

    Raises `BadRequest`.
    """
    if text is None:
        return align_up(claim.largest_image_size(), BLOCK)
    number = text.rstrip("KMGTkmgt")
    unit = text[len(number) :].upper()
    if not (number.isascii() and number.isdigit()) or unit not in UNITS:
        raise BadRequest(f"{text!r} is no size.", advice="Write it like 16G or 800M.")
    size = int(number) * UNITS[unit] // BLOCK * BLOCK
    if size < SMALLEST:
        raise BadRequest(f"{text} is too little for any image.", advice="RAM's size will do.")
    return size


def make(path: Path, size: int) -> Made:
    """Make the file, of ``size`` bytes, and see that an image can be written to it.

    Where it cannot, nothing is left behind.  Raises `BadRequest`, `TargetTooSmall`,
    `UnsuitableFile`, `TargetMapped`.
    """
    if os.geteuid():
        raise BadRequest("Only root can make such a file.", advice="Do it as root.")
    if not path.is_absolute() or path.is_relative_to("/dev"):
        raise BadRequest(f"{path} is no absolute path of a file.", advice="See kjumpctl(1).")
    path = Path(os.path.realpath(path.parent), path.name)
    if path.is_relative_to("/var/lib/kjump"):
        raise BadRequest(
            f"{path} would stand in the way when the package is removed.",
            advice="Name a file in another directory.",
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadRequest(
            f"{path} cannot be made: {error.strerror}.", advice="Name another file."
        ) from error
    try:
        try:
            _allocate(fd, path, size)
        finally:
            os.close(fd)
        found = files.blocks_of(path)
        if found.written or found.size < size:
            raise UnsuitableFile(
                f"The file system of {path} does not keep blocks for later.",
                advice="Name a file on ext4, xfs or btrfs.",
            )
        _protect(path)
    except BaseException:
        path.unlink()
        raise
    return Made(path, size)


def _allocate(fd: int, path: Path, size: int) -> None:
    try:
        kind = files.file_system(fd)
        if kind not in files.NAMES:
            raise UnsuitableFile(
                f"{path} lies neither on ext4 nor xfs nor btrfs.", advice="Name a file that does."
            )
        if kind == files.BTRFS:
            # While it has no blocks yet; without, its blocks would move at each write.
            files.set_flags(fd, files.NOCOW)
        os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise TargetTooSmall(
                f"There is no room for {size >> 20} MiB on the file system of {path}.",
                advice="Name a file on another one, or a smaller --size.",
            ) from error
        raise UnsuitableFile(f"{path} cannot be made: {error.strerror}.") from error


def _protect(path: Path) -> None:
    """Nobody writes to it, moves or removes it; programs that defragment leave it alone."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.set_flags(fd, files.IMMUTABLE)
        os.fsync(fd)
    except OSError as error:
        raise UnsuitableFile(f"{path} cannot be protected: {error.strerror}.") from error
    finally:
        os.close(fd)


def configure(path: Path | str, drop_in: Path = DROP_IN) -> Path:
    """Name the file in a drop-in of the configuration; that drop-in.

    Raises `BadConfiguration` where another one, read later, names something else.
    """
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    fresh = drop_in.with_suffix(".new")
    fresh.write_text(f"# Written by kjumpctl setup.\n[Target]\nPath={path}\n")
    fresh.replace(drop_in)
    if configuration.load().target.path != str(path):
        raise BadConfiguration(
            f"A configuration file that is read after {drop_in} names another target.",
            advice="Remove its Path= of [Target], then: kjumpctl update-initrd.",
        )
    return drop_in


# -- choosing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Something that could be the target."""

    spec: str
    """As ``[Target] Path=`` has it."""
    name: str
    """For a person."""
    room: int
    """Bytes that an image may have; of a file system, bytes that are free on it."""
    why_not: str = ""
    """Why it cannot be; empty: it can, if it is large enough."""


@dataclass(frozen=True)
class Survey:
    """What there is.  Each list in the order of preference."""

    configured: Candidate | None = None
    swaps: tuple[Candidate, ...] = ()
    partitions: tuple[Candidate, ...] = ()
    file_systems: tuple[Candidate, ...] = ()
    """``spec`` is the file that would be made on it."""


@dataclass(frozen=True)
class Plan:
    """What setting up would do."""

    spec: str
    name: str
    make: int = 0
    """Bytes of the file to make; 0: none is made."""
    write: bool = True
    """Whether the configuration is written; not where it names this target already."""

    def sentences(self) -> list[str]:
        """What would be done, for a person."""
        out = [f"Hibernate to {self.name}."]
        if self.make:
            out.append(f"Make the file {self.spec}, {self.make >> 20} MiB.")
        if self.write:
            out.append(f"Write Path={self.spec} to {DROP_IN}.")
        return [*out, "Build the initrds of helper and boot for all kernels (some minutes)."]


def choose(survey: Survey, size: int) -> Plan:
    """The target: what is configured, else swap, else a partition of our name, else a file.

    ``size``: bytes that it should have.  Raises `NoTarget`, which names everything that was looked
    at and why it will not do.
    """
    passed: list[str] = []

    def fits(candidate: Candidate, least: int) -> bool:
        why = candidate.why_not
        if not why and candidate.room < least:
            why = f"{candidate.room >> 20} MiB free, {least >> 20} MiB needed"
        if why:
            passed.append(f"{candidate.name}: {why}")
        return not why

    if survey.configured is not None and fits(survey.configured, SMALLEST):
        return Plan(survey.configured.spec, survey.configured.name, write=False)
    for candidate in (*survey.swaps, *survey.partitions):
        if fits(candidate, size):
            return Plan(candidate.spec, candidate.name)
    for candidate in survey.file_systems:
        if fits(candidate, size + LEFT):
            return Plan(candidate.spec, f"a file on {candidate.name}", make=size)
    raise NoTarget(
        "Nothing here can be the target" + (f" ({'; '.join(passed)})." if passed else "."),
        advice="Add swap, make a partition named kjump, or free room for a file; --size SIZE makes"
        " do with less.",
    )


def supported(mounts: Iterable[Mount]) -> list[tuple[str, str]]:
    """(mount point, type) of the writable file systems that can hold an image file: the root
    first, the others as they were mounted, each once."""
    found: dict[str, tuple[str, str]] = {}
    for mount in mounts:
        # A subtree is mounted elsewhere as a whole, or is a container's.
        whole = mount.root == "/" or mount.kind == "btrfs"
        # Another name could not be written into the configuration.
        plain = mount.point.isprintable()
        if mount.kind in files.NAMES.values() and "rw" in mount.options and whole and plain:
            found.setdefault(mount.number, (mount.point, mount.kind))
    return sorted(found.values(), key=lambda pair: pair[0] != "/")


def stable(device: devices.TargetDevice) -> str:
    """A name for ``[Target] Path=`` that is the same after the next boot."""
    if device.file:
        return device.file
    if device.partuuid:
        return f"PARTUUID={device.partuuid}"
    return next((x for x in device.links if "/by-uuid/" in x), str(device.path))


def look_at(path: str, name: str) -> Candidate:
    """What a path or spec leads to.  Never raises."""
    try:
        found = devices.resolve(path)
    except (KjumpError, OSError) as error:
        why = error.what if isinstance(error, KjumpError) else str(error.strerror)
        return Candidate(path, name, 0, why.rstrip("."))
    reasons = readiness.target_reasons(found)
    why = reasons[0].what.rstrip(".") if reasons else ""
    return Candidate(stable(found), name, found.capacity, why)


def survey() -> Survey:
    """Look at what there is.  Never raises for what it finds."""
    spec = configuration.load().target.path
    configured = look_at(spec, f"{spec}, as configured") if spec else None
    if configured is not None:
        configured = Candidate(spec, configured.name, configured.room, configured.why_not)
    swaps = [
        look_at(str(area.path), f"the swap {'file' if area.is_file else 'partition'} {area.path}")
        for area in read_swaps()
    ]
    labelled = any(device.label == LABEL for device in devices.list_devices())
    partitions = [look_at(f"PARTLABEL={LABEL}", f"the partition named {LABEL}")] if labelled else []
    file_systems = [file_system(*pair) for pair in supported(read_mounts())]
    return Survey(configured, tuple(swaps), tuple(partitions), tuple(file_systems))


def file_system(point: str, kind: str) -> Candidate:
    """A mounted file system, as the place of a file to make."""
    path = Path(point, NAME)
    name = f"{point} ({kind})"
    try:
        free = os.statvfs(point)
        files.refuse_mapped(os.stat(point).st_dev, point)
        why = f"{path} is there already" if path.exists() else ""
    except (KjumpError, OSError) as error:
        why = error.what if isinstance(error, KjumpError) else str(error.strerror)
        return Candidate(str(path), name, 0, why.rstrip("."))
    return Candidate(str(path), name, free.f_bavail * free.f_frsize, why)
