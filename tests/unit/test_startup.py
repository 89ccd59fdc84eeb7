# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program of the initrds imports before it can do anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kjump


def imported_by(name: str) -> set[str]:
    """Modules that a fresh interpreter, without site, has after importing this one."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2]);"
        " print(json.dumps([*sys.modules]))"
    )
    folder = Path(kjump.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code, folder, name],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return set(json.loads(done.stdout))


def test_the_way_back_reads_no_documents() -> None:
    """It has to work when the copy could not even begin, and a person waits for it."""
    found = imported_by("kjump.helper.leave")
    assert "kjump.handoff.cell" in found
    assert not found & {"uuid", "kjump.handoff.documents", "kjump.handoff.note"}
    assert not {name for name in found if name.startswith(("kjump.image", "kjump.session"))}
