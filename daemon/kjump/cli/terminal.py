# SPDX-License-Identifier: GPL-2.0-or-later
"""What kjumpctl's commands share on the terminal: results, questions and progress.

Runs in the session.  Results go to stdout, progress to stderr, and only if that is a terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kjump.cli import show

Options = argparse.Namespace


def print_result(options: Options, document: Any, text: Callable[[], str]) -> None:
    """Print a document as JSON or as text, as the options say."""
    if options.json:
        print(json.dumps(document, indent=2, default=str))
    elif not getattr(options, "quiet", False):
        print(text())


def colour() -> bool:
    """Whether stdout gets colour."""
    return show.wants_colour(sys.stdout)


def can_ask() -> bool:
    """Whether somebody reads the question and can answer it."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: str) -> bool:
    """Ask for a yes or no; the end of the input is a no."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def _shows_progress(options: Options) -> bool:
    quiet = options.json or getattr(options, "quiet", False)
    return not quiet and sys.stderr.isatty()


def byte_progress(options: Options, total: int) -> Callable[[int], None]:
    """What to call with the number of bytes done, of ``total``: it draws a bar."""
    if not _shows_progress(options):
        return lambda done: None

    def draw(done: int) -> None:
        percent = min(100, done * 100 // max(total, 1))
        print(f"\r{show.bar(percent)}", end="\n" if done >= total else "", file=sys.stderr)

    return draw


@contextmanager
def service_progress(options: Options) -> Iterator[None]:
    """Show kjumpd's progress while inside."""
    if not _shows_progress(options):
        yield
        return
    from kjump.cli.client import watch

    def draw(percent: int, message: str) -> None:
        # Clears to the end of the line: the text that was there may have been longer.
        print(f"\r{show.bar(percent)}  {message}\x1b[K", end="", file=sys.stderr, flush=True)

    stop = watch(draw)
    try:
        yield
    finally:
        stop()
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
