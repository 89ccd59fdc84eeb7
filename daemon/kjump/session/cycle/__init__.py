# SPDX-License-Identifier: GPL-2.0-or-later
"""One cycle, from the checks to the report, and what an earlier daemon still owes.

Runs in the session.  Never answers the bus itself.
"""
