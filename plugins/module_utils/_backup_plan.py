# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is to be copied, to where, and which restore points go. Reads no more than its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils import _snapshot_plan as plan
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import BtrfsError
from ansible_collections.nas.assistant.plugins.module_utils._metrics import Metric
from ansible_collections.nas.assistant.plugins.module_utils._restic import BackupError, Point

TAG = "nas.assistant"
# A point that lacks something. It is no reason to drop another one.
INCOMPLETE = "incomplete"
#: Restore points that are kept whatever the retention says.
FLOOR = 3


@dataclass(frozen=True)
class Source:
    """What is copied. ``volume``: POOL/NAME of a subvolume or dataset, copied from a snapshot of
    it; an empty text: a folder, copied as it is. ``folder``: where snapshots of a subvolume are;
    ``mounted``: where it is mounted beside ``path``, if it is."""

    path: str
    volume: str = ""
    folder: str = ""
    mounted: str = ""
    exclude: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.volume or self.path

    @property
    def on_zfs(self) -> bool:
        """Whether it is a dataset of ZFS, which has its snapshots itself."""
        return bool(self.volume) and not self.folder

    @property
    def place(self) -> str:
        """Where it is in a restore point."""
        pool, _, rest = self.volume.partition("/")
        # Volumes may lie in each other; their snapshots lie side by side.
        return f"volumes/{pool}/{rest.replace('/', '.')}" if rest else f"folders{self.path}"

    @property
    def manifest(self) -> str:
        """Where its manifest is in a restore point."""
        return f"manifest/{self.place.replace('/', '%')}.jsonl"

    @property
    def settled(self) -> bool:
        """Whether nothing is written to it while it is copied."""
        return bool(self.volume)


@dataclass(frozen=True)
class Copy:
    """Where copies are kept: a ``repository`` of restic's, or a ``device`` with a filesystem, by
    its path or the filesystem's UUID. ``verify``: percent of the data that are read after each run;
    ``full``: all files are read anew each time; ``exposed``: this NAS may delete what is there."""

    name: str
    repository: str = ""
    device: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    keep: Mapping[str, Any] = field(default_factory=dict)
    verify: int = 0
    full: bool = False
    exposed: bool = False

    @property
    def changeable(self) -> bool:
        """Whether points that are there may be changed."""
        return bool(self.device) or self.exposed


@dataclass(frozen=True)
class Settings:
    """What the backup role left of the inventory. ``drill``: bytes that a drill restores at
    most."""

    host: str
    sources: tuple[Source, ...]
    copies: tuple[Copy, ...]
    password_file: str
    state: str
    scratch: str
    metrics: str
    cache: str
    drill: int

    @classmethod
    def read(cls, path: str) -> Settings:
        """From the role's file.

        :raises BackupError: it is not there, or not of this version.
        """
        try:
            with open(path, encoding="utf-8") as stream:
                found = json.load(stream)
            sources = [
                Source(**{**each, "exclude": tuple(each.get("exclude", ()))})
                for each in found.pop("sources")
            ]
            copies = [
                Copy(**{**each, "options": tuple(each.get("options", ()))})
                for each in found.pop("copies")
            ]
            return cls(sources=tuple(sources), copies=tuple(copies), **found)
        except FileNotFoundError:
            raise BackupError("failed", f"{path} is missing: run the backup role") from None
        except (KeyError, TypeError, ValueError) as error:
            raise BackupError("failed", f"{path} is none of this version ({error})") from None

    def copy(self, name: str) -> Copy:
        """Return a copy by its name.

        :raises BackupError: there is none; names those that there are.
        """
        for each in self.copies:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in self.copies) or "none"
        raise BackupError("failed", f"{name!r} is no copy of this NAS; there are: {names}")


def lost(had: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return what tells that a source is no longer what it was; an empty text: nothing.

    :param had: its number of ``files`` and the UUID of its ``filesystem``, as far as they are
        known. ``found``: the same as it is, an empty UUID where nobody knows.
    """
    if had.get("files") and not found["files"]:
        return f"is empty and had {had['files']} files: is it mounted?"
    before, now = had.get("filesystem"), found["filesystem"]
    if before and now and now != before:
        return f"is on another filesystem ({now}) than it was ({before}): is it mounted?"
    return ""


def is_complete(point: Point) -> bool:
    """Whether a point is one of ours and lacks nothing."""
    return TAG in point.tags and INCOMPLETE not in point.tags


def drop(points: Sequence[Point], keep: Mapping[str, Any], now: int) -> list[Point]:
    """Return the points that retention drops, the oldest first.

    Those dated after now stay and do not count; nor do those that somebody else made. Incomplete
    ones count for nothing, and go when a complete one is younger by ``within``. At least ``FLOOR``
    complete ones stay.

    :raises BackupError: ``keep`` is none that can be.
    """
    try:
        wanted = plan.Keep.of("keep", {**keep, "minimum": max(FLOOR, keep.get("minimum", 0))})
    except BtrfsError as error:
        raise BackupError("failed", str(error)) from None
    ours = [each for each in points if TAG in each.tags]
    complete = [each for each in ours if is_complete(each)]
    found = plan.retention(
        [plan.Snapshot(each.id, each.time, each.id) for each in complete], wanted, now, ()
    )
    gone = {each.text for each in found.drop}
    past = [each.time for each in complete if each.time <= now]
    limit = max(past, default=0) - (wanted.within if wanted else 0)
    gone |= {each.id for each in ours if INCOMPLETE in each.tags and each.time < limit}
    return [each for each in points if each.id in gone]


def chosen(points: Sequence[Point], wanted: str, now: int) -> Point:
    """Return the point that is meant by ``newest`` (a complete one, not dated after now, where
    there is such), or by the beginning of its id.

    :raises BackupError: none or several are; names those that there are.
    """
    if wanted == "newest" and points:
        past = [each for each in points if each.time <= now] or list(points)
        return ([each for each in past if is_complete(each)] or past)[-1]
    found = [each for each in points if wanted and each.id.startswith(wanted)]
    if len(found) != 1:
        names = ", ".join(f"{each.short} ({plan.stamp(each.time)})" for each in points[-20:])
        raise BackupError(
            "failed", f"point={wanted!r} is no restore point; there are: {names or 'none'}"
        )
    return found[0]


def ahead(points: Sequence[Point], now: int) -> str:
    """Return what to say where complete points are dated after now, so that ``newest`` means an
    older one; an empty text where none is."""
    later = [each for each in points if each.time > now and is_complete(each)]
    if not later or all(each.time > now for each in points):
        return ""
    return (
        f"{len(later)} restore points are dated after now ({plan.stamp(now)}), the last of them "
        f"{later[-1].short} ({plan.stamp(later[-1].time)}), and an older one is taken for the "
        "newest. If the clock of this NAS is behind, set it; or name the one that you mean with "
        "point"
    )


def figures(records: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics of what was last done with each copy.

    :param records: by the copy's name, as ``_backup`` keeps them.
    """
    found = []
    for name, key, text in (
        ("nas_backup_run_time_seconds", "run", "When the last run ended."),
        ("nas_backup_success_time_seconds", "success", "When the last run that succeeded ended."),
        ("nas_backup_duration_seconds", "seconds", "How long the last run took."),
        ("nas_backup_added_bytes", "added", "Bytes that the last success added to the copy."),
        ("nas_backup_source_bytes", "bytes", "Bytes that it copied, those there before counted."),
        ("nas_backup_source_files", "files", "Files that it copied."),
        ("nas_backup_restore_points", "points", "Complete restore points in the copy."),
        ("nas_backup_old_points", "old", "Points that are there though retention drops them."),
        ("nas_backup_drill_time_seconds", "drill_run", "When the last drill ended."),
        ("nas_backup_drill_success_time_seconds", "drill_success", "When one last succeeded."),
        ("nas_backup_drill_duration_seconds", "drill_seconds", "How long the last drill took."),
        ("nas_backup_drill_bytes", "drill_bytes", "Bytes that the last success restored."),
    ):
        samples = [({"copy": copy}, each[key]) for copy, each in records.items() if key in each]
        found.append(Metric(name, text, samples))
    for name, key, text in (
        ("nas_backup_failed", "cause", "Whether the last run failed, and why."),
        ("nas_backup_drill_failed", "drill_cause", "Whether the last drill failed, and why."),
    ):
        samples = [
            ({"copy": copy, "cause": each[key]}, float(bool(each[key])))
            for copy, each in records.items()
            if key in each
        ]
        found.append(Metric(name, text, samples))
    return found
