# SPDX-License-Identifier: GPL-2.0-or-later
"""``python3 -Im kjump.session``: the daemon, see `kjump.session.daemon`."""

import sys

from kjump.session.daemon import main

sys.exit(main())
