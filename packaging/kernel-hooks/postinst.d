#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A kernel was installed (RELEASE in $1): its helper initrd.  Named zz-, to come after the hook that
# makes the boot initrd, which our hook inside it has been part of.
set -e
release=$1
[ -n "$release" ] || exit 0
# Removed but not purged: this file is still here.
[ -x /usr/libexec/kjump/update-initrds ] || exit 0
/usr/libexec/kjump/update-initrds --made --release "$release" ||
	echo "kjump: no helper initrd for $release; hibernation is refused on it" >&2
