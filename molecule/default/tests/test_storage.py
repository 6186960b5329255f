# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The models of a NAS in use, moved to a mirror of two disks while nothing is lost."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from testinfra.host import Host

Run = Callable[..., subprocess.CompletedProcess[str]]
MODELS = "/var/lib/nas-assistant/models"


@pytest.fixture(scope="module")
def pool(lab_host: dict[str, Any]) -> dict[str, Any]:
    """What the inventory would say of two of the lab's disks."""
    snapshots = {"every": "15m", "keep": {"last": 2}}
    return {
        "name": "tank",
        "devices": lab_host["disks"][:2],
        "format": True,
        "volumes": [
            {"name": "models", "path": MODELS, "compression": "none", "migrate": True},
            {
                "name": "documents",
                "path": "/srv/documents",
                "quota": "64M",
                "snapshots": snapshots,
                "needed_by": "cron.service",
            },
        ],
    }


@pytest.fixture
def storage(playbook: Run) -> Run:
    """Return a function that runs the role on these pools."""

    def run(*pools: dict[str, Any], **variables: Any) -> subprocess.CompletedProcess[str]:
        return playbook("storage", "--tags", "storage", storage_pools=list(pools), **variables)

    return run


def said(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode != 0, run.stdout
    return " ".join(run.stdout.split())


def changed(run: subprocess.CompletedProcess[str]) -> bool:
    assert run.returncode == 0, run.stdout
    return "changed=0" not in run.stdout


def digests(host: Host) -> str:
    listing = host.check_output(f"cd {MODELS} && find . -type f -exec sha256sum {{}} + | sort")
    return hashlib.sha256(listing.encode()).hexdigest()


def test_refused_before_anything_changes(storage: Run, pool: dict[str, Any], host: Host) -> None:
    models, documents = pool["volumes"]
    kept = {**models, "migrate": False}
    message = said(storage({**pool, "volumes": [kept]}))
    assert f"{MODELS} holds" in message
    assert "With migrate: true, a volume of storage_pools gets a copy" in message
    # The lab mounts Docker's folder itself.
    message = said(storage({**pool, "volumes": [{**documents, "path": "/var/lib/docker"}]}))
    assert "something else is mounted at /var/lib/docker" in message
    message = said(storage({**pool, "format": False, "volumes": []}))
    assert "would be overwritten" in message
    assert "volume ../x" in said(storage({**pool, "volumes": [{"name": "../x"}]})).replace("'", "")
    # There is no ZFS in the lab, neither program nor module.
    of_zfs = {**pool, "provider": "zfs", "volumes": [documents]}
    assert "provider=zfs, and" in said(storage(of_zfs))
    for device in pool["devices"]:
        assert host.check_output(f"wipefs {device}") == ""
    assert not host.file("/srv/tank").exists


def test_models_move_to_a_mirror(
    storage: Run,
    pool: dict[str, Any],
    host: Host,
    client: httpx.Client,
    wait_ready: Callable[[], float],
) -> None:
    before = digests(host)
    assert changed(storage(pool))
    assert host.check_output(f"findmnt -n -o FSTYPE {MODELS}") == "btrfs"
    assert digests(host) == before
    assert "raid1" in host.check_output("btrfs --format json filesystem df /srv/tank").lower()
    # What was stopped for it goes on, with the files of the mirror.
    wait_ready()
    assert client.get("/v1/models").status_code == 200
    assert not changed(storage(pool))


def test_what_is_altered_by_hand_is_mended(storage: Run, pool: dict[str, Any], host: Host) -> None:
    for command in (
        "umount /srv/documents",
        "btrfs property set /srv/tank/models compression zstd",
        "btrfs qgroup limit none /srv/tank/documents",
        "sed -i s/noatime/relatime/ /etc/systemd/system/srv-documents.mount",
        "systemctl disable --now nas-snapshots.timer",
        "rm /etc/systemd/system/nas-scrub-tank.timer",
        "sed -i s/15m/1d/ /etc/nas-assistant/snapshots.json",
    ):
        host.check_output(command)
        assert changed(storage(pool)), command
    assert not changed(storage(pool))
    assert host.check_output("findmnt -n -o TARGET /srv/documents") == "/srv/documents"


def test_snapshots_are_made_on_the_nas_alone(host: Host) -> None:
    # The quarter of an hour may have been full since the role ran.
    host.check_output("systemctl stop nas-snapshots.timer")
    host.run("btrfs subvolume delete /srv/tank/.snapshots/documents.*")
    host.check_output("echo one > /srv/documents/file")
    host.check_output("systemctl start nas-snapshots.service")
    (made,) = host.check_output("ls /srv/tank/.snapshots").split()
    assert made.startswith("documents.")
    assert host.check_output(f"cat /srv/tank/.snapshots/{made}/file") == "one"
    assert host.run(f"touch /srv/tank/.snapshots/{made}/file").rc != 0
    # The next is not due yet.
    host.check_output("systemctl start nas-snapshots.service")
    # At the disk, it goes behind everybody: 3 is idle.
    rank = "systemctl show nas-snapshots.service --value --property IOSchedulingClass"
    assert host.check_output(rank) == "3"
    assert host.check_output("ls /srv/tank/.snapshots").split() == [made]
    host.check_output("systemctl start nas-scrub-tank.service")
    assert "finished" in host.check_output("btrfs scrub status /srv/tank")
    # As one that was cut off leaves it: it is found after the next boot, and goes on.
    host.check_output("sed -i 's/|finished:1/|finished:0/g' /var/lib/btrfs/scrub.status.*")
    host.check_output("systemctl start nas-scrubs.service")
    deadline = time.monotonic() + 60
    while "interrupted" in host.check_output("btrfs scrub status /srv/tank"):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert "Scrub resumed" in host.check_output("btrfs scrub status /srv/tank")
    host.check_output("systemctl is-active nas-scrubs.timer")
    host.check_output("systemctl start nas-snapshots.timer")


def test_a_volume_goes_back_to_its_snapshot(
    playbook: Run, pool: dict[str, Any], host: Host
) -> None:
    # At the next quarter of an hour it would make the state that is to go the newest snapshot.
    host.check_output("systemctl stop nas-snapshots.timer")
    host.check_output("echo two > /srv/documents/file")
    wish = {"storage_pools": [pool], "storage_rollback": {"volume": "tank/documents"}}
    pid = "systemctl show cron.service --value --property MainPID"
    cron = host.check_output(pid)
    assert cron != "0"
    unknown = {**wish, "storage_rollback": {"volume": "tank/photos"}}
    assert "one of tank/models, tank/documents" in said(playbook("rollback", **unknown))
    run = playbook("rollback", **wish)
    assert run.returncode == 0, run.stdout
    assert host.check_output("cat /srv/documents/file") == "one"
    # What needs it stood still meanwhile, and goes on.
    assert host.check_output("systemctl is-active cron.service") == "active"
    assert host.check_output(pid) not in ("0", cron)
    kept = host.check_output("ls /srv/tank/.snapshots").split()[-1]
    assert f"What was there before is in {kept}" in " ".join(run.stdout.split())
    assert host.check_output(f"cat /srv/tank/.snapshots/{kept}/file") == "two"
    # The same again does not bring back what was to go.
    host.check_output("echo three > /srv/documents/file")
    run = playbook("rollback", **wish)
    assert run.returncode == 0, run.stdout
    assert host.check_output("cat /srv/documents/file") == "one"
    host.check_output("systemctl start nas-snapshots.timer")


def test_what_lies_in_a_volume_stays_and_is_mounted_again(
    playbook: Run, storage: Run, pool: dict[str, Any], host: Host
) -> None:
    scans = {"name": "documents/scans", "path": "/srv/documents/scans"}
    # In whatever order they are named.
    more = {**pool, "volumes": [scans, *pool["volumes"]]}
    assert changed(storage(more))
    host.check_output("systemctl stop nas-snapshots.timer")
    host.check_output("echo mine > /srv/documents/scans/file; echo two > /srv/documents/file")
    wish = {"storage_pools": [more], "storage_rollback": {"volume": "tank/documents"}}
    run = playbook("rollback", **wish)
    assert run.returncode == 0, run.stdout
    assert host.check_output("cat /srv/documents/file") == "one"
    # systemd unmounts it with the volume that it lies in.
    assert host.check_output("findmnt -n -o FSROOT /srv/documents/scans") == "/documents/scans"
    assert host.check_output("cat /srv/documents/scans/file") == "mine"
    assert host.check_output("systemctl is-active cron.service") == "active"
    # Nobody would mount this again.
    host.check_output("mkdir /srv/documents/hand && mount -t tmpfs none /srv/documents/hand")
    host.check_output("echo two > /srv/documents/file")
    assert "srv-documents-hand.mount is mounted beneath" in said(playbook("rollback", **wish))
    host.check_output("umount /srv/documents/hand && rmdir /srv/documents/hand")
    assert host.check_output("cat /srv/documents/file") == "two"
    assert host.check_output("systemctl is-active cron.service") == "active"
    host.check_output("echo one > /srv/documents/file")
    assert changed(storage(pool, storage_released=[scans["path"]]))
    host.check_output("btrfs subvolume delete /srv/tank/documents/scans")


def test_it_is_mounted_before_docker_after_a_restart(
    lab_container: str, request: pytest.FixtureRequest, wait_ready: Callable[[], float]
) -> None:
    subprocess.run(["docker", "restart", lab_container], check=True, capture_output=True)
    wait_ready()
    host = request.getfixturevalue("host")
    stamp = "systemctl show {} --value --property={}Monotonic"
    mounted = host.check_output(
        stamp.format(r"'var-lib-nas\x2dassistant-models.mount'", "ActiveEnterTimestamp")
    )
    began = host.check_output(stamp.format("docker.service", "ExecMainStartTimestamp"))
    assert 0 < int(mounted) <= int(began)


def test_a_volume_that_is_missing_keeps_docker_off(host: Host) -> None:
    """Better no assistant than one that writes beneath the mount."""
    host.check_output("systemctl stop docker.socket docker.service")
    for container in host.check_output("pgrep -f containerd-shim || true").split():
        host.run(f"kill {container}")
    deadline = time.monotonic() + 30
    while host.run(f"umount {MODELS}").rc != 0:
        assert time.monotonic() < deadline
        time.sleep(1)
    unit = r"/etc/systemd/system/var-lib-nas\\x2dassistant-models.mount"
    another = r"s,\(device@\|pools/\),\10,"
    host.check_output(f"sed -i.kept '{another}' {unit}; systemctl daemon-reload")
    try:
        assert host.run("systemctl start docker.service").rc != 0
    finally:
        host.check_output(f"mv {unit}.kept {unit}; systemctl daemon-reload")
    host.check_output("systemctl reset-failed; systemctl start docker.service")
    assert host.check_output(f"findmnt -n -o FSTYPE {MODELS}") == "btrfs"


def test_schedules_end_and_mounts_stay(storage: Run, pool: dict[str, Any], host: Host) -> None:
    metrics = "/var/lib/prometheus/node-exporter/nas_snapshots.prom"
    host.check_output(f"mkdir -p $(dirname {metrics}); systemctl start nas-snapshots.service")
    assert host.file(metrics).exists
    assert changed(storage(pool, storage_state="absent"))
    assert "nas-s" not in host.check_output("systemctl list-timers --all")
    assert not host.file(metrics).exists
    assert host.check_output(f"findmnt -n -o FSTYPE {MODELS}") == "btrfs"
    assert not changed(storage(pool, storage_state="absent"))


def test_a_volume_is_let_go_only_when_released(
    storage: Run, pool: dict[str, Any], host: Host
) -> None:
    models, _ = pool["volumes"]
    fewer = {**pool, "volumes": [models]}
    assert "srv-documents.mount" in said(storage(fewer))
    assert changed(storage(fewer, storage_released=["/srv/documents"]))
    assert host.run("findmnt /srv/documents").rc != 0
    assert host.check_output("cat /srv/tank/documents/file") == "one"
    assert not changed(storage(fewer))
