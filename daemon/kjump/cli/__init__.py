# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl: the commands that a person types.

Runs in the session.  Never jumps and never stages a kernel itself: kjumpd does that.
"""
