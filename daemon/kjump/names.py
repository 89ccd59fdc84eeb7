# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpd's names on the system bus, see org.kjump1(5).

Runs in the session.  Holds no code.
"""

BUS_NAME = "org.kjump1"
"""The bus name."""
OBJECT_PATH = "/org/kjump1"
"""The one object."""
INTERFACE = "org.kjump1.Manager"
"""The object's interface."""
