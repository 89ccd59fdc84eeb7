# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the image goes: block devices, swap areas and files.

Runs in the session.  Never writes to a device, except to what a cycle has claimed.
"""
