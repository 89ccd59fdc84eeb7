# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinned pages: what is written there is there, at the address that is reported."""

from __future__ import annotations

from typing import Any

import pytest

from kjump.errors import DamagedHandoff
from kjump.handoff import note, report, request
from kjump.machine.ranges import PAGE
from kjump.session.staging import pinned_pages
from kjump.session.staging.pinned_pages import LockedPages, ReportPage, RequestPages


@pytest.fixture(autouse=True)
def played_addresses(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Physical addresses that are played: a container sees none."""
    moved: dict[int, int] = {}
    monkeypatch.setattr(
        pinned_pages,
        "physical_address",
        lambda at: moved.get(at, (at & 0xFFFFFFFFF) // PAGE * PAGE),
    )
    return moved


def test_a_report_is_read_once_it_is_there() -> None:
    page = ReportPage()
    assert page.read() is None and page.range == (page.physical, page.physical + PAGE)
    page._page.memory[:] = report.pack(page.nonce, report.Report("helper"))
    assert page.read() == report.Report("helper")
    page.blank()
    assert page.read() is None
    page.close()


def test_a_request_is_found_where_the_request_page_says() -> None:
    pages = RequestPages(bytes(16))
    memory, addresses = pages._pages.memory, pages._pages.addresses

    def get(address: int) -> bytes:
        at = addresses.index(address) * PAGE
        return memory[at : at + PAGE]

    with pytest.raises(DamagedHandoff):
        note.unpack(request.read(get(pages.physical), bytes(16), get, ()))
    document = {"file_systems": ["x" * 100] * 300}
    pages.write(request.pack(document))
    data = request.read(get(pages.physical), bytes(16), get, ())
    assert note.unpack(data).document == document
    pages.close()


def test_a_page_that_was_moved_is_noticed(played_addresses: dict[int, int]) -> None:
    pages = LockedPages(3)
    assert not pages.moved()
    start = pinned_pages.ctypes.addressof(pages._view)  # type: ignore[attr-defined]
    played_addresses[start + PAGE] = 0x1234000
    assert pages.moved()
    pages.close()


def test_without_bpf_pages_are_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> Any:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(pinned_pages, "bpf", refuse)
    pages = LockedPages(2)
    assert not pages.are_the_kernels and bytes(pages.memory) == bytes(2 * PAGE)
    pages.close()


def test_pages_are_the_kernels() -> None:
    try:
        memory = pinned_pages.kernel_pages(34)
    except OSError as error:
        pytest.skip(f"no BPF here: {error}")
    memory[5 * PAGE : 5 * PAGE + 3] = b"abc"
    assert memory[5 * PAGE : 5 * PAGE + 3] == b"abc" and len(memory) == 34 * PAGE
    memory.close()
