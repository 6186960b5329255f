# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The script that puts an old state back, run by a shell, and who wins a race with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _guard as guard
from ansible_collections.nas.assistant.plugins.module_utils._guard import Command, GuardError


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """systemd's tools, which only write down how they were called."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    for name in ("systemctl", "systemd-run", "daemon"):
        tool = folder / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n[ "$1" != is-active ]\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(guard, "FOLDER", str(tmp_path / "guard"))
    monkeypatch.setattr(guard, "UNITS", str(tmp_path / "units"))
    (tmp_path / "units").mkdir()
    return log


def script(name: str) -> str:
    return f"{guard.FOLDER}/{name}/revert.sh"


def run(path: str, *arguments: str) -> str:
    done = subprocess.run(["/bin/sh", path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def arm(tmp_path: Path) -> tuple[Path, Path, str]:
    """A change of two files, of which one is new."""
    old, new = tmp_path / "it's old", tmp_path / "new"
    old.write_text("old\n")
    old.chmod(0o640)
    commands = [Command(("daemon", "a b")), Command(("daemon", "never"), ("false",))]
    token = guard.arm("sshd", [str(old), str(new)], commands, 60)
    old.write_text("changed\n")
    new.write_text("changed\n")
    return old, new, token


def test_the_timer_puts_everything_back(tmp_path: Path, tools: Path) -> None:
    old, new, _ = arm(tmp_path)
    assert f"--on-active=60 --timer-property=AccuracySec=100ms /bin/sh {script('sshd')}" in (
        tools.read_text()
    )
    assert "nobody confirmed" in run(script("sshd"))
    assert (old.read_text(), old.stat().st_mode & 0o777) == ("old\n", 0o640)
    assert not new.exists()
    calls = tools.read_text().splitlines()
    assert calls.index("systemctl daemon-reload") < calls.index("daemon a b")
    assert "daemon never" not in calls
    assert os.listdir(guard.FOLDER) == []
    assert not Path(guard.UNITS, guard.BOOT_UNIT).exists()


def test_at_boot_files_come_back_and_no_daemon_is_called(tmp_path: Path, tools: Path) -> None:
    old, _, _ = arm(tmp_path)
    link = Path(guard.UNITS, "sysinit.target.wants", guard.BOOT_UNIT)
    assert "Before=sysinit.target network-pre.target" in link.read_text()
    run(script("sshd"), "boot")
    assert old.read_text() == "old\n"
    assert "daemon a b" not in tools.read_text()


def test_a_confirmation_keeps_the_new_state(tmp_path: Path, tools: Path) -> None:
    old, new, token = arm(tmp_path)
    saved = Path(script("sshd")).read_text()
    with pytest.raises(GuardError, match="another change"):
        guard.confirm("sshd", "0" * 32)
    guard.confirm("sshd", token)
    assert "systemctl stop nas-guard-sshd.timer" in tools.read_text()
    assert not guard.pending("sshd")
    assert not Path(guard.UNITS, guard.BOOT_UNIT).exists()
    # A timer that fires at this very moment finds nothing to do.
    late = tmp_path / "late.sh"
    late.write_text(saved)
    run(str(late))
    assert (old.read_text(), new.read_text()) == ("changed\n", "changed\n")


def test_a_confirmation_that_comes_too_late_is_told_so(tmp_path: Path, tools: Path) -> None:
    _, _, token = arm(tmp_path)
    run(script("sshd"))
    with pytest.raises(GuardError, match="too late"):
        guard.confirm("sshd", token)


def test_what_a_crash_left_half_put_back_is_finished(tmp_path: Path, tools: Path) -> None:
    old, new, _ = arm(tmp_path)
    folder = Path(guard.FOLDER, "sshd")
    folder.rename(f"{folder}.reverting")
    assert guard.pending("sshd")
    assert guard.revert("sshd")
    assert (old.read_text(), new.exists()) == ("old\n", False)
    assert not guard.revert("sshd")


def test_one_change_waits_at_a_time(tmp_path: Path, tools: Path) -> None:
    arm(tmp_path)
    with pytest.raises(GuardError, match="still waits"):
        guard.arm("sshd", [], [], 60)
    other = guard.arm("firewall", [], [], 60)
    guard.confirm("firewall", other)
    # The other one still needs the unit that runs at boot.
    assert Path(guard.UNITS, guard.BOOT_UNIT).exists()


def test_what_is_applied_later_is_confirmed_only_after_it(tmp_path: Path, tools: Path) -> None:
    """And over a connection made after that: the one that saw the end may be older."""
    token = guard.arm("network", [], [], 60, ["apply.timer", "apply.service"])
    systemctl = tools.parent / "bin" / "systemctl"
    quiet = systemctl.read_text()
    systemctl.write_text("#!/bin/sh\nprintf 'inactive\\nactivating\\n'\n")
    assert not guard.confirm("network", token)
    assert not guard.confirm("network", token)
    systemctl.write_text("#!/bin/sh\nprintf 'inactive\\ninactive\\n'; exit 3\n")
    assert not guard.confirm("network", token)
    systemctl.write_text(quiet)
    assert guard.armed("network")
    assert guard.confirm("network", token)
    assert not guard.armed("network")


def test_what_is_to_be_applied_does_not_come_after_the_old_state(
    tmp_path: Path, tools: Path
) -> None:
    guard.arm("network", [], [Command(("daemon", "back"))], 60, ["apply.service"])
    systemctl = tools.parent / "bin" / "systemctl"
    systemctl.write_text(systemctl.read_text().replace('[ "$1" != is-active ]', "true"))
    run(script("network"))
    log = tools.read_text()
    assert log.index("systemctl stop apply.service") < log.index("daemon back")


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "x" * 33])
def test_names(name: str) -> None:
    with pytest.raises(GuardError, match="lower-case"):
        guard.pending(name)
