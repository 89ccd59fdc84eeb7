# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest fails: by its own fault, or by the emulator's."""

from __future__ import annotations


class GuestError(Exception):
    """The guest did not do what the test waited for."""


class EmulatorFailed(GuestError):
    """The emulator broke the guest, whatever ran in it: see `emulator.retried`."""
