# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages of other suites than this machine's, unpacked and never installed.

They come from the archive that this machine's own apt uses, with package lists of their own in the
cache, which apt checks as usual.  No rights are needed.  A set of unpacked packages stays in the
cache, under a hash of their names and versions, and is used again without the network.
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .cache import cache_dir, digest, run
from .image import KEYRING, sources

Apt = Callable[..., str]


@contextmanager
def _apt(suite: str, folder: Path | None = None) -> Iterator[tuple[Apt, Path]]:
    """A function that runs an apt tool for the suite, and the suite's folder, locked.  ``folder``:
    another than the one in the cache."""
    folder = folder or cache_dir() / "suites" / suite
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = [line.replace("deb ", f"deb [signed-by={KEYRING}] ", 1) for line in sources(suite)]
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::State::status": "/dev/null",
        "APT::Sandbox::User": "",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    def apt(tool: str, *arguments: str) -> str:
        return run(tool, *words, *arguments, cwd=folder / "debs")

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield apt, folder


def closure(apt: Apt, packages: list[str]) -> list[str]:
    """The packages and all that they depend on, as ``name=version``."""
    said = apt("apt-get", "install", "--print-uris", "--no-install-recommends", "-y", *packages)
    found = re.findall(r"^'[^']*' ([^_\s]+)_([^_\s]+)_\S+\.deb ", said, re.MULTILINE)
    return sorted(f"{name}={version.replace('%3a', ':')}" for name, version in found)


def _unpack(apt: Apt, folder: Path, packages: list[str], name: str) -> Path:
    root = folder / f"{name}-{digest(' '.join(packages))}"
    if not root.exists():
        apt("apt-get", "download", "-q", *packages)
        part = root.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for deb in sorted((folder / "debs").glob("*.deb")):
            run("dpkg-deb", "--extract", deb, part)
            deb.unlink()
        part.rename(root)
    return root


def _known(folder: Path, name: str, make: Callable[[], Path]) -> Path:
    """What the link of this name leads to; made where it leads nowhere."""
    link = folder / name
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(make().name)
    return link.resolve()


def kernel(suite: str) -> Path:
    """A folder with the suite's stock kernel: ``boot/vmlinuz-RELEASE``, ``lib/modules`` or
    ``usr/lib/modules``.  The newest that the suite has, when it was first asked for."""
    with _apt(suite) as (apt, folder):

        def make() -> Path:
            apt("apt-get", "update", "-q")
            # linux-image-amd64 depends on the image of a release; since 7.x that one is empty and
            # depends on linux-binary-RELEASE and linux-modules-RELEASE.
            every = closure(apt, ["linux-image-amd64"])
            wanted = [
                package
                for package in every
                if re.match(r"linux-(image|binary|modules)-\d", package)
            ]
            return _unpack(apt, folder, wanted, "kernel")

        return _known(folder, "kernel", make)


def alone(suite: str, package: str, folder: Path) -> Path:
    """A folder below this one with the files of ``name=version`` from the suite, and nothing it
    depends on.  Not in the cache, where root would leave files that the user cannot replace."""
    with _apt(suite, folder) as (apt, _):
        apt("apt-get", "update", "-q")
        return _unpack(apt, folder, [package], package.partition("=")[0])


def program(suite: str, package: str, path: str) -> list[str]:
    """How to run a program of the suite's package on this machine: the words to begin a command
    with.  It runs with the suite's own loader and libraries; ``path`` is absolute there."""
    with _apt(suite) as (apt, folder):

        def make() -> Path:
            apt("apt-get", "update", "-q")
            return _unpack(apt, folder, closure(apt, [package]), package)

        root = _known(folder, package, make)
    # Where /lib and /lib64 are links is a matter of base-files, which nothing depends on.
    loader = next(root.glob("**/ld-linux-x86-64.so.2"))
    libraries = (root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu")
    return [str(loader), "--library-path", ":".join(map(str, libraries)), str(root / path[1:])]
