# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""All of it goes, with or without the data, and comes back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
from conftest import LONG
from testinfra.host import Host

from lab import paths, ssh

Playbook = Callable[..., subprocess.CompletedProcess[str]]
MODELS = "/var/lib/nas-assistant/models"
# Whatever bears our name, save data and keys, and the account by which the owner may be logged in.
TRACES = """
    find /etc /usr/local -name '*nas-assistant*' -o -name 'nas-*@*' -o -name 'nas-*.timer' \
        | grep -v -e '^/etc/nas-assistant$' -e '^/etc/sudoers.d/' || true
    nft list tables | grep nas_assistant || true
    docker ps -aq --filter name=nas-assistant
    systemctl list-units --plain --no-legend 'nas-*' | cut -d ' ' -f 1 \
        | grep -v -e '^nas-first-boot' -e '^nas-proc-sys-net' || true  # the lab's own
    ls /etc/nginx/conf.d
"""


pytestmark = LONG


@pytest.fixture(autouse=True)
def back_again(playbook: Playbook, wait_ready: Callable[[], float]) -> Iterator[None]:
    """The other tests want it as it was."""
    yield
    done = playbook("site")
    assert done.returncode == 0, done.stdout
    wait_ready()
    assert "changed=0" in playbook("site").stdout


def traces(address: str) -> list[str]:
    door = ssh.door(paths.lab("molecule"), address)
    assert door == ssh.DOORS[1]  # port 22 and root, as on the blank NAS
    done = ssh.as_root(paths.lab("molecule"), address, TRACES)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_uninstalled_it_keeps_the_data(playbook: Playbook, host: Host, address: str) -> None:
    before = host.check_output(f"ls -i {MODELS}")
    done = playbook("uninstall")
    assert done.returncode == 0, done.stdout
    assert traces(address) == []
    assert "changed=0" in playbook("uninstall").stdout
    kept = ssh.as_root(paths.lab("molecule"), address, f"ls -i {MODELS}; ls /etc/nas-assistant")
    assert kept.stdout.startswith(before)
    assert "tls" in kept.stdout


def test_erased_it_keeps_nothing_of_its_own(
    playbook: Playbook, host: Host, address: str, nas_name: str
) -> None:
    host.check_output(f"echo mine > {MODELS}/mine.gguf")
    for word in ({}, {"erase": "yes"}, {"erase": f"{nas_name}0"}):
        refused = playbook("erase", **word)
        assert refused.returncode != 0
        assert f"which is not named. Name each NAS that it is meant for: -e erase={nas_name}" in (
            " ".join(refused.stdout.split())
        )
        assert "changed=0" in refused.stdout
    done = playbook("erase", erase=nas_name)
    assert done.returncode == 0, done.stdout
    assert traces(address) == []
    left = f"""
        echo looked
        find /var/lib/nas-assistant -type f -o -type s
        ls -d /etc/nas-assistant /usr/local/lib/nas-assistant /var/*/nas-assistant-backup || true
        docker volume ls -q && docker images -q
        rm {MODELS}/mine.gguf
    """
    found = ssh.as_root(paths.lab("molecule"), address, left)
    # What the owner put there is his.
    assert found.stdout.split() == ["looked", f"{MODELS}/mine.gguf"], found.stderr
