# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Which snapshots are to be sent, which parent each is sent from, and which old replicas go.

Nothing is read or changed here. A *replica* is complete when it is read-only and has a received
UUID: ``btrfs receive`` gives it both only after the last byte. Replicas and snapshots belong
together by name and by that UUID.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from ansible_collections.nas.assistant.plugins.module_utils._snapshot_plan import HOLDS

# As in the names that snapshots may have; 255 bytes are the most that the kernel takes.
_LONGEST = 231
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")
# Nothing that ssh takes for an option, a list, a pattern or a variable.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]+(%[A-Za-z0-9_.-]+)?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_KEY_PATH = re.compile(r"/[^\x00-\x1f\x7f\"'\\%$*?]*")
Item = TypeVar("Item")


class ReplicateError(Exception):
    """What is wanted cannot be, or went wrong; with the reason and the remedy."""


@dataclass(frozen=True)
class Entry:
    """What stands by a snapshot's name in a folder. UUIDs that it has not are empty texts.

    ``subvolume``: whether it is one at all; otherwise nothing but the name counts.
    ``received_at``: transaction in which it was last given or deprived of a received UUID, 0 if
    never.
    """

    name: str
    subvolume: bool = True
    id: int = 0
    uuid: str = ""
    received_uuid: str = ""
    read_only: bool = False
    received_at: int = 0

    @property
    def identity(self) -> str:
        """The received UUID that a replica of it has: a replica is sent on as what it is of."""
        return self.received_uuid or self.uuid

    @property
    def complete(self) -> bool:
        """Whether it is a whole replica."""
        return self.subvolume and self.read_only and bool(self.received_uuid)

    @property
    def remainder(self) -> bool:
        """Whether it is what an interrupted receive leaves. What somebody made writable to work in
        it had a received UUID once, and is none."""
        return (
            self.subvolume
            and not self.read_only
            and not self.received_uuid
            and self.received_at == 0
        )


@dataclass(frozen=True)
class Transfer:
    """A snapshot to be sent; in full without a parent."""

    snapshot: Entry
    parent: Entry | None


@dataclass(frozen=True)
class Plan:
    """What is to be done, in order of the fields; subvolumes to be removed by their names.

    ``wanted``: the snapshots that are to be at the destination in the end.
    """

    remainders: list[str]
    transfers: list[Transfer]
    deletions: list[str]
    wanted: Sequence[Entry]


@dataclass(frozen=True)
class Ssh:
    """How the far side is reached, checked. Nothing of a user's own settings counts."""

    host: str
    port: int = 22
    user: str = "root"
    identity_file: str = ""
    known_hosts_file: str = ""
    become: bool = False

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Ssh:
        """From the option of the module.

        :raises ReplicateError: a value could be something else to ssh.
        """
        given = {key: each for key, each in value.items() if each is not None}
        ssh = cls(**given)
        if not _HOST.fullmatch(ssh.host):
            raise ReplicateError(f"ssh.host={ssh.host!r}: give the name or address of a host")
        if not _USER.fullmatch(ssh.user):
            raise ReplicateError(f"ssh.user={ssh.user!r}: give the name of a user")
        if not 1 <= ssh.port <= 65535:
            raise ReplicateError(f"ssh.port={ssh.port}: give a number from 1 to 65535")
        for key in ("identity_file", "known_hosts_file"):
            path = str(getattr(ssh, key))
            if path and not _KEY_PATH.fullmatch(path):
                raise ReplicateError(
                    f"ssh.{key}={path!r}: give a whole path, without quotes, backslashes, control "
                    "characters, and the signs % $ * ?"
                )
        return ssh

    @property
    def target(self) -> str:
        """How a message names it."""
        return f"{self.user}@{self.host}" + ("" if self.port == 22 else f":{self.port}")

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return what runs a command there; its words arrive as they are."""
        options = [
            "BatchMode=yes",
            "PreferredAuthentications=publickey",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "ControlMaster=no",
            "ControlPath=none",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "ConnectTimeout=15",
            # A far side that is gone is noticed after a minute.
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
        ]
        if self.identity_file:
            options.append(f'IdentityFile="{self.identity_file}"')
        if self.known_hosts_file:
            options.append(f'UserKnownHostsFile="{self.known_hosts_file}"')
            options.append("GlobalKnownHostsFile=/dev/null")
        words = [*(("sudo", "-n", "--") if self.become else ()), "env", "LC_ALL=C", *command]
        return [
            *("ssh", "-F", "none", "-T", "-p", str(self.port), "-l", self.user),
            *itertools.chain.from_iterable(("-o", option) for option in options),
            *("--", self.host, shlex.join(words)),
        ]


@dataclass(frozen=True)
class Wish:
    """What is wanted, checked."""

    source: str
    name: str
    destination: str
    ssh: Ssh | None = None
    every: bool = False
    keep_last: int | None = None
    content: bool = False
    holds: str = HOLDS
    timeout: int = 600

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Wish:
        """From the options of the module.

        :raises ReplicateError: one has a value that cannot be; with its name, the value, the
            remedy.
        """
        if params["keep_last"] is not None and params["keep_last"] < 1:
            raise ReplicateError(
                f"keep_last={params['keep_last']}: give 1 or more, or leave it out to keep all"
            )
        if params["timeout"] < 1:
            raise ReplicateError(f"timeout={params['timeout']}: give a second or more")
        return cls(
            source=_whole_path("source", params["source"]),
            name=_checked_name(params["name"]),
            destination=_whole_path("destination", params["destination"]),
            ssh=Ssh.of(params["ssh"]) if params["ssh"] else None,
            every=params["select"] == "all",
            keep_last=params["keep_last"],
            content=params["verify"] == "content",
            holds=_whole_path("holds", params["holds"]),
            timeout=params["timeout"],
        )

    @property
    def goal(self) -> str:
        """The destination with its host."""
        return f"{self.ssh.target}:{self.destination}" if self.ssh else self.destination

    @property
    def hold_file(self) -> str:
        """The file that keeps the next parent from being removed here."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.name}-{self.destination}").strip("-")
        # The slug is for people; two names or places may have the same.
        return os.path.join(self.holds, f"replicate-{slug[:80]}-{digest(self.name, self.goal)}")


def is_stamped(name: str, entry: str) -> bool:
    """Whether an entry is called exactly NAME.YYYYMMDDTHHMMSSZ, with a time that exists."""
    stamp = entry.removeprefix(f"{name}.")
    if stamp == entry or not _STAMP.fullmatch(stamp):
        return False
    try:
        datetime.strptime(stamp, "%Y%m%dT%H%M%SZ")
    except ValueError:
        return False
    return True


def snapshots(name: str, entries: Iterable[Entry]) -> list[Entry]:
    """Return the snapshots that can be sent, the oldest first: read-only ones of this name."""
    found = [
        entry
        for entry in entries
        if entry.subvolume and entry.read_only and is_stamped(name, entry.name)
    ]
    return sorted(found, key=lambda entry: entry.name)


def replicas(name: str, entries: Iterable[Entry]) -> list[Entry]:
    """Return the complete replicas of this name, the oldest first."""
    return [entry for entry in snapshots(name, entries) if entry.complete]


def held(source: Sequence[Entry], complete: Iterable[Entry]) -> list[Entry]:
    """Return the snapshots that the next incremental needs: the newest that both sides have."""
    there = {entry.received_uuid for entry in complete}
    return [entry for entry in _parents(source) if entry.identity in there][-1:]


def plan(
    name: str,
    source: Iterable[Entry],
    destination: Iterable[Entry],
    *,
    every: bool = False,
    keep_last: int | None = None,
) -> Plan:
    """Return what is to be done.

    :param every: whether all snapshots are wanted, not only the newest; with ``keep_last`` only as
        many as stay.
    :raises ReplicateError: there is no snapshot, or something else stands where one is to go.
    """
    ours, there = snapshots(name, source), list(destination)
    if not ours:
        raise ReplicateError(
            f"name={name}: the source has no read-only snapshot called {name}.YYYYMMDDTHHMMSSZ"
        )
    wanted = _newest(ours, keep_last if every else 1)
    complete, standing = replicas(name, there), {entry.name: entry for entry in there}
    missing = [entry for entry in wanted if not _is_replica(standing.get(entry.name), entry)]
    remainders = [each for entry in missing if (each := _in_the_way(standing.get(entry.name)))]
    transfers = []
    both = {entry.received_uuid for entry in complete}
    for entry in missing:
        common = [each for each in _parents(ours) if each.identity in both]
        transfers.append(Transfer(entry, _nearest(entry, common)))
        both.add(entry.identity)
    received = [entry.name for entry in complete]
    # What is wanted stays, however old: a clock that ran ahead for a while left newer names there.
    stay = {entry.name for entry in wanted}
    stay.update(_newest(sorted({*received, *stay}), keep_last))
    return Plan(remainders, transfers, [each for each in received if each not in stay], wanted)


def digest(*words: str) -> str:
    """Return what is the same only for the same words; fit for a file name."""
    text = "\0".join(words).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:12]


def differences(
    near: Iterable[Mapping[str, Any]], far: Iterable[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield in what two trees differ, as words; both in the order of Agent.content."""
    both = heapq.merge(
        ((_order(line), 0, line) for line in near),
        ((_order(line), 1, line) for line in far),
        key=lambda each: each[:2],
    )
    for order, group in itertools.groupby(both, key=lambda each: each[0]):
        found = {side: line for _, side, line in group}
        shown = shlex.quote(b"/".join(order).decode(errors="backslashreplace") or ".")
        if len(found) == 1:
            yield f"{shown} is {'too much' if 1 in found else 'missing'}"
            continue
        here, there = found[0], found[1]
        keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        if keys:
            yield f"{shown} has another {', '.join(keys)}"


def _whole_path(key: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path or {".", ".."} & set(path.split("/")):
        raise ReplicateError(f"{key}={path!r}: give the whole path of a folder, without . and ..")
    return os.path.normpath(path).replace("//", "/")


def _checked_name(name: str) -> str:
    # A line break would forge lines of logs.
    if not name or "/" in name or not name.isprintable() or len(name.encode()) > _LONGEST:
        raise ReplicateError(
            f"name={name!r}: give the first part of the snapshots' names, of printable characters "
            f"without a slash, and of {_LONGEST} bytes at most"
        )
    return name


def _newest(items: Sequence[Item], count: int | None) -> Sequence[Item]:
    """Return the last so many of what is in order; all without a number."""
    return items if count is None else items[-count:]


def _is_replica(found: Entry | None, snapshot: Entry) -> bool:
    return found is not None and found.complete and found.received_uuid == snapshot.identity


def _in_the_way(found: Entry | None) -> str:
    """Return the name of a remainder that is to be removed first, an empty text without one.

    :raises ReplicateError: it is something else, which is not ours to remove.
    """
    if found is None or found.remainder:
        return found.name if found else ""
    if not found.subvolume:
        what = "no subvolume"
    elif found.complete:
        what = f"a replica of another snapshot (received UUID {found.received_uuid})"
    elif found.read_only:
        what = "a subvolume that was made there, or changed after it was received"
    else:
        what = "a replica that was made writable"
    raise ReplicateError(
        f"{found.name} at the destination is in the way: it is {what}. Rename it, or remove it if "
        "nobody needs it"
    )


def _parents(source: Sequence[Entry]) -> list[Entry]:
    """Return the snapshots that may be a parent.

    Snapshots of a subvolume that was received, and then made writable by force, all have its
    received UUID: ``btrfs receive`` could not tell them apart.
    """
    count = Counter(entry.identity for entry in source)
    return [entry for entry in source if count[entry.identity] == 1]


def _nearest(snapshot: Entry, common: Sequence[Entry]) -> Entry | None:
    """Return the parent that is likely to differ least: the last before, else the first after."""
    before = [entry for entry in common if entry.name < snapshot.name]
    after = [entry for entry in common if entry.name > snapshot.name]
    return before[-1] if before else after[0] if after else None


def _order(line: Mapping[str, Any]) -> list[bytes]:
    return os.fsencode(line["path"]).split(b"/")
