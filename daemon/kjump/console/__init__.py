# SPDX-License-Identifier: GPL-2.0-or-later
"""The console, the keyboard and the splash screen of the kernels that have no desktop.

Runs in the helper and in the boot initrd.  Never changes an image or the session's memory.
"""
