# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""An assistant in use gets pools: one of before, one on a partition, and Docker's root on a mirror.

On a machine of its own, since a container has neither partitions nor a Docker root to move.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from site_lab import (
    Lab,
    blank,
    check_answer,
    reboot,
    said,
    wait_for,
    worked,
)

NAME = f"pools{os.getpid()}"
OLD, FIRST, SECOND = "/dev/vdb", "/dev/vdc", "/dev/vdd"
ROOT, MODELS = "/var/lib/docker", "/var/lib/nas-assistant/models"
STATE = "/var/lib/nas-assistant/state"
PATIENCE = 900  # seconds; an emulated CPU, perhaps beside other work
SEED = "head -c 8M /dev/urandom"
# A stopped container with what only Docker's own storage has: a file deleted in a layer, another
# one made, and a volume.
KEEPER = f"""
set -e
docker run --name keeper --volume keepsakes:/kept --user 0 --entrypoint rm \\
  $(docker inspect -f '{{{{.Image}}}}' nas-assistant) /etc/os-release
{SEED} > /root/mine && docker cp /root/mine keeper:/root-of-mine
{SEED} > /var/lib/docker/volumes/keepsakes/_data/letter
"""
# Ids, what each differs in from its image, and bytes.
LISTING = """
docker ps --all --no-trunc --format '{{.ID}} {{.Names}}' | sort
docker diff keeper | sort
docker images --no-trunc --quiet | sort
docker cp keeper:/root-of-mine - | tar -xO | sha256sum
sha256sum /var/lib/docker/volumes/keepsakes/_data/letter
"""
# What the assistant knows of its keys, and their use of all days, once it is written: today alone
# would be nothing after midnight. From a copy, since root should not open the service's database.
KEYS = """
set -e
sleep 15
docker exec nas-assistant /app/start.sh keys list | sed 's/, today .*//'
copy=$(mktemp --directory)
cp /var/lib/nas-assistant/state/assistant.db* $copy
python3 -c "
import sqlite3
print(*sqlite3.connect('$copy/assistant.db').execute('SELECT * FROM usage ORDER BY 1, 2'))"
rm -r $copy
"""

Playbook = Callable[..., subprocess.CompletedProcess[str]]
Pool = dict[str, Any]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with blank(NAME, "--disks", "3", "--disk-size", "4G", kind="vm") as lab:
        lab.site()
        yield lab


@pytest.fixture(scope="module")
def pools() -> list[Pool]:
    """What the inventory says, as tests go on extending it."""
    return []


def test_a_pool_of_before_and_a_partition(
    playbook: Playbook, pools: list[Pool], on: Callable[[str], str]
) -> None:
    apt = "apt-get -qq -o DPkg::Lock::Timeout=300"
    on(f"{apt} update && {apt} install --no-install-recommends btrfs-progs fdisk > /dev/null")
    table = f"printf 'size=1G\\n size=1G\\n' | sfdisk --quiet --label gpt {OLD}"
    on(f"{table} && udevadm settle")
    on(f"mkfs.btrfs -q -L before {OLD}1")
    uuid = on(f"blkid -o value -s UUID {OLD}1")
    # Without its UUID it is no pool of ours, and to be formatted it is in the way.
    whole: Pool = {"name": "parts", "devices": [OLD], "format": True}
    first: Pool = {**whole, "devices": [f"{OLD}1"]}
    assert f"{OLD} holds PMBR, gpt" in said(playbook("storage", storage_pools=[whole]))
    assert f"{OLD}1 holds the Btrfs" in said(playbook("storage", storage_pools=[first]))

    on(f"mkdir /srv/own && echo 'UUID={uuid} /srv/own btrfs noatime 0 0' >> /etc/fstab")
    on("mount /srv/own && btrfs -q subvolume create /srv/own/photos")
    on(f"{SEED} > /srv/own/photos/cat; {SEED} > /srv/own/loose; sync")
    sums = on("cd /srv/own && sha256sum photos/cat loose")

    for pool, reason in ((whole, f"{OLD} is in use"), (first, f"{OLD}1 holds the Btrfs")):
        assert reason in said(playbook("storage", storage_pools=[pool]))
    assert on("cd /srv/own && sha256sum photos/cat loose") == sums

    photos = {
        "name": "photos",
        "path": "/srv/photos",
        "snapshots": {"every": "0", "keep": {"last": 2}},
    }
    own = {"name": "own", "uuid": uuid, "mount": "/srv/pool", "volumes": [photos, {"name": "new"}]}
    parts = {
        "name": "parts",
        "devices": [f"{OLD}2"],
        "format": True,
        "volumes": [{"name": "papers", "path": "/srv/papers"}],
    }
    worked(playbook("storage", storage_pools=[own, parts]))
    assert "changed=0" in worked(playbook("storage", storage_pools=[own, parts]))
    # As its owner had it, beside where the role has it.
    for place in ("/srv/own", "/srv/pool"):
        assert on(f"cd {place} && sha256sum photos/cat loose") == sums
    assert on("cat /srv/photos/cat | sha256sum").split()[0] == sums.split()[0]
    assert on("findmnt -no SOURCE /srv/papers") == f"{OLD}2[/papers]"
    assert on(f"blkid -o value -s LABEL {OLD}1") == "before"
    pools += [own, parts]


def test_dockers_root_moves_with_what_runs(
    lab: Lab, playbook: Playbook, pools: list[Pool], on: Callable[[str], str]
) -> None:
    on(KEEPER)
    on("docker exec nas-assistant /app/start.sh keys create lodger > /dev/null")
    answers(lab)
    before, keys, driver = on(LISTING), on(KEYS), on("docker info -f '{{.Driver}}'")
    assert "lodger" in keys
    # While it runs, it has mounts in Docker's root: of its layers, of its memory, of its models.
    assert on(f"findmnt --list --noheadings --output TARGET | grep ^{ROOT}/")
    docker: dict[str, Any] = {"name": "docker", "path": ROOT}
    state = {"name": "state", "path": STATE, "migrate": True}
    tank = {"name": "tank", "devices": [FIRST, SECOND], "format": True, "volumes": [docker, state]}
    refused = said(playbook("storage", storage_pools=[*pools, tank]))
    assert f"{ROOT} holds" in refused
    assert on("ls /srv") == "own\npapers\nparts\nphotos\npool"

    docker["migrate"] = True
    worked(playbook("storage", storage_pools=[*pools, tank]))
    for place in (ROOT, STATE):
        assert on(f"findmnt -no FSTYPE {place}") == "btrfs"
    ready(lab)
    assert on(LISTING) == before
    assert on(KEYS) == keys
    assert on("docker info -f '{{.Driver}}'") == driver
    answers(lab)
    assert "changed=0" in worked(playbook("storage", storage_pools=[*pools, tank]))
    pools.append(tank)


def test_volumes_go_back_with_those_who_need_them(
    lab: Lab, playbook: Playbook, pools: list[Pool], on: Callable[[str], str]
) -> None:
    keep = {"every": "0", "keep": {"last": 3}}
    pools[-1]["volumes"] += [
        {"name": "models", "path": MODELS, "migrate": True, "snapshots": keep},
        {"name": "books", "path": "/srv/books", "needed_by": "cron.service", "snapshots": keep},
    ]
    worked(playbook("storage", storage_pools=pools))
    # At the next quarter of an hour it would make the state that is to go the newest snapshot.
    on("systemctl stop nas-snapshots.timer")
    on("echo one > /srv/books/page; systemctl start nas-snapshots.service")
    on(f"echo two > /srv/books/page; touch {MODELS}/stray.gguf")
    pid = "systemctl show cron --value --property MainPID"
    cron, container = on(pid), on("docker inspect -f '{{.State.StartedAt}}' nas-assistant")

    worked(playbook("rollback", storage_pools=pools, storage_rollback={"volume": "tank/books"}))
    assert on("cat /srv/books/page") == "one"
    assert on("systemctl is-active cron.service") == "active"
    assert on(pid) != cron
    assert on("docker inspect -f '{{.State.StartedAt}}' nas-assistant") == container

    worked(playbook("rollback", storage_pools=pools, storage_rollback={"volume": "tank/models"}))
    assert on(f"ls {MODELS} | grep -c stray || true") == "0"
    answers(lab)

    # What does not go on with the state of before is named, and so is the way back.
    drop = "/run/systemd/system/cron.service.d"
    broken = f"mkdir -p {drop} && printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n"
    on(f"{broken}Restart=no\\n' > {drop}/broken.conf && systemctl daemon-reload")
    refused = said(
        playbook("rollback", storage_pools=pools, storage_rollback={"volume": "tank/books"})
    )
    on(f"rm -r {drop} && systemctl daemon-reload && systemctl start cron.service")
    assert "cron.service ran before and ended again" in refused
    assert "What was there before is in books." in refused


def test_all_of_it_is_there_after_a_reboot(
    lab: Lab, playbook: Playbook, pools: list[Pool], on: Callable[[str], str]
) -> None:
    before, keys = on(LISTING), on(KEYS)
    reboot(lab, PATIENCE)
    ready(lab)
    assert on(LISTING) == before
    assert on(KEYS) == keys
    answers(lab)
    mounts = "/srv/own /srv/pool /srv/photos /srv/papers /srv/books"
    for place in [*mounts.split(), ROOT, MODELS, STATE]:
        assert on(f"findmnt -no FSTYPE {place}") == "btrfs"
    assert "changed=0" in worked(playbook("storage", storage_pools=pools))


def ready(lab: Lab) -> None:
    """Wait until the assistant is ready."""
    with lab.client(lab.hosts[0], PATIENCE) as client:
        wait_for(client, "/readyz", 200, PATIENCE)


def answers(lab: Lab) -> None:
    """Wait until the assistant is ready, and ask it."""
    ready(lab)
    with lab.client(lab.hosts[0], PATIENCE) as client:
        check_answer(client)
