# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper's files: what is recorded of them, and that damaged ones are never staged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import pytest

from kjump.errors import KjumpError, NoHelperInitrd, NoHelperKernel
from kjump.initrd import helper, update
from kjump.machine import bzimage, memory
from kjump.session import kernels
from kjump.session.checks import facts, readiness
from kjump.session.staging import helper_record, sizing
from kjump.session.staging.helper_record import HelperRecord
from kjump.settings import Settings
from tests.unit.test_readiness import READY

CONTENT = os.urandom(100_000)


def truncate(file: Path) -> None:
    os.truncate(file, 50_000)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[60_000] ^= 1
    file.write_bytes(data)


def tear(file: Path) -> None:
    """As a power cut leaves it that comes before the data is on the disk."""
    file.write_bytes(file.read_bytes()[:4096] + bytes(len(CONTENT) - 4096))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A helper as build-helper-initrd leaves it, with a copy of the kernel."""
    monkeypatch.setattr(kernels, "STATE", tmp_path)
    monkeypatch.setattr(helper, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(helper, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(memory, "iomem", lambda: [])
    monkeypatch.setattr(bzimage, "parse", lambda _: HEADER)
    made = tmp_path / "made.img"
    made.write_bytes(CONTENT)
    (tmp_path / "modules/6.9.0").mkdir(parents=True)
    (tmp_path / "modules/6.9.0/vmlinuz").write_bytes(CONTENT[::-1])
    initrd = tmp_path / "helper-6.9.0.img"
    digest = helper.install(made, initrd)
    kernel = helper.keep_kernel("6.9.0", initrd)
    record = HelperRecord(
        release="6.9.0", size=len(CONTENT), unpacked=5, sha256=digest, kernel_sha256=kernel
    )
    helper_record.write(initrd, record)
    return replace(Settings(), helper=replace(Settings().helper, initrd=str(initrd)))


class HEADER:
    init_size = 4096


def measured(settings: Settings) -> sizing.Sizing | KjumpError:
    """As kjumpd measures the helper for each CanHibernate."""
    return facts.measure(settings, "6.9.0")


def reasons(settings: Settings) -> list[str]:
    found = readiness.reasons(replace(READY, sizing=measured(settings)))
    return [type(reason).__name__ for reason in found]


def initrd_of(settings: Settings) -> Path:
    return Path(settings.helper.initrd)


def test_a_whole_helper_is_ready(settings: Settings) -> None:
    found = measured(settings)
    assert isinstance(found, sizing.Sizing)
    assert found.parts["unpacked"] == 5 and found.kernel == initrd_of(settings).with_suffix(
        ".vmlinuz"
    )
    kernel = helper_record.map_file(found.kernel, found.kernel_sha256, NoHelperKernel)
    initrd = helper_record.map_file(found.initrd, found.initrd_sha256, NoHelperInitrd)
    assert (kernel[:], initrd[:]) == (CONTENT[::-1], CONTENT)


@pytest.mark.parametrize("damage", [truncate, empty, flip, tear])
@pytest.mark.parametrize("looked_before", [False, True])
def test_a_damaged_initrd_is_a_reason_not_to_hibernate(
    settings: Settings, damage: Callable[[Path], None], looked_before: bool
) -> None:
    if looked_before:
        assert reasons(settings) == []
    damage(initrd_of(settings))
    assert reasons(settings) == ["NoHelperInitrd"]
    error = measured(settings)
    assert isinstance(error, NoHelperInitrd) and "kjumpctl update-initrd" in error.todo


@pytest.mark.parametrize("damage", [truncate, empty, flip, tear])
def test_a_damaged_copy_of_the_kernel_is_one_too(
    settings: Settings, damage: Callable[[Path], None]
) -> None:
    damage(initrd_of(settings).with_suffix(".vmlinuz"))
    assert reasons(settings) == ["NoHelperKernel"]
    error = measured(settings)
    assert isinstance(error, NoHelperKernel) and "kjumpctl update-initrd" in error.todo


@pytest.mark.parametrize(
    "text", ["", '{"sha256": "0', "[]", '{"sha256": 5}', '{"unpacked": -1}', "[" * 100_000]
)
def test_a_damaged_record_is_one_too(settings: Settings, text: str) -> None:
    helper_record.path_beside(initrd_of(settings)).write_text(text)
    assert reasons(settings) == ["NoHelperInitrd"]


@pytest.mark.parametrize("damage", [truncate, empty, flip, tear])
def test_what_is_damaged_after_it_was_measured_is_not_staged(
    settings: Settings, damage: Callable[[Path], None]
) -> None:
    found = measured(settings)
    assert isinstance(found, sizing.Sizing)
    damage(found.initrd)
    with pytest.raises(NoHelperInitrd, match="damaged"):
        helper_record.map_file(found.initrd, found.initrd_sha256, NoHelperInitrd)
    damage(found.kernel)
    with pytest.raises(NoHelperKernel, match="damaged"):
        helper_record.map_file(found.kernel, found.kernel_sha256, NoHelperKernel)


def test_what_is_staged_was_hashed_also_if_the_file_looks_the_same(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit leaves the times alone."""
    monkeypatch.setattr(helper_record, "SETTLED", -1.0)
    found = measured(settings)
    assert isinstance(found, sizing.Sizing)
    path = found.initrd
    with path.open("rb") as file:
        identity = helper_record._identity(file)
    flip(path)
    digest = helper_record._digests[path][1]
    with path.open("rb") as file:
        assert helper_record._identity(file) != identity
        helper_record._digests[path] = helper_record._identity(file), digest
    helper_record.check(path, found.initrd_sha256, NoHelperInitrd)
    with pytest.raises(NoHelperInitrd):
        helper_record.map_file(path, found.initrd_sha256, NoHelperInitrd)


def test_what_is_staged_is_the_file_that_was_hashed(settings: Settings) -> None:
    path = initrd_of(settings)
    record = helper_record.read(path)
    content = helper_record.map_file(path, record.sha256, NoHelperInitrd)
    other = path.with_suffix(".other")
    other.write_bytes(bytes(len(CONTENT)))
    other.rename(path)
    assert content[:] == CONTENT


def test_a_file_is_hashed_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_record, "SETTLED", -1.0)
    hashed = []
    digest_of = helper_record.digest_of

    def count(file: BufferedReader) -> str:
        hashed.append(file.name)
        return digest_of(file)

    monkeypatch.setattr(helper_record, "digest_of", count)
    for _ in range(3):
        assert reasons(settings) == []
    assert len(hashed) == 2  # kernel and initrd
    initrd_of(settings).touch()
    assert reasons(settings) == []
    assert len(hashed) == 3
    # What was written just now may be written to again without a new time.
    monkeypatch.setattr(helper_record, "SETTLED", 100.0)
    monkeypatch.setattr(helper_record, "_digests", {})
    assert reasons(settings) == reasons(settings) == []
    assert len(hashed) == 7


def test_an_initrd_of_somebodys_own_has_no_record(settings: Settings) -> None:
    path = initrd_of(settings)
    helper_record.path_beside(path).unlink()
    path.with_suffix(".vmlinuz").unlink()
    path.with_suffix(".vmlinuz").write_bytes(CONTENT)
    flip(path)
    found = measured(settings)
    assert isinstance(found, sizing.Sizing)
    assert found.parts["unpacked"] == 4 * len(CONTENT)
    assert found.parts["splash"] == 0 and found.initrd_sha256 == ""
    assert helper_record.map_file(found.initrd, "", NoHelperInitrd)[:] == path.read_bytes()
    empty(path)
    assert reasons(settings) == ["NoHelperInitrd"]
    with pytest.raises(NoHelperInitrd):
        helper_record.map_file(path, "", NoHelperInitrd)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    initrd = tmp_path / "helper-6.9.0.img"
    record = HelperRecord("6.9.0", "1", 2, 3, "ab", "cd", ("nvme", "ahci"), True, 4, ("bochs",))
    helper_record.write(initrd, record)
    assert helper_record.read(initrd) == record
    assert (tmp_path / "helper-6.9.0.json").stat().st_mode & 0o777 == 0o644
    # One of an earlier version has no checksum of the kernel.
    text = record.to_json().replace(' "kernel_sha256": "cd",\n', "")
    assert HelperRecord.from_json(text) == replace(record, kernel_sha256="")
    assert HelperRecord.from_json('{"of a later version": 1}') == HelperRecord()
    assert helper_record.read(tmp_path / "none.img") == HelperRecord()


def test_the_initrd_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        call = getattr(os, name)

        def note(*arguments: object) -> None:
            done.append(name)
            call(*arguments)

        return note

    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, noted(name))
    (tmp_path / "made").write_bytes(CONTENT)
    helper.install(tmp_path / "made", tmp_path / "helper.img")
    assert done == ["fsync", "rename", "fsync"]
    assert (tmp_path / "helper.img").stat().st_mode & 0o777 == 0o600


def test_what_a_call_that_was_cut_off_left_goes(tmp_path: Path) -> None:
    names = (".helper-6.img.old", ".helper-6.img.new", ".helper-60.img.old", "helper-6.img")
    for name in names:
        (tmp_path / name).touch()
        if not name.endswith("new"):
            os.utime(tmp_path / name, (0, 0))
    helper.remove_leftovers(tmp_path / "helper-6.img")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_nothing_is_left_of_a_kernel_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "STATE", tmp_path)
    names = (
        "helper-6.img",
        "helper-6.json",
        "helper-6.vmlinuz",
        ".helper-6.img.x",
        "helper-60.img",
    )
    for name in names:
        (tmp_path / name).touch()
    update.forget("6")
    assert [path.name for path in tmp_path.iterdir()] == ["helper-60.img"]
