# SPDX-License-Identifier: GPL-2.0-or-later
"""Building the initrds of helper and boot, with the program that the package's hooks also run.

Runs in the session, as root.  Builds nothing itself: `kjump.initrd.update` is that program.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from kjump.errors import Internal

UPDATE_INITRDS = "/usr/libexec/kjump/update-initrds"


def update(arguments: Sequence[str] = (), *, to_stderr: bool = False) -> bool:
    """Build them; returns whether all of them could be built.

    The program prints a line for each initrd, to stderr if ``to_stderr``.  Raises `Internal` if it
    cannot be started.
    """
    try:
        done = subprocess.run(
            [UPDATE_INITRDS, *arguments], check=False, stdout=sys.stderr if to_stderr else None
        )
    except OSError as error:
        raise Internal(
            f"{UPDATE_INITRDS} cannot be started: {error.strerror}.", advice="Install kjump again."
        ) from error
    return done.returncode == 0
