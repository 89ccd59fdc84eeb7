# SPDX-License-Identifier: GPL-2.0-or-later
"""The system-sleep hooks, run as systemd-sleep would run them.

Runs in the session, in a unit of its own that kjumpd starts (``kjump-hooks@pre.service`` and
``@post``): hooks may do anything, and kjumpd.service may not.  systemd-hibernate.service no longer
starts systemd-sleep, so the hooks that other packages put in ``/usr/lib/systemd/system-sleep`` are
ours to run: all at once, with arguments ``pre|post hibernate`` and SYSTEMD_SLEEP_ACTION=hibernate,
exit codes logged and otherwise ignored (systemd-sleep(8), src/shared/exec-util.c in v252).  Here
the output goes to the journal, too.  A hook that takes too long is killed with all it started.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kjump import settings as configuration
from kjump.session.log import bound, logger, set_up
from kjump.session.mark import read_mark

FOLDERS = (Path("/etc/systemd/system-sleep"), Path("/usr/lib/systemd/system-sleep"))
"""Most important first: a name in the first hides the same name in the second."""
KEPT_OUTPUT = 16 << 10
"""Bytes of a hook's output that are kept, from its end."""

log = logger()


@dataclass(frozen=True)
class Result:
    """How one hook ended."""

    path: Path
    code: int | None
    """Exit code, negative: the signal's number; None: it could not be started."""
    seconds: float
    output: str = ""
    timed_out: bool = False

    @property
    def failed(self) -> bool:
        return self.code != 0

    def sentence(self) -> str:
        """How it ended, for the journal."""
        if self.timed_out:
            return f"{self.path} took longer than {self.seconds:.0f} s and was killed"
        if self.code is None:
            return f"{self.path} could not be started: {self.output}"
        if self.code < 0:
            return f"{self.path} died of signal {-self.code}"
        return f"{self.path} ended with {self.code} after {self.seconds:.1f} s"


def by_precedence(listings: Iterable[Sequence[Path]]) -> list[Path]:
    """The hooks to run of the folders' files, most important folder first; sorted by name."""
    named: dict[str, Path] = {}
    for listing in listings:
        for path in listing:
            named.setdefault(path.name, path)
    return [named[name] for name in sorted(named)]


def find_hooks(folders: Sequence[Path] = FOLDERS) -> list[Path]:
    """The executables in the folders; a link to /dev/null masks a name."""
    listings = []
    for folder in folders:
        try:
            listings.append(sorted(path for path in folder.iterdir() if path.name[0] != "."))
        except OSError:
            continue
    return [path for path in by_precedence(listings) if path.is_file() and os.access(path, os.X_OK)]


def run_all(
    when: str,
    *,
    seconds: float,
    folders: Sequence[Path] = FOLDERS,
    environment: Mapping[str, str] | None = None,
) -> list[Result]:
    """Start all hooks with ``when`` ("pre" or "post"), wait for all, ``seconds`` at most.

    Never raises for what a hook does or is.
    """
    given = dict(os.environ if environment is None else environment)
    given = {key: value for key, value in given.items() if key not in _OURS}
    given["SYSTEMD_SLEEP_ACTION"] = "hibernate"
    started = [_start(path, when, given) for path in find_hooks(folders)]
    deadline = time.monotonic() + seconds
    return [
        _finish(path, process, output, since, deadline) for path, process, output, since in started
    ]


_OURS = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "JOURNAL_STREAM"})
"""Variables of the service manager that are meant for us, not for a hook."""

_Started = tuple[Path, "subprocess.Popen[bytes] | str", IO[bytes], float]


def _start(path: Path, when: str, environment: Mapping[str, str]) -> _Started:
    # A file, not a pipe: a child that a hook leaves behind must not hold us up.
    output = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        process: subprocess.Popen[bytes] | str = subprocess.Popen(
            [str(path), when, "hibernate"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        process = str(error)
    return path, process, output, time.monotonic()


def _finish(
    path: Path,
    process: subprocess.Popen[bytes] | str,
    output: IO[bytes],
    since: float,
    deadline: float,
) -> Result:
    with output:
        if isinstance(process, str):
            return Result(path, None, 0.0, process)
        timed_out = False
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            timed_out = True
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        took = time.monotonic() - since
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - KEPT_OUTPUT))
        text = output.read().decode("utf-8", "replace").strip()
        return Result(path, process.returncode, took, text, timed_out)


def log_results(when: str, results: Iterable[Result]) -> None:
    """Log what hooks printed, and how those ended that failed."""
    for result in results:
        for line in result.output.splitlines():
            log.info(f"{result.path.name}: {line}")
        (log.warning if result.failed else log.debug)(f"{when} hook: {result.sentence()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """What kjump-hooks@.service runs.  A hook that fails is logged; it is no error."""
    parser = argparse.ArgumentParser(description="Run the system-sleep hooks.")
    parser.add_argument("when", choices=("pre", "post"))
    when = parser.parse_args(arguments).when
    set_up()
    mark = read_mark()
    fields = {"KJUMP_PHASE": f"hooks-{when}"}
    if mark is not None and mark.cycle:
        fields["KJUMP_CYCLE"] = mark.cycle
    with bound(**fields):
        log_results(when, run_all(when, seconds=configuration.load().session.hook_timeout))
    return 0
