# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures how a real kernel keeps its pages: VMCOREINFO, struct pages, and what it says of them.

A stock kernel is booted in QEMU with an initramfs made of this machine's Python and
capture_init.py.  The result is a fixture of tests/unit/test_pagestates_real.py; the README beside
it describes what is in it.

usage: python3 -m tests.vm.capture [--kernel SUITE | --kernel FOLDER] [--words WORDS] OUTPUT.tar.xz

SUITE is a Debian suite (bookworm, trixie, sid): its newest stock kernel is fetched.  FOLDER is an
unpacked kernel package.  Takes about a minute in software emulation.
"""

from __future__ import annotations

import argparse
import gzip
import io
import lzma
import re
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from . import suites
from .cache import log
from .channel import Monitor
from .emulator import acceleration, choose_acceleration, emulator, give_up_kvm, retried
from .errors import EmulatorFailed

INIT = Path(__file__).with_name("capture_init.py")
PYTHON = "/usr/bin/python3"
MEMORY, INFLATED = 384, 24  # MiB
DEADLINE = 400.0
MODULES = ("virtio_pci", "virtio_balloon")
WORDS = "console=ttyS0,115200 panic=-1 no_timer_check hugetlb_free_vmemmap=on"
"""hugetlb_free_vmemmap: the struct pages of huge pages are then mapped in small pages, some of them
more than once; the walk must cope with it."""


def modules(kernel: Path, release: str) -> list[bytes]:
    """The modules and those that they need, in the order to load them; builtin ones left out."""
    files = {}
    for path in kernel.glob(f"**/modules/{release}/kernel/**/*.ko*"):
        files[path.name.partition(".")[0].replace("-", "_")] = path
    out: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in out or name not in files:
            return
        data = files[name].read_bytes()
        if files[name].suffix == ".xz":
            data = lzma.decompress(data)
        needed = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in needed[1].decode().split(",") if needed else ():
            add(other)
        out[name] = data

    for name in MODULES:
        add(name)
    return list(out.values())


def python_files() -> Iterator[Path]:
    """The interpreter, the modules that capture_init.py imports, and their libraries."""
    imports = "\n".join(re.findall(r"^(?:import|from) .*$", INIT.read_text(), re.MULTILINE))
    script = (
        f"{imports}\nimport encodings.utf_8, encodings.ascii, encodings.latin_1\n"
        "for m in list(sys.modules.values()): print(getattr(m, '__file__', None) or '')"
    )
    said = subprocess.run(
        [PYTHON, "-S", "-c", script], check=True, capture_output=True, text=True
    ).stdout
    interpreter = Path(PYTHON).resolve()
    found = {interpreter, *(Path(line) for line in said.split() if line.startswith("/"))}
    binaries = [interpreter, *(path for path in found if path.suffix == ".so")]
    for binary in binaries:
        done = subprocess.run(["ldd", binary], check=False, capture_output=True, text=True)
        found |= {Path(word) for word in done.stdout.split() if word.startswith("/")}
    yield from sorted(found)


def cpio(files: dict[str, bytes]) -> bytes:
    """A "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst), all files
    executable, with the folders that they lie in and links for merged ones."""
    out = io.BytesIO()

    def add(name: str, mode: int, data: bytes = b"") -> None:
        path = name.encode() + b"\0"
        numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out.write(b"070701" + b"".join(b"%08X" % number for number in numbers) + path)
        out.write(bytes(-(6 + 104 + len(path)) % 4) + data + bytes(-len(data) % 4))

    folders = {str(parent) for name in files for parent in Path(name).parents}
    for folder in sorted(folders - {"."}):
        add(folder, stat.S_IFDIR | 0o755)
    for name in ("bin", "lib", "lib64"):
        if name not in folders:
            add(name, stat.S_IFLNK | 0o777, f"usr/{name}".encode())
    for name, data in files.items():
        add(name, stat.S_IFREG | 0o755, data)
    add("TRAILER!!!", 0)
    return out.getvalue()


def initramfs(kernel: Path, release: str) -> bytes:
    files = {"init": f"#!{PYTHON} -S\n".encode() + INIT.read_bytes()}
    for path in python_files():
        name = str(path)
        # /lib and /lib64 are links into /usr here and there.
        if name.startswith(("/lib/", "/lib64/")):
            name = "/usr" + name
        files[name[1:]] = path.read_bytes()
    files[PYTHON[1:]] = Path(PYTHON).resolve().read_bytes()
    for number, data in enumerate(modules(kernel, release)):
        files[f"modules/{number:02}.ko"] = data
    return gzip.compress(cpio(files), 1)


def boot(image: Path, initrd: Path, words: str, folder: Path) -> bytes:
    """Run the guest to its end; what it sent.  Raises SystemExit with its console, and
    `EmulatorFailed`."""
    console, answer = folder / "console", folder / "answer"
    broken = threading.Event()
    monitor = Monitor(lambda _: None, broken.set)
    accel = acceleration()
    command = [
        *emulator(),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-no-reboot",
        "-machine",
        "q35",
        "-accel",
        accel,
        "-cpu",
        "host" if accel == "kvm" else "max",
        "-m",
        str(MEMORY),
        "-device",
        "virtio-balloon-pci",
        "-kernel",
        str(image),
        "-initrd",
        str(initrd),
        "-append",
        f"{WORDS} {words}",
        "-chardev",
        f"file,id=console,path={console}",
        "-device",
        "isa-serial,chardev=console",
        "-chardev",
        f"file,id=answer,path={answer}",
        "-device",
        "isa-serial,chardev=answer",
        "-chardev",
        f"socket,id=monitor,fd={monitor.far_end.fileno()}",
        "-mon",
        "chardev=monitor,mode=control",
    ]
    with subprocess.Popen(command, pass_fds=[monitor.far_end.fileno()]) as process:
        end = time.monotonic() + DEADLINE
        try:
            monitor.begin()
            for name, arguments in (
                ("qmp_capabilities", {}),
                ("balloon", {"value": MEMORY - INFLATED << 20}),
            ):
                said = monitor.ask({"execute": name, "arguments": arguments}, 30)
                if said is None or "error" in said:
                    raise SystemExit(f"QEMU's {name}: {said}")
            monitor.look()
            while process.poll() is None and not broken.is_set() and time.monotonic() < end:
                time.sleep(0.1)
        finally:
            process.kill()
            monitor.close()
    if broken.is_set():
        if accel == "kvm":
            give_up_kvm("internal error")
        raise EmulatorFailed("QEMU stopped the guest with an internal error")
    text = console.read_text(errors="replace")
    data = answer.read_bytes()
    size = struct.unpack_from("<Q", data)[0] if len(data) > 8 else 0
    if not size or len(data) != 8 + size:
        raise SystemExit(f"{text[-6000:]}\nthe guest sent {len(data)} bytes of {8 + size}")
    log("\n".join(re.findall(r"capture: .*", text)))
    return gzip.decompress(data[8:])


def kernel_of(folder: Path) -> tuple[Path, str]:
    """The kernel's image and release in an unpacked package."""
    for image in (*folder.glob("boot/vmlinuz-*"), *folder.glob("**/modules/*/vmlinuz")):
        name = image.name.removeprefix("vmlinuz-")
        return image, image.parent.name if name == "vmlinuz" else name
    raise SystemExit(f"no kernel in {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kernel", default="trixie", help="a Debian suite or an unpacked package")
    parser.add_argument("--words", default="", help="more for the kernel command line")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    folder = Path(options.kernel)
    if not folder.is_dir():
        folder = suites.kernel(options.kernel)
    image, release = kernel_of(folder)
    choose_acceleration(lambda: image)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kjump-capture-") as name:
        initrd = Path(name, "initrd")
        initrd.write_bytes(initramfs(folder, release))
        tar = retried(lambda: boot(image, initrd, options.words, Path(name)))
    options.output.write_bytes(lzma.compress(tar, preset=9 | lzma.PRESET_EXTREME))
    with tarfile.open(options.output) as archive:
        pages = sum(member.name.startswith("pages/") for member in archive)
    size = options.output.stat().st_size
    log(f"{release}: {pages} pages, {size >> 10} KiB, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
