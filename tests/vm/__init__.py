# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests on real kernels: a Debian guest image, QEMU, and what a user might be doing in it."""
