#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A kernel was installed (RELEASE in $1): make its helper initrd.  The name begins with zz- so that
# this runs after the hook that makes the boot initrd; our own hook in that has run by then.
set -e
release=$1
[ -n "$release" ] || exit 0
# If kjump was removed but not purged, this file is still here.
[ -x /usr/libexec/kjump/update-initrds ] || exit 0
/usr/libexec/kjump/update-initrds --made --release "$release" ||
	echo "kjump: $release has no helper initrd and cannot hibernate" >&2
