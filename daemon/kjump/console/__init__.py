# SPDX-License-Identifier: GPL-2.0-or-later
"""The console, the keyboard and the splash screen, for all three kernels."""
