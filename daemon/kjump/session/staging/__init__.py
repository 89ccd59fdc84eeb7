# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper in memory: sizes, room, window, and what is loaded there.

Runs in the session.  Nothing here decides whether to hibernate.
"""
