# SPDX-License-Identifier: GPL-2.0-or-later
"""``python3 -Im kjump.cli``: kjumpctl, see `kjump.cli.main`.

Runs in the session.  Does nothing itself.
"""

import sys

from kjump.cli.main import main

sys.exit(main())
