# SPDX-License-Identifier: GPL-2.0-or-later
"""The built packages, and our hooks that package managers and initrd makers call."""
