# SPDX-License-Identifier: GPL-2.0-or-later
"""What one kernel passes to the next: the ``KJUMP`` note, the return cell, the report page.

Runs in all three kernels.  Never knows what an order or a report leads to.
"""
