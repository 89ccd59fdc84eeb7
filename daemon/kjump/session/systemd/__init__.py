# SPDX-License-Identifier: GPL-2.0-or-later
"""What kjump asks of systemd and logind, and the kernel's own hibernation.

Runs in the session.  Nothing here stages a kernel or jumps.
"""
