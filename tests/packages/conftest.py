# SPDX-License-Identifier: GPL-2.0-or-later
"""The built packages, made once for all tests.  Both are kept in build/ and made again only where
sources have changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def built(what: str) -> Path:
    """What ``make deb`` or ``make rpm`` makes; its path is the last line printed."""
    done = subprocess.run(
        [ROOT / f"packaging/build-{what}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def deb() -> Path:
    return built("deb")


@pytest.fixture(scope="session")
def rpm() -> Path:
    return built("rpm")
