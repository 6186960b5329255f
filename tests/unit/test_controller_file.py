# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Files on the controller: run as its owner does, by Ansible itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

PLAYBOOK = """\
- hosts: localhost
  gather_facts: false
  tasks:
    - nas.assistant.controller_file: {dest: "{{ dest }}", content: "{{ content }}"}
"""


def write(folder: Path, dest: str, content: str, *more: str) -> subprocess.CompletedProcess[str]:
    playbook = folder / "playbook.yml"
    playbook.write_text(PLAYBOOK)
    wish = json.dumps({"dest": dest, "content": content})
    return subprocess.run(
        ["ansible-playbook", str(playbook), "--extra-vars", wish, *more],
        env={**os.environ, "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.timer"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "credentials" / "key"


def test_written_once_for_its_owner_alone(tmp_path: Path, kept: Path) -> None:
    done = write(tmp_path, str(kept), "one\n", "--check", "--diff")
    assert "changed=1" in done.stdout, done.stdout
    assert "+one" in done.stdout
    assert not kept.parent.exists()
    assert "changed=1" in write(tmp_path, str(kept), "one\n").stdout
    assert "changed=0" in write(tmp_path, str(kept), "one\n").stdout
    assert kept.read_text() == "one\n"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    kept.parent.chmod(0o755)
    assert "changed=1" in write(tmp_path, str(kept), "one\n").stdout
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_in_its_place_is_an_error_and_stays(tmp_path: Path, kept: Path) -> None:
    kept.mkdir(parents=True)
    done = write(tmp_path, str(kept), "one\n")
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert f"{kept} on the controller: {kept} is a folder, where a file should be" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_it_to_the_owner_of_the_folder(tmp_path: Path, kept: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    assert "changed=1" in write(tmp_path, str(kept), "one\n").stdout
    assert (kept.stat().st_uid, kept.parent.stat().st_gid) == (1234, 1234)
    os.chown(kept, 0, 0)
    assert "changed=0" in write(tmp_path, str(kept), "one\n").stdout
