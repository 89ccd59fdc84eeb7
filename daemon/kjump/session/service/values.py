# SPDX-License-Identifier: GPL-2.0-or-later
"""Values as D-Bus has them: reports, targets and figures as ``a{sv}``.

Runs in the session.  Pure: nothing here reads or changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gi.repository import GLib

from kjump.errors import KjumpError, sentence
from kjump.session.checks.facts import Facts
from kjump.session.target.devices import TargetDevice

_TEXTS = (
    "cycle",
    "result",
    "where",
    "error",
    "what",
    "todo",
    "sentence",
    "target",
    "fallback",
    "no_fallback",
)


_TIMES = ("started", "finished")


_SECONDS = ("phases", "wall")


_COUNTS = ("pages", "image", "memory", "window")


def flatten(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """A cycle's report as ``a{sv}``, as documented at LastCycle in the interface."""
    if not report:
        return {}
    out: dict[str, Any] = {}
    for key in _TEXTS:
        if report.get(key) is not None:
            out[key] = GLib.Variant("s", str(report[key]))
    if "what" in report:
        words = sentence(str(report["what"]), str(report.get("todo", "")))
        out["sentence"] = GLib.Variant("s", words)
    for key in _TIMES:
        if isinstance(report.get(key), int | float):
            out[key] = GLib.Variant("d", float(report[key]))
    for key in _SECONDS:
        if isinstance(report.get(key), Mapping):
            out[key] = GLib.Variant("a{sd}", _numbers(report[key], float))
    for key in _COUNTS:
        if isinstance(report.get(key), Mapping):
            out[key] = GLib.Variant("a{st}", _numbers(report[key], int))
    out["json"] = GLib.Variant("s", json.dumps(report, default=str))
    return out


def _numbers(values: Mapping[str, Any], kind: type[int] | type[float]) -> dict[str, Any]:
    """The entries that are numbers of this kind; counts fit 64 bits without a sign."""
    return {
        str(key): kind(value)
        for key, value in values.items()
        if isinstance(value, int if kind is int else int | float)
        and (kind is float or 0 <= value < 1 << 64)
    }


def flatten_target(spec: str, target: TargetDevice | KjumpError | None) -> dict[str, Any]:
    """The Target property."""
    out = {"spec": GLib.Variant("s", spec), "present": GLib.Variant("b", False)}
    if isinstance(target, TargetDevice):
        out |= {
            "present": GLib.Variant("b", True),
            "path": GLib.Variant("s", str(target.path)),
            "size": GLib.Variant("t", target.capacity),
            "kind": GLib.Variant("s", target.kind),
            "partuuid": GLib.Variant("s", target.partuuid),
            "links": GLib.Variant("as", list(target.links)),
        }
        if target.file:
            out["file"] = GLib.Variant("s", target.file)
    return out


def window_figures(facts: Facts) -> dict[str, int]:
    """The Window property: bytes."""
    sizing = facts.sizing
    if sizing is None or isinstance(sizing, KjumpError):
        return {}
    parts = getattr(sizing, "parts", {})
    return {
        "size": sizing.window_size,
        "available_needed": sizing.available_needed,
        **{str(name): int(size) for name, size in parts.items()},
    }


def same(one: Any, other: Any) -> bool:
    """Equality that sees into variants."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, GLib.Variant) and isinstance(other, GLib.Variant):
        return bool(one.equal(other))
    return bool(one == other)
