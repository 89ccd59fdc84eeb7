# SPDX-License-Identifier: GPL-2.0-or-later
"""How shells complete kjumpctl's arguments; packaging/make-completions makes their scripts.

Runs in the session, but does nothing there: shtab reads these marks when kjump is built.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
CYCLES = {"bash": "_kjumpctl_cycles", "zsh": "(last)"}

FUNCTIONS = {"bash": '_kjumpctl_cycles() {\n  compgen -W last -- "$1"\n}\n'}
"""The shells' functions that are named above and are not shtab's own."""


def completes(action: argparse.Action, to: Mapping[str, str]) -> None:
    """Mark an argument of the command line; shtab looks for an attribute of this name."""
    action.complete = to  # type: ignore[attr-defined]
