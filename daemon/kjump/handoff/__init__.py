# SPDX-License-Identifier: GPL-2.0-or-later
"""What one kernel passes to the next: the ``KJUMP`` note, the return cell, the report page."""
