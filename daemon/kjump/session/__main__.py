# SPDX-License-Identifier: GPL-2.0-or-later
"""``python3 -Im kjump.session``: the daemon, see `kjump.session.service.main`.

Runs in the session.  Does nothing itself.
"""

import sys

from kjump.session.service.main import main

sys.exit(main())
