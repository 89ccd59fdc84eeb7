# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests on real kernels: a Debian guest image, QEMU, and a user's work in it."""
