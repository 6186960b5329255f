# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One NAS: a container that boots systemd, with disks of its own, reached over SSH."""

from __future__ import annotations

import io
import tarfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import disks, label, paths
from lab.docker import docker
from lab.progress import say

DEBIAN = "nas-lab.debian"
KEY = "nas-lab.key"  # the public key that the NAS was given

# What systemd, Docker, nftables and Btrfs need inside. --privileged asks for more than some
# machines have. SYS_TIME and SYS_MODULE are left out: clock and modules are the whole machine's.
_CAPABILITIES = (
    "AUDIT_WRITE",
    "DAC_READ_SEARCH",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_ADMIN",
    "NET_RAW",
    "SYS_ADMIN",
    "SYS_NICE",
    "SYS_PTRACE",
)
_DEVICE_RULES = (
    "b 7:* rwm",
    "c 10:237 rwm",
    "c 10:234 rwm",
)  # loop devices, loop-control, btrfs-control
_CONTROLS = ("/dev/loop-control", "/dev/btrfs-control")


@dataclass(frozen=True)
class Nas:
    """Which NAS: its lab, its number, its place on the lab's network."""

    lab: str
    number: int
    address: str
    debian: str
    disks: int
    disk_size: int

    @property
    def name(self) -> str:
        """Its host name and its name in the inventory."""
        return f"nas{self.number}"

    @property
    def container(self) -> str:
        """Its container's name."""
        return f"{label.prefix(self.lab)}-{self.name}"

    @property
    def volume(self) -> str:
        """The volume of its /var/lib/docker.

        Docker's overlay file system does not work on another overlay.
        """
        return f"{self.container}-docker"

    def disk_files(self, count: int) -> list[Path]:
        """The files behind its first disks."""
        folder = paths.lab(self.lab) / "disks"
        return [folder / f"{self.name}-disk{number}.img" for number in range(1, count + 1)]


def ensure(nas: Nas, image: str, public_key: str, found: dict[str, Any] | None) -> str:
    """Make the NAS run: leave it, revive it or make it anew. Return the id of its container.

    :param found: what the engine knows of its container, if there is one.
    """
    if found is not None:
        reason = _revive(nas, public_key, found)
        if not reason:
            return str(found["Id"])
        say(f"{nas.name}: {reason}; making it anew (a blank system, its disks keep their content)")
        docker("rm", "--force", "--volumes", nas.container)
    return _create(nas, image, public_key)


def loops(found: dict[str, Any]) -> list[str]:
    """The loop devices of a container, in the order of its disks."""
    devices = found["HostConfig"].get("Devices") or []
    return [device["PathOnHost"] for device in devices if device["PathOnHost"] not in _CONTROLS]


def _revive(nas: Nas, public_key: str, found: dict[str, Any]) -> str:
    """Bring a container back as it was; return why that is impossible, or nothing when it runs."""
    state = found["State"]["Status"]
    if found["State"]["StartedAt"].startswith("0001-"):
        return "a run was interrupted before it first started"
    if found["State"].get("Dead") or state in ("dead", "removing"):
        return f"its container is {state}"
    if found["Config"]["Labels"].get(KEY, public_key.strip()) != public_key.strip():
        return "its owner's key is lost"
    devices = loops(found)
    for file, device in zip(nas.disk_files(len(devices)), devices, strict=True):
        if not disks.reattach(file, device):
            return f"{device} no longer belongs to its disk {file.name}"
    if state == "paused":
        docker("unpause", nas.container)
    elif state != "running":
        say(f"{nas.name} is {state}: starting it")
        started = docker("start", nas.container, check=False)
        if started.returncode != 0:
            return f"its container does not start ({started.stderr.strip().splitlines()[-1]})"
    return ""


def _create(nas: Nas, image: str, public_key: str) -> str:
    files = nas.disk_files(nas.disks)
    for file in files:
        # Left by a container of before whose files were removed by hand.
        disks.detach([loop for loop in disks.below(file, disks.attached()) if loop.deleted])
    devices = disks.ensure(files, nas.disk_size)
    docker("volume", "rm", "--force", nas.volume)
    docker("volume", "create", *label.arguments(nas.lab), nas.volume)
    options = [
        *("--name", nas.container, "--hostname", nas.name, *label.arguments(nas.lab)),
        *("--label", f"{DEBIAN}={nas.debian}", "--label", f"{KEY}={public_key.strip()}"),
        *("--network", label.prefix(nas.lab), "--ip", nas.address, "--network-alias", nas.name),
        # systemd wants to see its own place in the tree of cgroups, and to write there.
        *("--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
        *("--tmpfs", "/run:exec", "--tmpfs", "/tmp:exec"),  # noqa: S108  # the NAS's own
        *("--volume", f"{nas.volume}:/var/lib/docker"),
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
        *(f"--cap-add={capability}" for capability in _CAPABILITIES),
        *(f"--device-cgroup-rule={rule}" for rule in _DEVICE_RULES),
        *(f"--device={device}" for device in devices),
        *(f"--device={control}" for control in _CONTROLS if Path(control).exists()),
    ]
    container = docker("create", *options, image).stdout.strip()
    docker("cp", "-", f"{nas.container}:/", stdin=_seed(public_key))
    docker("start", nas.container)
    return container


def _seed(public_key: str) -> bytes:
    """What tells one NAS from another before it first boots, as a tar archive.

    Its owner's key, its identity.
    """
    # An empty machine-id would make systemd treat the boot as a first one and switch every unit
    # to its preset.
    files = {
        "root/.ssh/authorized_keys": (public_key, 0o600),
        "etc/machine-id": (f"{uuid.uuid4().hex}\n", 0o444),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("root/.ssh")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(folder)
        for name, (text, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(text), mode, int(time.time())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()
