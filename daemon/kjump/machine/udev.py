# SPDX-License-Identifier: GPL-2.0-or-later
r"""What a target's name means: the paths that udev gives the device, the same in every kernel.

Runs in all three kernels; pure.  ``PARTLABEL=Linux hibernate`` is
``/dev/disk/by-partlabel/Linux\x20hibernate``: udev encodes every character except letters, digits,
``#+-.:=@_`` and valid characters beyond ASCII (blkid_encode_string of util-linux).
"""

from __future__ import annotations

from pathlib import Path

FOLDERS = {
    "PARTUUID": "/dev/disk/by-partuuid",
    "PARTLABEL": "/dev/disk/by-partlabel",
    "UUID": "/dev/disk/by-uuid",
    "LABEL": "/dev/disk/by-label",
    "ID": "/dev/disk/by-id",
}
"""Where the links of each kind of name are."""
PLAIN = frozenset("#+-.:=@_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def names_a_file(spec: str) -> bool:
    """Whether a ``[Target] Path=`` names a file rather than a device."""
    return spec.startswith("/") and not spec.startswith("/dev/")


def paths(spec: str) -> list[Path]:
    """The paths under which udev knows the device that a spec names; none if it names no device.

    ``UUID=`` gives several: whether udev writes it in capitals depends on the file system.
    """
    if spec.startswith("/dev/"):
        return [Path(spec)]
    kind, equals, value = spec.partition("=")
    if not equals or kind not in FOLDERS:
        return []
    # The name may be written in udev's encoding.
    value = decode(value)
    if value in ("", ".", ".."):
        return []
    names = [value]
    if kind == "PARTUUID":
        names = [value.lower()]
    elif kind == "UUID":
        names = [value.lower(), value, value.upper()]
    return [Path(FOLDERS[kind], encode(name)) for name in dict.fromkeys(names)]


def encode(name: str) -> str:
    r"""A name as udev writes it in links: a blank becomes ``\x20``."""
    return "".join(
        char
        if char in PLAIN or _is_valid(ord(char))
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in name
    )


def _is_valid(number: int) -> bool:
    """Whether this is a valid character beyond ASCII (utf8_encoded_valid_unichar)."""
    if number < 0x80 or 0xD800 <= number < 0xE000 or 0xFDD0 <= number < 0xFDF0:
        return False
    return number & 0xFFFE != 0xFFFE


def decode(text: str) -> str:
    r"""A name without udev's encoding, such as ``\x20``."""
    out = bytearray()
    at = 0
    while at < len(text):
        digits = text[at + 2 : at + 4]
        if text.startswith("\\x", at) and len(digits) == 2 and _is_hexadecimal(digits):
            out.append(int(digits, 16))
            at += 4
        else:
            out += text[at].encode("utf-8", "surrogateescape")
            at += 1
    return out.decode("utf-8", "surrogateescape")


def _is_hexadecimal(digits: str) -> bool:
    return all(digit in "0123456789abcdefABCDEF" for digit in digits)
