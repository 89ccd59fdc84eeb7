# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl setup``: choosing a target, and doing what makes it the target.

Runs in the session, as root.  `survey` reads, `choose` decides, and only `apply` writes, after the
plan was shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump import atomic
from kjump import settings as configuration
from kjump.cli import client, image_file, initrds
from kjump.errors import BadConfiguration, BadRequest, Internal, KjumpError, NoTarget
from kjump.image.layout import BLOCK
from kjump.image.target import SMALLEST
from kjump.machine.ranges import align_up
from kjump.session.checks import readiness
from kjump.session.target import claim, devices, files
from kjump.session.target.mounts import Mount, read_mounts
from kjump.session.target.swaps import read_swaps

DROP_IN = Path("/etc/kjump/kjump.conf.d/90-target.conf")
LABEL = "kjump"
"""PARTLABEL of a partition that was made for kjump."""
NAME = "kjump.image"
LEFT = 1 << 30
"""Bytes that must stay free on a file system on which an image file is made."""
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str | None) -> int:
    """``16G`` and the like in bytes, whole blocks; None: enough for any image of this machine.

    Raises `BadRequest`.
    """
    if text is None:
        return align_up(claim.largest_image_size(), BLOCK)
    number = text.rstrip("KMGTkmgt")
    unit = text[len(number) :].upper()
    if not (number.isascii() and number.isdigit()) or unit not in UNITS:
        raise BadRequest(f"{text!r} is not a size.", advice="Write it like 16G or 800M.")
    size = int(number) * UNITS[unit] // BLOCK * BLOCK
    if size < SMALLEST:
        raise BadRequest(f"{text} is too small for any image.", advice="The size of RAM is enough.")
    return size


# -- choosing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Something that could be the target."""

    spec: str
    """Its name for ``[Target] Path=``."""
    name: str
    """For a person."""
    room: int
    """Bytes that an image may have; for a file system, bytes that are free on it."""
    why_not: str = ""
    """Why it cannot be the target; empty: it can, if it is large enough."""


@dataclass(frozen=True)
class Survey:
    """What the machine has.  Each list is in the order of preference."""

    configured: Candidate | None = None
    swaps: tuple[Candidate, ...] = ()
    partitions: tuple[Candidate, ...] = ()
    file_systems: tuple[Candidate, ...] = ()
    """Their ``spec`` is the file that would be made there."""


@dataclass(frozen=True)
class Plan:
    """What setting up would do."""

    spec: str
    name: str
    make: int = 0
    """Bytes of the file to make; 0: none is made."""
    write: bool = True
    """Whether the configuration is written; not if it names this target already."""

    def sentences(self, *, with_initrds: bool = True) -> list[str]:
        """What would be done, for a person.  ``with_initrds``: whether they are built."""
        out = [f"Hibernate to {self.name}."]
        if self.make:
            out.append(f"Make the file {self.spec}, {self.make >> 20} MiB.")
        if self.write:
            out.append(f"Write Path={self.spec} to {DROP_IN}.")
        if with_initrds:
            out.append("Build the initrds of helper and boot for all kernels (some minutes).")
        return out


def choose(survey: Survey, size: int) -> Plan:
    """The target: the configured one, else swap, else a partition of our name, else a file.

    ``size``: bytes that it should have.  Raises `NoTarget`, which names every candidate and why it
    was rejected.
    """
    rejected: list[str] = []

    def fits(candidate: Candidate, least: int, stays_free: int = 0) -> bool:
        why = candidate.why_not
        if not why and candidate.room < least + stays_free:
            why = f"{candidate.room >> 20} MiB free, {least + stays_free >> 20} MiB needed"
            if stays_free:
                why += f", {stays_free >> 20} MiB of them to stay free"
        if why:
            rejected.append(f"{candidate.name}: {why}")
        return not why

    if survey.configured is not None and fits(survey.configured, SMALLEST):
        return Plan(survey.configured.spec, survey.configured.name, write=False)
    for candidate in (*survey.swaps, *survey.partitions):
        if fits(candidate, size):
            return Plan(candidate.spec, candidate.name)
    for candidate in survey.file_systems:
        if fits(candidate, size, LEFT):
            return Plan(candidate.spec, f"a file on {candidate.name}", make=size)
    raise NoTarget(
        "Nothing here can be the target" + (f" ({'; '.join(rejected)})." if rejected else "."),
        advice="Add swap, make a partition named kjump, or free space for a file; --size SIZE asks"
        " for less.",
    )


def supported(mounts: Iterable[Mount]) -> list[tuple[str, str]]:
    """(mount point, type) of the writable file systems that can hold an image file.

    The root comes first, then the others in the order in which they were mounted, each once.
    """
    found: dict[str, tuple[str, str]] = {}
    for mount in mounts:
        # A subtree is mounted as a whole elsewhere, or belongs to a container.
        whole = mount.root == "/" or mount.kind == "btrfs"
        # Another name could not be written into the configuration.
        plain = mount.point.isprintable()
        if mount.kind in files.NAMES.values() and "rw" in mount.options and whole and plain:
            found.setdefault(mount.number, (mount.point, mount.kind))
    return sorted(found.values(), key=lambda pair: pair[0] != "/")


def stable(device: devices.TargetDevice) -> str:
    """A name for ``[Target] Path=`` that stays the same after the next boot."""
    if device.file:
        return device.file
    if device.partuuid:
        return f"PARTUUID={device.partuuid}"
    return next((x for x in device.links if "/by-uuid/" in x), str(device.path))


def look_at(path: str, name: str) -> Candidate:
    """What a path or spec leads to, as a candidate.  Never raises."""
    try:
        found = devices.resolve(path)
    except (KjumpError, OSError) as error:
        why = error.what if isinstance(error, KjumpError) else str(error.strerror)
        return Candidate(path, name, 0, why.rstrip("."))
    reasons = readiness.target_reasons(found)
    why = reasons[0].what.rstrip(".") if reasons else ""
    return Candidate(stable(found), name, found.capacity, why)


def survey() -> Survey:
    """Look at what the machine has.  Never raises because of what it finds."""
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
    """A mounted file system, as a candidate for a file on it."""
    path = Path(point, NAME)
    name = f"{point} ({kind})"
    try:
        free = os.statvfs(point)
        files.refuse_mapped(os.stat(point).st_dev, point)
        why = f"{path} exists already" if path.exists() else ""
        if not why and image_file.changeable(Path(point)):
            why = "others than root can change its top directory"
    except (KjumpError, OSError) as error:
        why = error.what if isinstance(error, KjumpError) else str(error.strerror)
        return Candidate(str(path), name, 0, why.rstrip("."))
    return Candidate(str(path), name, free.f_bavail * free.f_frsize, why)


# -- doing -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Applied:
    """What `apply` did."""

    spec: str
    """The target; of a file, its path without symbolic links."""
    size: int
    """Bytes of the file that was made, or 0."""
    drop_in: Path | None
    """The configuration that was written."""


def apply(plan: Plan, *, update: Sequence[str] | None) -> Applied:
    """Do what the plan says, and have kjumpd read its configuration.

    ``update``: arguments for the program that builds the initrds; None: they are left alone.
    Raises `BadRequest`, `Internal`, and the errors of `image_file.make` and `configure`.
    """
    if os.geteuid():
        raise BadRequest("Only root can set kjump up.", advice="Do it as root.")
    spec = plan.spec
    if plan.make:
        spec = str(image_file.make(Path(plan.spec), plan.make).path)
    drop_in = configure(spec) if plan.write else None
    if update is not None and not initrds.update(update, to_stderr=True):
        raise Internal(
            "Not all initrds could be built.", advice="See the messages above this line."
        )
    try:
        client.Client().reload()
    except KjumpError as error:
        # It reads the configuration when it starts.
        print(f"kjumpctl: {error.sentence}", file=sys.stderr)
    return Applied(spec, plan.make, drop_in)


def configure(spec: str, drop_in: Path = DROP_IN) -> Path:
    """Name the target in a drop-in of the configuration; returns the drop-in.

    Everybody may read it, whatever root's umask is: kjumpctl reads it as any user.  Raises
    `BadConfiguration` if another one, read later, names another target.
    """
    atomic.make_folder(drop_in.parent)
    atomic.write(drop_in, f"# Written by kjumpctl setup.\n[Target]\nPath={spec}\n", mode=0o644)
    if configuration.load().target.path != spec:
        raise BadConfiguration(
            f"A configuration file that is read after {drop_in} names another target.",
            advice="Remove its Path= of [Target], then: kjumpctl update-initrd.",
        )
    return drop_in
