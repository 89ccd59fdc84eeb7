# SPDX-License-Identifier: GPL-2.0-or-later
"""How many examples a property is tried with."""

from __future__ import annotations

from hypothesis import settings


def at_most(full: int) -> int:
    """So many, or those of the profile where that has few (``--hypothesis-profile=fast``)."""
    profile = settings.default.max_examples if settings.default else full
    return min(full, profile) if profile < 100 else full
