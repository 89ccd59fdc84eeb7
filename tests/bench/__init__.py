# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench``: kjump beside the kernel's own hibernation, in the same guest."""
