"""Plymouth: what the console says, on the splash screen too.

Runs in the boot initrd.  Never fails, and never waits long: a splash screen that does not answer is
done without.  The helper has none.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLIENTS = (Path("/usr/bin/plymouth"), Path("/bin/plymouth"))
PATIENCE = 2.0
"""Seconds that Plymouth may take for an answer."""


class Splash:
    """The screen that is there when this is made; without one all of this does nothing."""

    def __init__(self, clients: Sequence[Path] = CLIENTS) -> None:
        self._client = next((str(path) for path in clients if os.access(path, os.X_OK)), "")
        self._shown = ""
        if not self._run("--ping"):
            self._client = ""

    @property
    def is_there(self) -> bool:
        return bool(self._client)

    def show(self, text: str) -> None:
        """This message in place of the one before."""
        if self._client and self._shown:
            self._run("hide-message", f"--text={self._shown}")
        self._shown = text
        self._run("display-message", f"--text={text}")

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        """The console in its place, with the keyboard."""
        self._run("deactivate")
        try:
            yield
        finally:
            self._run("reactivate")

    def _run(self, *words: str) -> bool:
        """Whether Plymouth did so."""
        if not self._client:
            return False
        try:
            process = os.posix_spawn(self._client, [self._client, *words], os.environ)
            end = time.monotonic() + PATIENCE
            while not (ended := os.waitpid(process, os.WNOHANG))[0]:
                if time.monotonic() > end:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    self._client = ""
                    return False
                time.sleep(0.005)
        except OSError:
            self._client = ""
            return False
        return ended[1] == 0
