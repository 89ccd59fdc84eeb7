# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper kernel's side: read the handoff, copy the session's memory, leave.

Runs in the helper initrd only.  It never mounts a file system, and writes only to the target and to
the session's report page.
"""
