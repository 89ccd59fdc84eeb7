# SPDX-License-Identifier: GPL-2.0-or-later
"""The drivers of this machine's displays.

Runs in the session, also while the helper's initrd is made.  Only reads /sys.
"""

from __future__ import annotations

import os
from pathlib import Path

DRM = Path("/sys/class/drm")


def drivers(drm: Path = DRM) -> set[str]:
    """Modules that drive the displays; a driver built into the kernel is no module."""
    modules = (card / "device/driver/module" for card in drm.glob("card*"))
    return {Path(os.path.realpath(module)).name for module in modules if module.exists()}
