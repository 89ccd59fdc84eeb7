# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot kernel's side: find the image, check it, put the memory back, jump.

Runs in the boot initrd before any file system is mounted, and never mounts one.  Never
uses an image twice.
"""
