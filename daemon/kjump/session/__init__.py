# SPDX-License-Identifier: GPL-2.0-or-later
"""The running system's side: decide, stage, jump, report.  Never runs in an initrd."""
