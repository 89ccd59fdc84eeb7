# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the image goes: block devices, swap areas and files."""
