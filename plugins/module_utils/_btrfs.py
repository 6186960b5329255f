# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What btrfs-progs and the kernel say of Btrfs filesystems, as data. Reads only.

Paths of subvolumes are those below the filesystem's top level, without a slash before them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.nas.assistant.plugins.module_utils._commands import demand, run

TOP_LEVEL = 5  # id of the subvolume that every filesystem has
MOUNTS = "/proc/self/mountinfo"
# What Docker mounts in its data root for containers that run, and unmounts when they stop: their
# filesystems, their memory and secrets, volumes of its driver "local" that are mounts of something
# else, and what its plugins show to containers. Not those of its driver "zfs": its images are
# datasets, which no copy has.
OF_CONTAINERS = re.compile(
    r".*/((overlay2|fuse-overlayfs)/[^/]+/merged|rootfs/[^/]+/[^/]+|containers/[^/]+/mounts/.+"
    r"|volumes/[^/]+/_data|plugins/[^/]+/propagated-mount)"
)
# mountinfo writes these characters of a path as octal numbers; see proc_pid_mountinfo(5).
_ESCAPED = re.compile(r"\\([0-7]{3})")


class BtrfsError(Exception):
    """A command failed, or a filesystem is not what it should be; in one sentence."""


@dataclass(frozen=True)
class Subvolume:
    """A subvolume or snapshot. UUIDs that it has not are empty texts."""

    id: int
    parent: int
    path: str
    uuid: str
    parent_uuid: str
    received_uuid: str
    generation: int
    created_generation: int
    read_only: bool = False


@dataclass(frozen=True)
class Device:
    """A device of a filesystem; sizes in bytes. One that is missing has no path, and the id 0 as
    long as the filesystem is not mounted."""

    id: int
    path: str
    size: int
    used: int

    @property
    def missing(self) -> bool:
        """Whether the kernel has the filesystem without it."""
        return not self.path


@dataclass(frozen=True)
class Filesystem:
    """A filesystem as it is found on the disks, mounted or not."""

    uuid: str
    label: str
    used: int
    devices: list[Device] = field(default_factory=list)


@dataclass(frozen=True)
class Mount:
    """Where a subvolume is mounted. ``root``: the path below the top level, from a slash on."""

    point: str
    root: str
    device: str
    options: tuple[str, ...]


def call(*argv: str, accepted: Sequence[int] = (0,)) -> str:
    """Run a command; return what it printed.

    :raises BtrfsError: it ended with another code than the accepted ones; says what it said.
    """
    return str(demand(argv, BtrfsError, accepted, "btrfs-progs"))


def parse_subvolumes(listing: str, read_only: str) -> list[Subvolume]:
    """Return what ``subvolume list -puqRcg`` says; ``read_only``: the same with ``-r``."""
    locked = {int(number) for number in re.findall(r"^ID (\d+) ", read_only, re.MULTILINE)}
    found = []
    for line in listing.splitlines():
        head, _, path = line.partition(" path ")
        # "top level" is the one key of two words.
        words = head.replace("top level", "top_level").split()
        if not path or words[:1] != ["ID"]:
            continue
        values = dict(zip(words[::2], words[1::2], strict=False))
        texts = {key: "" if value == "-" else value for key, value in values.items()}
        # A line that is none of btrfs's own is the rest of a name with a line break.
        with contextlib.suppress(KeyError, ValueError):
            found.append(
                Subvolume(
                    id=int(values["ID"]),
                    parent=int(values["parent"]),
                    path=path.removeprefix("<FS_TREE>/"),
                    uuid=texts["uuid"],
                    parent_uuid=texts["parent_uuid"],
                    received_uuid=texts["received_uuid"],
                    generation=int(values["gen"]),
                    created_generation=int(values["cgen"]),
                    read_only=int(values["ID"]) in locked,
                )
            )
    return found


def from_top(found: list[Subvolume], start: int) -> list[Subvolume]:
    """Return subvolumes that were listed from inside of ``start`` (its id), with whole paths.

    btrfs gives those below it by their paths from there, and all others from the top level.
    """
    parents = {each.id: each.parent for each in found}
    above = {each.id: f"{each.path}/" for each in found}.get(start, "")

    def is_below(subvolume: Subvolume) -> bool:
        number, steps = subvolume.parent, len(parents)
        # Lines that a name with line breaks forged may go round in a circle.
        while number != start and number in parents and steps:
            number, steps = parents[number], steps - 1
        return number == start

    return [
        replace(each, path=above + each.path) if above and is_below(each) else each
        for each in found
    ]


def parse_filesystems(listing: str) -> list[Filesystem]:
    """Return what ``filesystem show --raw`` says."""
    found: list[Filesystem] = []
    head = re.compile(r"Label: (?:'(?P<label>.*)'|none)\s+uuid: (?P<uuid>[0-9a-f-]{36})")
    device = re.compile(r"\s+devid\s+(\d+) size (\d+) used (\d+) path(?: (.*))?")
    used = re.compile(r"\s+Total devices (\d+) FS bytes used (\d+)")
    counts: dict[str, int] = {}
    for line in listing.splitlines():
        if matched := head.match(line):
            found.append(Filesystem(matched["uuid"], matched["label"] or "", 0))
        elif matched := used.match(line):
            found[-1] = Filesystem(found[-1].uuid, found[-1].label, int(matched[2]))
            counts[found[-1].uuid] = int(matched[1])
        elif matched := device.match(line):
            path = (matched[4] or "").strip()
            # What is missing: no path at all, or MISSING behind whatever stands there.
            gone = path.endswith("MISSING") or path.startswith("<missing")
            entry = Device(int(matched[1]), "" if gone else path, int(matched[2]), int(matched[3]))
            found[-1].devices.append(entry)
    for each in found:
        # Of one that is not mounted, those that are missing are left out, with their ids.
        # One that is taking another's place is listed too, with the id 0, and does not count yet.
        gaps = counts.get(each.uuid, 0) - sum(device.id > 0 for device in each.devices)
        each.devices.extend([Device(0, "", 0, 0)] * gaps)
    return found


def parse_profiles(listing: str) -> dict[str, list[str]]:
    """Return the RAID profiles of data, metadata and system, from ``--format json filesystem df``.

    One kind may have several profiles: a conversion that has not ended.
    """
    found: dict[str, list[str]] = {}
    for group in json.loads(listing)["filesystem-df"]:
        kind, profile = group["bg-type"].lower(), group["bg-profile"].lower()
        if kind != "globalreserve" and profile not in found.setdefault(kind, []):
            found[kind].append(profile)
    return found


def parse_errors(listing: str) -> dict[int, dict[str, int]]:
    """Return the errors that a device has had, by its id, from ``--format json device stats``."""
    return {
        int(entry["devid"]): {
            key.removesuffix("_errs"): int(value)
            for key, value in entry.items()
            if key.endswith("_errs")
        }
        for entry in json.loads(listing)["device-stats"]
    }


def parse_quotas(listing: str) -> dict[int, dict[str, int]]:
    """Return use and limits of each subvolume in bytes, by its id, from ``qgroup show --raw -re``;
    no limit is 0.

    Not from its JSON: btrfs-progs 6.2 aborts there as soon as one limit is set.
    """
    keys = ("referenced", "exclusive", "max_referenced", "max_exclusive")
    found = {}
    for line in listing.splitlines():
        group, *sizes = line.split()[:5] or [""]
        if group.startswith("0/") and len(sizes) == len(keys):
            numbers = [0 if size == "none" else int(size) for size in sizes]
            found[int(group.removeprefix("0/"))] = dict(zip(keys, numbers, strict=True))
    return found


def parse_scrub(listing: str) -> dict[str, str | int]:
    """Return what ``scrub status -R`` says of the last one: ``status`` (``never``, ``running``,
    ``finished``, ``aborted``, ``interrupted``), ``started``, and the counts ``bytes``, ``errors``,
    ``uncorrectable``."""
    values = {}
    for line in listing.splitlines():
        key, colon, value = line.strip().partition(":")
        if colon:
            values[key] = value.strip()
    if "Status" not in values:
        return {"status": "never", "started": "", "bytes": 0, "errors": 0, "uncorrectable": 0}
    kinds = ("read_errors", "csum_errors", "verify_errors", "super_errors")
    return {
        "status": values["Status"],
        "started": values.get("Scrub started") or values.get("Scrub resumed") or "",
        "bytes": sum(int(values.get(f"{kind}_bytes_scrubbed", 0)) for kind in ("data", "tree")),
        "errors": sum(int(values.get(kind, 0)) for kind in kinds),
        "uncorrectable": int(values.get("uncorrectable_errors", 0)),
    }


def parse_mounts(text: str) -> list[Mount]:
    """Return the mounts of Btrfs among those of a mountinfo file, in the order they were made."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        place, kind = left.split(), right.split()
        if kind[:1] == ["btrfs"]:
            root, point, device = (unescaped(word) for word in (place[3], place[4], kind[1]))
            options = (*place[5].split(","), *kind[2].split(","))
            found.append(Mount(point, root, device, options))
    return found


def filesystems() -> list[Filesystem]:
    """Return the filesystems on all disks of this machine."""
    return parse_filesystems(call("btrfs", "filesystem", "show", "--raw"))


def mounts() -> list[Mount]:
    """Return where Btrfs is mounted."""
    with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as stream:
        return parse_mounts(stream.read())


def points() -> set[str]:
    """Return where anything is mounted. A subvolume that is not looks like a mount to Python."""
    with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as stream:
        return {unescaped(line.split()[4]) for line in stream}


def mounts_of(filesystem: Filesystem, among: Iterable[Mount]) -> list[Mount]:
    """Return the mounts of one filesystem, whichever of its devices they name."""
    devices = {os.path.realpath(device.path) for device in filesystem.devices if device.path}
    return [mount for mount in among if os.path.realpath(mount.device) in devices]


def subvolumes(path: str) -> list[Subvolume]:
    """Return all subvolumes of the filesystem that is mounted at a path."""
    found = parse_subvolumes(
        call("btrfs", "subvolume", "list", "-puqRcg", path),
        call("btrfs", "subvolume", "list", "-r", path),
    )
    return from_top(found, int(call("btrfs", "inspect-internal", "rootid", path)))


def quotas(path: str) -> dict[int, dict[str, int]] | None:
    """Return what ``parse_quotas`` does, and nothing where quotas are off."""
    done = run(["btrfs", "qgroup", "show", "--raw", "-re", path])
    if done.returncode != 0 and "quotas not enabled" in done.stderr:
        return None
    if done.returncode != 0:
        raise BtrfsError(f"btrfs qgroup show {path}: {' '.join(done.stderr.split())}")
    return parse_quotas(done.stdout)


def unescaped(word: str) -> str:
    """Return a path of mountinfo as it is."""
    return _ESCAPED.sub(lambda matched: chr(int(matched[1], 8)), word)
