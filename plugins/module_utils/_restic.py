# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Runs restic on one repository, and tells what its errors mean."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._commands import run
from ansible_collections.nas.assistant.plugins.module_utils._rest_server import may_delete

# Without the reason phrase, which HTTP/2 has not.
_ANSWER = r"(server response: |unexpected http response \(|response unexpected: )"
_AWAY = (
    "See that the other side runs, can be reached from here and has room; its own log says what it "
    "could not do. The next run tries again"
)
# Why a copy failed: what it is called in metrics, its exit code, what restic or the system says of
# it, and what to do. The first that fits counts.
_CAUSES: tuple[tuple[str, int, str, str], ...] = (
    (
        "wrong key",
        21,
        r"wrong password|no key found|resolving password failed",
        "The password is not that of this repository, or its key is damaged: give the one that it "
        "was made with (backup_password, or its file in the credentials folder)",
    ),
    (
        "no room",
        22,
        rf"no space left|quota exceeded|insufficient storage|{_ANSWER}507",
        "Make room where the copy is kept, or keep fewer points; of a restore, on the NAS",
    ),
    (
        # Before all that it could be taken for: of a server in trouble, restic asks whether there
        # is a repository; and one that takes new data alone refuses what it failed to write once.
        "unreachable",
        26,
        rf"{_ANSWER}(429|5\d\d)|reduce your request rate",
        _AWAY,
    ),
    (
        "busy",
        23,
        r"already locked",
        "Another run is at it; if there is none, `restic unlock` removes what it left",
    ),
    (
        "device",
        30,
        r"read-only file system",
        "The disk is write-protected, or failed: see what the kernel says of it (journalctl -k)",
    ),
    (
        "untrusted",
        24,
        r"x509|certificate|host key verification failed",
        "The other side does not prove who it is: give its certificate or host key",
    ),
    (
        "refused",
        25,
        r"\b(401|403)\b|access ?denied|unauthorized|permission denied|request signature|"
        r"access key id you provided|request time and the server|security token|"
        # What SSH says where the server forces no command upon the key, or none that is there.
        r"command not found|allows sftp connections only",
        "The other side lets this NAS in no more, or not for this: see user, password, rights, the "
        "clock, and with ssh.append_only the line in authorized_keys",
    ),
    (
        "unreachable",
        26,
        r"connection (refused|reset|timed out)|no route to host|no such host|i/o timeout|"
        r"unreachable|could not resolve|server misbehaving|sftp session|did not answer|"
        r'tls handshake timeout|temporary failure in name resolution|deadline exceeded|": eof',
        _AWAY,
    ),
    (
        "damaged",
        27,
        r"ciphertext verification|does not match|unexpected (file size|eof|end of)|"
        r"repository contains errors|not found in repository|invalid data|unmarshal|"
        r"<(data|index|snapshot)/|pack [0-9a-f]+: |input/output error|hash mismatch|"
        r"structure needs cleaning",
        "Restore from another copy, and begin this one anew in another place before the damaged "
        "one is removed",
    ),
    (
        "gone",
        28,
        r"is there a repository|does not exist|no such file",
        "There is no repository where it should be",
    ),
)
#: Exit codes of causes that are found without restic.
CODES = {
    **{cause: code for cause, code, _, _ in _CAUSES},
    "failed": 1,
    "foreign": 31,
    "incomplete": 32,
    "differs": 33,
}
# What is left of a file of which some data are still wanted stays: to write it anew needs room.
NO_REPACK = "--max-repack-size=0"
_GONE = "no such file or directory"
_PROBE = 60  # seconds after which a side that says nothing is taken for unreachable


class BackupError(Exception):
    """A copy could not be made, read or restored. ``cause``: one of ``CODES``."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause

    @property
    def code(self) -> int:
        """What a program ends with."""
        return CODES[self.cause]


@dataclass(frozen=True)
class Point:
    """A restore point: what restic calls a snapshot. ``time``: whole seconds since the epoch."""

    id: str
    time: int
    host: str
    tags: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """Its id as people read it."""
        return self.id[:8]


@dataclass(frozen=True)
class Repository:
    """Where a copy is, and what opens it.

    :param options: further words for restic, such as ``--cacert FILE``; no secrets.
    :param environment: variables for restic; secrets are safe there.
    """

    location: str
    password_file: str
    cache: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    program: Sequence[str] = ("restic",)

    def argv(self, *words: str) -> list[str]:
        """The command for some of restic's words."""
        return [*self.program, *self.options, *words]

    @property
    def environ(self) -> dict[str, str]:
        """Its environment: what is secret is in no list of processes."""
        return {
            **os.environ,
            "LC_ALL": "C",
            "RESTIC_REPOSITORY": self.location,
            "RESTIC_PASSWORD_FILE": self.password_file,
            "RESTIC_CACHE_DIR": self.cache,
            # A NAS with little memory: collected more often, it takes half of it.
            "GOGC": "30",
            **self.environment,
        }

    def run(self, *words: str, patience: float | None = None, to: Any = subprocess.PIPE) -> str:
        """Run restic; return what it prints. As ``attempt``."""
        return self.attempt(*words, patience=patience, to=to).stdout or ""

    def attempt(
        self,
        *words: str,
        folder: str | None = None,
        accepted: Sequence[int] = (0,),
        patience: float | None = None,
        to: Any = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        """Run restic; return how it ended.

        :param folder: where it runs.
        :param accepted: codes that are no failure.
        :param patience: seconds.
        :param to: where its output goes instead.
        :raises BackupError: it failed; names what restic said, why, and the remedy.
        """
        os.makedirs(self.cache, mode=0o700, exist_ok=True)
        try:
            done = subprocess.run(
                self.argv(*words),
                cwd=folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=patience,
                check=False,
            )
        except FileNotFoundError:
            raise BackupError("failed", "restic is not installed (package restic)") from None
        except subprocess.TimeoutExpired:
            raise self.error(words[0], f"it did not answer for {patience} s") from None
        if done.returncode not in accepted:
            said = done.stderr.strip() or (done.stdout or "").strip()
            if re.search("sftp session|talking HTTP to rclone", said):
                said = f"{self._ssh_says()}\n{said}"
            raise self.error(words[0], said or f"ended with {done.returncode}")
        return done

    def _ssh_says(self) -> str:
        """What SSH itself says, which restic may have no time to pass on."""
        for option in self.options:
            name, _, command = option.partition("=")
            # To the second, restic adds words that begin so.
            more = {"sftp.command": [], "rclone.program": ["serve"]}.get(name)
            if more is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return str(run([*shlex.split(command), *more], _PROBE).stderr.strip())
        return ""

    def error(self, word: str, said: str) -> BackupError:
        """What restic's words mean."""
        # The last lines say why it gave up; a trace of its program says nothing to anybody.
        lines = [line for line in said.splitlines() if " " in line.strip() and line[0] != "\t"]
        text = self.without_secrets(" ".join(lines[-4:]))
        cause, remedy = diagnosis(said)
        return BackupError(
            cause, f"{cause}: restic {word}: {text}." + (f" {remedy}." if remedy else "")
        )

    def without_secrets(self, text: str) -> str:
        """What restic said, without the password of an address, and without secrets of ours."""
        secret = self.location.partition("://")[2].rpartition("@")[0]
        user, _, password = secret.partition(":")
        if password:
            text = text.replace(secret, f"{user}:***").replace(password, "***")
        text = re.sub(r"(://[^/\s:@]*):[^/\s@]*@", r"\1:***@", text)
        for value in self.environment.values():
            text = text.replace(value, "***") if len(value) > 7 else text
        return text

    @property
    def version(self) -> tuple[int, int]:
        """Which restic it is; (0, 0) where it does not say."""
        matched = re.match(r"restic (\d+)\.(\d+)", self.run("version", patience=_PROBE))
        return (int(matched[1]), int(matched[2])) if matched else (0, 0)

    def id(self) -> str:
        """Return what tells the repository from all others; an empty text where there is none.

        :raises BackupError: it cannot be opened, for another reason.
        """
        try:
            told = json.loads(self.run("cat", "config", "--no-lock", patience=_PROBE))
        except BackupError as error:
            if error.cause == "gone":
                return ""
            raise
        except ValueError:
            raise BackupError("damaged", "damaged: restic cat config: no JSON") from None
        return str(told["id"])

    @property
    def erasable(self) -> bool:
        """Whether a server of the REST protocol says that it would delete data; no answer is no."""
        if not self.location.startswith("rest:"):
            return False
        given = [self.environment.get(f"RESTIC_REST_{key}", "") for key in ("USERNAME", "PASSWORD")]
        ca = dict(zip(self.options, self.options[1:], strict=False)).get("--cacert", "")
        return bool(may_delete(self.location, *given, ca))

    def delete(self, ids: Sequence[str]) -> bool:
        """Delete points, and the data that no other one has, also where an earlier time came to no
        end; return whether there were such data.

        :raises BackupError: it failed; points may be gone, and their data there.
        """
        if ids:
            self.run("forget", *ids)
        # Where there is hardly room, the first makes some for what the second writes anew.
        return any([self.tidy(), _packs_went(self.run("prune"))])

    def tidy(self) -> bool:
        """Delete files of which no point wants anything, which needs next to no room; return
        whether there were such."""
        return _packs_went(self.run("prune", NO_REPACK))

    def points(self, host: str) -> list[Point]:
        """Return a host's restore points, the oldest first."""
        listed = self.run("snapshots", "--json", "--no-lock", "--host", host)
        return points(listed)


def _packs_went(said: str) -> bool:
    """Whether ``restic prune`` deleted data, by what it says."""
    return bool(re.search(r"(old|unreferenced) packs", said))


def diagnosis(said: str) -> tuple[str, str]:
    """Return the cause that restic's words mean, and the remedy."""
    # What a file is called means nothing.
    said = re.sub(r"(?m)^(ignoring error for|error for|error: \w+) .*: (.*)$", r"\2", said)
    for cause, _, pattern, remedy in _CAUSES:
        if re.search(pattern, said, re.IGNORECASE):
            return cause, remedy
    return "failed", ""


def literally(path: str) -> str:
    """Return the pattern by which restic takes a path and no other."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def unreadable(said: str) -> list[str]:
    """Return the lines in which ``restic backup --json`` tells of what it could not read, but for
    those of files that are there no more."""
    return [line for line in said.splitlines() if "error" in line and not _is_gone(line)]


def _is_gone(line: str) -> bool:
    try:
        error = json.loads(line)["error"]
        # restic 0.14 has the number alone, later ones the words.
        return bool(error.get("Err") == errno.ENOENT or _GONE in error.get("message", ""))
    except (AttributeError, KeyError, TypeError, ValueError):
        return _GONE in line


def points(listed: str) -> list[Point]:
    """Return the points that ``restic snapshots --json`` names, the oldest first."""
    found = [
        Point(
            id=str(each["id"]),
            time=int(datetime.fromisoformat(each["time"]).timestamp()),
            host=str(each.get("hostname", "")),
            tags=tuple(each.get("tags") or ()),
        )
        for each in json.loads(listed or "null") or []
    ]
    return sorted(found, key=lambda point: (point.time, point.id))
