# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjump-resume``: in the boot initrd, before any file system is mounted.

Runs in the boot kernel.  Either the session runs again and this never returns, or the boot
continues normally, with one clear line on the console and the reason in the image, where the daemon
finds it.  An image is never used twice.  An image from which this boot did not resume is spent,
because the file systems change without it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from kjump import settings as configuration
from kjump.console import lines
from kjump.console.keys import Keys
from kjump.console.lines import say
from kjump.console.prompt import SkipPrompt
from kjump.console.splash import Splash
from kjump.errors import (
    ImageDamaged,
    ImageIncomplete,
    Internal,
    KjumpError,
    NoImage,
    NoTarget,
    OtherMachine,
    ResumeSkipped,
    TargetMissing,
)
from kjump.handoff.documents import TargetPlace
from kjump.handoff.fields import Fields, decode
from kjump.image import target
from kjump.image.device import DirectDevice
from kjump.image.layout import EMPTY, SPENT
from kjump.image.read import Image
from kjump.machine import cmdline, memory
from kjump.machine.cmdline import CommandLine
from kjump.machine.identity import machine_identity
from kjump.machine.udev import names_a_file
from kjump.resume import restore

RECORDED = Path("/var/lib/kjump/target.json")
"""The place of a target that is a file, as update-initrds recorded it."""


def machine() -> restore.Machine:
    """This boot's facts."""
    return restore.Machine(
        machine_identity(),
        memory.firmware_map(),
        memory.page_count(),
        5 if memory.is_5_level() else 4,
    )


def resume(device: DirectDevice, *, started: float, skip: bool, wait: float = 0) -> None:
    """Resume from the image on the device.  Returns if there is no image to resume from.

    ``skip``: do not resume from it; ``wait``: least number of seconds in which a key can still
    choose that.  Raises the `KjumpError` that prevented it; the image is spent then.
    """
    try:
        image = Image(device)
    except NoImage:
        return
    state = image.superblock.state
    if state == SPENT:
        return
    try:
        if state == EMPTY:
            raise ImageIncomplete("The machine went down before it began to write the image.")
        _require_complete(image)
        if skip:
            raise ResumeSkipped("A saved session was not resumed.")
        splash = Splash()
        if splash.is_there:
            lines.also.append(splash.show)
        here = machine()
        restore.check_owner(image.owner(), here)
        description = image.description()
        restore.check(description, here)
        restore.check_file_systems(description)
        saved = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(description.saved))
        # Listen first, then name the key.  People who know the key press it while the kernel boots.
        keys = Keys(earlier=True)
        try:
            say(
                f"resuming the session of {description.hostname}, saved {saved};"
                " Esc: boot without it"
            )
            chance = SkipPrompt(keys, wait, splash)
            restore.restore(image, description, chance, started=started)
        finally:
            keys.close()
    except OtherMachine:
        raise  # that machine may still resume from it
    except KjumpError as error:
        raise target.give_up(device, image.superblock, error) from error.__cause__
    except Exception as error:  # whatever it is, the boot continues and the reason is kept
        wrapped = Internal(f"Resuming failed: {error!r}.")
        raise target.give_up(device, image.superblock, wrapped) from error


def _require_complete(image: Image) -> None:
    """Raises `ImageIncomplete`, which names the watchdog if there was one, and `ImageSpent`."""
    try:
        image.require_complete()
    except ImageIncomplete as error:
        try:
            watchdog = image.description().watchdog_device
        except KjumpError:
            watchdog = ""
        if not watchdog:
            raise
        raise ImageIncomplete(
            f"{error.what}  A watchdog ({watchdog}) was set to restart the machine if the helper"
            " hung."
        ) from error


def place_to_look(
    words: CommandLine, spec: str, recorded: TargetPlace | None
) -> tuple[list[Path], int | None]:
    """The possible paths of the target's device, and the byte offset of the locator or None.

    ``words``: the kernel command line, whose ``kjump.target=`` wins; ``spec``: as configured;
    ``recorded``: where update-initrds found the file that ``spec`` names.  Raises `NoTarget`.
    """
    location = words.value(cmdline.TARGET)
    if location:
        return target.parse_location(location)
    if names_a_file(spec):
        if recorded is None or recorded.spec != spec or recorded.locator is None:
            raise NoTarget(
                f"This initrd does not say where {spec} lies.",
                advice="Rebuild it with: kjumpctl update-initrd.",
            )
        return [Path(link) for link in recorded.links], recorded.locator
    return target.links(spec), None


def recorded_place() -> TargetPlace | None:
    """The record that update-initrds put into this initrd, if it is intact."""
    try:
        found = decode(RECORDED.read_bytes(), "record", NoTarget)
        return TargetPlace.from_fields(Fields(found, "record", NoTarget))
    except (OSError, NoTarget):
        return None


def look(path: Path, locator: int | None, *, started: float, skip: bool, wait: float = 0) -> None:
    """Resume from the image that is there, if any.  Raises the `KjumpError` that prevented it."""
    try:
        device = target.open_image(path, locator, writable=True)
    except NoImage:
        return
    except ImageDamaged as error:
        try:
            target.leave_reason(path, locator or 0, error)
        except (KjumpError, OSError):
            pass  # the console shows the reason
        raise
    with device:
        resume(device, started=started, skip=skip, wait=wait)


def main(arguments: Sequence[str] = ()) -> int:
    """Always lets the boot continue.  Returns the error's exit code, for information only.

    ``arguments``: ``--after PATH``: started early; touch nothing before this file exists.
    """
    after = Path(arguments[1]) if arguments[:1] == ["--after"] else None
    words = cmdline.read()
    settings = configuration.load()
    while after is not None and not after.exists():
        time.sleep(0.01)
    started = time.monotonic()
    if not settings.target.path and not words.value(cmdline.TARGET):
        return 0
    try:
        paths, locator = place_to_look(words, settings.target.path, recorded_place())
        path = target.wait_for(paths, settings.resume.wait)
        look(
            path,
            locator,
            started=started,
            skip=words.skips_resume,
            wait=settings.resume.skip_wait,
        )
    except (NoTarget, TargetMissing) as error:
        say(f"did not look for an image: {error.sentence}")
        return error.exit_code
    except KjumpError as error:
        say(f"not resumed: {error.sentence}")
        return error.exit_code
    except OSError as error:
        failure = TargetMissing(f"The target cannot be used: {error.strerror or error}.")
        say(f"not resumed: {failure.sentence}")
        return failure.exit_code
    return 0
