# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Waits for a NAS: systemd has booted, and root can log in over SSH."""

from __future__ import annotations

import time

from lab import paths, ssh
from lab.docker import docker, execute
from lab.errors import LabError
from lab.nas import Nas
from lab.progress import warn

_PATIENCE = 120  # seconds; a boot takes 2 s on an idle machine
_BOOTED = ("running", "degraded")
_RESTART = 2  # seconds that a container which is restarted may be down


def wait(nas: Nas) -> None:
    """Wait until systemd has booted; warn when a unit failed."""
    deadline = time.monotonic() + _PATIENCE
    while (state := _state(nas)) not in _BOOTED:
        if not state and _is_gone(nas):
            log = docker("logs", "--tail", "15", nas.container, check=False)
            said = log.stdout + log.stderr
            raise LabError(f"{nas.name} stopped while it booted:\n{said}\n{_afresh(nas)}")
        if time.monotonic() > deadline:
            jobs = _ask(nas, "systemctl", "list-jobs", "--no-pager")
            raise LabError(
                f"{nas.name} has not booted after {_PATIENCE} s, "
                f"systemd says {state!r} and waits for:\n"
                f"{jobs}{_afresh(nas)}"
            )
        time.sleep(0.1)
    if state == "degraded":
        failed = _ask(nas, "systemctl", "list-units", "--failed", "--plain", "--no-legend")
        units = [line.split()[0] for line in failed.splitlines() if line.strip()]
        warn(f"{nas.name} is degraded, failed units: {', '.join(units) or 'none any more'}")


def wait_for_login(nas: Nas) -> None:
    """Wait until root can log in on port 22 with the lab's key: true of a blank NAS only."""
    deadline = time.monotonic() + _PATIENCE
    while not ssh.answers(paths.lab(nas.lab), nas.address):
        if time.monotonic() > deadline:
            status = _ask(nas, "systemctl", "status", "--no-pager", "ssh")
            raise LabError(
                f"{nas.name} booted but root cannot log in at {nas.address}:22:\n{status}\n"
                f"Check that this machine may reach it (a firewall, a VPN). {_afresh(nas)}"
            )
        time.sleep(0.2)


def host_keys(nas: Nas) -> str:
    """Its public SSH host keys, read without the network."""
    return execute(nas.container, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").stdout


def _state(nas: Nas) -> str:
    return _ask(nas, "systemctl", "is-system-running").strip()


def _ask(nas: Nas, *argv: str) -> str:
    return execute(nas.container, *argv, check=False).stdout


def _runs(nas: Nas) -> bool:
    done = docker("inspect", "--format", "{{.State.Running}}", nas.container, check=False)
    return done.stdout.strip() == "true"


def _is_gone(nas: Nas) -> bool:
    """Whether it has stopped, and is not merely on its way up again."""
    if _runs(nas):
        return False
    time.sleep(_RESTART)
    return not _runs(nas)


def _afresh(nas: Nas) -> str:
    return f"`python3 -m lab down --name {nas.lab}`, then run it again."
