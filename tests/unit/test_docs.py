# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/ and README.md say what the code does: names, numbers, tables, links.

``python3 -m tests.unit.test_docs`` writes the tables of errors in the manual pages anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import struct
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kjump import errors
from kjump.cli import main as kjumpctl
from kjump.handoff import cell, documents, note, report, request, window_layout
from kjump.image import layout
from kjump.image.description import Description
from kjump.machine import cmdline, code, elf, memory
from kjump.session.staging import load, sizing
from kjump.settings import KEYS, Settings

from . import samples

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUS_PAGE = DOCS / "org.kjump1.5.md"
COMMAND_PAGE = DOCS / "kjumpctl.1.md"

MANUALS = sorted(DOCS.glob("*.[1-8].md"))
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = sorted([*DOCS.glob("*.md"), *TOP])

Rows = list[tuple[int, int]]


# -- reading the pages -----------------------------------------------------------------------------


def section(path: Path, title: str) -> str:
    """The text below a heading, up to the next heading."""
    found = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", path.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"{path.name} has no section {title}"
    return found[1]


def cells(text: str) -> list[list[str]]:
    """The rows of the first table in a text, without its heading."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def documented(path: Path, title: str) -> Rows:
    """(offset, size) of a table's rows that have both, in order."""
    return [
        (int(row[0], 0), int(row[1], 0))
        for row in cells(section(path, title))
        if row[0][0].isdigit() and row[1][0].isdigit()
    ]


def fields(form: str) -> Rows:
    """(offset, size) of each field of a little-endian struct format; padding is one field."""
    assert form.startswith("<")
    out = []
    at = 0
    for count, letter in re.findall(r"(\d*)([a-zA-Z])", form):
        whole = letter in "sx"
        size = struct.calcsize(f"<{count}{letter}" if whole else f"<{letter}")
        for _ in range(1 if whole else int(count or 1)):
            out.append((at, size))
            at += size
    assert at == struct.calcsize(form)
    return out


# -- structures ------------------------------------------------------------------------------------

HANDOFF = DOCS / "kjump-handoff.5.md"
IMAGE = DOCS / "kjump-image.5.md"
EXTENTS = ROOT / "daemon/kjump/native/extents.c"


@pytest.mark.parametrize(
    ("path", "title", "form"),
    [
        (HANDOFF, "THE NOTE", note.HEADER.format),
        (HANDOFF, "THE RETURN CELL", cell.CELL.format),
        (HANDOFF, "THE REPORT PAGE", report.HEADER.format),
        (HANDOFF, "THE REQUEST PAGE", request.HEADER.format),
        (HANDOFF, "THE ENTRY STUB", "<4Q"),
        (HANDOFF, "LEAVING THE HELPER", "<3Q"),
        (IMAGE, "INDEX", layout.EXTENT.format),
        (IMAGE, "CHUNK", layout.CHUNK.format),
    ],
)
def test_tables_agree_with_the_structures(path: Path, title: str, form: str) -> None:
    assert documented(path, title) == fields(form)


def test_the_superblock() -> None:
    rows = fields(layout.SUPERBLOCK.format)
    rows.append((layout.OUTCOME_OFFSET, layout.OUTCOME_ROOM))
    rows.append((layout.BLOCK - 4, 4))
    assert documented(IMAGE, "SUPERBLOCK") == rows
    assert sum(size for _, size in rows) == layout.BLOCK
    states = ", ".join(f"{number} {name}" for number, name in enumerate(layout.STATES))
    assert f"state: {states}" in section(IMAGE, "SUPERBLOCK")
    listed = [row[0].strip("`") for row in cells(section(IMAGE, "STATES"))]
    assert listed == list(layout.STATES)


def test_the_order_on_the_target() -> None:
    assert documented(IMAGE, "ORDER ON THE TARGET") == [
        (layout.SLOTS[0], layout.BLOCK),
        (layout.SLOTS[1], layout.BLOCK),
        (layout.DESCRIPTION_OFFSET, layout.DESCRIPTION_ROOM),
    ]
    assert layout.DESCRIPTION_OFFSET + layout.DESCRIPTION_ROOM == layout.RESTORER_OFFSET
    text = IMAGE.read_text()
    assert f"| {layout.RESTORER_OFFSET} | .. | restorer: a kernel" in text
    assert f"1 to {layout.CHUNK_PAGES} pages" in text
    assert f"{layout.DESCRIPTION_ROOM} bytes at most" in text
    assert "2^40" in text and "MAX_PFN (1ull << 40)" in EXTENTS.read_text()


def test_magics_and_versions() -> None:
    handoff, image = HANDOFF.read_text(), IMAGE.read_text()
    for magic in (note.MAGIC, cell.MAGIC, report.MAGIC, request.MAGIC, note.OWNER):
        assert f"`{magic.decode()}`" in handoff
    for magic in (layout.MAGIC, layout.CHUNK_MAGIC):
        assert f"`{magic.decode()}`" in image
    assert f"This page describes version {note.MAJOR}.{note.MINOR}," in handoff
    assert f"This page describes version {layout.VERSION}," in image
    assert cell.VERSION == report.VERSION == request.VERSION == 1
    assert f"hold the request, {request.PAGES} at most" in handoff
    assert f"at offset {code.JUMP_KEPT:#x}." in section(HANDOFF, "LEAVING THE HELPER")
    assert f"{report.ROOM} bytes at most" in handoff
    assert f"has at most {note.LARGEST} bytes" in handoff
    assert f"begins {elf.descriptor_offset(note.OWNER)} bytes" in " ".join(handoff.split())


def test_the_window() -> None:
    at = (
        window_layout.STUB,
        window_layout.CELL,
        window_layout.BOOT_PARAMS,
        window_layout.COMMAND_LINE,
        window_layout.COMMAND_LINE + window_layout.COMMAND_LINE_ROOM,
        window_layout.CORE_HEADER,
        window_layout.NOTE,
        window_layout.USED,
        memory.HEADROOM,
    )
    assert documented(HANDOFF, "THE WINDOW") == [
        (start, end - start) for start, end in pairwise(at)
    ]
    assert f"| {memory.HEADROOM:#x} | .. | the helper's kernel" in HANDOFF.read_text()
    for offset, title in (
        (code.ENTRY_PARAMETERS, "THE ENTRY STUB"),
        (code.JUMP_PARAMETERS, "LEAVING THE HELPER"),
    ):
        assert f"at offset {offset:#x}" in section(HANDOFF, title)


# -- documents -------------------------------------------------------------------------------------


def keys_in(path: Path, title: str) -> set[str]:
    """What a section's first table names in backquotes in its first column."""
    return {
        word for row in cells(section(path, title)) for word in re.findall(r"`([^`]+)`", row[0])
    }


def names_of(document: type[Any]) -> set[str]:
    """The keys of a document: its dataclass has fields of the same names."""
    return {field.name for field in dataclasses.fields(document)}


def test_the_handoffs_keys() -> None:
    of_machine = names_of(documents.MachineFacts)
    of_cycle = names_of(documents.SaveOrder) - {"facts", "mode"}
    assert keys_in(HANDOFF, "The document") == of_machine | of_cycle
    # What a warm helper's request must have in common with its note is what is of the machine.
    text = " ".join(section(HANDOFF, "A WARM HELPER").split())
    assert all(f"`{key}`" in text.partition("are not in it")[0] for key in of_cycle)
    assert keys_in(HANDOFF, "A WARM HELPER") == names_of(documents.WarmOrder) - {"facts"}
    text = " ".join(section(HANDOFF, "THE REQUEST PAGE").split())
    assert all(f"`{key}`" in text for key in of_machine)
    for mode in (documents.DRY_RUN, documents.WARM):
        assert f"`{mode}`" in section(HANDOFF, "The document")


def test_the_documents_write_the_keys_that_are_documented() -> None:
    order = samples.order(target=replace(samples.ORDER.target, locator=0)).to_json()
    assert set(order) == keys_in(HANDOFF, "The document")
    target = next(row for row in cells(section(HANDOFF, "The document")) if "`target`" in row[0])
    assert all(f"`{key}`" in target[1] for key in samples.order().target.to_json())
    warm = samples.WARM_ORDER.to_json()
    own = set(warm) - set(samples.FACTS.to_json())
    assert own == keys_in(HANDOFF, "A WARM HELPER") | {"mode"}
    assert set(samples.DESCRIPTION.to_json()) == keys_in(IMAGE, "THE DESCRIPTION")


@pytest.mark.parametrize("key", sorted(samples.ORDER.to_json()))
def test_the_star_marks_what_the_helper_cannot_do_without(key: str) -> None:
    rows = cells(section(HANDOFF, "The document"))
    starred = next(row[0].endswith("*") for row in rows if f"`{key}`" in row[0])
    document = {name: value for name, value in samples.ORDER.to_json().items() if name != key}
    try:
        documents.SaveOrder.from_json(document)
        missed = False
    except errors.DamagedHandoff as error:
        assert f"`{key}`" in error.what
        missed = True
    assert missed == starred


def test_the_descriptions_keys() -> None:
    own = names_of(Description) - {"facts"}
    assert keys_in(IMAGE, "THE DESCRIPTION") == names_of(documents.MachineFacts) | own


def test_the_reports_keys() -> None:
    listed = {
        word
        for row in cells(section(HANDOFF, "THE REPORT PAGE").partition("The document:")[2])
        for word in re.findall(r"`([^`]+)`", row[0])
    }
    only_outcomes = {"tries", "hostname"}
    assert listed | only_outcomes == set(report.NAMES)
    outcome = section(IMAGE, "SUPERBLOCK")
    assert "`tries`" in outcome and "`hostname`" in outcome


def test_the_helpers_command_line() -> None:
    running = " ".join(("console=tty0", *window_layout.KEPT_WORDS))
    words = load.command_line(Settings(), running, core_header=1, cell=2).split()
    listed = keys_in(HANDOFF, "THE COMMAND LINE")
    for word in words:
        name, equals, _ = word.partition("=")
        assert f"{name}{equals}" in listed, word
    assert {w.partition("=")[0] for w in words} == {w.rstrip("=") for w in listed}


def test_words_for_the_kernels_command_line() -> None:
    """Every word that the code looks for or gives to a kernel is in a page."""
    text = "".join(path.read_text() for path in PAGES)
    for word in cmdline.WORDS:
        assert f"`{word}" in text, word


def test_the_windows_parts() -> None:
    listed = keys_in(DOCS / "window.md", "What it is made of")
    parts = sizing.window_parts(0, 0, 0, 1, 0)
    assert listed == set(parts)
    bus = section(BUS_PAGE, "PROPERTIES")
    assert all(f"`{name}`" in bus for name in parts)
    text = " ".join((DOCS / "window.md").read_text().split())
    assert f"{sizing.RUNNING >> 20} MiB, measured" in text
    assert f"and {sizing.UNPACKING >> 20} MiB more" in text
    assert f"{sizing.PROCESSOR >> 20} MiB for each" in text
    assert f"{sizing.PAGE_STATE} bytes for each page" in text
    assert f"{sizing.MARGIN >> 20} MiB more" in text


# -- configuration, bus, errors --------------------------------------------------------------------


def test_every_key_of_the_configuration() -> None:
    path = DOCS / "kjump.conf.5.md"
    listed = re.findall(r"^\*\*(\w+)=\*\*\n: ", path.read_text(), re.MULTILINE)
    assert listed == [key.name for key in KEYS]
    for key in KEYS:
        assert f"**{key.name}=**" in section(path, f"{key.section.upper()} SECTION")
    shipped = (ROOT / "config/kjump.conf").read_text()
    for key in KEYS:
        assert re.search(rf"^#{key.name}=", shipped, re.MULTILINE)


def test_defaults_of_the_configuration() -> None:
    text = (DOCS / "kjump.conf.5.md").read_text()
    for key in KEYS:
        default = getattr(getattr(Settings(), key.section.lower()), key.attribute)
        if isinstance(default, bool):
            default = "yes" if default else "no"
        if default in ("yes", "no") or isinstance(default, int):
            found = re.search(rf"\*\*{key.name}=\*\*\n: (.*?)\n\n", text, re.DOTALL)
            assert found
            assert found[1].endswith(f"Default: {default}."), key.name


def test_the_whole_interface() -> None:
    text = BUS_PAGE.read_text()
    (interface,) = ET.parse(ROOT / "config/dbus/org.kjump1.Manager.xml").getroot()
    assert interface.get("name") == "org.kjump1.Manager"
    sections = {"method": "METHODS", "signal": "SIGNALS", "property": "PROPERTIES"}
    expected: dict[str, set[str]] = {title: set() for title in sections.values()}
    for member in interface:
        name = member.get("name", "")
        expected[sections[member.tag]].add(name)
        if member.tag == "property":
            assert re.search(
                rf"^\*\*{name}\*\* `{re.escape(member.get('type', ''))}`$", text, re.MULTILINE
            )
            continue
        into: list[str] = []
        out: list[str] = []
        for argument in member.findall("arg"):
            words = f"`{argument.get('type')}` {argument.get('name')}"
            (out if argument.get("direction") == "out" else into).append(words)
        line = f"**{name}**({', '.join(into)})" + (f" -> ({', '.join(out)})" if out else "")
        assert f"\n{line}\n: " in text, line
    for title, names in expected.items():
        assert set(re.findall(r"^\*\*(\w+)\*\*", section(BUS_PAGE, title), re.MULTILINE)) == names


def test_polkit_actions_are_documented() -> None:
    policy = ET.parse(ROOT / "config/polkit/org.kjump1.policy").getroot()
    for action in policy.findall("action"):
        assert f"`{action.get('id')}`" in section(BUS_PAGE, "AUTHORIZATION")


def is_reason(cls: type[errors.KjumpError]) -> bool:
    """Whether CanHibernate may name it."""
    return 20 <= cls.exit_code < 50 or cls in (errors.NotAuthorized, errors.Busy, errors.Internal)


def errors_tables() -> dict[Path, list[str]]:
    """The tables of errors, generated from the code; the first line is found in the page."""
    rows = sorted(errors.table().values(), key=lambda cls: cls.exit_code)
    return {
        BUS_PAGE: [
            "| exit code | D-Bus name | answer | what to do |",
            "|---|---|---|---|",
            *(
                f"| {cls.exit_code} | `{cls('').dbus_name}` |"
                f" {cls.availability if is_reason(cls) else ''} | {cls.advice} |"
                for cls in rows
            ),
        ],
        COMMAND_PAGE: [
            "| code | error | what to do |",
            "|---|---|---|",
            "| 0 | | |",
            "| 1 | (an error without a code of its own) | |",
            *(f"| {cls.exit_code} | `{cls.__name__}` | {cls.advice} |" for cls in rows),
        ],
    }


def with_errors(text: str, table: list[str]) -> str:
    """The page with its table of errors up to date."""
    lines = text.splitlines()
    start = lines.index(table[0])
    end = next(at for at in range(start, len(lines)) if not lines[at].startswith("|"))
    return "\n".join([*lines[:start], *table, *lines[end:]]) + "\n"


@pytest.mark.parametrize("path", [BUS_PAGE, COMMAND_PAGE], ids=lambda path: path.name)
def test_the_tables_of_errors_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    again = "write it anew: python3 -m tests.unit.test_docs"
    assert text == with_errors(text, errors_tables()[path]), again


# -- all pages -------------------------------------------------------------------------------------


def test_the_targets_of_make_are_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("make demo", "make test", "make deb"):
        assert f"`{command}`" in readme or f"\n    {command}\n" in readme, command
    building = (DOCS / "building.md").read_text()
    for command in ("make demo", "make test", "make test-all", "make bench", "make kernel"):
        assert f"`{command}`" in building, command
    makefile = (ROOT / "Makefile").read_text()
    for path in PAGES:
        for word in re.findall(r"(?:`|^    )make ([a-z][a-z-]+)", path.read_text(), re.MULTILINE):
            assert re.search(rf"^(?:[a-z-]+ )*{word}:", makefile, re.MULTILINE), f"make {word}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def commands() -> dict[str, set[str]]:
    """Every command of kjumpctl ("image info"), and its options; those of all have it in ""."""
    found: dict[str, set[str]] = {}

    def walk(parser: argparse.ArgumentParser, name: str) -> None:
        options, nested = set(), {}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                nested = dict(action.choices)
            elif action.help != argparse.SUPPRESS:
                options |= {word for word in action.option_strings if word.startswith("--")}
        found[name] = options
        for word, sub in nested.items():
            walk(sub, f"{name} {word}".strip())

    walk(kjumpctl.parser(), "")
    return found


EVERYWHERE = {"--help", "--json"}


def test_the_manual_names_every_command_and_option() -> None:
    text = section(COMMAND_PAGE, "COMMANDS")
    entries = re.split(r"\n\n(?=\*\*)", "\n\n" + text.strip())
    for command, options in commands().items():
        if not command:
            continue
        words = command.split()
        mine = [
            entry
            for entry in entries
            if set(words) <= set(re.findall(r"[\w-]+", entry.split("\n: ")[0]))
        ]
        assert mine, f"kjumpctl {command}"
        for option in options - EVERYWHERE:
            assert any(f"`{option}`" in entry for entry in mine), f"kjumpctl {command} {option}"


def test_commands_in_the_pages_exist() -> None:
    actions = kjumpctl.parser()._subparsers._group_actions  # type: ignore[union-attr]
    known = {name for action in actions for name in action.choices or ()}
    for path in PAGES:
        for word in re.findall(r"kjumpctl ([a-z][a-z-]+)", "".join(code_of(path.read_text()))):
            assert word in known, f"{path.name}: kjumpctl {word}"


def code_of(text: str) -> list[str]:
    """What stands in backquotes and code blocks."""
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    return [*blocks, *re.findall(r"`[^`\n]+`", text), *re.findall(r"^    .*\n", text, re.MULTILINE)]


def test_units_in_the_pages_exist() -> None:
    shipped = {path.name for path in [*ROOT.glob("units/**/*"), *ROOT.glob("packaging/**/*")]}
    for path in PAGES:
        for name in re.findall(r"`(kjump[\w-]*\.(?:service|target))`", path.read_text()):
            assert name in shipped, f"{path.name}: {name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_named_files_resolve(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target
    for name in re.findall(r"`((?:tests|packaging|daemon|config|units|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:session|machine|image|handoff|helper|resume)/[\w.]+)`", text):
        assert (ROOT / "daemon/kjump" / name).exists(), name


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the documentation as the packages install it."""
    destination = tmp_path_factory.mktemp("documentation")
    subprocess.run(["make", "-s", "install-docs", f"DESTDIR={destination}"], check=True, cwd=ROOT)
    return destination / "usr/share/doc/kjump"


def test_links_resolve_where_it_is_installed(installed: Path) -> None:
    there = sorted(installed.rglob("*.md"))
    assert {path.name for path in there} == {path.name for path in PAGES}
    for path in there:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                found = (path.parent / target).resolve()
                assert found.is_file() and found.is_relative_to(installed), f"{path}: {target}"
    # Packed pages would have other names.
    rules = (ROOT / "packaging/debian/rules").read_text()
    assert "dh_compress -X.md -XNEWS" in rules


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_into_a_page_lead_to_a_heading(path: Path) -> None:
    for name, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text()):
        text = (path.parent / name).read_text() if name else path.read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "NEWS"], ids=lambda path: path.name)
def test_prose_has_120_columns(path: Path) -> None:
    """Not tables and blocks of code, which cannot be wrapped."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    long = [x for x in text.splitlines() if len(x) > 120 and not x.startswith(("|", "    "))]
    assert not long, long[0]


def test_the_map_is_current() -> None:
    """docs/map.md names every file of the source, with its first line."""
    done = subprocess.run(["packaging/map"], check=True, capture_output=True, text=True, cwd=ROOT)
    assert (DOCS / "map.md").read_text() == done.stdout, "write it anew: make map"
    for path in ROOT.glob("daemon/kjump/**/*.py"):
        assert path.name == "__init__.py" or f"| `{path.name}` | " in done.stdout, path
    assert " |  |" not in done.stdout, "a file without a first line"


def test_manuals_that_are_named_exist() -> None:
    """A manual page of ours that another names is there; so is one that the code names."""
    there = {path.name.removesuffix(".md") for path in MANUALS}
    texts = [*PAGES, *ROOT.glob("daemon/kjump/**/*.py"), ROOT / "units/kjumpd.service"]
    for path in texts:
        found = re.findall(r"\b((?:org\.)?kjump[\w.-]*)\*{0,2}\((\d)\)", path.read_text())
        for name, number in found:
            assert f"{name}.{number}" in there, f"{path}: {name}({number})"
        for name in re.findall(r"docs/([\w.-]+\.md)", path.read_text()):
            assert (DOCS / name).exists(), f"{path}: {name}"


# The hosts that a file of ours may name.
HOSTS = {"www.freedesktop.org", "www.debian.org", "www.w3.org", "www.kernel.org", "lore.kernel.org"}
# Files of the tree, not of a checkout's neighbours.
SKIPPED = {".git", "build", "built", "__pycache__", ".hypothesis"}


def tree() -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        # Not looked into: somebody may be building there just now.
        folders[:] = [n for n in folders if n not in SKIPPED and not re.fullmatch(r"\..*_cache", n)]
        kept = [name for name in names if name not in SKIPPED]  # .git is a file in a work tree
        found += [path for name in kept if (path := Path(folder, name)).is_file()]
    return found


def test_no_path_of_a_machine_and_no_mirror() -> None:
    """Nothing that is true on one machine only."""
    private = re.compile(r"(?<![\w.$}])/" + r"(?:work|opt/(?:wheels|pypi)|srv|mnt)/")
    for path in tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = private.search(text)
        assert not found, f"{path}: {found[0] if found else ''}"
        for host in re.findall(r"\b(?:https?|ftp)://([\w.-]+\.\w+)", text):
            assert host in HOSTS, f"{path}: {host}"


if __name__ == "__main__":
    for page, lines in errors_tables().items():
        page.write_text(with_errors(page.read_text(), lines))
