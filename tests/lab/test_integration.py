# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One NAS on the real engine, from nothing to nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import boot, cli, disks, docker, engine, image, inventory, label, nas, paths, ssh

LAB = "selftest"

pytestmark = [
    pytest.mark.integration,
    # One lab by one name.
    pytest.mark.xdist_group("lab"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab's disks are loop devices: needs root"),
    pytest.mark.skipif(not shutil.which("docker"), reason="needs a Docker client"),
]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[inventory.Host]:
    if not engine.answers():
        pytest.skip("no Docker engine answers; `python3 -m lab engine` makes one answer")
    monkeypatch.setenv("NAS_LAB_HOME", str(tmp_path / "home"))
    assert up() == 0
    yield inventory.read(LAB)[0]
    assert cli.main(["down", "--name", LAB]) == 0
    assert left() == []
    assert not paths.lab(LAB).exists()


def up() -> int:
    return cli.main(["up", "--name", LAB, "--disk-size", "256M"])


def left() -> list[object]:
    """Whatever of the lab the engine and the kernel still know."""
    engine_has: list[object] = []
    for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        engine_has += docker.lines(*kind, "--quiet", *label.filters(LAB))
    return engine_has + list(disks.below(paths.lab(LAB), disks.attached()))


def over_ssh(host: inventory.Host, command: str) -> str:
    options = [
        "-F",
        os.devnull,
        "-i",
        host.ssh_key,
        "-p",
        str(host.ssh_port),
        "-o",
        "BatchMode=yes",
    ]
    target = f"{host.ssh_user}@{host.ssh_host}"
    done = subprocess.run(
        ["ssh", *options, *ssh.options(paths.lab(LAB)), target, command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_nas_from_nothing_to_nothing(host: inventory.Host) -> None:
    assert over_ssh(host, "systemctl is-system-running || true") == "running"
    assert over_ssh(host, "hostname") == "nas1"
    assert Path(host.ssh_key).stat().st_mode & 0o777 == 0o600

    # A host key that is not the lab's is refused.
    strange = subprocess.run(
        [
            *("ssh", "-F", os.devnull, "-i", host.ssh_key, "-o", "BatchMode=yes"),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes"),
            *(f"root@{host.ssh_host}", "true"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert strange.returncode == 255
    assert "Host key verification failed" in strange.stderr

    assert len(host.disks) == 2
    for device in host.disks:
        assert over_ssh(host, f"blockdev --getsize64 {device}") == str(256 << 20)
        over_ssh(host, f"echo kept | dd of={device} conv=fsync status=none")

    # What belongs to the NAS is writable, what belongs to the whole machine is not.
    assert over_ssh(host, "test -w /proc/sys/net/ipv4/tcp_syncookies && echo yes") == "yes"
    assert over_ssh(host, "test -w /proc/sys/vm/swappiness || echo no") == "no"
    assert over_ssh(host, "findmnt --noheadings --output FSTYPE /var/lib/docker") != "overlay"

    # A second `up` changes nothing and is quick.
    before = paths.lab(LAB) / "lab.json"
    stamp = before.stat().st_mtime_ns
    began = time.monotonic()
    assert up() == 0
    assert time.monotonic() - began < 10
    assert before.stat().st_mtime_ns == stamp
    assert inventory.read(LAB) == [host]

    restart(host)
    for device in host.disks:
        assert over_ssh(host, f"head -c 4 {device}") == "kept"


def test_what_was_taken_away_comes_back(host: inventory.Host) -> None:
    """A detached disk, a stopped container, a removed container, removed files; beside a container
    of a test's own."""
    other = ("--name", f"{label.prefix(LAB)}-other", *label.arguments(LAB), image.nas_name("12"))
    docker.docker("create", *other, "true")
    over_ssh(host, f"echo kept | dd of={host.disks[1]} conv=fsync status=none")
    subprocess.run(["losetup", "--detach", host.disks[1]], check=True)
    assert up() == 0
    assert over_ssh(host, f"head -c 4 {host.disks[1]}") == "kept"

    docker.docker("kill", host.container)
    assert up() == 0
    assert inventory.read(LAB) == [host]

    docker.docker("rm", "--force", host.container)
    assert up() == 0
    again = inventory.read(LAB)[0]
    assert (again.ssh_host, again.id != host.id) == (host.ssh_host, True)
    assert over_ssh(again, f"head -c 4 {again.disks[1]}") == "kept"

    shutil.rmtree(paths.lab(LAB))
    assert up() == 0
    assert over_ssh(inventory.read(LAB)[0], "hostname") == "nas1"
    assert not any(loop.deleted for loop in disks.below(paths.lab(LAB), disks.attached()))


def restart(host: inventory.Host) -> None:
    docker.docker("restart", host.container)
    number = int(host.name.removeprefix("nas"))
    one = nas.Nas(LAB, number, host.ssh_host, "12", len(host.disks), 256 << 20)
    boot.wait(one)
    boot.wait_for_login(one)
