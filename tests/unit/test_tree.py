# SPDX-License-Identifier: GPL-2.0-or-later
"""The shape of the tree: licences, sizes, and where the documents' keys may stand."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "daemon/kjump"
LICENCE = "SPDX-License-Identifier: GPL-2.0-or-later"
NOT_SOURCE = re.compile(
    r"\.(md|svg|png|xz|json|txt)$|^(COPYING|NEWS)$|^\.gitignore$|fixtures/"
    r"|debian/(control|changelog|copyright|source/|.*lintian-overrides)"
)
LONGEST_FILE, LONGEST_CLASS = 500, 300
"""Lines."""
OPEN_DOCUMENTS = 40
"""Lines of the package that may say that a mapping holds anything."""


@cache
def tracked() -> tuple[str, ...]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(name for name in done.stdout.split("\0") if name and (ROOT / name).is_file())


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_source_file_names_its_licence() -> None:
    lacking = [
        name
        for name in tracked()
        if not NOT_SOURCE.search(name) and LICENCE not in (ROOT / name).read_text()[:600]
    ]
    assert not lacking


def test_no_file_and_no_class_is_too_long() -> None:
    for path in modules():
        text = path.read_text()
        assert len(text.splitlines()) <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < LONGEST_CLASS, f"{path}: {node.name}"


def test_the_formatter_has_no_exceptions() -> None:
    word = "fmt: " + "skip"
    assert not [name for name in tracked() if name.endswith(".py") and word in source(name)]


def source(name: str) -> str:
    return (ROOT / name).read_text()


def test_documents_have_types() -> None:
    """What passes between the kernels is read by its dataclasses, and by nothing else."""
    homes = {PACKAGE / "handoff/documents.py", PACKAGE / "image/description.py"}
    keys = re.compile(r"\[\"(window|ram|jump_back|firmware_map)\"\]")
    found = [path for path in modules() if path not in homes and keys.search(path.read_text())]
    assert not found
    anything = re.compile(r"dict\[str, Any\]|Mapping\[str, Any\]")
    lines = [line for path in modules() for line in path.read_text().splitlines()]
    assert sum(1 for line in lines if anything.search(line)) < OPEN_DOCUMENTS
