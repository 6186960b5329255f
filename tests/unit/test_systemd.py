# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""When a service last read its files, and what that asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._systemd import (
    loaded_at,
    newer_than,
    plan,
    timestamp,
)

START = "Sun 2026-11-22 17:02:09.434279 UTC"


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, 0.0),
        ({"InactiveExitTimestamp": ""}, 0.0),
        ({"InactiveExitTimestamp": "n/a"}, 0.0),
        ({"InactiveExitTimestamp": START}, timestamp(START)),
    ],
)
def test_loaded_at(tmp_path: Path, properties: dict[str, str], expected: float) -> None:
    assert loaded_at(properties, "") == expected
    stamp = tmp_path / "nginx.service"
    stamp.touch()
    # A reload before the last start counts no more.
    for moment, later in ((expected - 5, expected), (expected + 5, expected + 5)):
        os.utime(stamp, (max(moment, 0), max(moment, 0)))
        assert loaded_at(properties, str(stamp)) == later


def test_timestamp_is_utc() -> None:
    assert timestamp("Thu 1970-01-01 00:01:00.500000 UTC") == 60.5


def test_newer_than(tmp_path: Path) -> None:
    path = tmp_path / "site.conf"
    path.write_text("x")
    changed = path.stat().st_ctime
    files = [str(path), str(tmp_path / "missing")]
    assert newer_than(files, changed - 1) == [str(path)]
    assert newer_than(files, changed) == []
    # Renaming an old file into place is a change, though its content's time is old.
    os.utime(path, (0, 0))
    assert newer_than(files, changed - 1) == [str(path)]


@pytest.mark.parametrize(
    ("active", "enabled", "newer", "verbs"),
    [
        ("active", "enabled", [], []),
        ("active", "enabled", ["f"], ["reload"]),
        ("active", "static", ["f"], ["reload"]),
        ("active", "disabled", [], ["enable"]),
        ("inactive", "enabled", ["f"], ["start"]),
        ("failed", "disabled", [], ["enable", "start"]),
        ("inactive", "", [], ["enable", "start"]),
    ],
)
def test_plan(active: str, enabled: str, newer: list[str], verbs: list[str]) -> None:
    assert plan({"ActiveState": active, "UnitFileState": enabled}, newer, "reload") == verbs


def test_plan_reloads_before_a_restart_where_asked() -> None:
    active = {"ActiveState": "active", "UnitFileState": "enabled"}
    assert plan(active, ["f"], "restart") == ["restart"]
    assert plan(active, ["f"], "restart", reload_first=True) == ["reload", "restart"]
    assert plan(active, [], "restart", reload_first=True) == []
