# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Usage in SQLite: over restarts, while another writes, damaged, without room or volume."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

import pytest

from nas_assistant import state
from nas_assistant.quota import Usage
from nas_assistant.state import FILE, Ledger, StateError, mend, note, usage_of

DAY, ONE = "2027-01-15", Usage(1, 20, 3)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.event for record in caplog.records]  # type: ignore[attr-defined]


def test_usage_adds_up_over_restarts(tmp_path: Path) -> None:
    for number in (1, 2):
        ledger = Ledger(tmp_path)
        ledger.add(DAY, "owner", ONE)
        assert ledger.of_day(DAY)["owner"].requests == number
        ledger.flush()
    assert usage_of(tmp_path, DAY) == {"owner": ONE + ONE}
    assert Ledger(tmp_path).of_day("2027-01-16") == {}


def test_what_cannot_be_written_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "volume"
    ledger = Ledger(folder)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            ledger.add(DAY, "owner", ONE)
            ledger.flush()
        assert events(caplog) == ["state_not_written"]
        assert ledger.of_day(DAY)["owner"].requests == 3
        folder.mkdir()
        ledger.flush()
        assert events(caplog) == ["state_not_written", "state_written"]
    assert usage_of(folder, DAY)["owner"].requests == 3


def test_a_writer_that_holds_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_PATIENCE", 0.1)
    note(tmp_path, "create", "owner")
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("BEGIN IMMEDIATE")
    ledger = Ledger(tmp_path)
    ledger.add(DAY, "owner", ONE)
    ledger.flush()
    assert "locked" in ledger.complaint
    # Reading goes on meanwhile.
    assert ledger.of_day(DAY) == {"owner": ONE}
    mend(tmp_path)
    assert [path.name for path in tmp_path.glob("*damaged*")] == []
    other.close()
    ledger.flush()
    assert usage_of(tmp_path, DAY) == {"owner": ONE}


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 400])
def test_a_damaged_database_is_put_aside(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    note(tmp_path, "create", "owner")
    path = tmp_path / FILE
    # Either all of it, or the inside of one page.
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:4096] + b"\xa5" * 4096 + whole[8192:])
    mend(tmp_path)
    (kept,) = tmp_path.glob(f"{FILE}.damaged-*")
    assert kept.stat().st_size > 0
    assert events(caplog) == ["state_damaged"]
    ledger = Ledger(tmp_path)
    ledger.add(DAY, "owner", ONE)
    ledger.flush()
    assert usage_of(tmp_path, DAY) == {"owner": ONE}


def test_a_whole_database_stays(tmp_path: Path) -> None:
    mend(tmp_path)
    note(tmp_path, "create", "owner")
    mend(tmp_path)
    assert [entry[1:] for entry in state.audit(tmp_path)] == [("create", "owner", "")]
    with pytest.raises(StateError, match="see that the volume is there"):
        state.audit(tmp_path / "none")


def test_what_another_process_keeps_is_read_as_it_lies(tmp_path: Path) -> None:
    """Soon, since nobody's request goes on meanwhile."""
    ledger = Ledger(tmp_path)
    ledger.add(DAY, "owner", ONE)
    ledger.flush()
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    assert ledger.of_day(DAY) == {"owner": ONE}
    assert time.monotonic() - began < 2
    other.close()
