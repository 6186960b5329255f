# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""An SSH server of the tests' own, and the processes that it starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from shell import sh


class Sshd:
    """An SSH server of its own on this machine, which lets root in with one key."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.program = folder, program
        folder.mkdir(mode=0o700)
        for key in ("host", "user", "wrong"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        host_key = (folder / "host.pub").read_text()
        (folder / "known hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        wrong = (folder / "wrong.pub").read_text()
        (folder / "strange").write_text(f"[127.0.0.1]:{self.port} {wrong}")
        shutil.copy(folder / "user.pub", folder / "authorized")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, path: str = "/usr/sbin:/usr/bin:/sbin:/bin") -> None:
        """Start it, with this PATH for its sessions, in the place of one that runs."""
        self.stop()
        config = self.folder / "config"
        settings = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/authorized",
            f"PidFile {self.folder}/pid",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "StrictModes no",
            "Subsystem sftp internal-sftp",
            # Whatever root's shell reads at its start on this machine, a NAS has not.
            f"SetEnv HOME={self.folder} PATH={path}",
        ]
        config.write_text("".join(f"{line}\n" for line in settings))
        with (self.folder / "log").open("ab") as log:
            words = [self.program, "-D", "-e", "-f", str(config)]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log)
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        self.drop()
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def drop(self) -> None:
        """Cut the connections that there are."""
        for pid, _ in self.sessions():
            with contextlib.suppress(ProcessLookupError):  # it may end by itself, in between
                os.kill(pid, signal.SIGKILL)

    def break_off(self) -> None:
        """Cut a connection, and wait for it first."""
        deadline = time.monotonic() + 30
        while not self.sessions() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.drop()

    def sessions(self) -> list[tuple[int, str]]:
        return children(self.process.pid) if self.process else []

    def options(self, **more: Any) -> dict[str, Any]:
        given = {
            "host": "127.0.0.1",
            "port": self.port,
            "identity_file": str(self.folder / "user"),
            "known_hosts_file": str(self.folder / "known hosts"),
        }
        return {**given, **more}


def children(pid: int) -> list[tuple[int, str]]:
    """The processes that a process has started and that run, with their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "stat").read_text().rpartition(")")[2].split()
            # One that has ended is another test's, which left it to itself.
            if int(words[1]) == pid and words[0] != "Z":
                line = (entry / "cmdline").read_text().replace("\0", " ")
                found.append((int(entry.name), line))
    return found
