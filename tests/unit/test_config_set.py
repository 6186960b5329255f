# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A set of files: one run of the module, with real files and real commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _guard as guard
from ansible_collections.nas.assistant.plugins.modules import config_set
from ansible_collections.nas.assistant.plugins.modules.config_set import by_key, unmet

Call = Callable[..., dict[str, Any]]
WRONG = "line 3 is wrong"
COMPLAINS = ["sh", "-c", f"echo {WRONG} >&2; exit 1"]


@pytest.fixture
def run(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the module on files of this user, with a guard's folder of the test's own."""
    monkeypatch.setattr(guard, "FOLDER", str(tmp_path / "guard"))

    def module(files: dict[str, str | None], **arguments: Any) -> dict[str, Any]:
        """``None`` takes a file away."""
        owner = {"owner": str(os.getuid()), "group": str(os.getgid())}
        entries = [
            {"dest": str(tmp_path / name), **owner}
            | ({"state": "absent"} if content is None else {"content": content})
            for name, content in files.items()
        ]
        return call(config_set.main, name="test", files=entries, **arguments)

    return module


def test_a_second_run_changes_nothing(run: Call, tmp_path: Path) -> None:
    log = tmp_path / "log"
    apply = [{"command": ["sh", "-c", f"echo loaded >> {log}"]}]
    assert run({"a": "1\n", "b": "2\n"}, apply=apply)["files"] == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]
    assert not run({"a": "1\n", "b": "2\n"}, apply=apply)["changed"]
    assert log.read_text() == "loaded\n"


def test_check_mode_shows_and_writes_nothing(run: Call, tmp_path: Path) -> None:
    answer = run({"a": "1\n"}, check=True, apply=[{"command": ["false"]}])
    assert answer["changed"]
    assert answer["diff"][0]["after"].endswith("1\n")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "refusal",
    [
        {"checks": [COMPLAINS]},
        {"expect": [{"command": ["echo", "port 22"], "lines": ["port 2222"], "remedy": WRONG}]},
        {"apply": [{"command": COMPLAINS}]},
        {"same": [{"actual": ["echo", "a"], "expected": COMPLAINS}]},
    ],
    ids=lambda refusal: next(iter(refusal)),
)  # fmt: skip
def test_what_is_refused_is_put_back(run: Call, tmp_path: Path, refusal: dict[str, Any]) -> None:
    old, gone = tmp_path / "a", tmp_path / "c"
    old.write_text("old\n")
    old.chmod(0o600)
    gone.write_text("here\n")
    answer = run({"a": "new\n", "b": "new\n", "c": None}, **refusal)
    assert answer["failed"]
    assert WRONG in answer["msg"]
    assert "The old state is in place again" in answer["msg"]
    assert (old.read_text(), old.stat().st_mode & 0o777) == ("old\n", 0o600)
    assert not (tmp_path / "b").exists()
    assert gone.read_text() == "here\n"


def test_a_draft_that_is_refused_is_never_in_place(run: Call, tmp_path: Path, call: Call) -> None:
    target = tmp_path / "sudoers"
    entry = {"dest": str(target), "content": "bad\n", "check": ["grep", "-q", "good", "%s"]}
    answer = call(config_set.main, name="test", files=[entry])
    assert answer["failed"]
    assert "grep -q good" in answer["msg"]
    assert not target.exists()
    assert os.listdir(tmp_path / "guard") == []


def test_a_command_may_depend_on_another(run: Call, tmp_path: Path) -> None:
    apply = [
        {"command": ["false"], "only_if": ["false"]},
        {"command": ["touch", str(tmp_path / "done")], "only_if": ["true"]},
    ]
    assert run({"a": "1\n"}, apply=apply)["done"] == [f"touch {tmp_path / 'done'}"]
    assert (tmp_path / "done").exists()


def test_what_is_in_force_is_compared(run: Call, tmp_path: Path) -> None:
    """Files that are right do not mean that the kernel has what they say."""
    kernel = tmp_path / "kernel"
    kernel.write_text("rules\n")
    pair = {"actual": ["cat", str(kernel)], "expected": ["echo", "rules"]}
    load = [{"command": ["sh", "-c", f"echo rules > {kernel}"]}]
    assert run({"a": "1\n"}, same=[pair], apply=load)["changed"]
    kernel.write_text("rules, and a hole\n")
    answer = run({"a": "1\n"}, same=[pair], apply=load)
    assert (answer["changed"], answer["files"]) == (True, [])
    assert kernel.read_text() == "rules\n"
    assert not run({"a": "1\n"}, same=[pair], apply=load)["changed"]


def test_all_lines_of_a_key_count() -> None:
    assert by_key(["port 22", " port 2222", "usedns no"]) == {
        "port": {"port 22", "port 2222"},
        "usedns": {"usedns no"},
    }
    wish = {"command": ["printf", "port 22\nport 2222\n"], "lines": ["port 2222"], "remedy": ""}
    (complaint,) = unmet([wish])
    assert "should say port 2222, and says port 22 and port 2222" in complaint


def test_folders_come_with_the_set_and_go_with_its_refusal(call: Call, tmp_path: Path) -> None:
    owner = {"owner": str(os.getuid()), "group": str(os.getgid())}
    folder = tmp_path / "folder"
    files = [
        {"dest": str(folder), "state": "directory", "mode": "0700", **owner},
        {"dest": str(folder / "a"), "content": "1\n", **owner},
    ]
    assert call(config_set.main, name="test", files=files, checks=[COMPLAINS])["failed"]
    assert not folder.exists()
    shown = call(config_set.main, name="test", files=files, check=True)
    assert shown["changed"]
    assert "mode 0700" in shown["diff"][0]["after"]
    assert not folder.exists()
    assert call(config_set.main, name="test", files=files)["files"] == [
        str(folder),
        str(folder / "a"),
    ]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not call(config_set.main, name="test", files=files)["changed"]
