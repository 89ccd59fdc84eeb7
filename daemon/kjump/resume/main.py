"""``kjump-resume``: in the boot initrd, before any file system is mounted.

Runs in the boot kernel.  Either the session runs again and this never returns, or the boot goes on
as if nothing had been, with one clear line on the console and the reason in the image, where the
daemon finds it.  An image is never used twice, and one that was passed over is spent: after a
normal boot the file systems go on without it.
"""

from __future__ import annotations

import time
from pathlib import Path

from kjump import settings as configuration
from kjump.errors import (
    ImageIncomplete,
    Internal,
    KjumpError,
    NoImage,
    OtherMachine,
    ResumeSkipped,
    TargetMissing,
)
from kjump.image import superblocks, target
from kjump.image.device import Device
from kjump.image.layout import EMPTY, SPENT
from kjump.image.read import Image
from kjump.machine import memory
from kjump.machine.console import say
from kjump.machine.identity import machine_identity
from kjump.resume import restore


def machine() -> restore.Machine:
    """This boot's facts."""
    return restore.Machine(
        machine_identity(),
        memory.firmware_map(),
        memory.page_count(),
        5 if memory.is_5_level() else 4,
    )


def resume(device: Device, *, started: float, skip: bool) -> None:
    """Resume from the image on the device.  Returns where there is none to speak of.

    Raises the `KjumpError` why not; the image is spent then.
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
            raise ImageIncomplete("The machine went down before the image was begun.")
        image.require_complete()
        if skip:
            raise ResumeSkipped("A saved session was not resumed.")
        description = image.description()
        restore.check(description, machine())
        restore.check_file_systems(description)
        saved = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(description.get("saved", 0)))
        say(f"resuming the session of {description.get('hostname')}, saved {saved}")
        restore.restore(image, description, started=started, boot=started)
    except OtherMachine:
        raise  # that machine may yet resume from it
    except KjumpError as error:
        _retire(device, image, error)
        raise
    except Exception as error:  # whatever it is, the boot goes on and the reason is kept
        wrapped = Internal(f"Resuming failed: {error!r}.")
        _retire(device, image, wrapped)
        raise wrapped from error


def _retire(device: Device, image: Image, error: KjumpError) -> None:
    superblocks.store(
        device,
        image.superblock,
        state=SPENT,
        outcome={"by": "resume", "result": "failed", **error.report()},
    )


def main() -> int:
    """Always lets the boot go on; the exit code is the error's, for who wants to know."""
    started = time.monotonic()
    words = Path("/proc/cmdline").read_text().split()
    settings = configuration.load()
    if not settings.target.path:
        return 0
    try:
        path = target.wait_for([target.link(settings.target.path)], settings.resume.wait)
        with Device(path, writable=True) as device:
            resume(device, started=started, skip="kjump.noresume" in words or "noresume" in words)
    except TargetMissing as error:
        say(f"no image looked for: {error.what}")
        return error.exit_code
    except KjumpError as error:
        say(f"not resumed: {error.sentence}")
        return error.exit_code
    return 0
