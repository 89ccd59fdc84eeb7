# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings all tests share."""

from __future__ import annotations

try:
    import hypothesis
except ImportError:  # the guest tests do without
    pass
else:
    # A noisy machine is no failure.
    patient = hypothesis.settings(
        deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.register_profile("kjump", patient)
    # What `make check` runs, with --hypothesis-profile=fast.
    hypothesis.settings.register_profile("fast", patient, max_examples=25)
    hypothesis.settings.load_profile("kjump")
