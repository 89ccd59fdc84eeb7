# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl: the command line.

Runs in the session, as any user; kjumpd does what needs more rights.  Decides nothing about the
machine.  Prints results to stdout and errors as one sentence to stderr, and ends with the error's
exit code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from kjump import VERSION
from kjump.cli import show
from kjump.cli.commands import (
    configuration,
    doctor,
    drop_ins,
    hibernate,
    history,
    image,
    setup,
    stage,
    status,
)
from kjump.errors import KjumpError, table

COMMANDS = (
    status,
    hibernate,
    doctor,
    setup,
    drop_ins,
    history,
    image,
    stage,
    configuration,
)
"""In the order of ``kjumpctl --help``."""


def exit_codes() -> str:
    """The exit codes, from the one table of errors."""
    lines = ["exit codes:", "    0  done", "    1  an error without a code of its own"]
    codes = sorted((cls.exit_code, name) for name, cls in table().items())
    lines += [f"  {code:3}  {name}" for code, name in codes]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    out = argparse.ArgumentParser(
        prog="kjumpctl",
        description="Hibernation by kexec jump.",
        epilog=exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--version", action="version", version=f"kjump {VERSION}")
    subparsers = out.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """kjumpctl; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
    except KjumpError as error:
        _print_error(error, as_json=getattr(options, "json", False))
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        return 130
    return int(code)


def _print_error(error: KjumpError, *, as_json: bool) -> None:
    if as_json:
        document = {**error.report(), "sentence": error.sentence}
        print(json.dumps(document, indent=2), file=sys.stderr)
    else:
        name = show.paint("kjumpctl:", show.RED, on=show.wants_colour(sys.stderr))
        print(f"{name} {error.sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
