# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Copies over SSH, with the options that the role gives: by SFTP, and where nothing is deleted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.nas.assistant.plugins.filter.backup import backup_copies
from copies import Nas, listing
from sshd import Sshd

DOCS = Path(__file__).parents[2] / "docs/backup.md"


def settle(nas: Nas, sshd: Sshd, key: str = "host", **ssh: Any) -> None:
    """Have the off-site copy go over SSH, to a server that proves itself with a key."""
    keys = nas.folder / "backup"
    keys.mkdir(exist_ok=True)
    shutil.copy(sshd.folder / "user", keys / "id_ed25519")
    host_key = " ".join((sshd.folder / f"{key}.pub").read_text().split()[:2])
    repository = f"sftp://root@127.0.0.1:{sshd.port}/{nas.folder}/sftp"
    entry = {"name": "offsite", "repository": repository, "ssh": {"host_key": host_key, **ssh}}
    (made,) = backup_copies([entry], str(keys))
    (keys / "offsite.hosts").write_text(f"{made['host_key']}\n")
    news = {"repository": made["repository"], "options": made["options"]}
    nas.settings["copies"][0] |= news


def test_sftp_with_the_options_that_the_role_gives(nas: Nas, sshd: Sshd) -> None:
    settle(nas, sshd, "wrong")
    nas.fails("untrusted", "run", "offsite")
    settle(nas, sshd)
    nas.run("run", "offsite")
    assert "proven" in nas.run("drill", "offsite")
    (sshd.folder / "authorized").write_text("")
    nas.fails("refused", "run", "offsite")
    sshd.stop()
    nas.fails("unreachable", "run", "offsite")


def force(sshd: Sshd, folder: Path) -> None:
    """Let the NAS's key do there what docs/backup.md has the server force upon it, and no more."""
    (line,) = re.findall(r"^restrict,command=.*$", DOCS.read_text(), re.MULTILINE)
    forced = line.replace("/srv/backups/nas1", str(folder)).partition(" ssh-ed25519 ")[0]
    key = (sshd.folder / "user.pub").read_text()
    (sshd.folder / "authorized").write_text(f"{forced} {key}")


def contents(folder: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_over_ssh_the_nas_deletes_nothing(nas: Nas, sshd: Sshd) -> None:
    place = nas.folder / "appended"
    settle(nas, sshd, append_only=True)
    # Without the server's doing there is no copy, rather than one that the NAS could delete.
    assert "authorized_keys" in nas.fails("refused", "run", "offsite")
    assert not place.exists()
    force(sshd, place)
    before = listing(nas.documents)
    nas.run("run", "offsite")
    nas.run("run", "offsite")
    assert len(nas.points("offsite")) == 2
    assert "proven" in nas.run("drill", "offsite")
    kept = contents(place)
    names = {each.relative_to(place).parts[0] for each in kept}
    assert names == {"config", "data", "index", "keys", "snapshots"}
    # With all that the NAS has: its key for SSH, the key of the copies, restic.
    copy = nas.settings["copies"][0]
    environ = {
        **os.environ,
        "RESTIC_REPOSITORY": copy["repository"],
        "RESTIC_PASSWORD_FILE": str(nas.folder / "key"),
        "RESTIC_CACHE_DIR": str(nas.folder / "cache"),
    }
    command = ["restic", *copy["options"], "forget", "latest", "--prune"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert "403 Forbidden" in done.stderr
    ssh = shlex.split(copy["options"][1].partition("=")[2])
    for words in (["rm", "-r", str(place)], ["-s", "sftp"], ["rclone", "purge", str(place)]):
        subprocess.run(
            [*ssh, *words],
            input=f"rm {place}/config\n".encode(),
            timeout=60,
            check=False,
            capture_output=True,
        )
    assert {each: each.read_bytes() for each in kept} == kept
    # The server's owner sees the same points, and the NAS restores from them.
    shutil.rmtree(nas.documents / "letters")
    (restored,) = nas.restore("offsite", sources=["tank/documents"])["restored"]
    assert listing(nas.pool / ".snapshots" / restored["snapshot"]) == before
    settle(nas, sshd, "wrong", append_only=True)
    nas.fails("untrusted", "run", "offsite")
    settle(nas, sshd, append_only=True)
    (sshd.folder / "authorized").write_text("")
    nas.fails("refused", "run", "offsite")
    sshd.stop()
    nas.fails("unreachable", "run", "offsite")
