# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of files that are slow to make for the guests, and helpers for filling it.

Runs on the host.  The name of each thing in the cache is a hash of everything that determines its
content, so nothing in it is ever out of date.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

KEPT_IMAGES = int(os.environ.get("KJUMP_KEPT_IMAGES", "2"))
KEPT_BASES = KEPT_IMAGES + 4  # two other suites, and two kinds with more in them
KEPT_SNAPSHOTS = 12


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache_dir() -> Path:
    path = Path(os.environ.get("KJUMP_CACHE") or Path.home() / ".cache/kjump") / "vm"
    path.mkdir(parents=True, exist_ok=True)
    return path


def run(
    *command: str | Path, text: str | None = None, quiet: bool = True, cwd: Path | None = None
) -> str:
    """The command's output; where it fails, what it said goes to stderr first."""
    result = subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
        cwd=cwd,
    )
    if result.returncode:
        log(result.stdout[-8000:])
        raise SystemExit(f"{command[0]} failed with status {result.returncode}")
    return result.stdout


def digest(*parts: str | bytes | Path | Callable[..., object]) -> str:
    """A name for what is made from files, texts and the source of functions."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            data = part.read_bytes()
        elif isinstance(part, str):
            data = part.encode()
        elif isinstance(part, bytes):
            data = part
        else:
            data = inspect.getsource(part).encode()
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()[:16]


def prune(directory: Path, pattern: str, keep: int) -> None:
    files = sorted(directory.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[keep:]:
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)
