# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages that the build makes of docs/: whole, as man-db and mandoc want them."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from subprocess import PIPE

import pytest

from kjump import VERSION
from tests.unit.test_docs import MANUALS, ROOT, section

CHANGELOG = ROOT / "packaging/debian/changelog"


def words(text: str) -> Counter[str]:
    """How often each word is in a text."""
    return Counter(re.findall(r"\w+", text))


@pytest.fixture(params=MANUALS, ids=lambda path: path.name)
def manual(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """(source, manual page that the build makes of it)."""
    source: Path = request.param
    page = tmp_path / source.name.removesuffix(".md")
    with page.open("wb") as file:
        subprocess.run([ROOT / "packaging/man-page", source], check=True, stdout=file)
    return source, page


def test_manuals_become_manual_pages(manual: tuple[Path, Path]) -> None:
    source, page = manual
    name, number = page.name.rsplit(".", 1)
    assert source.read_text().startswith(f"# {name}({number})\n\n## NAME\n\n{name}")
    changed = re.search(r"^ -- .*>  (.*)$", CHANGELOG.read_text(), re.MULTILINE)
    assert changed
    day = parsedate_to_datetime(changed[1]).astimezone(UTC).date()
    head = f'.TH "{name}" "{number}" "{day}" "kjump {VERSION}" "kjump"'
    text = page.read_text()
    assert head in text.splitlines()
    left = [line for line in text.splitlines() if re.search(r"\*\*|`|^#+ |^\|", line)]
    assert not left, left
    found = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", page], check=False, stdout=PIPE, text=True
    )
    assert found.stdout == ""


def test_apropos_finds_the_manual_pages(manual: tuple[Path, Path]) -> None:
    """What mandb would take into its list."""
    source, page = manual
    line = section(source, "NAME").strip()
    found = subprocess.run(["lexgrog", page], check=True, stdout=PIPE, text=True).stdout
    what = line.partition(" - ")[2]
    for name in line.partition(" - ")[0].split(", "):
        assert f'"{name} - {what}"' in found


def test_no_word_of_the_manual_pages_is_lost(manual: tuple[Path, Path]) -> None:
    source, page = manual
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "130", "MAN_KEEP_FORMATTING": ""}
    shown = subprocess.run(["man", "-l", page], check=True, stdout=PIPE, text=True, env=environment)
    there = words(shown.stdout)
    written = words(source.read_text())
    assert written - there == Counter()
    # The header and the footer name page, version and date.
    head = next(line for line in page.read_text().splitlines() if line.startswith(".TH "))
    assert set(there - written) <= set(words(head))
