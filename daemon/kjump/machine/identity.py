# SPDX-License-Identifier: GPL-2.0-or-later
"""Which machine this is, the same in every kernel booted on it.

It comes from DMI, not from /etc/machine-id: that may have been set after the boot initrd was built.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FACTS = ("sys_vendor", "product_name", "product_uuid", "product_serial", "board_serial")


def machine_identity(root: Path = Path("/sys/class/dmi/id")) -> str:
    """32 hexadecimal digits; the same for machines that DMI cannot tell apart."""
    found = []
    for name in FACTS:
        try:
            found.append((root / name).read_text().strip())
        except OSError:
            found.append("")
    return hashlib.sha256("\0".join(found).encode()).hexdigest()[:32]
