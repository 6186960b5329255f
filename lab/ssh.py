# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The lab's SSH side: its key, the host keys it trusts, and a first connection."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab import apt
from lab.errors import LabError
from lab.run import run

KEY = "id_ed25519"
KNOWN_HOSTS = "known_hosts"


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
    """Whether root can log in on port 22 with the lab's key."""
    return login(folder, address, "true").returncode == 0


def login(folder: Path, address: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root over port 22 with the lab's key; its exit code says how it went."""
    argv = ["ssh", "-F", os.devnull, *options(folder), "-o", "BatchMode=yes"]
    argv += ["-o", "ConnectTimeout=3", "-i", str(folder / KEY), f"root@{address}", command]
    return run(argv, check=False, timeout=30)


def _address(line: str) -> str:
    return line.split(",", 1)[0].split(" ", 1)[0]


def _quoted(path: Path) -> str:
    # ssh splits the value at blanks unless it is quoted.
    return f'"{path}"' if " " in str(path) else str(path)
