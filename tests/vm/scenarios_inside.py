# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person can do in front of the machine, and what catches a helper that hangs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack

from .guest import Guest, Shape
from .image import MIB, Image
from .steps import (
    SAVE,
    Scenario,
    at_work,
    configure,
    ctl,
    ctl_json,
    cycle,
    ends,
    expect,
    hibernate,
    hibernate_fails,
    last_cycle,
    nothing_staged,
    ready,
    require,
    session_is_gone,
    went_well,
    work_holds,
)

RATE = 3 * MIB
"""Of the disk, in bytes a second: slow enough to press a key while it is written to."""


def cancelled(guest: Guest, press: Callable[[], None], name: str) -> None:
    """Hibernate, press something while the disk is written to: the session is back."""
    guest.seen = len(guest.console())
    guest.slow_disk(RATE)
    job = guest.spawn("kjumpctl hibernate --json")
    guest.wait_console(r"kjump: saving +\d+ %", SAVE)
    press()
    guest.wait_console(rf"kjump: {name} was pressed: back to the session", 60)
    guest.wait_console(r"kjump: jumping back to the session", 60)
    guest.slow_disk(0)
    while (result := guest.job(job)) is None:
        time.sleep(0.5)
    expect("exit code", result.rc, 7)
    last = last_cycle(guest)
    expect("error", last["error"], "Cancelled")
    expect("where", last["where"], "helper")
    require("the key that was pressed is reported", name in last["what"], last)
    expect("state of the image", ctl_json(guest, "image info")["state"], "spent")
    nothing_staged(guest)
    work_holds(guest)


def press_serial(guest: Guest) -> None:
    guest.type("\x1b[A")
    time.sleep(3)
    require("an arrow key is not Esc", "was pressed" not in guest.console()[guest.seen :])
    guest.type("\x1b")


def cancel(image: Image) -> None:
    """Esc on the keyboard or the serial line, and the power button, bring the session back."""
    with at_work(image, Shape(), 100) as guest:
        cancelled(guest, lambda: guest.press("esc"), "Esc")
        cancelled(guest, lambda: guest.qmp("system_powerdown"), "The power button")
        # An arrow key begins like Esc, and is none; it comes first.
        cancelled(guest, lambda: press_serial(guest), "Esc")
        # The button was pressed for the helper: it does not switch the session off as well.
        require("the session runs on", guest.running)
        with cycle(guest) as again:
            went_well(again)


def is_asked(guest: Guest) -> None:
    """Esc was pressed while a session is resumed: wait for the question."""
    guest.wait_console(r"kjump: .*\[r\] resume it", 60)


def is_kept(guest: Guest) -> None:
    """The answer was [p]: the machine goes off, and the session waits for the next boot."""
    guest.wait_console("kjump: switching off; the saved session is kept", 60)
    ends(guest, 60)


def question(guest: Guest) -> None:
    """Esc at boot, on the serial line; wait for the question."""
    guest.wait_console(r"kjump: resuming the session of .*Esc: boot without it")
    guest.type("\x1b")
    is_asked(guest)


def skip(image: Image) -> None:
    """Esc at boot: [r] resumes, [p] switches off and keeps the session, [y] gives it up."""
    with at_work(image, Shape(), 100) as guest:
        hibernate(guest)
        with guest.again() as second:
            # Before kjump says anything: the kernel keeps it.
            second.wait_console(r"Loading essential drivers")
            second.type("\x1b")
            is_asked(second)
            second.type("p")
            is_kept(second)
            with second.again() as third:
                question(third)
                third.type("x\x1b[Ar")
                third.wait_ready(SAVE)
                went_well(third)
                hibernate(third)
                with third.again() as fourth:
                    fourth.wait_console(r"kjump: resuming the session of ")
                    fourth.press("esc")
                    is_asked(fourth)
                    fourth.press("y")
                    fourth.wait_console("kjump: not resumed: A saved session was given up", 60)
                    session_is_gone(fourth, "ResumeSkipped")
                    status = ctl(fourth, "status").out
                    require("status reports why", "given up" in status, status)


def skip_in_place(image: Image) -> None:
    """Esc in the restorer: [r] resumes, [p] switches off and keeps it, [y] restarts without it."""

    def asked(guest: Guest, press: Callable[[str], None], key: str) -> None:
        guest.wait_console(r"kjump: resuming in place; Esc")
        guest.slow_disk(60 * MIB)
        guest.wait_console(r"kjump: resuming kjump-guest in place: +\d+ %")
        press(key)
        is_asked(guest)
        guest.slow_disk(0)

    with at_work(image, Shape(words="kjump.restore=in-place"), 100) as guest:
        hibernate(guest)
        with guest.again() as second:
            asked(second, second.press, "esc")
            second.press("p")
            is_kept(second)
            with second.again() as third:
                asked(third, third.type, "\x1b")
                third.type("r")
                third.wait_ready(SAVE)
                work_holds(third)
                expect("way back", last_cycle(third)["more"]["way"], "in-place")
                hibernate(third)
                with third.again() as fourth:
                    asked(fourth, fourth.type, "\x1b")
                    fourth.type("y")
                    fourth.wait_console("kjump: not resumed: A saved session was given up", 60)
                    ends(fourth, 60, "reset")
                    with fourth.again() as fifth:
                        session_is_gone(fifth, "ResumeSkipped")


def power_goes_while_resuming(image: Image) -> None:
    """The plug is pulled while memory is read, one way and the other: the next boot resumes; three
    times are enough."""

    def pulled(guest: Guest, shown: str) -> None:
        guest.wait_console(r"kjump: resuming the session of")
        guest.slow_disk(30 * MIB)
        guest.wait_console(shown)
        guest.kill()

    snapshot, in_place = r"kjump: resuming kjump-guest: +\d+ %", r"kjump-guest in place: +\d+ %"
    with ExitStack() as guests:
        guest = guests.enter_context(at_work(image, Shape(), 100))
        for ways in ((snapshot, in_place), (in_place, snapshot, snapshot)):
            hibernate(guest)
            for shown in ways:
                words = "kjump.restore=in-place" if shown == in_place else ""
                guest = guests.enter_context(guest.again(words=words))
                pulled(guest, shown)
            guest = guests.enter_context(guest.again(words=""))
            if len(ways) < 3:
                guest.wait_ready(SAVE)
                went_well(guest)
        guest.wait_console("kjump: not resumed: Resuming was begun 3 times")
        session_is_gone(guest, "RestoreFailed")


def hang(image: Image) -> None:
    """A copy that makes no progress, and one that is stopped, come back; a watchdog of the hardware
    restarts the machine when nobody is left to do so."""
    with at_work(image, Shape(watchdog="i6300esb"), 100) as guest:
        for kind, reason in (("stall", "no progress for 20 s"), ("stop", "hung and was stopped")):
            configure(guest, "[Helper]", "WatchdogSec=20", f"CommandLine=kjump.inject={kind}")
            last = hibernate_fails(guest, "HelperHung")
            require("how it hung is reported", reason in last["what"], last)
            expect("where", last["where"], "helper")
            work_holds(guest)
            # Its watchdog was stopped: it would restart the session within 50 s.
        guest.check("sleep 60", timeout=90)
        work_holds(guest)
        configure(guest, "[Helper]", "WatchdogSec=20", "CommandLine=kjump.inject=freeze")
        lost(guest, "i6300esb timer")


def complete_means_off(image: Image) -> None:
    """A complete image and a session that runs on never meet: the machine does not switch off, and
    the program that copies dies at the last moment."""
    with at_work(image, Shape(), 100) as guest:
        configure(guest, "[Helper]", "CommandLine=kjump.inject=stay")
        last = hibernate_fails(guest, "HelperFailed")
        require("the reason", "does not switch off" in last["what"], last)
        expect("state of the image", ctl_json(guest, "image info")["state"], "spent")
        work_holds(guest)
        configure(guest, "[Helper]", "CommandLine=kjump.inject=die")
        with cycle(guest) as again:
            console = guest.console()
            require("it died", "kjump: killed for a test" in console, console[-3000:])
            words = "kjump: the image is complete; switching off"
            require("kjump-return saw that it is complete", words in console, console[-3000:])
            went_well(again)
            expect("state of the image", ctl_json(again, "image info")["state"], "spent")


def lost(guest: Guest, watchdog: str) -> None:
    """The machine is restarted, boots, and reports the watchdog."""
    guest.seen = len(guest.console())
    guest.spawn("kjumpctl hibernate")
    guest.wait_console("kjump: stopped for a test: freeze", SAVE)
    # By the driver's own name: neither of the two shows its module (no parent device).
    found = re.findall(r"kjump: watchdog: (.*)", guest.console())
    print(found, flush=True)
    require("a watchdog was taken", found and watchdog in found[-1].lower(), found)
    ends(guest, 200, "reset")
    with guest.again() as again:
        # The copy may have begun before the driver was there.
        words = rf"kjump: not resumed: .*watchdog \(((?i:{watchdog}).*, \d+ s|the first)"
        print(again.wait_console(words)[0], flush=True)
        ready(again)
        last = last_cycle(again)
        expect("error reported by the daemon", last["error"], "ImageIncomplete")
        require("the watchdog is reported", "watchdog (" in last["what"], last)


def soft_watchdog(image: Image) -> None:
    """Without a watchdog in the hardware, the kernel's own restarts a helper that hangs."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        configure(guest, "[Helper]", "WatchdogSec=20", "CommandLine=kjump.inject=freeze")
        guest.slow_disk(RATE)  # or it is done before the hardware's has had its time to appear
        lost(guest, "software watchdog")


def dracut(image: Image) -> None:
    """The boot initrd is dracut's: a whole cycle, resumed before any file system is mounted."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        # dracut-core is there for the helper's initrd; only initramfs-tools must not be found.
        guest.check("mv /usr/sbin/update-initramfs /usr/sbin/update-initramfs.away")
        guest.put(b'compress="zstd -1 -T0"\n', "/etc/dracut.conf.d/test.conf")
        release = image.kernels["kjump"]
        guest.check(
            f"/usr/libexec/kjump/update-initrds --boot-only --release {release}", timeout=900
        )
        guest.start_work(100)
        with cycle(guest) as again:
            console = again.console()
            require("systemd ran in the initrd", "dracut" in console.lower(), console[-3000:])
            mounted = console.find("Mounting sysroot.mount")
            require("nothing was mounted before", mounted < 0, console[mounted - 200 :])
            went_well(again)
            again.spawn("systemctl poweroff")
            ends(again, 120)
            with again.again() as after:
                ready(after)
                require("nothing to resume", "not resumed" not in after.console())


ALWAYS: dict[str, Scenario] = {"cancel": cancel}
MORE: dict[str, Scenario] = {
    "complete-means-off": complete_means_off,
    "skip": skip,
    "skip-in-place": skip_in_place,
    "power-goes-while-resuming": power_goes_while_resuming,
    "hang": hang,
    "soft-watchdog": soft_watchdog,
    "dracut": dracut,
}
