# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is kept stays as it was first, and notes come to it until it is forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _release
from ansible_collections.nas.assistant.plugins.modules import container_release


def test_notes_are_added_and_never_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: Any) -> dict[str, Any]:
        return {"container": None, "files": [], "networks": []}

    monkeypatch.setattr(container_release.release, "take", take)
    given = {"container": "x", "label": "", "mounts": [], "files": [], "units": []}
    given["folder"] = str(tmp_path)

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


UNIT = "front.service"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of systemd, which has a unit that began before any file here was written."""
    verbs: list[str] = []

    def show(units: list[str]) -> dict[str, dict[str, str]]:
        active = {"ActiveState": "active", "UnitFileState": "static"}
        return {unit: active | {"InactiveExitTimestamp": ""} for unit in units}

    monkeypatch.setattr(_release, "inspect", lambda *_: None)
    monkeypatch.setattr(_release, "_make", lambda *_: None)
    monkeypatch.setattr(_release, "_see_image", lambda *_: None)
    monkeypatch.setattr(_release, "show", show)
    monkeypatch.setattr(_release, "systemctl", lambda *words: verbs.append(" ".join(words)))
    monkeypatch.setattr(
        _release, "carry_out", lambda unit, what, _: verbs.extend(f"{each} {unit}" for each in what)
    )
    return verbs


def release(files: list[dict[str, Any]], reads: list[Path], there: bool = True) -> dict[str, Any]:
    container = {"Id": "1", "Config": {"Image": "x:1"}} if there else None
    units = [{"name": UNIT, "reads": [str(path) for path in reads]}]
    return {"container": container, "files": files, "networks": [], "units": units}


def test_units_come_back_with_their_files(tmp_path: Path, asked: list[str]) -> None:
    unit, other = tmp_path / UNIT, tmp_path / "tuned.json"
    unit.write_text("patience 30")
    kept = _release.take("x", [str(other)], units=release([], [unit])["units"])
    assert [each["path"] for each in kept["files"]] == [str(other), str(unit)]
    unit.write_text("patience 5")
    other.write_text("{}")
    done = _release.put_back("x", release(kept["files"], [unit]))
    assert unit.read_text() == "patience 30"
    assert not other.exists()
    assert asked == ["daemon-reload", f"restart {UNIT}"]
    assert f"restart {UNIT}" in done


@pytest.mark.parametrize("there", [True, False])
def test_a_unit_that_is_new_stays(tmp_path: Path, asked: list[str], there: bool) -> None:
    """systemd could not stop one that has no file any more."""
    unit, config = tmp_path / UNIT, tmp_path / "config.ini"
    kept = [_release._file(str(path)) for path in (config, unit)]
    unit.write_text("patience 5")
    config.write_text("queue 31")
    _release.put_back("x", release(kept, [unit], there))
    assert unit.exists()
    assert not config.exists()
    assert asked == []


def test_what_an_earlier_version_kept_is_read(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"container": None, "files": [], "networks": [], "notes": {}}
    kept["since"] = "then"
    (tmp_path / "release.json").write_text(json.dumps(kept))
    assert _release.read(tmp_path) == {**kept, "units": []}
