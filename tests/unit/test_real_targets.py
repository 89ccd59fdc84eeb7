# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets by this machine's own kernel: FIEMAP of real files, and the devices that are there."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gi.repository import GLib

from kjump.errors import KjumpError, TargetMapped, TargetMissing, UnsuitableFile
from kjump.session.target import btrfs, devices, fiemap, files, watch
from kjump.session.target.swaps import SwapArea
from tests.unit.test_files import answer

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file that is allocated and was never written to, on a file system that can hold one."""
    path = tmp_path / "image"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(fd, 0, 4 * MIB)
        if files.file_system(fd) not in (files.EXT4, files.XFS):
            pytest.skip("the temporary directory is on another file system")
        if os.getuid():
            pytest.skip("takes root")
    finally:
        os.close(fd)
    if files.mapped_as(f"{os.major(path.stat().st_dev)}:{os.minor(path.stat().st_dev)}"):
        pytest.skip("the temporary directory is on a mapped device")
    return path


def test_an_allocated_file(image: Path) -> None:
    found = files.blocks_of(image)
    assert found.size == 4 * MIB and not found.written
    assert found.device == image.stat().st_dev and found.first > 0
    with image.open("r+b") as file:
        file.write(b"x" * 4096)
        os.fsync(file.fileno())
    assert files.blocks_of(image).written


def test_files_that_will_not_do(image: Path, tmp_path: Path) -> None:
    def why(path: Path) -> str:
        with pytest.raises((UnsuitableFile, TargetMissing)) as failed:
            files.blocks_of(path)
        return failed.value.what

    assert "is not a regular file" in why(tmp_path)
    assert "cannot be opened" in why(tmp_path / "none")
    link = tmp_path / "link"
    link.symlink_to(image)
    assert "cannot be opened" in why(link)
    image.chmod(0o640)
    assert "must belong to root" in why(image)
    assert files.blocks_of(image, swap=True).size == 4 * MIB
    hole = tmp_path / "hole"
    with hole.open("wb") as file:
        file.truncate(MIB)
    hole.chmod(0o600)
    assert "has holes" in why(hole)
    with pytest.raises(UnsuitableFile, match="is not on ext4, xfs or btrfs"):
        files.blocks_of(Path("/proc/version"), swap=True)


def test_flags_of_a_file(image: Path) -> None:
    with image.open("r+b") as file:
        files.set_flags(file.fileno(), files.IMMUTABLE)
    try:
        with pytest.raises(PermissionError):
            image.open("r+b")
    finally:
        with image.open("rb") as file:
            files.clear_flags(file.fileno(), files.IMMUTABLE)
    with image.open("r+b"):
        pass


def test_a_large_file_takes_more_than_one_answer(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with image.open("r+b") as file:
        for at in range(0, 4 * MIB, 64 << 10):  # written and unwritten blocks in turn
            file.seek(at)
            file.write(b"x" * 4096)
        os.fsync(file.fileno())
        whole = fiemap.fiemap(file.fileno())
        monkeypatch.setattr(fiemap, "FIEMAP_AT_ONCE", 3)
        assert fiemap.fiemap(file.fileno()) == whole and len(whole) > 6


def test_the_target_is_a_file(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = devices.resolve(str(image))
    blocks = files.blocks_of(image)
    assert (found.kind, found.file, found.locator) == ("file", str(image), blocks.first)
    assert found.capacity == 4 * MIB and not found.signature and not found.holders
    status = image.stat()
    assert found.number == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    # The same file as swap.
    area = SwapArea(image, is_file=True, size=4 * MIB, used=MIB)
    monkeypatch.setattr(devices, "read_swaps", lambda: [area])
    found = devices.resolve(str(image))
    assert (found.kind, found.room, found.blocks) == ("swap", 3 * MIB, None)
    monkeypatch.setattr(devices, "list_devices", list)
    with pytest.raises(TargetMissing, match="Cannot find out which device"):
        devices.resolve(str(image))


def test_the_device_of_the_root(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.resolve(str(image))
    plain = devices.resolve(str(device.path))
    assert (plain.kind, plain.number) == ("partition", device.number) and plain.size > 4 * MIB
    assert (devices.user_of(plain) or "").startswith("mounted on /")
    area = SwapArea(plain.path, is_file=False, size=2 * MIB, used=MIB)
    monkeypatch.setattr(devices, "read_swaps", lambda: [area])
    swap = devices.resolve(str(plain.path))
    assert (swap.kind, swap.locator, swap.capacity) == ("swap", 0, MIB)
    assert isinstance(devices.resolve_or_error("LABEL=no such device"), TargetMissing)


def test_what_a_mapped_device_is() -> None:
    loop = Path("/dev/loop0")
    if not loop.exists() or os.getuid():
        pytest.skip("there is no loop device")
    number = os.stat(loop).st_rdev
    with pytest.raises(TargetMapped, match="x is on loop0, which is a loop device"):
        files.refuse_mapped(number, "x")
    with pytest.raises(TargetMapped):
        devices.resolve(str(loop))
    assert not devices.is_claimed(loop)
    assert not devices.is_claimed(Path("/nonexistent"))


# -- btrfs: what a 6.12 kernel answered, played back ---------------------------------------------


def plays(monkeypatch: pytest.MonkeyPatch, answers: Callable[[int, bytearray], None]) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda _fd, request, data: answers(request, data))


def test_reading_the_chunk_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    def search(request: int, data: bytearray) -> None:
        assert request == btrfs.TREE_SEARCH
        starts.append(int.from_bytes(data[24:32], "little"))
        if len(starts) == 1:
            data[:] = answer("search").ljust(btrfs.SEARCH_SIZE, b"\0")
        else:
            data[64:68] = bytes(4)

    plays(monkeypatch, search)
    found = btrfs.read_chunks(0)
    assert len(found) > 3 and starts == [0, found[-1].start + 1]


def test_the_one_device_of_a_btrfs(monkeypatch: pytest.MonkeyPatch) -> None:
    count, missing = 1, {1}

    def info(request: int, data: bytearray) -> None:
        if request == btrfs.FS_INFO:
            data[:16] = struct.pack("<QQ", 3, count)
            return
        number = int.from_bytes(data[:8], "little")
        if number in missing:
            raise OSError(19, "No such device")
        data[3072:3082] = b"/dev/null\0"

    plays(monkeypatch, info)
    assert btrfs.device_of(0) == (2, os.makedev(1, 3))
    missing = {1, 2, 3}
    with pytest.raises(UnsuitableFile, match="Cannot find out which device"):
        btrfs.device_of(0)
    count = 2
    with pytest.raises(UnsuitableFile, match="more than one device"):
        btrfs.device_of(0)


def test_a_file_on_btrfs(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real file, with btrfs's answers around it."""
    flags, chunk = files.NOCOW, btrfs.BtrfsChunk(0, 1 << 60, 1, ((1, 4096),))
    monkeypatch.setattr(files, "file_system", lambda _: files.BTRFS)
    monkeypatch.setattr(files, "device_of", lambda _: (1, image.stat().st_dev))
    monkeypatch.setattr(files, "read_chunks", lambda _: [chunk])
    monkeypatch.setattr(files, "_flags", lambda _: flags)
    found = files.blocks_of(image)
    monkeypatch.setattr(files, "file_system", lambda _: files.EXT4)
    assert found.first == files.blocks_of(image).first + 4096
    monkeypatch.setattr(files, "file_system", lambda _: files.BTRFS)
    flags = 0
    with pytest.raises(UnsuitableFile, match="copy-on-write"):
        files.blocks_of(image)


# -- watching ------------------------------------------------------------------------------------


def test_device_events_reach_the_main_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    pyudev = pytest.importorskip("pyudev")
    here, there = os.pipe()
    events = [object(), None]

    class Monitor:
        """A monitor whose events are bytes in a pipe."""

        def __init__(self) -> None:
            self.filters: list[str] = []

        def filter_by(self, subsystem: str) -> None:
            self.filters.append(subsystem)

        def start(self) -> None:
            pass

        def fileno(self) -> int:
            return here

        def poll(self, timeout: float) -> object:
            assert timeout == 0 and os.read(here, 1)
            if not events:
                raise OSError(105, "No buffer space available")
            return events.pop(0)

    monitor = Monitor()
    monkeypatch.setattr(pyudev.Monitor, "from_netlink", lambda _: monitor)
    lost = [0]
    monkeypatch.setattr(watch, "_pending_error", lambda _: lost[0])
    heard: list[int] = []
    stop = watch.watch_devices(lambda: heard.append(1))
    assert monitor.filters == ["block", "memory", "cpu"]
    context = GLib.MainContext.default()

    def event() -> int:
        heard.clear()
        os.write(there, b"x")
        while not context.iteration(True):
            pass
        while context.iteration(False):
            pass
        return len(heard)

    assert event() == 1
    assert event() == 0  # of another subsystem
    assert event() == 1  # events were lost
    events.append(None)
    lost[0] = 105
    assert event() == 1
    stop()
    os.write(there, b"x")
    while context.iteration(False):
        pass
    assert len(heard) == 1
    for fd in (here, there):
        os.close(fd)


def test_an_error_of_a_socket_is_reported_once() -> None:
    import socket

    one, other = socket.socketpair()
    with one, other:
        assert watch._pending_error(one.fileno()) == 0


def test_a_kernel_without_swap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(watch, "SWAPS", tmp_path / "none")
    watch.watch_swaps(lambda: None)()


def test_errors_become_values() -> None:
    assert isinstance(devices.resolve_or_error(""), KjumpError)
    assert replace(devices.list_devices()[0], kind="file", room=7).capacity == 7
