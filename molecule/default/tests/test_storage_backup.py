# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Copies of a NAS in use, and its end: a blank one in its place gets all of it back.

On the pool that test_storage.py made, where that ran on the same NAS before.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import LONG
from testinfra.host import Host

from lab import apt, disks

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
LAB = ROOT / ".lab/molecule"
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "inventory")
MODELS = "/var/lib/nas-assistant/models"
STATE = "/var/lib/nas-assistant/state"
PASSWORD = "of-the-server-alone"
METRICS = "/var/lib/prometheus/node-exporter"
CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
# All that must come back, as sha256sum sees it. Nginx's copy of the certificate is among it.
LISTING = f"""
cd / && {{
  find srv/documents {MODELS[1:]} -type f -exec sha256sum {{}} +
  find srv/documents -printf '%p %y %m %U %G %s %l\\n'
  sha256sum etc/nas-assistant/config.ini etc/nas-assistant/tls/* {STATE[1:]}/keys.json
}} | sort
"""
FILES = """
mkdir letters
echo one > letters/first
head -c 3000000 /dev/urandom > photo
chown -R 1000:1000 .
python3 -c 'import sqlite3
c = sqlite3.connect("usage.db")
c.execute("create table t (n)")
c.commit()'
"""


@pytest.fixture(scope="module")
def server(address: str) -> Iterator[dict[str, Any]]:
    """A server elsewhere: it takes new data over HTTPS, and deletes none."""
    if not shutil.which("rclone"):
        apt.install(["rclone"], why="the tests of backups copy to a real server")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = probe.getsockname()[0]
    with socket.socket() as probe:
        probe.bind((own, 0))
        port = probe.getsockname()[1]
    folder = LAB / "server"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    crt, key = folder / "server.pem", folder / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=offsite",
                "-addext",
                f"subjectAltName=IP:{own}",
            ),
            *("-keyout", str(key), "-out", str(crt)),
        ],
        check=True,
        capture_output=True,
    )
    process = subprocess.Popen(
        [
            *("rclone", "serve", "restic", "--append-only", "--cache-objects=false"),
            *("--addr", f"{own}:{port}", "--cert", str(crt), "--key", str(key)),
            *("--user", "us", "--pass", PASSWORD, str(folder / "data")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((own, port), 1).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    yield {
        "repository": f"rest:https://us:{PASSWORD}@{own}:{port}/us/",
        "data": folder / "data/us",
        "ca": crt.read_text(),
    }
    process.terminate()
    process.wait()


def lab_disks(nas: str) -> list[str]:
    hosts = json.loads((LAB / "lab.json").read_text())["hosts"]
    return next(list(host["disks"]) for host in hosts if host["name"] == nas)


@pytest.fixture
def wish(server: dict[str, Any], nas_name: str) -> dict[str, Any]:
    """What the inventory would say."""
    return wanted(server, nas_name)


def wanted(server: dict[str, Any], nas: str) -> dict[str, Any]:
    first, second, third = lab_disks(nas)
    return {
        "storage_pools": [
            {
                "name": "tank",
                "devices": [first, second],
                "format": True,
                "volumes": [
                    {"name": "models", "path": MODELS, "compression": "none", "migrate": True},
                    {"name": "documents", "path": "/srv/documents"},
                    {"name": "state", "path": STATE, "migrate": True},
                ],
            }
        ],
        "backup_sources": [
            {"volume": "tank/documents"},
            {"volume": "tank/models"},
            {"volume": "tank/state"},
            {"folder": "/etc/nas-assistant", "used_by": ["nginx.service"]},
        ],
        "backup_copies": [
            {
                "name": "offsite",
                "repository": server["repository"],
                "ca": server["ca"],
                "prune": {"repository": str(server["data"])},
            },
            {"name": "usb", "device": {"path": third, "format": True}},
        ],
    }


@pytest.fixture
def store() -> Iterator[Path]:
    """A folder that everybody may enter, as that of a server is."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def restic(repository: Path, key: Path, *words: str) -> str:
    """Run restic as the owner of the server would."""
    command = ["restic", "--repo", str(repository), "--password-file", str(key), "--no-cache"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    return done.stdout


def points(repository: Path, key: Path) -> list[str]:
    return [each["id"] for each in json.loads(restic(repository, key, "snapshots", "--json"))]


def used_today(host: Host) -> dict[str, dict[str, int]]:
    """What keys used, as it is written on the disk."""
    rows = host.check_output("docker exec nas-assistant /app/start.sh keys list --json")
    return {row["name"]: row["used_today"] for row in json.loads(rows)}


def said(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode != 0, run.stdout
    return " ".join(run.stdout.split())


def worked(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout
    return " ".join(run.stdout.split())


def test_refused_before_anything_changes(playbook: Run, wish: dict[str, Any], host: Host) -> None:
    nothing = {**wish, "backup_sources": []}
    assert "tank/models, tank/documents" in said(playbook("backup", **nothing))
    ssh = {"host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE"}
    plain = {"name": "plain", "repository": "sftp:us@backup.example.com:/us", "ssh": ssh}
    forced = {**plain, "name": "forced", "ssh": {**ssh, "append_only": True}}
    text = worked(playbook("backup", "--check", **{**wish, "backup_copies": [plain, forced]}))
    assert "can delete all of plain. Over SSH" in text
    odd = {**wish, "backup_sources": [{"volume": "tank/music"}]}
    assert "is none of storage_pools" in said(playbook("backup", **odd))
    assert PASSWORD not in said(playbook("backup", **{**wish, "backup_run": ["cloud"]}))
    assert not host.file("/usr/local/sbin/nas-backup").exists


def test_the_first_copy_may_be_over_ssh(playbook: Run, wish: dict[str, Any], host: Host) -> None:
    ssh = {"host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE"}
    away = {"name": "away", "repository": "sftp:us@backup.example.com:/us", "ssh": ssh}
    first = {**wish, "backup_copies": [away]}
    told = worked(playbook("backup", **first))
    key = host.check_output("cat /etc/nas-assistant/backup/id_ed25519.pub")
    assert key.split()[1] in told
    assert "changed=0" in worked(playbook("backup", **first))
    worked(playbook("backup", **first, backup_state="absent"))


def test_copies_are_set_up(playbook: Run, wish: dict[str, Any], host: Host, nas_name: str) -> None:
    worked(playbook("storage", **wish))
    host.check_output(f"mkdir -p {METRICS}; cd /srv/documents; {FILES}")
    without = {**wish, "backup_sources": wish["backup_sources"][:2]}
    text = worked(playbook("backup", "--check", **without))
    assert f"tank/state, /etc/nas-assistant of {nas_name} is in no copy" in text
    # One of the pool's: refused before anything is written to it.
    of_the_pool = {"path": lab_disks(nas_name)[0], "format": True}
    own = {**wish, "backup_copies": [{"name": "usb", "device": of_the_pool}]}
    assert "is on the same disk as" in said(playbook("backup", **own))
    fewer = {**wish, "backup_sources": wish["backup_sources"][1:]}
    text = worked(playbook("backup", "--check", "--diff", **fewer))
    assert f"tank/documents of {nas_name} is in no copy" in text
    assert PASSWORD not in text
    assert not host.file("/usr/local/sbin/nas-backup").exists
    told = worked(playbook("backup", **wish))
    assert "without that key nothing can be restored" in told
    assert PASSWORD not in told
    text = worked(playbook("backup", **wish))
    assert "changed=0" in text
    timers = host.check_output("systemctl list-timers --all --no-legend 'nas-*'")
    for name in ("nas-backup-offsite", "nas-drill-offsite", "nas-backup-usb", "nas-drill-usb"):
        assert f"{name}.timer" in timers
    # What was cut off is begun again, and nothing was.
    host.check_output("systemctl is-active nas-backups.timer")
    assert host.check_output("nas-backup unfinished") == ""
    host.check_output("systemctl start nas-backups.service")
    key = (LAB / f"credentials/backup.{nas_name}").read_text()
    assert host.file("/etc/nas-assistant/backup/key").content_string == key
    for path in ("backup.json", "backup/key"):
        assert host.file(f"/etc/nas-assistant/{path}").mode == 0o600


def test_copies_are_made_and_drilled_on_the_nas_alone(host: Host) -> None:
    for name in ("offsite", "usb"):
        host.check_output(f"systemctl start nas-backup@{name}.service")
        host.check_output(f"systemctl start nas-drill@{name}.service")
        # At the disk, they go behind everybody: 3 is idle.
        units = f"nas-backup@{name}.service nas-drill@{name}.service"
        rank = f"systemctl show {units} --value --property IOSchedulingClass"
        assert host.check_output(rank).split() == ["3", "3"]
        metrics = host.check_output(f"cat {METRICS}/nas_backup_{name}.prom")
        assert f'nas_backup_failed{{copy="{name}",cause=""}} 0' in metrics
        assert f'nas_backup_drill_failed{{copy="{name}",cause=""}} 0' in metrics
    assert host.run("findmnt -S LABEL=usb").rc != 0
    assert host.check_output("ls /srv/tank/.snapshots/.backup") == ""


def test_a_server_that_is_away_is_tried_again(host: Host, server: dict[str, Any]) -> None:
    port = httpx.URL(server["repository"].removeprefix("rest:")).port
    show = "systemctl show nas-backup@offsite.service --value --property"
    chain = "inet away output { type filter hook output priority 0; }"
    host.check_output(f"nft 'add table inet away; add chain {chain}'")
    host.check_output(f"nft add rule inet away output tcp dport {port} reject")
    try:
        assert host.run("systemctl start nas-backup@offsite.service").rc != 0
        metrics = host.check_output(f"cat {METRICS}/nas_backup_offsite.prom")
        assert 'nas_backup_failed{copy="offsite",cause="unreachable"} 1' in metrics
        # It waits for half an hour, without anybody's doing.
        assert host.check_output(f"{show} SubState") == "auto-restart"
        assert host.check_output(f"{show} RestartUSec") == "30min"
        host.check_output("systemctl stop nas-backup@offsite.service")
    finally:
        host.check_output("nft delete table inet away")
    host.check_output("systemctl start nas-backup@offsite.service")


def test_the_key_is_not_lost(playbook: Run, wish: dict[str, Any], nas_name: str) -> None:
    kept = LAB / f"credentials/backup.{nas_name}"
    key = kept.read_text()
    kept.unlink()
    worked(playbook("backup", **wish))
    assert kept.read_text() == key
    message = said(playbook("backup", backup_password="another" * 6, **wish))
    assert "Put the right one back" in message
    assert "another" * 6 not in message


def test_a_letter_comes_back(playbook: Run, wish: dict[str, Any], host: Host) -> None:
    host.check_output("echo two > /srv/documents/letters/first")
    what = {"copy": "usb", "sources": ["tank/documents"], "path": "letters/first"}
    text = worked(playbook("restore", **wish, backup_restore=what))
    assert "tank/documents: 1 files; what they replaced is in" in text
    assert host.check_output("cat /srv/documents/letters/first") == "one"
    assert host.check_output("cat /srv/documents/.before-*/letters/first") == "two"
    wrong = {**what, "path": "letters/second"}
    assert "has no 'letters/second'" in said(playbook("restore", **wish, backup_restore=wrong))
    odd = {"copy": "tape"}
    assert "there are: offsite, usb" in said(playbook("restore", **wish, backup_restore=odd))


def test_a_volume_comes_back(playbook: Run, wish: dict[str, Any], host: Host) -> None:
    host.check_output("rm -r /srv/documents/letters; echo x > /srv/documents/photo")
    what = {"copy": "offsite", "sources": ["tank/documents"]}
    text = worked(playbook("restore", **wish, backup_restore=what))
    assert "tank/documents: as a whole; what was there before is the snapshot documents." in text
    assert host.check_output("cat /srv/documents/letters/first") == "one"
    assert host.check_output("stat -c %s /srv/documents/photo") == "3000000"


def test_a_folder_in_a_volume_comes_back_after_it(
    playbook: Run, wish: dict[str, Any], host: Host
) -> None:
    letters = "/srv/documents/letters"
    sources = [{"volume": "tank/documents", "exclude": ["letters"]}, {"folder": letters}]
    inside = {**wish, "backup_sources": sources}
    worked(playbook("backup", **inside, backup_run=["usb"]))
    host.check_output(f"echo two > {letters}/first; echo x > /srv/documents/photo")
    text = worked(playbook("restore", **inside, backup_restore={"copy": "usb"}))
    assert "tank/documents: as a whole" in text
    assert f"{letters}: 1 files; what they replaced is in" in text
    assert host.check_output(f"cat {letters}/first") == "one"
    assert host.check_output("stat -c %s /srv/documents/photo") == "3000000"
    worked(playbook("backup", **wish))


def test_old_points_are_pruned_from_the_controller(
    playbook: Run, wish: dict[str, Any], nas_name: str, server: dict[str, Any], store: Path
) -> None:
    needed = [program for program in ("restic", "sudo") if not shutil.which(program)]
    if needed:
        apt.install(needed, why="the controller prunes, as the user whose folder it is")
    key = LAB / f"credentials/backup.{nas_name}"
    assert "changed=0" in worked(playbook("prune", **wish))
    kept = points(server["data"], key)
    assert kept
    for month in ("01", "03", "05", "07", "09", "11"):
        date = f"2020-{month}-01 00:00:00"
        copy = ["--host", nas_name, "--tag", "nas.assistant", "--time", date]
        restic(server["data"], key, "backup", "--quiet", *copy, str(ROOT / "galaxy.yml"))
    shutil.copytree(server["data"], store / "us")
    subprocess.run(["chown", "-R", "nobody", str(store / "us")], check=True)
    # A user of the same server, which is in the inventory and is no NAS.
    (store / "hosts.yml").write_text(
        "all: {hosts: {store: {ansible_connection: local, "
        "ansible_python_interpreter: /usr/bin/python3}}}"
    )
    there = {"on": "store", "user": "nobody", "repository": str(store / "us")}
    offsite, usb = wish["backup_copies"]
    elsewhere = {**wish, "backup_copies": [{**offsite, "prune": there}, usb]}
    inventory = ("--inventory", str(store / "hosts.yml"))
    rootly = {**elsewhere, "backup_copies": [{**offsite, "prune": {**there, "user": ""}}, usb]}
    assert "Give prune.user=nobody" in said(playbook("prune", *inventory, **rootly))
    assert "changed=1" in worked(playbook("prune", *inventory, **elsewhere))
    owners = {path.owner() for path in (store / "us").rglob("*")}
    assert owners == {"nobody"}
    # As if the NAS had been off since: each time without a point counts for a quarter of a month.
    left = points(store / "us", key)
    assert len(left) == len(kept) + 3
    assert {*kept} <= {*left}
    assert "changed=1" in worked(playbook("prune", "--check", **wish))
    assert len(points(server["data"], key)) == len(kept) + 6
    assert "changed=1" in worked(playbook("prune", **wish))
    assert points(server["data"], key) == left
    assert "changed=0" in worked(playbook("prune", **wish))
    # Another key would open nothing, and look like the right one.
    away = key.rename(key.with_suffix(".away"))
    assert "Nothing was pruned" in said(playbook("prune", **wish))
    assert not key.exists()
    away.rename(key)


@LONG
@pytest.mark.parametrize(("copy", "other"), [("offsite", "usb"), ("usb", "offsite")])
def test_all_of_a_lost_nas_comes_back_on_a_blank_one(
    copy: str,
    other: str,
    playbook: Run,
    wish: dict[str, Any],
    host: Host,
    nas_name: str,
    lab_container: str,
    log_in: Callable[[], Host],
    server: dict[str, Any],
    certificate: Path,
    connect: Callable[[], httpx.Client],
    wait_ready: Callable[[], float],
) -> None:
    # A key that only this NAS knows, and what it has used.
    name = f"lodger-{copy}"
    lodger = host.check_output(f"docker exec nas-assistant /app/start.sh keys create {name}")
    own = {"Authorization": f"Bearer {lodger}"}
    deadline = time.monotonic() + 120
    with connect() as client:
        # The service looks now and then whether there are other keys.
        while client.post(CHAT, json=QUESTION, headers=own).status_code == 401:
            assert time.monotonic() < deadline, "the key is not taken"
            time.sleep(1)
    while not (used := used_today(host)[name])["completion_tokens"]:
        assert time.monotonic() < deadline, "it is not written"
        time.sleep(2)
    # A model that no inventory knows: what the inventory knows, the controller puts there anyway.
    own_model = f"{MODELS}/own-{copy}.gguf"
    host.check_output(f"(printf GGUF; head -c 3000000 /dev/urandom) > {own_model}")
    checksum = host.check_output(f"sha256sum {own_model}")
    worked(playbook("backup", **wish, backup_run=["offsite", "usb"]))
    before = host.check_output(LISTING)
    assert checksum.split()[0] in before
    trusted = certificate.read_text()
    # The controller burns down with it, but for the inventory and the key of the copies.
    credentials = certificate.parent
    safe = credentials.rename(credentials.with_suffix(".safe"))
    credentials.mkdir(mode=0o700)
    shutil.copy2(safe / f"backup.{nas_name}", credentials)
    # The house burns down: system, Docker's data and both disks of the pool.
    subprocess.run(["docker", "rm", "-f", "-v", lab_container], check=True, capture_output=True)
    for number in (1, 2):
        file = LAB / f"disks/{nas_name}-disk{number}.img"
        disks.detach(disks.below(file, disks.attached()))
        file.unlink()
    debian = os.environ.get("DEBIAN", "12")
    began = time.monotonic()
    others = json.loads((LAB / "lab.json").read_text())["hosts"]
    command = [sys.executable, "-m", "lab", "up", "--name", "molecule", "--nas", str(len(others))]
    command += ["--disks", "3", "--debian", debian, "--inventory", str(INVENTORY / "lab.yml")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    new = wanted(server, nas_name)
    # This one has Docker on the pool from its first start.
    new["docker_daemon"] = {"data-root": "/srv/docker"}
    new["storage_pools"][0]["volumes"].append({"name": "docker", "path": "/srv/docker"})
    blank = time.monotonic()
    worked(playbook("site", **new))
    built = time.monotonic()
    # It makes no copy, which would be the newest.
    message = said(playbook("backup", **new, backup_run=[copy]))
    assert f"foreign: {copy} has " in message
    assert "nas.assistant.restore" in message
    host = log_in()
    engine = host.check_output("docker info --format '{{.Driver}} {{.DockerRootDir}}'")
    assert engine == "overlay2 /srv/docker"
    assert host.check_output("stat -f -c %T /srv/docker") == "btrfs"
    assert not host.file(own_model).exists
    assert name not in used_today(host)
    restoring = time.monotonic()
    text = worked(playbook("restore", **new, backup_restore={"copy": copy}))
    restored = time.monotonic()
    assert "tank/models: as a whole" in text
    assert host.check_output(f"sha256sum {own_model}") == checksum
    assert host.check_output(LISTING) == before
    assert used_today(host)[name] == used
    # What the owner kept in a safe fits again: clients of the old one trust the new one, and all
    # keys work.
    shutil.rmtree(credentials)
    safe.rename(credentials)
    assert certificate.read_text() == trusted
    wait_ready()
    with connect() as client:
        for headers in ({}, own):
            assert client.post(CHAT, json=QUESTION, headers=headers).status_code == 200
    # From now on, copies go on; the other one wants to be asked.
    worked(playbook("backup", **new, backup_run=[copy]))
    assert f"foreign: {other}" in said(playbook("backup", **new, backup_run=[other]))
    worked(playbook("backup", **new, backup_accept=[other], backup_run=[other]))
    size = host.check_output(f"du -sb /srv/documents {MODELS} | cut -f1 | paste -sd+")
    figures = {
        "bytes": sum(map(int, size.split("+"))),
        "blank_nas_seconds": round(blank - began, 1),
        "site_seconds": round(built - blank, 1),
        "restore_seconds": round(restored - restoring, 1),
    }
    record = ROOT / ".lab/recovery.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    record.write_text(f"{json.dumps({**known, copy: figures})}\n")
    print(figures)


def test_copies_end_and_stay(
    playbook: Run, wish: dict[str, Any], host: Host, server: dict[str, Any]
) -> None:
    worked(playbook("backup", **wish, backup_state="absent"))
    assert host.check_output("systemctl list-timers --all --no-legend 'nas-backup*'") == ""
    assert not host.file("/usr/local/sbin/nas-backup").exists
    assert host.run(f"ls {METRICS}/nas_backup_*.prom").rc != 0
    assert host.file("/etc/nas-assistant/backup/key").exists
    assert (server["data"] / "config").exists()
    assert "changed=0" in worked(playbook("backup", **wish, backup_state="absent"))
