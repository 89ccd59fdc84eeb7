# SPDX-License-Identifier: GPL-2.0-or-later
"""What one kernel tells the next: the ``KJUMP`` note, the return cell, the report page."""
