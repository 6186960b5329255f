# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""`lab up`: make a lab run, from nothing or from whatever is left of it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import boot, disks, engine, image, inventory, label, nas as one, network, paths, ssh
from lab.docker import inspect, lines
from lab.errors import LabError
from lab.lock import held
from lab.nas import Nas
from lab.progress import say, step


@dataclass(frozen=True)
class Wish:
    """What a lab should be."""

    name: str
    nas: int
    debian: str
    disks: int
    disk_size: str
    inventory: Path | None


def up(wish: Wish) -> None:
    """Make the lab run as wished, and write lab.json and the inventory."""
    label.checked(wish.name)
    if not 1 <= wish.nas <= network.MOST:
        raise LabError(f"{wish.nas} NAS asked for: use 1 to {network.MOST}, for example NAS=3.")
    if wish.disks < 1:
        raise LabError(
            f"{wish.disks} disks asked for: a NAS needs at least one, and two for a mirror."
        )
    size = disks.parse_size(wish.disk_size)
    if os.geteuid() != 0:
        raise LabError(
            "you are not root, and the disks of a NAS are loop devices: run it with sudo."
        )
    engine.ensure()
    with held(f"lab-{wish.name}"):
        _up(wish, size)


def _up(wish: Wish, size: int) -> None:
    there = _containers(wish)
    before = {host.name: host for host in inventory.read(wish.name)}
    numbers = sorted({*range(1, wish.nas + 1), *there})
    picture = image.nas_name(wish.debian) if len(there) == len(numbers) else ""
    # Images are not needed to look after what is there, and take a moment to check.
    picture = picture or image.ensure_nas(wish.debian)
    folder = paths.lab(wish.name)
    folder.mkdir(parents=True, exist_ok=True)
    public_key = ssh.ensure_key(folder, wish.name)
    subnet = network.ensure(wish.name)
    wanted = [
        Nas(wish.name, n, network.address(subnet, n), wish.debian, wish.disks, size)
        for n in numbers
    ]

    def settle(nas: Nas) -> inventory.Host:
        container = one.ensure(nas, picture, public_key, there.get(nas.number))
        known = before.get(nas.name)
        boot.wait(nas)
        # Later the playbooks may have moved the port and closed root, and only they know where to.
        if known is None or known.id != container:
            with held(f"known-hosts-{wish.name}", quiet=True):
                _trust(folder, nas)
            boot.wait_for_login(nas)
        devices = one.loops(inspect("container", [container])[0])
        key = str(folder / ssh.KEY)
        return inventory.Host(
            nas.name, nas.container, container, nas.address, 22, "root", key, devices
        )

    # Threads, because the time goes by in waiting for the engine and for boots.
    what = f"lab {wish.name}: {len(wanted)} NAS, Debian {wish.debian}"
    with step(what), ThreadPoolExecutor(max_workers=8) as pool:
        hosts = list(pool.map(settle, wanted))
    inventory.write(wish.name, wish.debian, hosts)
    if wish.inventory:
        inventory.write_ansible(wish.inventory.resolve(), wish.name, wish.debian, hosts)
    for host in hosts:
        devices = " ".join(host.disks)
        say(f"{host.name}: root@{host.ssh_host}, container {host.container}, disks {devices}")


def _containers(wish: Wish) -> dict[int, dict[str, Any]]:
    """The lab's NAS by number. Tests may have other containers in its network."""
    ours = ("--filter", f"label={one.DEBIAN}")
    names = lines("ps", "--all", "--quiet", "--no-trunc", *label.filters(wish.name), *ours)
    there = {}
    for found in inspect("container", names):
        has = found["Config"]["Labels"][one.DEBIAN]
        if has != wish.debian:
            raise LabError(
                f"lab {wish.name} runs Debian {has}, and Debian {wish.debian} was asked for. "
                f"`python3 -m lab down --name {wish.name}` removes it, or choose another name."
            )
        there[int(found["Name"].rsplit("-nas", 1)[1])] = found
    return there


def _trust(folder: Path, nas: Nas) -> None:
    target = folder / ssh.KNOWN_HOSTS
    old = target.read_text(encoding="utf-8") if target.is_file() else ""
    inventory.replace(target, ssh.known_hosts(old, {nas.address: boot.host_keys(nas)}))
