# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Holds, where they are and where they were once."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _snapshot_plan, _snapshots


def test_holds_that_cannot_be_brought_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only disk keeps no snapshot from being made."""
    earlier, holds = tmp_path / "earlier", tmp_path / "holds"
    earlier.mkdir()
    (earlier / "rollback-x").write_text("11111111-2222-3333-4444-555555555555\n")
    monkeypatch.setattr(_snapshot_plan, "EARLIER_HOLDS", str(earlier))
    monkeypatch.setattr(_snapshot_plan, "HOLDS", str(holds))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_snapshots, "replace", full)
    assert _snapshots.carry_out([], "present", str(holds)) == []
    assert len(_snapshots.read_holds(str(holds))) == 1
