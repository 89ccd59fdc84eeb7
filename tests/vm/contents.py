# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in a test guest: its packages, files and boot menu, and those of special kinds of guest.

Runs on the host.  Only data: image.py builds a disk with it.
"""

from __future__ import annotations

SUITE = "trixie"
STOCK_KERNEL = "linux-image-amd64"
UNSTABLE = ("sid", "unstable")  # has no security archive
# Left out of the guest: nobody reads there.
UNREAD = ("doc", "man", "locale", "info", "lintian")
PACKAGES = (
    "systemd systemd-sysv udev dbus libpam-systemd polkitd login passwd util-linux procps kmod "
    "iproute2 python3 initramfs-tools zstd dmsetup cryptsetup-bin tmux nano less dracut-core "
    "python3-gi python3-pydbus gir1.2-glib-2.0 python3-pyudev python3-sdnotify python3-structlog "
    "python3-systemd e2fsprogs xfsprogs btrfs-progs kexec-tools "
    "default-dbus-system-bus libc-bin libc6 xz-utils"
)

USER = "alice"
UID = 1000
INITRAMFS_CONF = "/etc/initramfs-tools/conf.d/kjtest"
SWAP_UUID = "6b6a756d-7020-7377-6170-000000000000"
GUEST_PROGRAMS = ("agent.py", "work.py", "fill.py")
# What makes this a quiet machine that boots to a session on tty1.
FILES = {
    "/etc/hostname": "kjump-guest\n",
    "/etc/hosts": "127.0.0.1 localhost kjump-guest\n::1 localhost\n",
    "/etc/fstab": "PARTLABEL=root / ext4 defaults,errors=remount-ro 0 1\n",
    INITRAMFS_CONF: "RESUME=none\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
    "/etc/systemd/system/getty@tty1.service.d/autologin.conf": (
        f"[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin {USER} --noclear %I $TERM\n"
    ),
    "/etc/systemd/system/kjtest-agent.service": (
        "[Unit]\nDescription=Test agent for root on ttyS1\nAfter=basic.target\n\n"
        "[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/kjtest/agent.py /dev/ttyS1\n"
        "Restart=always\nKillMode=process\nEnvironment=HOME=/root\nWorkingDirectory=/root\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
    # The user's agent is a child of her login shell, so what it runs is in her active session.
    f"/home/{USER}/.bash_profile": (
        'if [ "$(tty)" = /dev/tty1 ]; then\n'
        "    (while :; do python3 /usr/local/lib/kjtest/agent.py /dev/ttyS2; sleep 1; done) &\n"
        "fi\n"
    ),
    "/etc/udev/rules.d/99-kjtest.rules": f'KERNEL=="ttyS2", OWNER="{USER}", MODE="0600"\n',
    "/etc/kjump/kjump.conf.d/50-target.conf": "[Target]\nPath=PARTLABEL=kjump\n",
}
# A guest with a splash screen, in a base system of its own: the others boot without.  The theme
# shows what it was told by the colour of the whole screen, which a picture of it tells.
PLYMOUTH = "plymouth"
PLYMOUTH_PACKAGES = "plymouth fontconfig"  # its hook for the boot initrd wants the second
THEME = "/usr/share/plymouth/themes/kjtest"
PLYMOUTH_FILES = {
    "/etc/plymouth/plymouthd.conf": "[Daemon]\nTheme=kjtest\nShowDelay=0\nDeviceTimeout=8\n",
    f"{THEME}/kjtest.plymouth": (
        "[Plymouth Theme]\nName=Test\nDescription=Colours\nModuleName=script\n\n"
        f"[script]\nImageDir={THEME}\nScriptFile={THEME}/kjtest.script\n"
    ),
    f"{THEME}/kjtest.script": """\
fun colour(red, green, blue) {
    Window.SetBackgroundTopColor(red, green, blue);
    Window.SetBackgroundBottomColor(red, green, blue);
}
fun shown(text) {
    start = String(text).SubString(0, 8);
    if (start == "resuming") colour(0, 1, 0);
    else if (start == "saving  ") colour(0, 0, 1);
    else colour(1, 1, 0);
}
colour(1, 0, 0);
# Without a picture nothing is drawn at all.
logo = Sprite(Image("special://logo"));
logo.SetPosition(0, 0, 1);
Plymouth.SetDisplayMessageFunction(shown);
""",
}
# A guest with the programs of desktops that hibernate, in a base system of its own for their size.
DESKTOPS = "desktops"
DESKTOPS_PACKAGES = "upower xfce4-session xvfb dbus-user-session libkworkspace6-6 qml-qt6"
UPOWER_MASK = "/etc/systemd/system/upower.service"
# An empty unit file masks.  UPower would act as soon as it runs, and whatever wants to know of the
# battery starts it.
DESKTOPS_FILES = {UPOWER_MASK: ""}
# By which Plasma's menus hibernate.  All that it is linked with comes with libkworkspace; its own
# package would bring 400 more and twice the size.
PLASMA = ("plasma-workspace", "libkworkspace6-6")
PLASMA_PLUGIN = "usr/lib/x86_64-linux-gnu/qt6/qml/org/kde/plasma/private/sessions"
# What a guest may have besides: packages and files, by name.
MORE = {
    PLYMOUTH: (PLYMOUTH_PACKAGES, PLYMOUTH_FILES),
    DESKTOPS: (DESKTOPS_PACKAGES, DESKTOPS_FILES),
}
MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer "
    "e2scrub_reap.service fstrim.timer man-db.timer systemd-networkd-wait-online.service "
    "serial-getty@ttyS1.service serial-getty@ttyS2.service"
)

# The harness chooses kernel and command line of a run by two SMBIOS strings (system SKU number and
# family), so the disk boots the same way in every run and the guest sees no device made for us.
GRUB_MODULES = (
    "biosdisk part_gpt ext2 linux normal configfile serial terminal search echo test smbios"
)
GRUB_CFG = """\
set timeout=0
serial --unit=0 --speed=115200
terminal_output serial
smbios --type 1 --get-string 25 --set kernel
smbios --type 1 --get-string 26 --set words
if [ "$kernel" = stock ]; then set version={stock}; else set version={kjump}; fi
menuentry "Debian" {{
    linux /boot/vmlinuz-$version root=PARTLABEL=root console=ttyS0,115200 $words
    initrd /boot/initrd.img-$version
}}
"""
