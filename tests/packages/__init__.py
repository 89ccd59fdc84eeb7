# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages as they are built, and what package managers and initrd makers call of ours."""
