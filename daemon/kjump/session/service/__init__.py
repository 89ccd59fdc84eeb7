# SPDX-License-Identifier: GPL-2.0-or-later
"""The service: who runs, what answers the bus, and one operation at a time."""
