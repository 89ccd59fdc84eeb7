# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper kernel's side: read the handoff, copy the session's memory, leave.

Runs in the helper initrd only.  Never mounts a file system, never writes anywhere but to the
target and to the session's report page.
"""
