# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Makes a Docker engine answer, and never touches one that does.

Where systemd runs, it starts the engine. Elsewhere (a container, a CI machine) the lab starts
dockerd itself and remembers it in .lab/engine.json, so that `down --all` stops that one only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from lab import apt, paths
from lab.docker import docker, lines
from lab.errors import LabError
from lab.progress import say, step, warn
from lab.run import run

_PATIENCE = 60  # seconds; a first start creates /var/lib/docker and loads kernel modules
_LEFTOVERS = ("/var/run/docker.pid", "/run/docker/containerd/containerd.pid")
_SOCKETS = ("/var/run/docker.sock", "/run/docker/containerd/containerd.sock")


def answers() -> bool:
    """Whether a docker client is installed and an engine answers it."""
    if not shutil.which("docker"):
        return False
    try:
        # A hung engine accepts the connection and then says nothing.
        asked = docker("version", "--format", "{{.Server.Version}}", check=False, timeout=20)
    except LabError:
        return False
    return asked.returncode == 0


def ensure() -> None:
    """Make an engine answer.

    Leave one that does, else install and start it, else say what to do.
    """
    if answers():
        return
    if os.environ.get("DOCKER_HOST"):
        raise LabError(
            f"no Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}. "
            "Start it, or unset DOCKER_HOST to use an engine on this machine."
        )
    if os.geteuid() != 0:
        raise LabError(_not_root())
    if not shutil.which("dockerd") or not shutil.which("docker"):
        apt.install(
            ["docker.io", "iptables", "ca-certificates"],
            why="no Docker engine answers",
            why_not="Install Docker and start it (`docker version` names a server).",
        )
    with step("start the Docker engine"):
        if not answers():  # the package may have started it
            _start()


def stop_own() -> None:
    """Stop the engine if the lab started it and nothing runs in it."""
    state = _state()
    if not state.is_file():
        return
    pid = own_pid()
    if pid is None:
        state.unlink()
        return
    running = lines("ps", "--quiet") if answers() else []
    if running:
        say(
            f"the Docker engine keeps running: {len(running)} containers that are not the lab's "
            f"use it"
        )
        return
    with step("stop the Docker engine that the lab started"):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while _is_dockerd(pid):
            if time.monotonic() > deadline:
                raise LabError(
                    f"dockerd (process {pid}) does not stop. See {_log()}, or kill -9 {pid}."
                )
            time.sleep(0.2)
    state.unlink()


def own_pid() -> int | None:
    """The process of the engine that the lab started, if that very process still runs."""
    try:
        recorded = json.loads(_state().read_text(encoding="utf-8"))
        pid, born = int(recorded["pid"]), recorded["born"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if _is_dockerd(pid) and _born(pid) == born else None


def _not_root() -> str:
    installed = shutil.which("dockerd")
    found = "is installed but does not answer you" if installed else "is not installed"
    return (
        f"Docker {found}, and you are not root. Run as root: `make demo` (it installs and "
        f"starts Docker on Debian "
        "and Ubuntu), or install docker.io, start it, and add yourself to the group docker."
    )


def _start() -> None:
    if Path("/run/systemd/system").is_dir():
        run(
            ["systemctl", "start", "docker"],
            remedy="`journalctl --unit docker` shows why. Repair it and run it again.",
        )
        _wait(None)
        return
    _clear_leftovers()
    paths.home().mkdir(parents=True, exist_ok=True)
    # Not via service(8): its init script stops at ulimit settings that a container may not change.
    with _log().open("ab") as log:
        daemon = subprocess.Popen(
            ["dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    state = {"pid": daemon.pid, "born": _born(daemon.pid)}
    _state().write_text(json.dumps(state), encoding="utf-8")
    _wait(daemon)


def _wait(daemon: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not answers():
        if daemon is None:
            why = "`journalctl --unit docker` shows why."
        else:
            why = f"The end of {_log()}:\n{_log_tail()}"
        if daemon is not None and daemon.poll() is not None:
            raise LabError(f"dockerd ended at once. {why}\nRepair that and run it again.")
        if time.monotonic() > deadline:
            raise LabError(f"dockerd gives no answer after {_PATIENCE} s. {why}")
        time.sleep(0.3)


def _clear_leftovers() -> None:
    """Remove what a killed dockerd leaves.

    It refuses to start beside a pid file whose number lives again.
    """
    for name in _LEFTOVERS:
        path = Path(name)
        try:
            pid = int(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if _is_process(pid, "dockerd") or _is_process(pid, "containerd"):
            if name == _LEFTOVERS[0]:
                raise LabError(
                    f"dockerd runs (process {pid}) but does not answer. Wait for it, or look at "
                    f"its log; "
                    f"if it hangs: kill {pid}, then run this again."
                )
            # Its dockerd is gone; a new one starts its own and would fail on the database lock
            # of this one.
            warn(f"ending the containerd (process {pid}) of a dockerd that was killed")
            os.kill(pid, signal.SIGTERM)
            time.sleep(1)
        path.unlink(missing_ok=True)
    for name in _SOCKETS:
        Path(name).unlink(missing_ok=True)


def _is_dockerd(pid: int) -> bool:
    return _is_process(pid, "dockerd")


def _is_process(pid: int, name: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        # A zombie still has its name but is not a daemon any more.
        return (
            Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == name
            and ") Z " not in status
        )
    except OSError:
        return False


def _born(pid: int) -> str:
    """The kernel's start time of a process.

    With it, a pid that was given out again is not mistaken.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


def _state() -> Path:
    return paths.home() / "engine.json"


def _log() -> Path:
    return paths.home() / "dockerd.log"


def _log_tail() -> str:
    try:
        return "\n".join(_log().read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
    except OSError:
        return "(no log)"
