# SPDX-License-Identifier: GPL-2.0-or-later
"""tests.vm.fill: what fills the guests' memory is what it says, and damage is found."""

from __future__ import annotations

import os
import zlib

import pytest

from tests.vm import fill

MIB = 1 << 20
PAGE = 4096


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "BASES", {fill.RANDOM: 4, fill.TEXT: 4, fill.ZEROS: 1})
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": PAGE}.get(name, 4096))


def filled(share: float, mib: int, zeros: float = 0.0) -> fill.Fill:
    out = fill.Fill(share, zeros)
    out.grow(mib)
    return out


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_page_is_like_another_and_all_are_as_they_must_be(share: float) -> None:
    found = filled(share, 14)
    pages = {bytes(found.memory[at : at + PAGE]) for at in range(0, 14 * MIB, PAGE)}
    assert len(pages) == 14 * MIB // PAGE
    assert found.answer() == {"ok": True, "blocks": 14, "wrong": None}


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 0.99, 1.01), (0.0, 2.3, 4.0)])
def test_how_far_it_can_be_compressed(share: float, least: float, most: float) -> None:
    data = bytes(filled(share, 4).memory[: 4 * MIB])
    assert least < len(data) / len(zlib.compress(data, 1)) < most


@pytest.mark.parametrize("at", [0, 15, 16, 5 * MIB + 1000, 9 * MIB - 1])
def test_the_first_block_with_a_wrong_byte_is_named(at: int) -> None:
    found = filled(0.5, 9)
    found.memory[at] ^= 1
    assert found.wrong() == f"block {at // MIB} of 9 is damaged"


def test_a_damaged_base_is_found() -> None:
    found = filled(1.0, 2)
    found.bases[fill.RANDOM][3 * MIB] ^= 1
    assert found.wrong() == "the base of random is damaged"


def test_a_block_in_the_place_of_another_is_found() -> None:
    found = filled(1.0, 6)
    found.memory[MIB : 2 * MIB] = found.memory[4 * MIB : 5 * MIB]
    assert found.wrong() == "block 1 of 6 is damaged"


def test_filling_stops_at_what_is_to_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fill.Fill(1.0, 0.0)
    monkeypatch.setattr(fill, "available", lambda: 12 - found.blocks)
    found.grow_until(5)
    assert found.blocks == 7


def test_shares_are_spread_evenly() -> None:
    kinds = [fill.is_one(n, 0.25) for n in range(16)]
    assert sum(kinds) == 4
    assert all(any(kinds[n : n + 4]) for n in range(0, 16, 4))


def test_blocks_of_zeros_are_that_but_for_their_stamp() -> None:
    found = filled(0.5, 12, zeros=0.5)
    blocks = [bytes(found.memory[n * MIB + PAGE : (n + 1) * MIB]) for n in range(12)]
    assert [not any(block) for block in blocks] == [False, True] * 6
    kinds = [fill.kind_of(n, *found.shares) for n in range(12)]
    assert kinds.count(fill.TEXT) == kinds.count(fill.RANDOM) == 3
    assert found.answer()["ok"]
    found.memory[2 * MIB - 1] = 1
    assert found.wrong() == "block 1 of 12 is damaged"
