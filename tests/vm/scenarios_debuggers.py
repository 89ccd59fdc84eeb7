# SPDX-License-Identifier: GPL-2.0-or-later
"""A saved session, opened by crash and by drgn, and what drgn says of the pages that it left out.

These need the kernel of ``make kernel-debug`` in a guest of its own; where it is not in the cache,
it is built.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from . import oracle
from .debuggers import (
    Crash,
    DebugKernel,
    Drgn,
    addresses,
    characters,
    jumping,
    physical,
    tasks_of,
)
from .guest import Guest, Shape
from .image import MIB, Image
from .scenarios_oracle import freeze, same_content
from .steps import Scenario, at_work, expect, power_off, request, require
from .work import TEXT

WORK = 40  # MiB of the user's
BROKEN = 3
# Takes pages out of use as a memory error that was corrected would: their content moves.
SOFT_OFFLINE = f"""python3 - <<'END'
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, {BROKEN} * mmap.PAGESIZE)
memory.write(b"x" * len(memory))
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for page in range({BROKEN}):
    address = ctypes.c_void_p(start + page * mmap.PAGESIZE)
    if libc.madvise(address, ctypes.c_size_t(mmap.PAGESIZE), 101):  # MADV_SOFT_OFFLINE
        raise OSError(ctypes.get_errno(), "madvise")
END"""


def debug_image(kernel: DebugKernel) -> Image:
    """A guest disk like any other, with the debug kernel."""
    from .run import guest_image

    chosen = os.environ.get("KJUMP_DEBUG_IMAGE")
    return Image.load(Path(chosen)) if chosen else guest_image(kernel=kernel.package)


def pids(guest: Guest) -> dict[str, int]:
    """The editor, the holder of the user's work, and PID 1."""
    one = guest.check("pgrep --exact nano").split()
    expect("editors", len(one), 1)
    # The holder is the oldest process of that program; the server that it forked is another.
    holder = guest.check("pgrep --oldest --full 'work.py start'").split()[0]
    return {"nano": int(one[0]), "python3": int(holder), "systemd": 1}


def debuggers(_: Image) -> None:
    """A saved session is an ELF core that crash and drgn open: tasks, and what nobody had saved,
    by the task's page tables; the pages left out are those that drgn says are free or broken."""
    kernel = DebugKernel.build()
    image = debug_image(kernel)
    with at_work(image, Shape(memory=1024, cpus=2), WORK) as guest:
        guest.check(SOFT_OFFLINE)
        tasks = pids(guest)
        release = guest.check("uname -r").strip()
        ram = oracle.system_ram(guest)
        # While the helper copies, the session's memory is as it is being saved.
        guest.slow_disk(16 * MIB)
        request(guest)
        memory = freeze(guest, ram, guest.folder / "memory")
        power_off(guest)
        target = oracle.target_of(guest, guest.folder / "target")
        vmlinux = kernel.vmlinux(guest.folder)
        core = exported(target, guest.folder / "core")
        crash, drgn = Crash(vmlinux, core), Drgn(vmlinux, core)
        drgn_opens(drgn, tasks, crash_opens(crash, release, tasks))
        core.unlink()
        pages_left_out(vmlinux, memory, target)


def exported(target: Path, core: Path) -> Path:
    """The image on a target as a core, by ``kjumpctl``."""
    words = ["image", "export", "--json", str(core), str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "kjump.cli", *words], check=True, stdout=subprocess.PIPE
    )
    said = json.loads(done.stdout)
    require("the window's memory is in the core", said["window"], said)
    print(f"core: {said['size'] >> 20} MiB, {core.stat().st_blocks >> 11} on disk", flush=True)
    return core


def crash_opens(crash: Crash, release: str, tasks: dict[str, int]) -> dict[int, int]:
    """Physical by user address, of the text in the editor's memory."""
    nano, holder = tasks["nano"], tasks["python3"]
    search = f'search -u -c "{TEXT}"'
    said, ps, stack, _, in_nano, _, in_holder = crash.answers(
        "sys", "ps", f"bt {nano}", f"set {nano}", search, f"set {holder}", search
    )
    require("crash's sys names the kernel", release in said, said)
    listed = tasks_of(ps)
    for name, pid in tasks.items():
        expect(f"crash's ps of {pid}", listed.get(pid), name)
    # Frozen, and unwound to the system call that it is in.  It was frozen by its control group's
    # freezer or by the kernel's own; both hold a task where it would take a signal.
    for name in ("get_signal", "entry_SYSCALL_64", 'COMMAND: "nano"'):
        require(f"crash's bt of nano has {name}", name in stack, stack)
    typed, kept = addresses(in_nano), addresses(in_holder)
    require("crash finds the text in the editor's memory", typed, in_nano)
    require("crash finds the text in its sender's memory", kept, in_holder)
    jump, _, shown, *walks, _, held = crash.answers(
        f"bt {jumping(ps)}",
        f"set {nano}",
        f"rd -u -a {typed[0]:x} {len(TEXT)}",
        *(f"vtop -u {address:x}" for address in typed),
        f"set {holder}",
        f"rd -u -a {kept[0]:x} {len(TEXT)}",
    )
    require("crash's bt of the jump", "kernel_kexec" in jump, jump)
    expect("crash's rd of the editor's memory", characters(shown), TEXT)
    expect("crash's rd of its sender's memory", characters(held), TEXT)
    return {address: physical(walk) for address, walk in zip(typed, walks, strict=True)}


def drgn_opens(drgn: Drgn, tasks: dict[str, int], places: dict[int, int]) -> None:
    """``places``: of the text in the editor's memory, as crash says."""
    listed = drgn.tasks()
    for name, pid in tasks.items():
        expect(f"drgn's task {pid}", listed.get(pid), name)
    require("drgn unwinds a task's stack", "get_signal" in drgn.stack(tasks["nano"]))
    require("drgn finds the text in its sender's memory", drgn.search(tasks["python3"], TEXT))
    found = {at: drgn.physical(tasks["nano"], at) for at in drgn.search(tasks["nano"], TEXT)}
    require("drgn finds the text in the editor's memory", found)
    # crash looks at file mappings, too.
    expect("where the text is, by drgn and by crash", found.items() <= places.items(), True)


def pages_left_out(vmlinux: Path, memory: Path, target: Path) -> None:
    """The session's memory from outside, while it was saved, in drgn: what the kernel's own lists
    say is free, and what is broken or offline, is what the image does not have; all else it has."""
    saved = oracle.Saved.of(target)
    described = saved.description
    ranges = described.pieces
    core = oracle.core(
        memory, ranges, saved.vmcoreinfo, described.facts.page_offset, memory.with_name("seen")
    )
    drgn = Drgn(vmlinux, core)
    free, broken, offline = drgn.free(), set[int](), set[int]()
    for start, end in ranges:
        broken |= drgn.broken(start, end - start)
        offline |= drgn.offline(start, end - start)
    covered = {pfn for start, end in ranges for pfn in range(start, end)}
    out = (free | broken | offline) & covered
    have = saved.pfns(oracle.STORED) | saved.pfns(oracle.ZEROS)
    print(
        f"of {len(covered)} pages: drgn says {len(free & covered)} are free, {len(broken)} broken,"
        f" {len(offline)} offline; the image has {len(have)}",
        flush=True,
    )
    require("there are broken pages", len(broken) >= BROKEN, broken)
    require("there are free pages", len(free) > 1000, len(free))
    expect("free or broken, and yet saved", named(have & out), [])
    expect("neither, and yet not saved", named(covered - out - have), [])
    same_content(saved, memory)
    core.unlink()


def named(pfns: set[int] | list[int]) -> list[str]:
    """The first of them, for a message."""
    return [f"{pfn:#x}" for pfn in sorted(pfns)[:20]]


ALWAYS: dict[str, Scenario] = {}
MORE: dict[str, Scenario] = {"debuggers": debuggers}
