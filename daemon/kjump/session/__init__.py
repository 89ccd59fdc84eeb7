# SPDX-License-Identifier: GPL-2.0-or-later
"""The running system's side: decide, stage, jump, report.

Runs in the session.  Never runs in an initrd, and never writes the session's memory to the disk.
"""
