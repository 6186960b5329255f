# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What OpenZFS says of pools, datasets and snapshots, as data. Reads only, but for ``call``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible_collections.nas.assistant.plugins.module_utils._commands import demand, run

# What a pool may have beside its main groups; it stays as it is.
_AUXILIARY = ("logs", "cache", "spares", "special", "dedup")
# A device in one of these does not do its part. What its owner took offline is no failure.
_FAILED = ("UNAVAIL", "REMOVED", "FAULTED", "CANT_OPEN")
# Around one that takes the place of another, for the time.
_PASSING = ("replacing", "spare")
_GROUP = re.compile(r"(mirror|raidz\d|draid\d\S*|replacing|spare)-\d+")

REMEDY = (
    "On Debian, add the component contrib to the package sources, then apt install "
    "linux-headers-amd64 zfs-dkms zfsutils-linux (on ARM linux-headers-arm64); or take "
    "provider: btrfs, which needs nothing"
)


class ZfsError(Exception):
    """A command failed, or a pool is not what it should be; in one sentence."""


@dataclass(frozen=True)
class Leaf:
    """A device of a pool. ``name``: what ``zpool`` calls it, a path or, of one that is gone, often
    a number; ``was``: its path then."""

    name: str
    state: str
    was: str = ""
    replaced: bool = False  # another one takes its place at this time

    @property
    def failed(self) -> bool:
        """Whether the pool does without it, and not because its owner wants so."""
        return self.state in _FAILED


@dataclass
class Group:
    """Devices that keep the same data: a ``mirror``, ``raidz1`` to ``raidz3`` …, or a ``disk``."""

    kind: str
    leaves: list[Leaf] = field(default_factory=list)


@dataclass
class Pool:
    """A pool. ``state``: ``ONLINE``, ``DEGRADED`` …; ``busy``: the long work that goes on;
    ``errors``: what ZFS says of damaged data, an empty text where there are none."""

    name: str
    guid: str = ""
    state: str = ""
    busy: str = ""
    errors: str = ""
    groups: list[Group] = field(default_factory=list)

    @property
    def leaves(self) -> list[Leaf]:
        """All its devices."""
        return [leaf for group in self.groups for leaf in group.leaves]


@dataclass(frozen=True)
class Dataset:
    """A filesystem in a pool. ``mountpoint``: ``none`` or ``legacy`` too."""

    name: str
    guid: str
    mountpoint: str
    mounted: bool


@dataclass(frozen=True)
class Snapshot:
    """A snapshot: what follows the ``@``, its id, when it was made (seconds since the epoch),
    whether somebody holds it, and the value of the property that was asked for."""

    text: str
    guid: str
    time: int
    held: bool
    mark: str


def call(*argv: str, accepted: Sequence[int] = (0,)) -> str:
    """Run a command; return what it printed.

    :raises ZfsError: it ended with another code than the accepted ones; says what it said.
    """
    return str(demand(argv, ZfsError, accepted, "zfsutils-linux"))


def need(name: str) -> None:
    """See that this machine has ZFS: its programs, and its part of the kernel.

    :raises ZfsError: it has not; says what to do.
    """
    try:
        if os.path.exists("/sys/module/zfs") or run(["modprobe", "zfs"]).returncode == 0:
            run(["zpool", "version"])
            return
        reason = f"the kernel {os.uname().release} has no module zfs"
    except FileNotFoundError as error:
        reason = f"{error.filename} is not installed"
    raise ZfsError(f"{name}: provider=zfs, and {reason}. {REMEDY}")


def parse_status(text: str) -> Pool:
    """Return what ``zpool status -P`` says of one pool."""
    head = dict(re.findall(r"^ *(pool|state|scan|errors): (.*)$", text, re.MULTILINE))
    found = Pool(head.get("pool", ""), state=head.get("state", ""))
    for work in ("resilver", "scrub"):
        if head.get("scan", "").startswith(f"{work} in progress"):
            found.busy = work
    errors = head.get("errors", "")
    found.errors = "" if errors == "No known data errors" else errors
    inside, depths = False, {0: ""}
    for line in text.partition("\nconfig:\n")[2].partition("\nerrors:")[0].splitlines():
        words = line.split()
        if not line.startswith("\t") or not words or words[:2] == ["NAME", "STATE"]:
            continue
        depth = (len(line) - 1 - len(line[1:].lstrip(" "))) // 2
        if depth == 0:
            inside = words[0] not in _AUXILIARY
            continue
        if not inside:
            continue
        depths = {key: value for key, value in depths.items() if key < depth}
        matched = _GROUP.fullmatch(words[0])
        depths[depth] = matched[1] if matched else ""
        if depth == 1:
            found.groups.append(Group("disk" if depths[1] in ("", *_PASSING) else depths[1]))
        if matched:
            continue
        above = [depths[key] for key in sorted(depths) if 0 < key < depth]
        was = line.partition(" was ")[2].split()
        found.groups[-1].leaves.append(
            Leaf(
                name=words[0],
                state=words[1] if len(words) > 1 else "",
                was=was[0] if was else "",
                replaced=bool({*_PASSING} & set(above)),
            )
        )
    return found


def parse_importable(text: str) -> list[Pool]:
    """Return the pools that ``zpool import`` finds on disks and that are not in use."""
    found: list[Pool] = []
    for key, value in re.findall(r"^ *(pool|id|state): (.*)$", text, re.MULTILINE):
        if key == "pool":
            found.append(Pool(value))
        elif key == "id":
            found[-1].guid = value
        else:
            found[-1].state = value
    return found


def parse_datasets(text: str) -> list[Dataset]:
    """Return what ``zfs list -Hp -o name,guid,mountpoint,mounted`` says."""
    rows = [line.split("\t") for line in text.splitlines()]
    return [Dataset(row[0], row[1], row[2], row[3] == "yes") for row in rows if len(row) == 4]


def parse_snapshots(text: str) -> list[Snapshot]:
    """Return what ``zfs list -Hp -t snapshot -o name,guid,creation,userrefs,PROPERTY`` says."""
    found = []
    for row in (line.split("\t") for line in text.splitlines()):
        if len(row) == 5:
            mark = "" if row[4] == "-" else row[4]
            held = row[3] not in ("0", "-")
            found.append(Snapshot(row[0].partition("@")[2], row[1], int(row[2]), held, mark))
    return found


def pool(name: str) -> Pool | None:
    """Return a pool that is in use; None where none of that name is."""
    if run(["zpool", "list", "-H", "-o", "name", name]).returncode != 0:
        return None
    found = parse_status(call("zpool", "status", "-P", name))
    found.guid = call("zpool", "get", "-Hp", "-o", "value", "guid", name).strip()
    return found


def importable() -> list[Pool]:
    """Return the pools on the disks that are not in use."""
    # With none, it ends with 1.
    return parse_importable(call("zpool", "import", accepted=(0, 1)))


def datasets(name: str) -> list[Dataset]:
    """Return the filesystems of a pool."""
    columns = "name,guid,mountpoint,mounted"
    listed = call("zfs", "list", "-Hp", "-t", "filesystem", "-r", "-o", columns, name)
    return parse_datasets(listed)


def dataset(name: str) -> Dataset:
    """Return one filesystem.

    :raises ZfsError: it is not there.
    """
    columns = "name,guid,mountpoint,mounted"
    (found,) = parse_datasets(call("zfs", "list", "-Hp", "-t", "filesystem", "-o", columns, name))
    return found


def snapshots(name: str, mark: str) -> list[Snapshot]:
    """Return the snapshots of a filesystem, with the value of a property of ours."""
    columns = f"name,guid,creation,userrefs,{mark}"
    listed = call("zfs", "list", "-Hp", "-t", "snapshot", "-d", "1", "-o", columns, name)
    return parse_snapshots(listed)
