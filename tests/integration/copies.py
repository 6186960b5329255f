# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A NAS on a real Btrfs, with a server elsewhere and a disk for its copies."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shell import sh

ROOT = Path(__file__).parents[2]
# The NAS's program with settings of the test's own.
RUN = """
import runpy, sys
program = runpy.run_path(sys.argv.pop(1))
program["main"].__globals__["SETTINGS"] = sys.argv.pop(1)
sys.exit(program["main"]())
"""
# The module, in a process of its own since it takes mounts of its own.
RESTORE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.nas.assistant.plugins.module_utils import _restore
from ansible_collections.nas.assistant.plugins.modules import backup_restore
_restore.GENERATED = tuple(sys.argv[2:])
with patch_module_args(json.loads(sys.argv[1])):
    backup_restore.main()
"""
CODES = {"wrong key": 21, "no room": 22, "busy": 23, "untrusted": 24, "refused": 25}
CODES |= {"unreachable": 26, "damaged": 27, "gone": 28, "device": 30, "foreign": 31}
CODES |= {"incomplete": 32, "differs": 33}


def packs(repository: Path) -> list[Path]:
    """The data of a repository, the largest file first."""
    files = [each for each in (repository / "data").rglob("*") if each.is_file()]
    return sorted(files, key=lambda each: -each.stat().st_size)


class OffSite:
    """A server that takes new restore points and deletes none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"rest:http://127.0.0.1:{self.port}/nas1/"

    @property
    def packs(self) -> list[Path]:
        """Its data, the largest file first."""
        return packs(self.folder / "nas1")

    def start(self, *more: str) -> None:
        # Without its cache, which goes on answering for files that are gone.
        command = ["rclone", "serve", "restic", "--append-only", "--cache-objects=false", "--addr"]
        self.process = subprocess.Popen(
            [*command, f"127.0.0.1:{self.port}", *more, str(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None


class Nas:
    """A pool with two volumes, a folder elsewhere, and two places for copies."""

    def __init__(self, pool: Path, folder: Path, disk: str, off_site: OffSite) -> None:
        self.pool, self.folder, self.disk, self.off_site = pool, folder, disk, off_site
        self.documents = pool / "documents"
        for name in ("documents", "photos"):
            sh("btrfs", "subvolume", "create", str(pool / name))
        (pool / ".snapshots").mkdir(mode=0o700)
        fill(self.documents)
        (pool / "photos/one").write_bytes(os.urandom(100_000))
        self.etc = folder / "etc"
        self.etc.mkdir()
        (self.etc / "config.ini").write_text("[server]\n")
        # What the roles would make for each machine.
        self.generated = [f"{self.etc}/backup", f"{self.etc}/backup.json"]
        self.state, self.metrics = folder / "state", folder / "metrics"
        self.metrics.mkdir()
        (folder / "key").write_text("correct horse battery staple\n")
        self.settings: dict[str, Any] = {
            "host": "nas1",
            "sources": [
                {"volume": f"tank/{name}", "path": str(pool / name), "folder": f"{pool}/.snapshots"}
                for name in ("documents", "photos")
            ]
            + [{"path": str(self.etc)}],
            "copies": [
                {"name": "offsite", "repository": off_site.address, "keep": {"last": 3}},
                {
                    "name": "usb",
                    "device": sh("blkid", "-o", "value", "-s", "UUID", disk).strip(),
                    "keep": {"last": 3},
                    "verify": 100,
                    "full": True,
                },
            ],
            "password_file": str(folder / "key"),
            "state": str(self.state),
            "scratch": str(folder),
            "metrics": str(self.metrics),
            "cache": str(folder / "cache"),
            "drill": 1 << 30,
        }

    def command(self, *words: str) -> list[str]:
        settings = self.folder / "backup.json"
        settings.write_text(json.dumps(self.settings))
        return [
            *(sys.executable, "-c", RUN, str(ROOT / "roles/backup/files/nas-backup")),
            *(str(settings), *words),
        ]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False)

    def run(self, *words: str) -> str:
        """Run what must succeed; return what it prints."""
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, cause: str, *words: str) -> str:
        """Run what must fail for a reason; return what it says."""
        done = self.call(*words)
        assert done.returncode == CODES[cause], (done.returncode, done.stdout, done.stderr)
        assert f"nas-backup: {words[-1]}: {cause}: " in done.stderr
        prefix = "nas_backup_drill_failed" if words[0] == "drill" else "nas_backup_failed"
        assert f'{prefix}{{copy="{words[-1]}",cause="{cause}"}} 1' in self.metric(words[-1])
        return done.stderr

    def metric(self, copy: str) -> str:
        return (self.metrics / f"nas_backup_{copy}.prom").read_text()

    def points(self, copy: str) -> list[str]:
        return self.run("points", copy).splitlines()

    def restore(self, copy: str, **arguments: Any) -> dict[str, Any]:
        self.command()
        given = {"settings": str(self.folder / "backup.json"), "copy": copy, **arguments}
        done = subprocess.run(
            [sys.executable, "-c", RESTORE, json.dumps(given), *self.generated],
            capture_output=True,
            text=True,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def fill(folder: Path) -> None:
    """Files of all kinds that a copy must get right."""
    (folder / "letters").mkdir(mode=0o750)
    (folder / "letters/a [1]*?.txt").write_text("Dear reader\n")
    (folder / "letters/run").write_bytes(os.urandom(3 << 20))
    os.chown(folder / "letters/run", 1234, 5678)
    (folder / "letters/run").chmod(0o4750)  # after chown, which takes the first digit away
    (folder / "link").symlink_to("letters/nowhere")
    os.mkfifo(folder / "pipe")
    os.link(folder / "letters/run", folder / "other name")
    Path(os.fsdecode(os.fsencode(folder) + b"/not utf-8 \xff")).write_text("odd")
    os.setxattr(folder / "letters", "user.colour", b"blue")
    os.utime(folder / "letters/a [1]*?.txt", ns=(1, 1_234_567_890_123_456_789))
    (folder / "empty").mkdir()
    with sqlite3.connect(folder / "usage.db") as database:
        database.execute("CREATE TABLE usage (tokens INTEGER)")
        database.execute("INSERT INTO usage VALUES (42)")
    database.close()


def listing(folder: Path) -> str:
    """All that a copy must bring back, as another program sees it."""
    script = r"""
        cd "$1"
        find . -type d -printf '%P %y %m %U %G %T@\n' | sort
        find . ! -type d -printf '%P %y %m %U %G %s %l %T@\n' | sort
        find . -type f -print0 | sort -z | xargs -0 sha256sum
    """
    command = ["sh", "-ec", script, "sh", str(folder)]
    listed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return f"{os.fsdecode(listed)}{os.getxattr(folder / 'letters', 'user.colour')!r}"
