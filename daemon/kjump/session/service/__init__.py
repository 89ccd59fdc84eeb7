# SPDX-License-Identifier: GPL-2.0-or-later
"""The service: who runs, what answers the bus, and one operation at a time.

Runs in the session.  Nothing here stages a kernel or jumps by itself.
"""
