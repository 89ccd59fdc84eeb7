# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that are no partition of their own: files, and the swap that is in use.

``kjump.target=`` on the kernel command line says where the image is, so that no boot initrd has
to be made again, which takes minutes in emulation; `setup_and_boot` makes one all the same.
"""

from __future__ import annotations

import json

from .guest import DiskErrors, Guest, Shape
from .image import MIB, SMALL_SIZE, Image
from .steps import (
    SWAP,
    Scenario,
    configure,
    ctl,
    ctl_json,
    cycle,
    expect,
    hibernate_fails,
    last_cycle,
    nothing_staged,
    ready,
    refused,
    request,
    require,
    went_well,
    work_holds,
)

SPARE = "/dev/disk/by-partlabel/spare"

HOLD = b"""
import hashlib, mmap, os, signal, sys
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 1 << 20):
    memory[at:at + (1 << 20)] = os.urandom(1 << 20)
digest = hashlib.sha256(memory).hexdigest()
memory.madvise(21)  # MADV_PAGEOUT
open("/run/held", "w").write("out")
signal.signal(signal.SIGUSR1, lambda *_: None)
while True:
    signal.pause()
    same = hashlib.sha256(memory).hexdigest() == digest
    open("/run/held", "w").write("same" if same else "LOST")
"""


def pretend_place_is_known(guest: Guest) -> tuple[str, int]:
    """Say that the boot initrds know of the target's place; (device, byte offset) of it."""
    script = """
import json
from kjump import settings as s
from kjump.session.target import devices
settings = s.load()
found = devices.resolve(settings.target.path)
path = "/var/lib/kjump/boot.json"
document = json.load(open(path))
document["config"] = s.fingerprint(settings, found.place)
json.dump(document, open(path, "w"))
link = next(x for x in found.links if "by-partlabel" in x)
print(json.dumps([link, found.locator]))
"""
    guest.put(script.encode(), "/run/pretend.py")
    link, locator = json.loads(guest.check("python3 /run/pretend.py"))
    return str(link), int(locator)


def swap_used(guest: Guest) -> int:
    """Bytes of swap in use."""
    return int(guest.check("awk 'NR > 1 {s += $4} END {print s + 0}' /proc/swaps")) << 10


def bootbits(guest: Guest, device: str = SWAP, offset: int = 0) -> bytes:
    """The first 1,024 bytes of a swap area, as they are on the disk."""
    script = f"dd if={device} bs=4096 count=1 skip={offset // 4096} iflag=direct status=none"
    return bytes.fromhex(guest.check(f"{script} | head -c 1024 | od -An -v -tx1 | tr -d ' \\n'"))


def swap_out(guest: Guest, mb: int) -> None:
    """A process with this much memory, most of it swapped out; `swapped_holds` asks it."""
    guest.put(HOLD, "/run/hold.py")
    guest.check(f"systemd-run --quiet --unit=hold python3 /run/hold.py {mb}")
    guest.check("until test -s /run/held; do sleep 0.2; done", timeout=180)
    require("memory is swapped out", swap_used(guest) > mb * MIB * 3 // 4, swap_used(guest))


def swapped_holds(guest: Guest) -> None:
    guest.check("rm -f /run/held; systemctl kill --signal=USR1 hold")
    guest.check("until test -s /run/held; do sleep 0.2; done", timeout=180)
    expect("what was swapped out", guest.check("cat /run/held"), "same")


def given_back(guest: Guest, used: int) -> None:
    """The slots are the system's again, as before; a few pages may have been swapped since."""
    now = swap_used(guest)
    require("slots were given back", abs(now - used) < 64 * MIB, (used, now))


def swap_partition(image: Image) -> None:
    """The swap partition in use: a failure in the helper, a cycle, a pulled plug."""
    with Guest(image, Shape(words=f"kjump.target={SWAP}:0")) as guest:
        ready(guest)
        guest.check("echo 'PARTLABEL=swap none swap sw 0 0' >>/etc/fstab; swapon -a")
        guest.start_work(60)
        swap_out(guest, 150)
        configure(guest, "[Target]", "Path=PARTLABEL=swap")
        expect("can-hibernate", ctl_json(guest, "can-hibernate"), {"answer": "yes", "reasons": []})
        require("status says so", "swap partition" in ctl(guest, "status").out)
        used = swap_used(guest)

        # What is in use lies at the start of the area; then come the restorer and the chunks.
        start = image.target_offset + image.target_size + SMALL_SIZE
        guest.fail_disk(DiskErrors(start + used + 44 * MIB, 4 * MIB))
        last = hibernate_fails(guest, "TargetWriteFailed")
        guest.heal_disk()
        expect("where", last["where"], "helper")
        given_back(guest, used)
        expect("the locator", bootbits(guest), bytes(1024))
        work_holds(guest)

        used = swap_used(guest)
        with cycle(guest) as again:
            last = went_well(again)
            nothing_staged(again)
            given_back(again, used)
            expect("the locator", bootbits(again), bytes(1024))
            swapped_holds(again)
            again.check(f"swapoff {SWAP}; swapon {SWAP}", timeout=180)
            swapped_holds(again)

            again.slow_disk(16 * MIB)  # otherwise it ends before it reports any progress
            request(again)
            again.wait_console(r"kjump: saving +\d+ %")
            again.kill()
            with again.again() as third:
                third.wait_console(r"kjump: not resumed: .*")
                ready(third)
                require("swap is on", "partition" in third.check("cat /proc/swaps"))
                # Before it answers, it has looked at what an earlier boot left.
                expect("can-hibernate", ctl_json(third, "can-hibernate")["answer"], "yes")
                expect(
                    "error reported by the daemon", last_cycle(third)["error"], "ImageIncomplete"
                )
                expect("the locator", bootbits(third), bytes(1024))


def file_target(path: str, prepare: str = "", check: str = "", words: str = "") -> Scenario:
    """A cycle with an image file made by ``kjumpctl setup``, after a script that mounts its file
    system; ``check``: what finds fault with that."""

    def run(image: Image) -> None:
        with Guest(image, Shape()) as guest:
            ready(guest)
            guest.check(prepare or "true", timeout=180)
            guest.start_work(60)
            made = ctl(guest, f"setup --file {path} --size 1100M --no-initrd --json")
            expect("setup", made.rc, 0)
            link, locator = pretend_place_is_known(guest)
            can = ctl_json(guest, "can-hibernate")
            expect("can-hibernate", can, {"answer": "yes", "reasons": []})
            require("status says so", path in ctl(guest, "status").out)
            require("it cannot be removed", guest.run(f"rm -f {path}").rc != 0)
            if not prepare:
                refusals(guest)
                configure(guest, "[Target]", f"Path={path}")
            with cycle(guest, words=f"kjump.target={link}:{locator} {words}") as again:
                last = went_well(again)
                nothing_staged(again)
                if words:
                    expect("way back", last["more"]["way"], "in-place")
                expect("state of the image", ctl_json(again, "image info")["state"], "spent")
                expect("image verify", ctl(again, "image verify").rc, 0)
                zeros = again.check(f"head -c 65536 {path} | tr -d '\\0' | wc -c").strip()
                expect("what the file system shows of it", zeros, "0")
                if check:
                    again.check(f"umount /data; {check} {SPARE}", timeout=300)

    run.__doc__ = f"A file as target: {path}{', restored in place' if words else ''}"
    return run


def refusals(guest: Guest) -> None:
    """Targets that cannot be opened by themselves, and files that are not whole."""
    guest.check(f"dmsetup create lin --table '0 65536 linear {SPARE} 0'")
    guest.check("truncate -s 64M /holes; dd if=/dev/zero of=/full bs=1M count=20 status=none")
    guest.check("chmod 600 /holes /full; sync; fallocate -l 20M /open; chmod 644 /open")
    guest.check("fallocate -l 20M /run/memory; chmod 600 /run/memory")
    for spec, code in (
        ("/dev/mapper/lin", "TargetMapped"),
        ("/holes", "UnsuitableFile"),
        ("/full", "TargetHoldsData"),
        ("/open", "UnsuitableFile"),
        ("/run/memory", "UnsuitableFile"),
        ("/nonesuch", "TargetMissing"),
    ):
        configure(guest, "[Target]", f"Path={spec}")
        refused(guest, code, "no")
    # A file system on a mapped device.
    guest.check("mkfs.ext4 -q /dev/mapper/lin; mkdir /lin; mount /dev/mapper/lin /lin")
    made = ctl(guest, "setup --file /lin/image --size 16M --no-initrd --json")
    require("a file on a mapped device is refused", "TargetMapped" in made.err, made)
    require("nothing is left", guest.run("test -e /lin/image").rc != 0)
    guest.check("umount /lin; dmsetup remove lin; rm /holes /full /open")


def swap_file(image: Image) -> None:
    """A swap file in use, on btrfs."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        guest.check(
            f"mkfs.btrfs -q {SPARE}; mkdir /data; mount {SPARE} /data;"
            " btrfs filesystem mkswapfile --size 2g /data/swap; swapon /data/swap",
            timeout=300,
        )
        guest.start_work(60)
        swap_out(guest, 150)
        configure(guest, "[Target]", "Path=/data/swap")
        link, locator = pretend_place_is_known(guest)
        expect("can-hibernate", ctl_json(guest, "can-hibernate"), {"answer": "yes", "reasons": []})
        require("status says so", "swap file" in ctl(guest, "status").out)
        used = swap_used(guest)
        with cycle(guest, words=f"kjump.target={link}:{locator}") as again:
            went_well(again)
            given_back(again, used)
            expect("the locator", bootbits(again, SPARE, locator), bytes(1024))
            swapped_holds(again)
            again.check("swapoff /data/swap", timeout=180)
            swapped_holds(again)


def setup_and_boot(image: Image) -> None:
    """``kjumpctl setup --file`` as a user types it: the boot initrd it makes finds the file."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        made = ctl(guest, "setup --file /kjump.image --size 1100M", timeout=1500)
        expect("setup", made.rc, 0)
        expect("can-hibernate", ctl_json(guest, "can-hibernate"), {"answer": "yes", "reasons": []})
        guest.start_work(60)
        with cycle(guest) as again:
            went_well(again)
            # Moved: the boot would not find it.
            again.check(
                "chattr -i /kjump.image; cp --sparse=never /etc/hostname /pad;"
                " rm /kjump.image; fallocate -l 100M /pad;"
                " fallocate -l 1100M /kjump.image; chmod 600 /kjump.image; sync"
            )
            refused(again, "NoBootResume", "no")


MOUNTED = f"mkdir /data; mount {SPARE} /data"
ALWAYS: dict[str, Scenario] = {
    "target-swap": swap_partition,
    "target-file": file_target("/image", words="kjump.restore=in-place"),
}
MORE: dict[str, Scenario] = {
    "target-xfs": file_target(
        "/data/image", f"mkfs.xfs -q -f {SPARE}; {MOUNTED}", check="xfs_repair -n"
    ),
    "target-btrfs": file_target(
        "/data/image", f"mkfs.btrfs -q {SPARE}; {MOUNTED}", check="btrfs check"
    ),
    "target-swap-file": swap_file,
    "target-setup": setup_and_boot,
}
