# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's command line, read as the kernel reads it, and kjump's own words on it.

Runs in all three kernels; changes nothing.  Parsing is pure.  The rules are those of
lib/cmdline.c (next_arg) and kernel/params.c (parse_args): double quotes protect blanks and are
removed around a word or a value, ``-`` and ``_`` are equal in names, and everything after a bare
``--`` is for init.  (The kernel also treats the byte 0xa0 as a blank.  Here it is part of a UTF-8
character.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CMDLINE = Path("/proc/cmdline")

TARGET = "kjump.target"
"""Where the image is: a target as in kjump.conf(5), and after a colon the byte of its locator."""
NO_RESUME = "kjump.noresume"
"""Do not resume from an image; the kernel's own word `SYSTEM_NO_RESUME` means the same."""
RESTORE = "kjump.restore"
"""For the boot kernel: how to restore.  For the restorer: the id of the cycle."""
RETURN = "kjump.return"
"""Physical address of the return cell, hexadecimal; for the helper."""
SKIP_WAIT = "kjump.skip-wait"
"""Seconds in which the restorer accepts Esc."""
INJECT = "kjump.inject"
"""A fault that the helper causes, in tests."""
WORDS = (TARGET, NO_RESUME, RESTORE, RETURN, SKIP_WAIT, INJECT)
"""All of kjump's words."""

SYSTEM_NO_RESUME = "noresume"

BLANKS = " \t\n\v\f\r"
TRUE, FALSE = "yY1", "nN0"
SOMETIMES_TRUE = "tTeE"
"""First letters that only newer kernels read as yes: "true" and "enable"."""


@dataclass(frozen=True)
class Word:
    """One word: ``NAME`` or ``NAME=VALUE``, without its quotes."""

    name: str
    value: str | None = None
    """None if there is no ``=``."""

    def __str__(self) -> str:
        text = self.name if self.value is None else f"{self.name}={self.value}"
        return f'"{text}"' if any(blank in text for blank in BLANKS) else text


def canonical(name: str) -> str:
    """The name in the form in which the kernel compares names (parameq)."""
    return name.replace("-", "_")


@dataclass(frozen=True)
class CommandLine:
    """The words of a command line that are for the kernel, in order."""

    words: tuple[Word, ...] = ()

    def all(self, name: str) -> list[Word]:
        """Every word of this name."""
        return [word for word in self.words if canonical(word.name) == canonical(name)]

    def has(self, name: str) -> bool:
        """Whether the word is there, with or without a value."""
        return bool(self.all(name))

    def value(self, name: str) -> str | None:
        """The value of the last word of this name that has one; None if there is none."""
        values = [word.value for word in self.all(name) if word.value is not None]
        return values[-1] if values else None

    def may_be_on(self, name: str, *, default: bool = False) -> bool:
        """Whether any kernel reads the switch ``NAME=VALUE`` as on (kstrtobool).

        If not every kernel understands a value, it counts when it means yes, and not when it means
        no.
        """
        on = default
        for word in self.all(name):
            read = may_be_true(word.value or "")
            on = on if read is None else read
        return on

    @property
    def skips_resume(self) -> bool:
        """Whether a person asked to boot without resuming."""
        return self.has(NO_RESUME) or self.has(SYSTEM_NO_RESUME)


def may_be_true(value: str) -> bool | None:
    """A switch's value as the kernel reads it: only the first letters count.  None: at least some
    kernels ignore it."""
    first = value[:1]
    if first and first in TRUE + SOMETIMES_TRUE:
        return True
    if first and first in FALSE:
        return False
    return {"on": True, "of": False}.get(value[:2].lower())


def hibernation_off(words: CommandLine) -> list[Word]:
    """The words that keep the kernel from saving and loading an image (kernel/power/hibernate.c,
    hibernate_setup: only the first letters of the value of ``hibernate=`` count)."""
    kept = ("noresume", "nocompress")
    off = [word for word in _hibernate(words, "no") if not (word.value or "").startswith(kept)]
    return [*words.all("nohibernate"), *off]


def kernel_resume_off(words: CommandLine) -> list[Word]:
    """The words that keep the kernel from looking for an image of its own."""
    return [*words.all(SYSTEM_NO_RESUME), *_hibernate(words, "noresume"), *hibernation_off(words)]


def _hibernate(words: CommandLine, value: str) -> list[Word]:
    return [word for word in words.all("hibernate") if (word.value or "").startswith(value)]


def split(text: str) -> Iterable[Word]:
    """All words of a text, including those after ``--``."""
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in BLANKS:
            at += 1
        if at >= end:
            return
        quoted = text[at] == '"'
        start = at = at + quoted
        inside, equals = quoted, 0
        while at < end and (inside or text[at] not in BLANKS):
            if text[at] == "=" and not equals:
                equals = at - start  # at the very beginning it is part of the name
            if text[at] == '"':
                inside = not inside
            at += 1
        word = text[start:at]
        if not equals:
            yield Word(word.removesuffix('"') if quoted else word)
            continue
        value = word[equals + 1 :]
        if value.startswith('"'):
            value = value[1:].removesuffix('"')
        elif quoted:
            value = value.removesuffix('"')
        yield Word(word[:equals], value)


def parse(text: str) -> CommandLine:
    """The words of a command line that are for the kernel."""
    words = []
    for word in split(text):
        if word == Word("--"):
            break
        words.append(word)
    return CommandLine(tuple(words))


def read_text(path: Path = CMDLINE) -> str:
    """The running kernel's command line, unparsed.  Raises OSError, but accepts any content."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def read(path: Path = CMDLINE) -> CommandLine:
    """The running kernel's command line; empty if it cannot be read."""
    try:
        return parse(read_text(path))
    except OSError:
        return CommandLine()
