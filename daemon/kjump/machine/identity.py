# SPDX-License-Identifier: GPL-2.0-or-later
"""Which machine this is, the same in every kernel booted on it.

Runs in the session and in the boot kernel; only reads /sys.  From DMI, not from /etc/machine-id:
the boot initrd may have been built before that was set.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FACTS = ("sys_vendor", "product_name", "product_uuid", "product_serial", "board_serial")


def machine_identity(root: Path = Path("/sys/class/dmi/id")) -> str:
    """32 hexadecimal digits; the same for machines that DMI cannot distinguish."""
    found = []
    for name in FACTS:
        try:
            found.append((root / name).read_text().strip())
        except OSError:
            found.append("")
    return hashlib.sha256("\0".join(found).encode()).hexdigest()[:32]
