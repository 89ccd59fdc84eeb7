#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A kernel was removed (RELEASE in $1): remove its helper initrd, too.
set -e
release=$1
[ -n "$release" ] || exit 0
[ -x /usr/libexec/kjump/update-initrds ] || exit 0
/usr/libexec/kjump/update-initrds --forget --release "$release" || true
