# SPDX-License-Identifier: GPL-2.0-or-later
"""The image on disk: layout, superblock, index, chunks, targets.

Runs in all three kernels.  Never mounts anything.
"""
