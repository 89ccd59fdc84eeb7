# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold, each in a guest that really jumps.

A scenario is a function of the guest image; its docstring is what it shows.  ``ALWAYS`` runs with
``make test``, ``MORE`` with ``make test-all`` besides.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

from . import (
    oracle,
    scenarios_cli,
    scenarios_debuggers,
    scenarios_desktops,
    scenarios_full,
    scenarios_hotplug,
    scenarios_inside,
    scenarios_oracle,
    scenarios_requests,
    scenarios_splash,
    scenarios_targets,
    scenarios_warm,
)
from .guest import DiskErrors, Guest, Shape
from .image import MIB, Image
from .steps import (
    CONFIGURATION,
    Scenario,
    at_work,
    configure,
    ctl_json,
    cycle,
    ends,
    expect,
    helper_not_cached,
    hibernate,
    hibernate_fails,
    last_cycle,
    normal_boot,
    nothing_staged,
    ready,
    refused,
    request,
    require,
    went_well,
    work_holds,
)
from .work import TEXT


def shape_name(shape: Shape) -> str:
    levels = 5 if shape.la57 else 4
    pages = "with" if shape.huge else "without"
    return (
        f"{shape.machine}, {shape.cpus} CPU, {shape.memory} MiB, {levels}-level,"
        f" {pages} 1 GiB pages, {shape.bus}"
    )


def daemon_size(guest: Guest) -> int:
    """Memory that kjumpd has filled itself, in bytes.  Pages of its files are not counted: how
    many of them are mapped is the page cache's doing."""
    script = "cat /proc/$(systemctl show -P MainPID kjumpd.service)/status"
    words = dict(line.split(":", 1) for line in guest.check(script).splitlines())
    sizes = {name: int(words[name].split()[0]) for name in ("RssAnon", "RssFile", "VmSwap")}
    print(f"kjumpd, KiB: {sizes}", flush=True)
    return (sizes["RssAnon"] + sizes["VmSwap"]) * 1024


def debuggers_read_it(guest: Guest) -> None:
    """The saved image, on the switched-off disk, as a core: its kernel log, and what the user
    typed and nobody saved."""
    folder = guest.folder
    part, core = oracle.target_of(guest, folder / "target"), folder / "core"
    for words in (["verify", str(part)], ["export", str(core), str(part)]):
        subprocess.run([sys.executable, "-m", "kjump.cli", "image", *words], check=True)
    log = folder / "dmesg"
    tool = ["makedumpfile", "--dump-dmesg", str(core), str(log)]
    done = subprocess.run(tool, check=False, capture_output=True, text=True)
    require("makedumpfile reads the core", done.returncode == 0, done.stdout + done.stderr)
    release = guest.image.kernels["kjump"]
    require("the kernel log is in the core", f"Linux version {release}" in log.read_text())
    typed, tail, found = TEXT.encode(), b"", False
    with core.open("rb") as file:
        while block := file.read(4 * MIB):
            found = found or typed in tail + block
            tail = block[-len(typed) :]
    require("what the user typed is in the core", found)
    part.unlink()
    core.unlink()


def whole_cycle(
    shape: Shape, times: int = 1, between: Callable[[Guest], None] | None = None
) -> Scenario:
    """The user's ``systemctl hibernate``: off, on again, and her work runs on.  ``between``:
    what is done while the machine is off."""

    def run(image: Image) -> None:
        with at_work(image, shape, 100) as first:
            sizes = []
            guest = first
            for number in range(times):
                with_boot_id = guest.check("cat /proc/sys/kernel/random/boot_id")
                hibernate(guest)
                if between:
                    between(guest)
                guest = guest.again().start()
                try:
                    expect(
                        "boot id", guest.check("cat /proc/sys/kernel/random/boot_id"), with_boot_id
                    )
                    work_holds(guest)
                    nothing_staged(guest)
                    helper_not_cached(guest)
                    last = last_cycle(guest)
                    expect(f"result of cycle {number + 1}", last["result"], "ok")
                    print(f"cycle {number + 1}: {last}", flush=True)
                    require("free pages were not saved", last["pages"]["free"] > 1000, last)
                    expect("state of the image", ctl_json(guest, "image info")["state"], "spent")
                    levels = 5 if shape.la57 else 4
                    description = ctl_json(guest, "image info")["description"]
                    expect("paging mode", description["levels"], levels)
                    unit = guest.check("systemctl show -P Result systemd-hibernate.service").strip()
                    expect("systemd-hibernate.service", unit, "success")
                    sizes.append(daemon_size(guest))
                    if number == times - 1:
                        # The first cycle loads code and fills caches; from then on, nothing.
                        grown = sizes[-1] - sizes[0]
                        require("the daemon does not grow", grown < MIB, sizes)
                        guest.spawn("systemctl poweroff")
                        ends(guest, 120)
                except BaseException:
                    guest.close()
                    raise
            guest.close()

    run.__doc__ = f"{times} cycle{'s' if times > 1 else ''}: {shape_name(shape)}"
    return run


def comes_back(image: Image) -> None:
    """Failures in the helper come back to the session with their cause; then it works."""
    with at_work(image, Shape(), 100) as guest:
        # A target that fails in the middle of the write.
        guest.fail_disk(DiskErrors(image.target_offset + 24 * MIB, 4 * MIB))
        last = hibernate_fails(guest, "TargetWriteFailed")
        expect("where", last["where"], "helper")
        guest.heal_disk()
        work_holds(guest)
        require("not complete", ctl_json(guest, "image info")["state"] == "spent")

        # A target too small.
        guest.put(b"[Target]\nPath=PARTLABEL=small\n", CONFIGURATION)
        pretend_initrds_are_made(guest)
        guest.check("kjumpctl reload")
        hibernate_fails(guest, "TargetTooSmall")
        guest.check(f"rm {CONFIGURATION}")
        pretend_initrds_are_made(guest)
        guest.check("kjumpctl reload")
        work_holds(guest)

        # A helper that finds a damaged handoff.
        drop_in = "/run/systemd/system/kjumpd.service.d/test.conf"
        guest.check(f"mkdir -p {drop_in.rpartition('/')[0]}")
        guest.put(b"[Service]\nEnvironment=KJUMP_INJECT=damaged-handoff\n", drop_in)
        guest.check("systemctl daemon-reload; systemctl restart kjumpd", timeout=120)
        hibernate_fails(guest, "DamagedHandoff")
        guest.check(f"rm {drop_in}; systemctl daemon-reload; systemctl restart kjumpd", timeout=120)
        work_holds(guest)

        # A helper that is too slow for its deadline.
        configure(guest, "[Helper]", "DeadlineSec=30")
        guest.slow_disk(1 * MIB)
        hibernate_fails(guest, "HelperDeadline")
        guest.slow_disk(0)
        configure(guest)
        work_holds(guest)

        # And the next attempt on a good target works.
        with cycle(guest) as again:
            went_well(again)


def pretend_initrds_are_made(guest: Guest) -> None:
    """Say that the boot initrd has the configuration in force: making it takes minutes in
    emulation, and nothing is resumed with it here."""
    guest.check(
        "python3 -c 'import json; from kjump import settings as s;"
        ' p = "/var/lib/kjump/boot.json"; d = json.load(open(p));'
        ' d["config"] = s.fingerprint(s.load()); json.dump(d, open(p, "w"))\''
    )


def plug_pulled_and_flipped_bit(image: Image) -> None:
    """Power lost while saving, an image with one flipped bit: a normal boot, with the reason."""
    with at_work(image, Shape(), 100) as guest:
        guest.slow_disk(16 * MIB)  # otherwise it ends before it reports any progress
        request(guest)
        guest.wait_console(r"kjump: saving +\d+ %")
        guest.kill()
        with guest.again() as second:
            normal_boot(second, "ImageIncomplete")
            second.start_work(20)
            hibernate(second)
            flip_bit(second, image)
            with second.again() as third:
                normal_boot(third, "ImageDamaged")
                # A spent image is not tried again.
                third.spawn("systemctl poweroff")
                third.wait_exit(120)
                with third.again() as fourth:
                    ready(fourth)
                    require("nothing to resume", "not resumed" not in fourth.console())


def flip_bit(guest: Guest, image: Image) -> None:
    """Flip one bit of the image, in the payload of one of its chunks, on the switched-off disk."""

    def qemu_io(command: str) -> str:
        return subprocess.run(
            ["qemu-io", "-f", "qcow2", "-c", command, guest.disk],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def byte(at: int) -> int:
        found = re.search(r"^[0-9a-f]+:\s+([0-9a-f]{2})", qemu_io(f"read -v {at} 1"), re.MULTILINE)
        assert found
        return int(found[1], 16)

    # Behind the restorer, which only a restore in place reads; no zero, as what fills up a chunk's
    # last block is covered by nothing.
    places = (image.target_offset + 32 * MIB + 4096 * n + 2000 for n in range(1000))
    at = next(place for place in places if byte(place))
    qemu_io(f"write -P {byte(at) ^ 0x08} {at} 1")


def refusals(image: Image) -> None:
    """What cannot work is refused with its name, by CanHibernate and Hibernate alike."""
    with Guest(image, Shape(memory=768, cpus=1)) as guest:
        ready(guest)
        expect("can-hibernate", ctl_json(guest, "can-hibernate")["answer"], "yes")

        # Who is neither active nor an administrator.
        nobody = "setpriv --reuid nobody --regid nogroup --clear-groups"
        result = guest.run(f"{nobody} kjumpctl hibernate --json", timeout=120)
        require("nobody is refused", "NotAuthorized" in result.err + result.out, result)
        expect("exit code", result.rc, 4)
        nothing_staged(guest)

        # As a power cut would leave it.
        guest.check(
            "cd /var/lib/kjump; for kind in img json; do"
            ' cp "helper-$(uname -r).$kind" "torn.$kind"; done; truncate -s -4096 torn.img'
        )
        for lines, code in (
            (("[Target]", "Path=PARTLABEL=nonesuch"), "TargetMissing"),
            (("[Target]", "Path=PARTLABEL=root"), "TargetInUse"),
            (("[Helper]", "Initrd=/nonexistent/helper.img"), "NoHelperInitrd"),
            (("[Helper]", "Initrd=/var/lib/kjump/torn.img"), "NoHelperInitrd"),
            (("[Helper]", "Kernel=/etc/hostname"), "NoHelperKernel"),
        ):
            configure(guest, *lines)
            refused(guest, code, "no")
        configure(guest)

        available = guest.check("awk '/MemAvailable/ {print $2}' /proc/meminfo")
        fill = int(available) // 1024 - 60
        guest.check(
            "mkdir /fill; mount -t tmpfs -o size=90% fill /fill;"
            f" dd if=/dev/zero of=/fill/x bs=1M count={fill} status=none",
            timeout=200,
        )
        refused(guest, "TooLittleMemory", "no")
        guest.check("umount /fill")

        guest.check('kexec --load "/boot/vmlinuz-$(uname -r)" --reuse-cmdline', timeout=120)
        can = ctl_json(guest, "can-hibernate")
        require("a foreign image is named", "ForeignKexecImage" in str(can), can)
        guest.check("kexec -u")

        guest.check("sysctl kernel.kexec_load_disabled=1")
        refused(guest, "KexecDisabled", "na")
        guest.spawn("systemctl poweroff")
        guest.wait_exit(120)
        with guest.again(kernel="stock") as stock:
            ready(stock)
            refused(stock, "NoKexecJump", "na")
            stock.spawn("systemctl poweroff")
            stock.wait_exit(120)
            with stock.again(words="lockdown=integrity") as locked:
                ready(locked)
                refused(locked, "Lockdown", "na")


def distribution_kernel(image: Image) -> None:
    """A distribution's kernel as the helper, and to restore in place: its window has 160 MiB at the
    most, it fits, and CONFIG_IO_STRICT_DEVMEM does not keep it from the session's memory."""
    stock = image.kernels["stock"]
    with Guest(image, Shape(words="kjump.restore=in-place")) as guest:
        ready(guest)
        helper = f"/var/lib/kjump/helper-{stock}.img"
        configure(guest, "[Helper]", f"Kernel=/boot/vmlinuz-{stock}", f"Initrd={helper}")
        guest.check(f"grep -qx CONFIG_IO_STRICT_DEVMEM=y /boot/config-{stock}")
        window = ctl_json(guest, "status")["Window"]
        require("the window has 160 MiB at most", window["size"] <= 160 * MIB, window)
        guest.start_work(100)
        with cycle(guest) as again:
            work_holds(again)
            last = last_cycle(again)
            print(window, last, flush=True)
            expect("result", last["result"], "ok")
            expect("way back", last["more"]["way"], "in-place")
            # What the helper had left when all was copied, of what it was given.
            require("memory was left", last["memory"]["available"] > 8 * MIB, last["memory"])


ALWAYS: dict[str, Scenario] = {
    "three-cycles": whole_cycle(Shape(memory=1024, cpus=2, machine="q35", la57=True), times=3),
    "comes-back": comes_back,
    "refusals": refusals,
    "plug-and-bit": plug_pulled_and_flipped_bit,
    "small-pc": whole_cycle(
        Shape(memory=768, cpus=1, machine="pc", huge=False), between=debuggers_read_it
    ),
    "large": whole_cycle(Shape(memory=5120, cpus=2, machine="q35")),
    "distribution-kernel": distribution_kernel,
}

MORE: dict[str, Scenario] = {
    f"shape-{machine}-{cpus}-{memory}-{'5' if la57 else '4'}": whole_cycle(
        Shape(memory=memory, cpus=cpus, machine=machine, la57=la57)
    )
    for machine in ("pc", "q35")
    for cpus in (1, 2)
    for memory in (768, 1024, 5120)
    for la57 in (False, True)
} | {
    f"bus-{bus}": whole_cycle(Shape(machine="pc" if bus == "ide" else "q35", bus=bus))
    for bus in ("ahci", "ide", "nvme", "scsi")
}

for more in (
    scenarios_cli,
    scenarios_full,
    scenarios_hotplug,
    scenarios_inside,
    scenarios_oracle,
    scenarios_targets,
    scenarios_warm,
    scenarios_debuggers,
    scenarios_requests,
    scenarios_splash,
    scenarios_desktops,
):
    ALWAYS |= more.ALWAYS
    MORE |= more.MORE
