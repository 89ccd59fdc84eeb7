# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/README.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
README = (TESTS / "README.md").read_text()


def test_its_files_exist() -> None:
    names = re.findall(r"(?<![\w/*.-])([\w/]+\.py)\b", README)
    assert len(names) > 15
    for name in names:
        places = (ROOT, TESTS, TESTS / "vm")
        assert any((place / name).exists() for place in places), name
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (TESTS / link).exists(), link


def test_every_module_of_the_guests_has_its_place() -> None:
    named = set(re.findall(r"(\w+\.py)\b", README))
    for path in (TESTS / "vm").glob("*.py"):
        if not path.name.startswith(("scenarios_", "__")):
            assert path.name in named, path.name


def test_its_variables_are_those_that_are_read() -> None:
    files = [*TESTS.glob("vm/*.py"), ROOT / "packaging/kernel/build"]
    read = set(re.findall(r"\bKJUMP_[A-Z_]+\b", "".join(path.read_text() for path in files)))
    inside = {"KJUMP_INJECT", "KJUMP_CYCLE", "KJUMP_PHASE", "KJUMP_ERROR", "KJUMP_LIBEXEC"}
    assert set(re.findall(r"\bKJUMP_[A-Z_]+\b", README)) == read - inside


def test_its_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w -]+)`", README):
        for name in target.split():
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
