# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Copies a NAS to where its copies are kept, and proves that they can be read.

All mounts are those of the process alone, which must have called ``_private.enter``: a run that is
killed leaves none behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils import (
    _backup_plan as plan,
    _block as block,
    _btrfs as btrfs,
    _manifest as manifest,
    _metrics as metrics,
    _private as private,
    _snapshots as snapshots,
    _zfs as zfs,
)
from ansible_collections.nas.assistant.plugins.module_utils._backup_plan import (
    Copy,
    Settings,
    Source,
)
from ansible_collections.nas.assistant.plugins.module_utils._files import replace
from ansible_collections.nas.assistant.plugins.module_utils._lock import held
from ansible_collections.nas.assistant.plugins.module_utils._restic import (
    BackupError,
    Point,
    Repository,
    literally,
    unreadable,
)

RUN = "/run/nas-assistant"
#: Where a point says what it holds.
INDEX = "manifest/index.json"
METRICS = "nas_backup"
# Among the snapshots of a pool, and none of those that retention knows.
SNAPSHOTS = ".backup"
# Of a dataset of ZFS, the same; and the property that tells ours.
ZFS_PREFIX, ZFS_MARK = "nas-backup-", "nas.assistant:backup"
WHOLE = 100  # percent
_READ_ONLY = "ro,nosuid,nodev,noexec"
_WRITABLE = "noatime,nosuid,nodev,noexec"

Record = dict[str, Any]


def now() -> int:
    """Return the time in whole seconds."""
    return int(time.time())


def run(settings: Settings, name: str) -> Record:
    """Make one more restore point in a copy; return its record.

    What was there before is deleted, where the copy is this NAS's to prune, only once the new point
    was read back.

    :raises BackupError: it was not made, or lacks something; metrics and record say so too.
    """
    copy = settings.copy(name)
    problems: list[str] = []
    with recorded(settings, copy, "") as record:
        with opened(settings, copy) as repository:
            _add(settings, copy, repository, record, problems)
        # A device is mounted anew: what was just written would be read from memory, not from it.
        with opened(settings, copy) as repository:
            _prove(settings, copy, repository, record, problems)
        if problems:
            raise BackupError("incomplete", f"incomplete: {'; '.join(problems[:5])}")
    return record


def _add(
    settings: Settings, copy: Copy, repository: Repository, record: Record, problems: list[str]
) -> None:
    """Make a restore point."""
    record["repository"] = claim(settings, copy, repository)
    # Now, since a run that is cut off must know its own points again.
    remember(settings, copy.name, {"repository": record["repository"]})
    # What a run that was killed left; locks of others that are alive stay.
    repository.run("unlock")
    known = records(settings)[copy.name].get("verified", "")
    points = repository.points(settings.host)
    if copy.device and known and known == newest(points):
        # Retention may have been cut since, to make room for this run.
        prune(repository, points, copy.keep)
    with staged(settings, copy, problems) as (stage, shown):
        record |= _copy(settings, copy, repository, stage, shown, problems)


def _prove(
    settings: Settings, copy: Copy, repository: Repository, record: Record, problems: Sequence[str]
) -> None:
    """Read what is in a copy, and delete what is old where that is this NAS's to do."""
    if copy.verify:
        if repository.location.startswith("/"):
            uncache(repository.location)
        share = f"--read-data-subset={copy.verify}%" if copy.verify < WHOLE else "--read-data"
        repository.run("check", share)
    points = repository.points(settings.host)
    if copy.verify == WHOLE and not problems:
        record["verified"] = newest(points)
        if copy.device:
            points = prune(repository, points, copy.keep)
    record["points"] = sum(map(plan.is_complete, points))
    record["told"] = unknown(copy.name, settings.sources) if copy.device else []
    if repository.erasable:
        record["told"].append(
            f"the server of {copy.name} takes more than new data: whoever has this NAS can delete "
            "all of it there. Start it with --append-only"
        )
    # Of what is off-site: whether anybody prunes there.
    record["old"] = sum(map(plan.is_complete, plan.drop(points, copy.keep, now())))


def uncache(folder: str) -> None:
    """Have files read from where they are kept, and not from memory: of a device that somebody else
    has mounted too, and of a folder, a new mount is not enough.

    They must have been synced, as restic does with all that it writes.
    """
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                descriptor = os.open(os.path.join(top, name), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


def claim(settings: Settings, copy: Copy, repository: Repository, force: bool = False) -> str:
    """Return the id of the repository, which is made where there never was one.

    :param force: take what is there, whoever made it.
    :raises BackupError: it is another one than before; or it holds points of this NAS though this
        NAS, being new, made none of them. One more would hide them.
    """
    known = "" if force else records(settings).get(copy.name, {}).get("repository", "")
    found: str = repository.id()
    if found and found == known:
        return found
    remedy = (
        f"Restore from it first (playbook nas.assistant.restore); or, to go on without that, run "
        f"nas-backup accept {copy.name} on {settings.host}"
    )
    if known:
        raise BackupError(
            "gone",
            f"gone: the repository of {copy.name} that this NAS had copied to "
            f"{'is another one now' if found else 'is no longer there'}, with all its points. See "
            f"what became of it; to begin anew, run nas-backup accept {copy.name} on "
            f"{settings.host}",
        )
    if not found:
        repository.run("init")
        return str(repository.id())
    points = repository.points(settings.host)
    if points and not force:
        raise BackupError(
            "foreign",
            f"foreign: {copy.name} has {len(points)} restore points of {settings.host}, the newest "
            f"of {time.strftime('%Y-%m-%d', time.gmtime(points[-1].time))}, and this NAS made none "
            f"of them. {remedy}",
        )
    return found


def accept(settings: Settings, name: str, sources: Collection[str] = ()) -> Record:
    """Take the repository that is there for this NAS's own, or make one; and sources as they are
    now, whatever they were.

    :param sources: their names; all, unless given.
    """
    copy = settings.copy(name)
    with alone(copy), opened(settings, copy) as repository:
        found = claim(settings, copy, repository, True)
        had = records(settings).get(name, {}).get("had", {})
        others = [each.place for each in settings.sources if sources and each.name not in sources]
        left = {place: had[place] for place in others if place in had}
        return remember(settings, name, {"repository": found, "had": left})


def newest(points: Sequence[Point]) -> str:
    """Return the id of the newest complete point of ours that is not from time to come."""
    there = [each for each in points if plan.is_complete(each) and each.time <= now()]
    return there[-1].id if there else ""


def prune(repository: Repository, points: Sequence[Point], keep: Mapping[str, Any]) -> list[Point]:
    """Delete what retention drops; return what is left."""
    gone = plan.drop(points, keep, now())
    if gone:
        repository.delete([each.id for each in gone])
    return [each for each in points if each not in gone]


@contextlib.contextmanager
def opened(settings: Settings, copy: Copy, write: bool = True) -> Iterator[Repository]:
    """Give the repository of a copy; a device is mounted for the time.

    :raises BackupError: the device is not there, or is no other disk than the data's.
    """
    location, options = copy.repository, list(copy.options)
    with contextlib.ExitStack() as stack:
        if copy.device:
            point = os.path.join(RUN, f"device-{copy.name}")
            device = separate(settings, copy)
            try:
                private.mount(device, point, _WRITABLE if write else _READ_ONLY)
            except private.MountError as error:
                raise BackupError("device", f"device: {copy.name}: {error}") from None
            stack.callback(private.unmount, point)
            # Elsewhere, somebody may prune meanwhile.
            options += [] if write else ["--no-lock"]
            location = os.path.join(point, "nas-assistant", settings.host)
        elif location.startswith("/") and write:
            demand_elsewhere(copy, settings.sources)
        repository = Repository(
            location=location,
            password_file=settings.password_file,
            cache=settings.cache,
            environment=copy.environment,
            options=options,
        )
        try:
            yield repository
        except BackupError as error:
            if not copy.device:
                raise
            if not block.is_there(device):
                raise BackupError(
                    "device", f"device: {device} of {copy.name} was taken away, or failed: {error}"
                ) from None
            if write and error.cause == "no room":
                # What this run left there is of no use to anybody.
                with contextlib.suppress(BackupError):
                    repository.tidy()
            raise


def separate(settings: Settings, copy: Copy) -> str:
    """Return the device of a copy, once it is known to be on other disks than what is copied."""
    devices = [copy.device] if copy.device.startswith("/") else block.with_uuid(copy.device)
    if not devices or not block.is_there(devices[0]):
        raise BackupError(
            "device",
            f"device: {copy.device} is not there for {copy.name}. Connect it, and see that it has "
            "power",
        )
    demand_apart(copy.name, devices, settings.sources)
    return str(devices[0])


def demand_elsewhere(copy: Copy, sources: Iterable[Source]) -> None:
    """Refuse a folder for a copy that is on a disk of what is copied, or on the system's own."""
    above = copy.repository
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if block.mount_point(above) == "/":
        raise BackupError(
            "device",
            f"device: {copy.name}: nothing is mounted at {copy.repository}, nor at a folder above "
            "it, so that it would be on the system's own disk. Mount what it is meant to be on; or "
            "give the disk as device, which is mounted for the time of a run only",
        )
    if devices := block.under(above):
        demand_apart(copy.name, devices, sources)


def demand_apart(name: str, devices: Sequence[str], sources: Iterable[Source]) -> None:
    """Refuse devices of a copy that share a disk with what is copied; names both."""
    own = {disk for device in devices for disk in block.disks(device)}
    for source in sources:
        if not os.path.exists(source.path):
            continue
        shared = own & {disk for each in block.under(source.path) for disk in block.disks(each)}
        if shared:
            raise BackupError(
                "device",
                f"device: {name} ({devices[0]}) is on the same disk as {source.name} "
                f"({', '.join(sorted(shared))}), and would be lost with it. Give another disk",
            )


def unknown(name: str, sources: Iterable[Source]) -> list[str]:
    """Return of which sources nobody knows whether they share a disk with a copy, as sentences."""
    kinds = [(each.name, block.opaque(each.path)) for each in sources if os.path.exists(each.path)]
    return [
        f"{source} is on {kind}, whose disks are not known: see yourself that {name} is on no disk "
        "of it"
        for source, kind in kinds
        if kind
    ]


@contextlib.contextmanager
def staged(
    settings: Settings, copy: Copy, problems: list[str]
) -> Iterator[tuple[str, list[Source]]]:
    """Show all sources below one folder, always the same, volumes from fresh snapshots.

    Gives the folder and the sources that are there; ``problems`` gets what is said of the others.
    """
    stage = os.path.join(RUN, f"backup-{copy.name}")
    shown = []
    # Left in the other order: what is mounted before what was made.
    with contextlib.ExitStack() as made, contextlib.ExitStack() as mounted:
        private.empty(stage)
        mounted.callback(private.unmount, stage)
        for source in settings.sources:
            try:
                _show(source, copy, [each.name for each in settings.copies], stage, made)
                problems += _apart(settings, source)
            except (
                BackupError,
                btrfs.BtrfsError,
                zfs.ZfsError,
                private.MountError,
                OSError,
            ) as error:
                problems.append(f"{source.name}: {error}")
            else:
                shown.append(source)
        yield stage, shown


def _show(
    source: Source, copy: Copy, copies: Collection[str], stage: str, made: contextlib.ExitStack
) -> None:
    """Mount a source at its place; of a volume, a snapshot."""
    place = os.path.join(stage, source.place)
    if source.on_zfs:
        private.mount(_snapshot_zfs(source, copy, copies, made), place, _READ_ONLY, "zfs")
        return
    path = _snapshot(source, copy, copies, made) if source.volume else source.path
    if not os.path.isdir(path):
        raise BackupError("incomplete", f"{path} is no folder")
    private.bind(path, place)


def _apart(settings: Settings, source: Source) -> list[str]:
    """Return what lies below a source and is no part of it, as sentences: mounts, and subvolumes
    of their own."""
    tops = [each for each in (source.path, source.mounted) if each]
    found = {
        point
        for point in btrfs.points()
        if _is_in(point, tops) and not btrfs.OF_CONTAINERS.fullmatch(point)
    }
    inner: set[str] = set()
    place = snapshots.look(source.path) if source.volume else None
    if place:
        # Paths of subvolumes are those from the top level, where the pool is mounted.
        top = os.path.dirname(source.folder)
        listed = btrfs.subvolumes(source.path)
        inner = {os.path.join(top, each.path) for each in listed if each.parent == place.id}
    others = {point for each in settings.sources for point in (each.path, each.mounted)}
    left_out = [os.path.join(top, each) for top in tops for each in source.exclude]
    # As a folder it would be copied; but a volume comes back as a whole with those alone in it that
    # the inventory knows.
    volume = "make it a volume of storage_pools and name that in backup_sources"
    return [
        f"{source.name}: {point} lies in it and is not copied: "
        f"{volume if point in inner else 'name it in backup_sources too'}, or name it in exclude"
        for point in sorted(found | inner)
        if point not in others and point not in left_out and not _is_in(point, left_out)
    ]


def _is_in(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def _snapshot(
    source: Source, copy: Copy, copies: Collection[str], made: contextlib.ExitStack
) -> str:
    """Make a snapshot of a volume that is deleted at the end; return where it is.

    :param copies: names of all that there are.
    """
    if not snapshots.is_subvolume(source.path):
        raise BackupError("incomplete", f"{source.path} is no subvolume, or is not mounted")
    folder = os.path.join(source.folder, SNAPSHOTS)
    private_folders(source.folder, folder)
    for name in os.listdir(folder):
        # Left by a run of a copy that the inventory no longer has.
        if name.partition(".")[0] not in copies:
            _delete(os.path.join(folder, name))
    path = os.path.join(folder, f"{copy.name}.{source.place.split('/')[-1]}")
    _delete(path)
    made.callback(_delete, path)
    btrfs.call("btrfs", "subvolume", "snapshot", "-r", source.path, path)
    return path


def private_folders(*paths: str) -> None:
    """Make folders that are root's alone, one in the other: the mode counts for the last one of a
    path only."""
    for path in paths:
        os.makedirs(path, mode=0o700, exist_ok=True)


def _snapshot_zfs(
    source: Source, copy: Copy, copies: Collection[str], made: contextlib.ExitStack
) -> str:
    """As ``_snapshot``, of a dataset; return what mount(8) takes it by."""
    dataset = zfs.dataset(source.volume)
    if not dataset.mounted or dataset.mountpoint != source.path:
        raise BackupError("incomplete", f"{source.volume} is not mounted at {source.path}")
    for each in zfs.snapshots(source.volume, ZFS_MARK):
        # Left by a run that was cut off; ours alone, whatever they are called.
        owner = each.text.removeprefix(ZFS_PREFIX)
        if each.mark == dataset.guid and (owner == copy.name or owner not in copies):
            _destroy(f"{source.volume}@{each.text}")
    name = f"{source.volume}@{ZFS_PREFIX}{copy.name}"
    zfs.call("zfs", "snapshot", "-o", f"{ZFS_MARK}={dataset.guid}", name)
    made.callback(_destroy, name)
    return name


def _destroy(name: str) -> None:
    zfs.call("zfs", "destroy", name)


def _delete(path: str) -> None:
    if snapshots.is_subvolume(path):
        btrfs.call("btrfs", "subvolume", "delete", path)


def _copy(
    settings: Settings,
    copy: Copy,
    repository: Repository,
    stage: str,
    shown: Sequence[Source],
    problems: list[str],
) -> Record:
    """Write the manifests of what is staged, and copy both; return figures."""
    kept = os.path.join(settings.state, copy.name)
    os.makedirs(os.path.join(kept, "manifest"), mode=0o700, exist_ok=True)
    inner: list[str] = []
    sources = [_list(settings, copy, stage, each, problems, inner) for each in shown]
    problems += _lost(settings, copy, shown, {each["place"]: each["files"] for each in sources})
    index = {
        "version": 1,
        "host": settings.host,
        "time": now(),
        "complete": not problems,
        "sources": sources,
    }
    _write(os.path.join(kept, INDEX), json.dumps(index, indent=1).encode())
    wanted = {os.path.basename(each.manifest) for each in shown} | {os.path.basename(INDEX)}
    for name in set(os.listdir(os.path.join(kept, "manifest"))) - wanted:
        os.unlink(os.path.join(kept, "manifest", name))
    private.bind(os.path.join(kept, "manifest"), os.path.join(stage, "manifest"))
    words = ["backup", "--json", "--quiet", "--host", settings.host, "--tag", plan.TAG]
    if problems:
        words += ["--tag", plan.INCOMPLETE]
    if copy.full:
        words.append("--force")
    for source in shown:
        for each in source.exclude:
            words += ["--exclude", os.path.join(stage, source.place, each)]
    for place in inner:
        words += ["--exclude", os.path.join(stage, literally(place))]
    places = [each.place for each in shown]
    # 3: something could not be read, and the rest was copied.
    done = repository.attempt(*words, "manifest", *places, folder=stage, accepted=(0, 3))
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    # From a folder in use, files go while it is read; nothing else may be amiss.
    lines = unreadable(done.stderr)
    if done.returncode == 3 and (lines or all(each.settled for each in shown)):
        said = lines or done.stderr.splitlines()
        if copy.changeable and not problems:
            # Known too late for its tag. Where none can be added, a drill finds what is missing.
            with contextlib.suppress(BackupError):
                repository.run("tag", "--add", plan.INCOMPLETE, summary["snapshot_id"])
        problems.append(repository.without_secrets("; ".join(said[:3])))
    return {
        "added": summary["data_added"],
        "bytes": summary["total_bytes_processed"],
        "files": summary["total_files_processed"],
        "point": summary["snapshot_id"],
    }


def _lost(
    settings: Settings, copy: Copy, shown: Sequence[Source], files: Mapping[str, int]
) -> list[str]:
    """Return which sources are not what they were, as sentences; remember the others as they are.

    What a source had is known until it is accepted that it has it no more: the next run would find
    an empty one as it was, and retention would give up what is good.

    :param files: how many there are, by the source's place.
    """
    known = records(settings).get(copy.name, {}).get("had", {})
    had = {each.place: known.get(each.place, {}) for each in settings.sources}
    said = []
    for source in shown:
        found = {"files": files[source.place], "filesystem": block.filesystem(source.path)}
        if wrong := plan.lost(had[source.place], found):
            said.append(f"{source.name} {wrong} If it is to be so: nas-backup accept {copy.name}")
        else:
            had[source.place] |= {key: value for key, value in found.items() if value}
    remember(settings, copy.name, {"had": had})
    return said


def _list(
    settings: Settings,
    copy: Copy,
    stage: str,
    source: Source,
    problems: list[str],
    inner: list[str],
) -> dict[str, Any]:
    """Write the manifest of one source; return what the index says of it.

    :param inner: gets the places of subvolumes that lie in it, which are left out.
    """
    target = os.path.join(settings.state, copy.name, source.manifest)
    # Any copy's will do: what has changed since is found by its times.
    others = [os.path.join(settings.state, each.name, source.manifest) for each in settings.copies]
    others = sorted((each for each in others if os.path.exists(each)), key=os.path.getmtime)
    count = total = 0
    with contextlib.ExitStack() as stack:
        earlier: Iterator[manifest.Entry] = iter(())
        # What a folder in use is overwritten with through memory may keep its times for a while.
        if others and (source.settled or not copy.full):
            stream = stack.enter_context(open(others[-1], encoding="utf-8"))
            earlier = _as_far_as_it_goes(manifest.read(stream))
        draft = stack.enter_context(open(f"{target}.draft", "w", encoding="utf-8"))
        top = os.path.join(stage, source.place)

        def apart(path: str) -> None:
            inner.append(os.path.join(source.place, path))

        walk = manifest.walk(
            top,
            source.exclude,
            earlier,
            problems.append,
            trust=not copy.full,
            apart=apart if source.folder else None,
        )
        for entry in walk:
            draft.write(entry.line)
            count, total = count + (entry.kind == "f"), total + entry.size
    os.replace(f"{target}.draft", target)
    return {
        "name": source.name,
        "place": source.place,
        "manifest": source.manifest,
        "settled": source.settled,
        "files": count,
        "bytes": total,
    }


def _as_far_as_it_goes(entries: Iterator[manifest.Entry]) -> Iterator[manifest.Entry]:
    """What is left of a manifest that power cut off is still of use."""
    with contextlib.suppress(ValueError):
        yield from entries


def records(settings: Settings) -> dict[str, Record]:
    """Return what is known of each copy, by its name. What cannot be read is as good as none: the
    next run then asks whether the copy is this NAS's own."""
    found = {}
    for copy in settings.copies:
        try:
            with open(_record(settings, copy.name), encoding="utf-8") as stream:
                found[copy.name] = json.load(stream)
        except (FileNotFoundError, ValueError):
            continue
    return found


def unfinished(settings: Settings) -> list[str]:
    """Return the units whose last run was cut off, as by a loss of power."""
    known = records(settings)
    return [
        f"nas-{kind}@{copy.name}.service"
        for copy in settings.copies
        for kind, prefix in (("backup", ""), ("drill", "drill_"))
        if known.get(copy.name, {}).get(f"{prefix}begun")
    ]


def remember(settings: Settings, name: str, news: Record) -> Record:
    """Add to what is known of a copy, and renew the metrics."""
    record: Record = {**records(settings).get(name, {}), **news}
    _write(_record(settings, name), json.dumps(record, indent=1).encode())
    metrics.write(settings.metrics, f"{METRICS}_{name}", plan.figures({name: record}))
    return record


def _record(settings: Settings, name: str) -> str:
    return os.path.join(settings.state, name, "record.json")


def _write(path: str, content: bytes) -> None:
    replace(path, content, 0, 0, 0o600)


@contextlib.contextmanager
def alone(copy: Copy) -> Iterator[None]:
    """Keep others from a copy, and refuse where somebody is at it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(os.path.join(RUN, f"backup-{copy.name}.lock"), 5))
        except TimeoutError:
            raise BackupError("busy", f"busy: another run is at {copy.name}") from None
        yield


@contextlib.contextmanager
def recorded(settings: Settings, copy: Copy, prefix: str) -> Iterator[Record]:
    """Do something with a copy, and note how it went; what is added to the record is noted too."""
    record: Record = {}
    with alone(copy):
        began = time.monotonic()
        cause = "failed"
        with contextlib.suppress(OSError):
            remember(settings, copy.name, {f"{prefix}begun": now()})
        try:
            yield record
            cause = ""
            record[f"{prefix}success"] = now()
        except BackupError as error:
            cause = error.cause
            raise
        except (btrfs.BtrfsError, zfs.ZfsError, private.MountError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
                cause = "no room"
            raise BackupError(cause, f"{cause}: {error}") from error
        finally:
            record[f"{prefix}begun"] = 0
            record[f"{prefix}cause"] = cause
            record[f"{prefix}run"] = now()
            record[f"{prefix}seconds"] = round(time.monotonic() - began, 1)
            # A disk that is full must not hide why.
            with contextlib.suppress(OSError):
                remember(settings, copy.name, record)


@contextlib.contextmanager
def scratch(settings: Settings, copy: Copy) -> Iterator[str]:
    """An empty folder for a drill, which is deleted at the end; and what a drill that was killed
    left before it."""
    prefix = f"nas-assistant-drill-{copy.name}."
    for name in os.listdir(settings.scratch):
        path = os.path.join(settings.scratch, name)
        # Whoever may write there may have made something by that name.
        if name.startswith(prefix) and os.lstat(path).st_uid == 0 and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=prefix, dir=settings.scratch)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
