# SPDX-License-Identifier: GPL-2.0-or-later
"""Plymouth, the real one: what it shows of a cycle, and that it is in nobody's way.

The theme of these guests (`image.PLYMOUTH_FILES`) paints the whole screen in one colour for what it
was shown last, so that a picture of the screen says whether plymouthd got a message and drew it.
"""

from __future__ import annotations

import time
from collections import Counter

from .contents import PLYMOUTH
from .guest import Guest, Shape
from .image import MIB, Image
from .scenarios_inside import cancelled, is_asked, is_kept
from .steps import (
    SAVE,
    Scenario,
    at_work,
    configure,
    ctl_json,
    expect,
    hibernate,
    last_cycle,
    power_off,
    require,
    work_holds,
)

WORDS = "splash plymouth.ignore-serial-consoles"
RATE = 4 * MIB
"""Of the disk, in bytes a second: slow enough to look at the screen."""
CONSOLE = (0, 0, 0)
"""Colour: there is no splash screen."""
RESUMING, SAVING, ANOTHER = (0, 255, 0), (0, 0, 255), (255, 255, 0)
"""Colours: our theme got a line that begins with "resuming", with "saving", or another line of
ours.  Before the first one it is red."""
Colour = tuple[int, int, int]


def screen(guest: Guest) -> tuple[Colour, float]:
    """The colour of most of the screen, and the share of it that has it."""
    path = guest.folder / "screen.ppm"
    guest.qmp("screendump", filename=str(path))
    data = path.read_bytes()
    # A binary portable pixmap, as QEMU writes it: P6, width and height, 255, each on a line.
    _, size, _, pixels = data.split(b"\n", 3)
    width, height = map(int, size.split())
    count = width * height
    step = 31  # not every pixel: a prime, which meets all columns
    seen = Counter(pixels[at : at + 3] for at in range(0, 3 * count, 3 * step))
    colour, times = seen.most_common(1)[0]
    return (colour[0], colour[1], colour[2]), times / seen.total()


def shows(guest: Guest, *wanted: Colour, deadline: float = 60) -> None:
    """Wait until the screen shows one of these colours, and hardly anything else."""
    end = time.monotonic() + deadline
    seen: list[tuple[Colour, float]] = []
    while time.monotonic() < end and guest.running:
        found = screen(guest)
        if found not in seen:
            seen.append(found)
        if found[0] in wanted and found[1] > 0.9:
            print(f"the screen shows {found[0]}", flush=True)
            return
        time.sleep(0.2)
    raise guest.error(f"the screen shows none of {wanted}, but in turn {seen}")


DRAWING = "kjtest-drawing"
"""A unit of the session: the program that draws, as a desktop does."""


def draws(guest: Guest, colour: Colour) -> None:
    """Have the session's program draw, and see it on the screen."""
    text = {SAVING: "saving  it", ANOTHER: "session"}[colour]
    guest.check(f"plymouth display-message --text='{text}'")
    shows(guest, colour, deadline=30)


def begin_to_draw(guest: Guest) -> None:
    """Have a program in the session that draws on the display, on a terminal of its own: another
    plymouthd.

    It is there across the jump, so it must leave the display for the change of terminals and take
    it again, and the driver's state must be what it left.  It does not draw by itself when it is
    back: the screen is dark until then, as after a suspend to RAM of the same guest.
    """
    guest.check(
        # Without a console on the display nobody has asked yet what is connected.
        "for each in /sys/class/drm/card0-*/status; do echo detect >$each; done\n"
        f"systemd-run --collect --unit={DRAWING} plymouthd --no-daemon --no-boot-log"
        f" --mode=shutdown --kernel-command-line='{WORDS}'\n"
        "until plymouth --ping; do sleep 0.1; done; plymouth show-splash"
    )
    draws(guest, ANOTHER)


def request_as_root(guest: Guest) -> None:
    """Hibernate; not waited for.  The user's session is not the one in front while that draws, so
    she may not ask for it."""
    guest.seen = len(guest.console())
    guest.spawn("kjumpctl hibernate")


def resuming(guest: Guest) -> None:
    """Wait until the boot resumes, and have it take its time."""
    guest.wait_console(r"kjump: resuming the session of .*Esc: boot without it")
    guest.slow_disk(RATE)


def runs_on(guest: Guest, way: str) -> None:
    """The session is back, by this way, and unharmed."""
    guest.slow_disk(0)
    guest.wait_ready(SAVE)
    work_holds(guest)
    last = last_cycle(guest)
    print(f"{way}: {last['phases']}", flush=True)
    expect("result", last["result"], "ok")
    expect("way back", last["more"]["way"], way)


def boot(guest: Guest) -> Guest:
    """A session is saved; its user has second thoughts at boot, twice, and then resumes it."""
    hibernate(guest)
    # Debian's own kernel at boot, as it shows the console on the same screen.
    with guest.again(kernel="stock") as second:
        resuming(second)
        shows(second, RESUMING)
        second.press("esc")
        is_asked(second)
        shows(second, CONSOLE)
        second.press("p")
        is_kept(second)
        third = second.again().start()
    resuming(third)
    third.type("\x1b")
    is_asked(third)
    third.type("r")
    shows(third, RESUMING)
    runs_on(third, "snapshot")
    return third


def give_the_helper_one(guest: Guest) -> None:
    """Have Plymouth in the helper, whose kernel is Debian's own."""
    stock = guest.image.kernels["stock"]
    initrd = f"/var/lib/kjump/helper-{stock}.img"
    before = int(guest.check(f"stat -c %s {initrd}"))
    configure(
        guest, "[Helper]", "Plymouth=yes", f"Kernel=/boot/vmlinuz-{stock}", f"Initrd={initrd}"
    )
    begun = time.monotonic()
    guest.check(f"/usr/libexec/kjump/update-initrds --helper-only --release {stock}", timeout=900)
    guest.check("kjumpctl reload")
    after = int(guest.check(f"stat -c %s {initrd}"))
    window = ctl_json(guest, "status")["Window"]
    print(
        f"helper's initrd: {before} bytes without, {after} with Plymouth, made in"
        f" {time.monotonic() - begun:.0f} s; {window}",
        flush=True,
    )
    require("a splash screen is reckoned with", window["splash"] >= 12 * MIB, window)


def helper(_: Image) -> None:
    """The helper shows with Plymouth what it saves; Esc is heard beside it; so does a restore in
    place.  The session's display works after each."""

    def press(guest: Guest) -> None:
        shows(guest, SAVING)
        guest.press("esc")

    from .run import guest_image

    with at_work(guest_image(PLYMOUTH), Shape(words=WORDS), 100) as first:
        give_the_helper_one(first)
        begin_to_draw(first)
        cancelled(first, lambda: press(first), "Esc")
        draws(first, ANOTHER)
        first.slow_disk(RATE)
        request_as_root(first)
        first.wait_console(r"kjump: saving +\d+ %", SAVE)
        shows(first, SAVING)
        first.slow_disk(0)
        power_off(first)
        with first.again(kernel="stock", words=f"{WORDS} kjump.restore=in-place") as again:
            again.wait_console(r"kjump: resuming .* in place:", SAVE)
            again.slow_disk(RATE)
            shows(again, RESUMING)
            runs_on(again, "in-place")
            draws(again, SAVING)


def plymouth(_: Image) -> None:
    """Plymouth shows what is resumed, both ways; Esc is heard beside it; the session is whole."""
    from .run import guest_image

    with at_work(guest_image(PLYMOUTH), Shape(words=WORDS), 100) as first, boot(first) as guest:
        begin_to_draw(guest)
        request_as_root(guest)
        power_off(guest)
        with guest.again(words=f"{WORDS} kjump.restore=in-place") as again:
            again.wait_console(r"kjump: resuming the session of ")
            # The line about the kind of restore soon follows the first one.
            shows(again, RESUMING, ANOTHER)
            runs_on(again, "in-place")
            draws(again, SAVING)


ALWAYS: dict[str, Scenario] = {}
MORE: dict[str, Scenario] = {"plymouth": plymouth, "plymouth-helper": helper}
