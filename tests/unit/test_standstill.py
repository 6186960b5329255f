# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Tests of what is stopped for a work and started again."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _commands, _standstill
from ansible_collections.nas.assistant.plugins.module_utils._standstill import (
    Standstill,
    StandstillError,
)


class Nas:
    """Units and containers that run, and what is done to them."""

    def __init__(self) -> None:
        self.running = {"docker.service", "cron.service", "a1", "b2"}
        self.broken: set[str] = set()
        self.done: list[str] = []

    def run(self, argv: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        """Stand in for the command."""
        words, code, text = list(argv), 0, ""
        things = {word for word in words[2:] if not word.startswith("-")}
        match words[:2]:
            case ["systemctl", "is-active"]:
                code = 0 if things <= self.running else 3
            case ["docker", "ps"]:
                text = " ".join(sorted({"a1", "b2"} & self.running))
            case [_, "stop"]:
                self.running -= things
                self.done.append(" ".join(words))
            case [_, "start"]:
                self.running |= things - self.broken
                self.done.append(" ".join(words))
        return subprocess.CompletedProcess(words, code, text, "")


@pytest.fixture
def nas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nas:
    nas = Nas()
    monkeypatch.setattr(_standstill, "run", nas.run)
    monkeypatch.setattr(_commands, "run", nas.run)
    monkeypatch.setattr(_standstill, "FOLDER", str(tmp_path))
    monkeypatch.setattr(_standstill, "SETTLE", 0.0)
    return nas


def test_containers_stop_before_their_engine_and_start_after_it(nas: Nas) -> None:
    standstill = Standstill("copy")
    standstill.begin(["docker.service", "nfs-server.service"])
    assert nas.running == {"cron.service"}
    # Another run goes on where this one was cut off.
    assert Standstill("copy").end() == ["docker.service", "a1", "b2"]
    assert nas.running == {"docker.service", "cron.service", "a1", "b2"}
    assert nas.done == [
        "docker stop a1 b2",
        "systemctl stop docker.socket",
        "systemctl stop docker.service",
        "systemctl start docker.service",
        "docker start a1",
        "docker start b2",
    ]
    assert Standstill("copy").stopped == []


def test_what_ends_again_is_named_with_the_way_back(nas: Nas) -> None:
    standstill = Standstill("rollback")
    standstill.begin(["cron.service"])
    nas.broken = {"cron.service"}
    with pytest.raises(StandstillError) as found:
        standstill.end(kept="books.20260101T000000Z")
    assert str(found.value) == (
        "cron.service ran before and ended again; see journalctl -u. What was there before is in "
        "books.20260101T000000Z: go back to it to undo this"
    )
    # It is said once: the next run begins anew.
    assert Standstill("rollback").stopped == []


def test_without_units_nobody_waits(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_standstill, "SETTLE", 1e9)
    standstill = Standstill("rollback")
    standstill.begin([])
    assert standstill.end() == []
