# SPDX-License-Identifier: GPL-2.0-or-later
"""What udev tells of a device, and what is made of it."""

from __future__ import annotations

import pytest

from kjump.session.target import devices


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        # A blank partition of a GPT disk, as udev 257 tells it.
        ({"DEVTYPE": "partition", "ID_PART_TABLE_TYPE": "gpt", "ID_PART_ENTRY_NUMBER": "3"}, ""),
        ({"DEVTYPE": "partition", "ID_PART_TABLE_TYPE": "gpt", "ID_FS_TYPE": "ext4"}, "ext4"),
        ({"DEVTYPE": "disk", "ID_PART_TABLE_TYPE": "gpt"}, "gpt"),
        ({"DEVTYPE": "disk"}, ""),
    ],
)
def test_a_partition_does_not_hold_its_disks_table(properties: dict[str, str], found: str) -> None:
    assert devices.signature(properties) == found
