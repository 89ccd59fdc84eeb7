#!/bin/bash
# dracut: put kjump-resume, and the Python it needs, into the boot initrd.

check() {
    [[ -x /usr/libexec/kjump/initrd-files ]] || return 1
    return 0
}

depends() {
    echo systemd
}

install() {
    inst_simple "$moddir/kjump-resume.service" "$systemdsystemunitdir/kjump-resume.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd.target.wants"
    ln -sf ../kjump-resume.service "$initdir$systemdsystemunitdir/initrd.target.wants/"
    /usr/libexec/kjump/initrd-files resume --into "$initdir"
}
