# SPDX-License-Identifier: GPL-2.0-or-later
"""initrd-files helper|resume [--into DIRECTORY]: which files an initrd needs to run our Python.

Runs in the session, as root, while an initrd is made; the hooks of dracut, initramfs-tools and
mkinitcpio start it.  It prints one "source<TAB>destination" a line, or copies the files below
DIRECTORY.  Destinations are absolute paths without symbolic links in their folders (/usr/lib64/...,
not /lib64/...).

It finds the files by importing: a fresh interpreter imports every module of the packages that run
in the initrd, and prints what it has loaded (`kjump.initrd.trace`).  Byte code replaces the source
(``json/__init__.pyc``): that is smaller, and Python need not check that the two belong together.
If a module has no byte code, its source goes in.

It works for an installed kjump and from a source tree.  It lists the configuration's files, but
never interprets them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import kjump

SHARED = ("errors", "handoff", "image", "console", "machine")
"""Parts of kjump that go into both initrds; a package goes in with all its modules."""

LAZY = (
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "linecache",
    "traceback",
)
"""Modules that Python itself imports when it first needs them."""

LEFT_OUT = ("_bz2", "_curses", "_hashlib", "_lzma", "_ssl", "readline")
"""Extension modules with large libraries (OpenSSL alone is 5 MB) that the standard library can do
without: hashlib, for example, has its own SHA-2."""

PYTHON = Path("/usr/bin/python3")
LIBEXEC = Path("/usr/libexec/kjump")
PACKAGES = Path(kjump.__file__).parents[1]
"""The folder that this package lies in."""


@dataclass(frozen=True)
class Initrd:
    """One of the two initrds: what is imported, started and read in it."""

    packages: tuple[str, ...]
    """Parts of kjump."""
    launchers: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Patterns; those that match no file are left out."""


INITRDS = {
    "helper": Initrd(("helper", *SHARED), ("kjump-copy", "kjump-return")),
    "resume": Initrd(
        ("resume", *SHARED),
        ("kjump-resume",),
        (
            "/etc/machine-id",
            "/etc/kjump/kjump.conf",
            "/etc/kjump/kjump.conf.d/*.conf",
            "/usr/lib/kjump/kjump.conf.d/*.conf",
            "/var/lib/kjump/target.json",
        ),
    ),
}


def is_installed(packages: Path) -> bool:
    """Whether this folder is one in which Python looks for packages, not a source tree."""
    return packages.name in ("dist-packages", "site-packages")


INSTALLED = PACKAGES if is_installed(PACKAGES) else Path("/usr/lib/python3/dist-packages")
"""Where the initrd has the package: dist-packages on Debian, site-packages elsewhere."""


@dataclass(frozen=True)
class Copy:
    """A file and its path in the initrd."""

    source: Path
    destination: Path


# -- finding ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """What an interpreter has loaded after it imported everything."""

    executable: Path
    search_path: tuple[Path, ...]
    modules: tuple[tuple[Path, Path | None], ...]
    """For each module its source, or the extension module, and its byte code."""


def trace(python: Path, initrd: Initrd, tree: Path | None) -> Traced:
    """Import everything in a fresh interpreter.  ``tree``: a folder to find kjump in first.

    Raises subprocess.CalledProcessError; the interpreter has printed why.
    """
    before = [str(tree)] if tree else []
    packages = [f"kjump.{name}" for name in initrd.packages]
    argument = json.dumps([before, [str(INSTALLED)], packages, LAZY, LEFT_OUT])
    # -S: we do not want what .pth files and sitecustomize import.
    done = subprocess.run(
        [python, "-IS", Path(__file__).with_name("trace.py"), argument],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    executable, path, found = json.loads(done.stdout)
    return Traced(
        Path(executable),
        tuple(Path(folder) for folder in path),
        tuple((Path(source), Path(code) if code else None) for source, code in found),
    )


def is_fresh(code: Path, source: Path) -> bool:
    """Whether byte code belongs to this interpreter and this source (PEP 552 header)."""
    try:
        with code.open("rb") as stream:
            head = stream.read(16)
        status = source.stat()
    except OSError:
        return False
    if len(head) != 16 or head[:4] != MAGIC_NUMBER:
        return False
    if int.from_bytes(head[4:8], "little"):
        return True  # checked by hash, or not at all
    seconds = int(status.st_mtime) & 0xFFFFFFFF
    size = status.st_size & 0xFFFFFFFF
    return head[8:16] == seconds.to_bytes(4, "little") + size.to_bytes(4, "little")


def libraries(binaries: Iterable[Path]) -> Iterator[Path]:
    """The shared libraries, and the loader, that ldd names for these files."""
    seen: set[Path] = set()
    for binary in binaries:
        done = subprocess.run(
            ["ldd", str(binary)], check=False, capture_output=True, text=True, env={"LC_ALL": "C"}
        )
        for line in done.stdout.splitlines():
            words = line.split()
            path = next((Path(word) for word in words if word.startswith("/")), None)
            if path and path not in seen and path.exists():
                seen.add(path)
                yield path


def in_initrd(source: Path, tree: Path | None) -> Path:
    """Where one of our files, or of Python's, lies in the initrd."""
    if tree and source.is_relative_to(tree):
        return INSTALLED / source.relative_to(tree)
    return source


def module_files(modules: Iterable[tuple[Path, Path | None]], tree: Path | None) -> Iterator[Copy]:
    """Each module as byte code, as source, or as an extension module."""
    for source, code in modules:
        target = in_initrd(source, tree)
        if source.suffix == ".py" and code and is_fresh(code, source):
            yield Copy(code, target.with_suffix(".pyc"))
        else:
            yield Copy(source, target)


def native_files(tree: Path | None) -> Iterator[Copy]:
    """Our own library and machine code."""
    built = (tree or INSTALLED) / "kjump/native/built"
    for file in sorted(built.iterdir()) if built.is_dir() else []:
        if file.suffix in (".bin", ".so"):
            yield Copy(file, in_initrd(file, tree))


def landmark(search_path: Iterable[Path], extensions: Iterable[Path]) -> Iterator[Copy]:
    """A file for the folder of extension modules, if none of ``extensions`` is in it.

    Python looks for this folder by name, and complains if it is missing.
    """
    dynamic = next((folder for folder in search_path if folder.name == "lib-dynload"), None)
    if dynamic and not any(dynamic in file.parents for file in extensions):
        yield from (Copy(file, file) for file in sorted(dynamic.glob("_json*.so"))[:1])


def library_files(executable: Path, binaries: Iterable[Path]) -> Iterator[Copy]:
    """The libraries that programs and libraries are linked with, or that the C library opens by
    name."""
    yield from (Copy(library, library) for library in libraries([executable, *binaries]))
    for folder in {library.parent for library in libraries([executable])}:
        # The C library opens it when a thread ends early.
        unwinder = folder / "libgcc_s.so.1"
        if unwinder.exists():
            yield Copy(unwinder, unwinder)


def other_files(initrd: Initrd, launchers: Path) -> Iterator[Copy]:
    """The launchers, and the files that they read."""
    yield from (Copy(launchers / name, LIBEXEC / name) for name in initrd.launchers)
    for pattern in initrd.files:
        for file in sorted(Path("/").glob(pattern.lstrip("/"))):
            if file.is_file():
                yield Copy(file, file)


def plain(path: Path) -> Path:
    """The same path with the symbolic links of its folder resolved, but not its own."""
    return Path(os.path.realpath(path.parent)) / path.name


def closure(initrd: Initrd, tree: Path | None, launchers: Path) -> dict[Path, Path]:
    """Destination to source, for all files.  ``tree``: a source tree's daemon/, or None.

    Raises subprocess.CalledProcessError if something cannot be imported.
    """
    traced = trace(PYTHON, initrd, tree)
    ours = [*module_files(traced.modules, tree), *native_files(tree)]
    binaries = [copy for copy in ours if copy.source.suffix == ".so"]
    copies = [
        Copy(traced.executable, PYTHON),
        *ours,
        *landmark(traced.search_path, [copy.destination for copy in binaries]),
        *library_files(traced.executable, [copy.source for copy in binaries]),
        *other_files(initrd, launchers),
    ]
    return {plain(copy.destination): Path(os.path.realpath(copy.source)) for copy in copies}


# -- copying ---------------------------------------------------------------------------------------


def copy_files(files: dict[Path, Path], into: Path) -> None:
    """Copy below ``into``; merged folders (/lib, /lib64) become links, as on this machine."""
    for name in ("bin", "sbin", "lib", "lib64"):
        here, there = Path("/") / name, into / name
        if here.is_symlink() and not there.is_symlink() and not there.exists():
            into.mkdir(parents=True, exist_ok=True)
            there.symlink_to(os.readlink(here))
    for destination, source in files.items():
        target = into / destination.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="initrd-files", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("initrd", choices=sorted(INITRDS))
    parser.add_argument("--into", type=Path, metavar="DIRECTORY", help="copy instead of printing")
    parser.add_argument("--daemon", type=Path, metavar="DIRECTORY", help="a source tree's daemon/")
    parser.add_argument("--launchers", type=Path, default=LIBEXEC, help=argparse.SUPPRESS)
    options = parser.parse_args()
    tree = options.daemon or (None if is_installed(PACKAGES) else PACKAGES)
    try:
        files = closure(
            INITRDS[options.initrd], tree.resolve() if tree else None, options.launchers.resolve()
        )
    except subprocess.CalledProcessError:  # the interpreter has printed why
        print(f"initrd-files: cannot import the modules of {options.initrd}", file=sys.stderr)
        return 1
    missing = [str(source) for source in files.values() if not source.exists()]
    if missing:
        print(f"initrd-files: missing: {' '.join(missing)}", file=sys.stderr)
        return 1
    if options.into:
        copy_files(files, options.into)
    else:
        for target, source in sorted(files.items()):
            print(f"{source}\t{target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
