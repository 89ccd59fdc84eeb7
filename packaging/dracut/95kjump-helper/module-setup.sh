#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck disable=SC2154  # dracut sets initdir, moddir, systemdsystemunitdir
# The helper initrd: systemd, udevd, Python, and nothing to mount or to log in to.
#
# Taken alone (dracut --modules kjump-helper), by build-helper-initrd.  It installs the few parts of
# systemd itself instead of depending on dracut's systemd modules: those bring journald, generators,
# some eighty units, and differ from release to release.  The window this unpacks into is memory
# that a full machine has to spare, and every unit started is time the user waits.

check() {
    # Only when asked for by name.
    return 255
}

depends() {
    return 0
}

installkernel() {
    local driver
    # No firmware: what a disk needs was loaded into it by the session's kernel.
    for driver in $KJUMP_DRIVERS; do
        hostonly='' instmods -o "$driver"
    done

    # Plain modules load faster, pack better, and need no library that kmod opens by name.
    local module
    find "$initdir/lib/modules/" -name '*.ko.*' |
        while read -r module; do
            case $module in
                *.xz) xz --decompress --quiet "$module" ;;
                *.zst) zstd --decompress --quiet --rm "$module" ;;
                *.gz) gzip --decompress "$module" ;;
            esac
        done
}

# Plymouth, small: the programs, the theme in force, and what that theme draws with.
# No keyboard layouts: it asks for nothing, and kjump hears the keys.
install_plymouth() {
    local theme themes=/usr/share/plymouth/themes plugins plugin pictures font
    theme=$(plymouth-set-default-theme) && [[ -f $themes/$theme/$theme.plymouth ]] || theme=text
    plugins=$(plymouth --get-splash-plugin-path) || return 1
    plugins=${plugins%/}
    inst_multiple plymouthd plymouth || return 1
    # The renderers that draw, and "text" for a display that has no graphics.
    for plugin in text details "$(sed -n 's/^ModuleName=//p' "$themes/$theme/$theme.plymouth")" \
        renderers/drm renderers/frame-buffer; do
        [[ -f $plugins/$plugin.so ]] && inst_binary "$plugins/$plugin.so"
    done
    for plugin in text details "$theme"; do
        [[ -d $themes/$plugin ]] && inst_multiple -o "$themes/$plugin"/*
    done
    # Pictures that several themes share lie with another one.
    pictures=$(sed -n 's/^ImageDir=//p' "$themes/$theme/$theme.plymouth")
    [[ -d $pictures ]] && inst_multiple -o "$pictures"/*
    inst_simple /usr/share/plymouth/debian-logo.png
    # Letters: this one of the two that draw them needs the smaller libraries by far, and it looks
    # for its font under this name.
    if [[ $theme != text && -f $plugins/label-freetype.so ]]; then
        font=$(fc-match -f '%{file}' 2> /dev/null)
        if [[ -f $font ]]; then
            inst_binary "$plugins/label-freetype.so"
            inst_simple "$font" /usr/share/fonts/Plymouth.ttf
        fi
    fi
    mkdir -p "$initdir/etc/plymouth"
    printf '[Daemon]\nTheme=%s\nShowDelay=0\nDeviceTimeout=8\n' "$theme" \
        > "$initdir/etc/plymouth/plymouthd.conf"
    # If it cannot read its defaults it does without.
    inst_simple /usr/share/plymouth/plymouthd.defaults
    return 0
}

# What the libraries need in turn that are opened by name, Plymouth's plugins among them: dracut
# looks for that only where a file is executable, which none of them is on Debian.
install_needed() {
    local needed
    needed=$(find "$initdir" -type f -name '*.so*' -printf '/%P\n' | xargs -r ldd 2> /dev/null |
        sed -nE 's/.* => (\/[^ ]+) .*/\1/p' | sort -u)
    # shellcheck disable=SC2086  # names of files, without blanks
    [[ ! $needed ]] || inst_multiple $needed
}

install() {
    local lib="${systemdutildir:-/usr/lib/systemd}"

    inst_multiple "$lib/systemd" "$lib/systemd-udevd" udevadm kmod
    # PID 1 starts services through it since systemd 255.
    inst_multiple -o "$lib/systemd-executor"
    # Opened by name at run time, so that ldd does not list them: the first two since systemd
    # 256, the third since 262, which mounts nothing without it.
    inst_libdir_file "libkmod.so*" "libblkid.so*" "libmount.so*"
    ln_r "$lib/systemd" /init
    ln_r "$(find_binary kmod)" /usr/sbin/modprobe

    local unit
    for unit in "$moddir"/*.service "$moddir"/*.target; do
        inst_simple "$unit" "$systemdsystemunitdir/${unit##*/}"
    done
    # Whatever systemd would turn to when something is wrong: go back to the session.
    for unit in default emergency rescue ctrl-alt-del; do
        ln -sf kjump-home.target "$initdir$systemdsystemunitdir/$unit.target"
    done

    inst_simple "$moddir/60-kjump.rules" /usr/lib/udev/rules.d/60-kjump.rules
    inst_rules 80-drivers.rules

    # A watchdog that cannot be stopped would restart the session later.
    local driver
    mkdir -p "$initdir/etc/modprobe.d"
    for driver in $KJUMP_WATCHDOGS; do
        echo "options $driver nowayout=0"
    done > "$initdir/etc/modprobe.d/kjump.conf"

    # A fixed one: asking the random generator this early can take long.
    echo 6b6a756d7068656c7065726b6a756d70 > "$initdir/etc/machine-id"
    echo kjump-helper > "$initdir/etc/hostname"
    echo 'root:x:0:0:root:/:/usr/sbin/nologin' > "$initdir/etc/passwd"
    echo 'root:x:0:' > "$initdir/etc/group"
    {
        echo 'NAME="kjump helper"'
        echo 'ID=kjump-helper'
    } > "$initdir/usr/lib/initrd-release"
    ln -sf ../usr/lib/initrd-release "$initdir/etc/initrd-release"
    ln -sf initrd-release "$initdir/usr/lib/os-release"
    ln -sf ../usr/lib/initrd-release "$initdir/etc/os-release"
    mkdir -p "$initdir/etc/systemd"
    cp "$moddir/system.conf" "$initdir/etc/systemd/system.conf"

    # It is done without rather than keep the helper's initrd from being made.
    if [[ $KJUMP_PLYMOUTH ]]; then
        install_plymouth || dwarn "kjump-helper: Plymouth could not be put in"
    fi
    install_needed || { dfatal "kjump-helper: cannot copy the libraries"; exit 1; }

    "${KJUMP_LIBEXEC:-/usr/libexec/kjump}/initrd-files" helper --into "$initdir" ||
        { dfatal "kjump-helper: cannot copy the Python files"; exit 1; }
}
