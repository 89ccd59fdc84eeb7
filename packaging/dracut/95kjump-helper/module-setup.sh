#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck disable=SC2154  # dracut sets initdir, moddir, systemdsystemunitdir
# The helper initrd: systemd, udevd, Python, and nothing to mount or to log in to.
#
# build-helper-initrd uses this module alone (dracut --modules kjump-helper).  It installs the few
# parts of systemd itself instead of depending on dracut's systemd modules: those add journald,
# generators and some eighty units, and differ from release to release.  A full machine must spare
# the memory into which this is unpacked, and the user waits for every unit that starts.

check() {
    # Only if requested by name.
    return 255
}

depends() {
    return 0
}

installkernel() {
    local driver
    # No firmware: the session's kernel has already loaded what a disk needs.
    for driver in $KJUMP_DRIVERS; do
        hostonly='' instmods -o "$driver"
    done

    # Uncompressed modules load faster, pack better, and need no library that kmod opens by name.
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

# A small Plymouth: the programs, the current theme, and what this theme needs for drawing.
# No keyboard layouts: Plymouth asks for nothing, and kjump reads the keys.
install_plymouth() {
    local theme themes=/usr/share/plymouth/themes plugins plugin pictures font
    theme=$(plymouth-set-default-theme) && [[ -f $themes/$theme/$theme.plymouth ]] || theme=text
    plugins=$(plymouth --get-splash-plugin-path) || return 1
    plugins=${plugins%/}
    inst_multiple plymouthd plymouth || return 1
    # The renderers, and "text" for a display without graphics.
    for plugin in text details "$(sed -n 's/^ModuleName=//p' "$themes/$theme/$theme.plymouth")" \
        renderers/drm renderers/frame-buffer; do
        [[ -f $plugins/$plugin.so ]] && inst_binary "$plugins/$plugin.so"
    done
    for plugin in text details "$theme"; do
        [[ -d $themes/$plugin ]] && inst_multiple -o "$themes/$plugin"/*
    done
    # Themes may use the pictures of another theme.
    pictures=$(sed -n 's/^ImageDir=//p' "$themes/$theme/$theme.plymouth")
    [[ -d $pictures ]] && inst_multiple -o "$pictures"/*
    inst_simple /usr/share/plymouth/debian-logo.png
    # Two plugins draw letters: this one needs far smaller libraries, and looks for its font under
    # this name.
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
    # The defaults are optional.
    inst_simple /usr/share/plymouth/plymouthd.defaults
    return 0
}

# Libraries that are opened by name, like Plymouth's plugins, need further libraries.  dracut looks
# for those only if a file is executable, and on Debian none of these is.
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
    # Since systemd 255, PID 1 starts services through it.
    inst_multiple -o "$lib/systemd-executor"
    # systemd opens these by name at run time, so ldd does not list them: the first two since systemd
    # 256, the third since 262, which mounts nothing without it.
    inst_libdir_file "libkmod.so*" "libblkid.so*" "libmount.so*"
    ln_r "$lib/systemd" /init
    ln_r "$(find_binary kmod)" /usr/sbin/modprobe

    local unit
    for unit in "$moddir"/*.service "$moddir"/*.target; do
        inst_simple "$unit" "$systemdsystemunitdir/${unit##*/}"
    done
    # Wherever systemd would go if something is wrong: go back to the session.
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

    # A fixed id: the random generator may block for long this early.
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

    # A helper initrd without Plymouth is better than none.
    if [[ $KJUMP_PLYMOUTH ]]; then
        install_plymouth || dwarn "kjump-helper: Plymouth could not be put in"
    fi
    install_needed || { dfatal "kjump-helper: cannot copy the libraries"; exit 1; }

    "${KJUMP_LIBEXEC:-/usr/libexec/kjump}/initrd-files" helper --into "$initdir" ||
        { dfatal "kjump-helper: cannot copy the Python files"; exit 1; }
}
