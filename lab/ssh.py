# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The lab's SSH side: its key, the host keys it trusts, and a first connection."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab import apt
from lab.errors import LabError
from lab.run import run

KEY = "id_ed25519"
KNOWN_HOSTS = "known_hosts"
_GREETING = 10  # seconds; a virtual machine that is emulated and busy takes a few


@dataclass(frozen=True)
class Door:
    """Where a NAS lets its owner in."""

    port: int
    user: str


# As the playbooks leave a NAS (the defaults of the role hardening), and as it is when blank.
DOORS = (Door(2222, "nasadmin"), Door(22, "root"))


def ensure_key(folder: Path, name: str) -> str:
    """Make the lab's key pair if it is missing, and return the public key."""
    key = folder / KEY
    public = folder / f"{KEY}.pub"
    if not key.exists() or not public.exists():
        key.unlink(missing_ok=True)
        public.unlink(missing_ok=True)
        try:
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"nas-lab {name}", "-f", key])
        except LabError:
            apt.install(["openssh-client"], why="Ansible reaches a NAS with ssh")
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"nas-lab {name}", "-f", key])
    key.chmod(0o600)
    return public.read_text(encoding="utf-8")


def known_hosts(old: str, keys: dict[str, str]) -> str:
    """The known_hosts text with these addresses' keys in place of any older ones.

    :param keys: address to the lines of /etc/ssh/ssh_host_*_key.pub.
    """
    # A hardened NAS answers on another port, which ssh looks up as [address]:port; * would match
    # any host.
    kept = [line for line in old.splitlines() if line and _address(line) not in keys]
    for address, public in keys.items():
        for line in public.splitlines():
            kind, key = line.split()[:2]
            kept.append(f"{address},[{address}]:* {kind} {key}")
    return "".join(f"{line}\n" for line in kept)


def options(folder: Path) -> list[str]:
    """The ssh options that trust the lab's host keys and no others."""
    return [
        "-o",
        f"UserKnownHostsFile={_quoted(folder / KNOWN_HOSTS)}",
        "-o",
        "GlobalKnownHostsFile=/dev/null",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "IdentitiesOnly=yes",
    ]


def answers(folder: Path, address: str) -> bool:
    """Whether somebody who may become root can log in with the lab's key."""
    return door(folder, address) is not None


def door(folder: Path, address: str) -> Door | None:
    """How a NAS lets its owner in now; None when it does not."""
    for known in DOORS:
        if _greets(address, known.port) and login(folder, address, known, "true").returncode == 0:
            return known
    return None


def as_root(
    folder: Path, address: str, command: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a shell command as root, by whichever door is open; its exit code says how it went.

    :param timeout: seconds after which it is given up.
    """
    found = door(folder, address)
    if found is None:
        return subprocess.CompletedProcess([], 255, "", f"{address} lets nobody in")
    become = "" if found.user == "root" else "sudo -n "
    return login(folder, address, found, f"{become}sh -c {shlex.quote(command)}", timeout)


def login(
    folder: Path, address: str, door: Door, command: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command by one door; its exit code says how it went."""
    argv = ["ssh", "-F", os.devnull, *options(folder), "-o", "BatchMode=yes"]
    argv += ["-o", f"ConnectTimeout={_GREETING}", "-o", "LogLevel=ERROR", "-p", str(door.port)]
    argv += ["-i", str(folder / KEY), f"{door.user}@{address}", command]
    return run(argv, check=False, timeout=timeout)


def _greets(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=_GREETING) as stream:
            return stream.recv(4) == b"SSH-"
    except OSError:
        return False


def _address(line: str) -> str:
    return line.split(",", 1)[0].split(" ", 1)[0]


def _quoted(path: Path) -> str:
    # ssh splits the value at blanks unless it is quoted.
    return f'"{path}"' if " " in str(path) else str(path)
