# SPDX-License-Identifier: GPL-2.0-or-later
"""What the machine is like, and whether it can hibernate.

Runs in the session.  Nothing here changes the machine.
"""
