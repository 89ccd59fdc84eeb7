# SPDX-License-Identifier: GPL-2.0-or-later
"""x86_64: system calls, boot protocol, e820, page tables, entry and return code, struct page.

Runs in all three kernels.  Never decides anything about a cycle.
"""
