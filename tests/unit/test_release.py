# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is kept stays as it was first, and notes come to it until it is forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.modules import container_release


def test_notes_are_added_and_never_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: Any) -> dict[str, Any]:
        return {"container": None, "files": [], "networks": []}

    monkeypatch.setattr(container_release.release, "take", take)
    given = {"container": "x", "label": "", "mounts": [], "files": [], "folder": str(tmp_path)}

    def keep(check_mode: bool = False, **notes: Any) -> tuple[bool, bool, dict[str, Any]]:
        done = container_release.run({**given, "state": "kept", "notes": notes}, check_mode)
        return done["changed"], done["unfinished"], done["notes"]

    assert keep(check_mode=True, drained=False) == (True, False, {"drained": False})
    assert keep(drained=False) == (True, False, {"drained": False})
    assert keep(drained=True) == (False, True, {"drained": False})
    both = {"drained": False, "ms": 40}
    assert keep(check_mode=True, ms=40) == (True, True, both)
    assert keep(drained=True, ms=40) == (True, True, both)
    assert keep(ms=900) == (False, True, both)
    assert json.loads((tmp_path / "release.json").read_text())["notes"] == both
