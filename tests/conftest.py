# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings all tests share."""

from __future__ import annotations

try:
    import hypothesis
except ImportError:  # the guest tests do without
    pass
else:
    # A noisy machine is no failure.
    hypothesis.settings.register_profile("kjump", deadline=None)
    hypothesis.settings.load_profile("kjump")
