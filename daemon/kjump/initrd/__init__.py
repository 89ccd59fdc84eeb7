# SPDX-License-Identifier: GPL-2.0-or-later
"""Making the initrds: the helper's, and kjump's part of the boot initrd.

Runs as root in the session, when a package or a kernel is installed.  It never runs in a helper or
boot kernel, and none of it goes into an initrd.  Only the programs in ``/usr/libexec/kjump`` start
it.
"""
