# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""`lab down`: remove what the lab made, found by labels and the kernel, not only by state files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab import disks, engine, label, paths, report, vm
from lab.docker import docker, lines
from lab.lock import held
from lab.progress import say, step, warn
from lab.run import run

# Kept by `down`: what takes long to get and is not part of a lab.
# What was downloaded or measured outlives the labs.
KEPT = ("bench", "cache", "locks", "models")


def down(name: str) -> None:
    """Remove one lab."""
    label.checked(name)
    with held(f"lab-{name}"):
        vm.stop_below(paths.lab(name))
        if engine.answers():
            _remove_labelled(label.filters(name), f"lab {name}")
        disks.detach(disks.below(paths.lab(name), disks.attached()))
        shutil.rmtree(paths.lab(name), ignore_errors=True)
        if name == report.NAME:
            # It names hosts that are gone, and a key.
            (paths.home() / "demo.json").unlink(missing_ok=True)
    say(f"lab {name} is gone")


def down_all() -> None:
    """Remove every lab of this checkout and of deleted ones, the images, an engine of its own."""
    home = paths.home()
    vm.stop_below(home)
    if engine.answers():
        _remove_labelled(["--filter", f"label={label.HOME}={home}"], "all labs")
        for gone in _orphans():
            vm.stop_below(Path(gone))
            _remove_labelled(
                ["--filter", f"label={label.HOME}={gone}"], f"labs of {gone}, which is gone"
            )
            disks.detach(disks.below(Path(gone), disks.attached()))
        _remove_images()
    elif home.exists():
        say("no Docker engine answers, so only files and loop devices are removed")
    disks.detach(disks.below(home, disks.attached()))
    engine.stop_own()
    for entry in sorted(home.iterdir()) if home.is_dir() else []:
        if entry.name not in KEPT:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    say("all labs are gone")


def _remove_labelled(filters: list[str], what: str) -> None:
    containers = lines("ps", "--all", "--quiet", *filters)
    volumes = lines("volume", "ls", "--quiet", *filters)
    networks = lines("network", "ls", "--quiet", *filters)
    if not containers and not volumes and not networks:
        return
    with step(
        f"remove {what}: {len(containers)} containers, {len(volumes)} volumes, {len(networks)} "
        f"networks"
    ):
        inside = _loops_inside(containers)
        if containers:
            # Killed first: SSH connections that Ansible keeps open then end, instead of hanging
            # on a lost address.
            docker("kill", *containers, check=False)
            docker("rm", "--force", "--volumes", *containers)
        if volumes:
            docker("volume", "rm", "--force", *volumes)
        if networks:
            docker(
                *["network", "rm", *networks],
                remedy="Another container may use it: disconnect that, then run it again.",
            )
        disks.detach([loop for loop in disks.attached() if loop in inside])


def _loops_inside(containers: list[str]) -> list[disks.Loop]:
    """Loop devices that a NAS attached itself to files in its own file systems.

    They outlive its container.
    """
    systems = set()
    for container in containers:
        done = docker("exec", container, "stat", "--format=%d", "/", "/run", check=False)
        numbers = [int(word) for word in done.stdout.split() if word.isdigit()]
        # Major 0: file systems of this container alone. A shared one says nothing about whose
        # file it is.
        systems |= {f"{os.major(n)}:{os.minor(n)}" for n in numbers if os.major(n) == 0}
    if not systems:
        return []
    listed = run(
        ["losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-MAJ:MIN"], check=False
    )
    devices = {
        words[0] for words in map(str.split, listed.stdout.splitlines()) if words[-1] in systems
    }
    return [loop for loop in disks.attached() if loop.device in devices]


def _orphans() -> set[str]:
    """The .lab folders that containers and volumes name and that no longer exist."""
    template = f'{{{{.Label "{label.HOME}"}}}}'
    homes = {
        home
        for kind in (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
        for home in lines(*kind, "--filter", f"label={label.HOME}", "--format", template)
    }
    return {home for home in homes if not Path(home).parent.exists()}


def _remove_images() -> None:
    template = "{{.Repository}}:{{.Tag}} {{.ID}}"
    listed = lines("images", "--filter", f"label={label.LAB}={label.IMAGE}", "--format", template)
    images = [
        words[0] if "<none>" not in words[0] else words[1] for words in map(str.split, listed)
    ]
    if not images:
        return
    with step(f"remove images: {' '.join(images)}"):
        # One that was built on another goes first; a second round takes what the first could not.
        for _ in range(2):
            images = [name for name in images if docker("rmi", name, check=False).returncode != 0]
    for name in images:
        done = docker("rmi", name, check=False)
        if done.returncode != 0:
            warn(f"image {name} stays: {done.stderr.strip().splitlines()[-1]}")
