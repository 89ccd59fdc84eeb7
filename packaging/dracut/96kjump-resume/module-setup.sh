#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck disable=SC2154  # set by dracut
# dracut: put kjump-resume, and the Python it needs, into the boot initrd.

check() {
    # An initrd for kdump.
    [[ $mount_needs ]] && return 1
    [[ -x /usr/libexec/kjump/initrd-files ]] || return 1
    return 0
}

depends() {
    echo systemd
}

installkernel() {
    # kjump reads Esc through it, even if Plymouth has the terminal.
    hostonly='' instmods -o evdev
}

install() {
    # A boot initrd without kjump still boots, but a missing one may not.
    if ! /usr/libexec/kjump/initrd-files resume --into "$initdir"; then
        dwarn "kjump: this initrd cannot resume a hibernated session"
        return 0
    fi
    inst_simple "$moddir/kjump-resume.service" "$systemdsystemunitdir/kjump-resume.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd.target.wants"
    ln -sf ../kjump-resume.service "$initdir$systemdsystemunitdir/initrd.target.wants/"
}
