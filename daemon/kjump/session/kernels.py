# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels that are installed on this machine.

Runs in the session: in kjumpd, in kjumpctl, and where the initrds are made.  All of them use the
same answer, so that doctor judges the kernels that have initrds.  Changes nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

BOOT = Path("/boot")
MODULES = Path("/lib/modules")
STATE = Path("/var/lib/kjump")
"""The folder of the helper's files; those of a kernel are ``helper-RELEASE.*``."""
COPY = "helper-{release}.vmlinuz"
"""In `STATE`: a copy of a kernel that is not in /boot, because kjumpd cannot see the original."""


def by_number(release: str) -> list[tuple[int, str]]:
    """A sort key that puts 6.9 before 6.12."""
    return [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", release)]


def installed(boot: Path = BOOT, modules: Path = MODULES, state: Path = STATE) -> list[str]:
    """Releases with modules and a kernel (in /boot or beside its modules), oldest first.

    kjumpd's sandbox hides the modules.  Then a kernel in /boot counts if its configuration is also
    there, and a kernel beside its modules counts if its copy is in ``state``.
    """
    in_boot = {kernel.name.removeprefix("vmlinuz-") for kernel in boot.glob("vmlinuz-*")}
    if os.access(modules, os.R_OK | os.X_OK):
        found = in_boot | {kernel.parent.name for kernel in modules.glob("*/vmlinuz")}
        whole = {release for release in found if (modules / release / "modules.dep").exists()}
    else:
        prefix, suffix = COPY.split("{release}")
        whole = {release for release in in_boot if (boot / f"config-{release}").exists()}
        whole |= {
            kernel.name.removeprefix(prefix).removesuffix(suffix)
            for kernel in state.glob(COPY.format(release="*"))
        }
    return sorted(whole, key=by_number)
