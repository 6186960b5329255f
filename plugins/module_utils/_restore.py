# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Brings back what a restore point holds, proven against its manifests before anything is replaced.

As in ``_backup``, all mounts are those of the process alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils import (
    _backup as backup,
    _backup_plan as plan,
    _btrfs as btrfs,
    _manifest as manifest,
    _merge as merging,
    _private as private,
    _snapshot_plan as snapshot_plan,
    _snapshots as snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._backup_plan import Settings, Source
from ansible_collections.nas.assistant.plugins.module_utils._files import replace
from ansible_collections.nas.assistant.plugins.module_utils._model_file import GGUF_MAGIC
from ansible_collections.nas.assistant.plugins.module_utils._restic import (
    BackupError,
    Point,
    Repository,
    literally,
)

# How many files a drill takes where it cannot restore all.
SAMPLE = 400
# Files that are databases, as far as a name tells: a drill that cannot take all takes them first.
_DATABASES = (".db", ".sqlite", ".sqlite3")
# What the assistant reads as JSON. Of others' files by that ending, nobody knows what they may be.
_JSON = ("keys.json", "upstreams.json", "tuned.json")
# Each drill reads one part of all data, and the next one the next.
_PARTS = 12
# What restic says where a filesystem does not take an attribute.
_ATTRIBUTES = re.compile(r"xattr|operation not supported", re.IGNORECASE)
# The first restic that leaves holes where a file has only zeros.
_SPARSE = (0, 15)
_DRAFT = ".nas-assistant-restore"
#: What the roles make for each machine. The key for SSH, copies and firewall of the one that was
#: lost are not this one's, and would count until the roles run again.
GENERATED = tuple(
    f"/etc/nas-assistant/{name}"
    for name in ("backup", "backup.json", "snapshots.json", "firewall.nft")
)


@dataclass(frozen=True)
class Held:
    """A source as a restore point holds it; see the index that ``_backup`` writes."""

    name: str
    place: str
    manifest: str
    settled: bool
    files: int
    bytes: int


@dataclass(frozen=True)
class Restored:
    """What became of a source. ``snapshot``: the name of the one that a volume may be rolled back
    to; ``changed``: files that were brought back; ``kept``: folder with what they replaced."""

    name: str
    snapshot: str = ""
    changed: int = 0
    kept: str = ""


def held(repository: Repository, point: Point) -> list[Held]:
    """Return what a point holds."""
    try:
        index = json.loads(repository.run("dump", point.id, f"/{backup.INDEX}"))
        return [Held(**each) for each in index["sources"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BackupError("damaged", f"damaged: {point.short} has no index ({error})") from None


def drill(settings: Settings, name: str) -> backup.Record:
    """Restore the newest point of a copy to scratch, and prove it; return its record.

    What does not fit is proven by a sample, another one each time; and of all data in the
    repository a twelfth is read, each time the next, so that twelve drills have read all.

    :raises BackupError: it is not as it was; metrics and record say so too.
    """
    copy = settings.copy(name)
    with (
        backup.recorded(settings, copy, "drill_") as record,
        backup.opened(settings, copy, write=False) as repository,
        backup.scratch(settings, copy) as top,
    ):
        known = backup.records(settings).get(name, {}).get("drill_parts", 0)
        point = plan.chosen(repository.points(settings.host), "newest", backup.now())
        unlock(repository)
        repository.run("check", f"--read-data-subset={part(known)}/{_PARTS}")
        # What was read counts, whatever becomes of the rest; what was not is read the next time.
        record["drill_parts"] = part(known)
        record |= _drill(settings, repository, point, top)
    return record


def part(known: Any) -> int:
    """Return which part of the data a drill reads, 1 to ``_PARTS``.

    :param known: the part that was read last; anything else where none was.
    """
    return known % _PARTS + 1 if type(known) is int else 1


def _drill(settings: Settings, repository: Repository, point: Point, folder: str) -> dict[str, Any]:
    sources = held(repository, point)
    budget = min(settings.drill, shutil.disk_usage(folder).free // 2)
    lists = _manifests(repository, point, sources, folder)
    top = os.path.join(folder, "tree")
    if sum(each.bytes for each in sources) <= budget:
        return _drill_all(repository, point, sources, lists, top)
    return _drill_some(repository, point, sources, lists, top, budget)


def unlock(repository: Repository) -> None:
    """Remove the locks of programs that died; those of others that are alive stay."""
    if "--no-lock" not in repository.options:
        repository.run("unlock")


def _drill_all(
    repository: Repository, point: Point, sources: Sequence[Held], lists: dict[str, str], top: str
) -> dict[str, Any]:
    failed, without = _restore(repository, point, top)
    for source in sources:
        inside, listed = os.path.join(top, source.place), lists[source.name]
        found = list(manifest.compare(_entries(listed), inside, source.settled, without))
        _demand(source, found, failed)
        _demand(source, list(_unsound(inside, _entries(listed))), None)
    return {
        "drill_point": point.id,
        "drill_bytes": sum(each.bytes for each in sources),
        "drill_files": sum(each.files for each in sources),
    }


def _drill_some(
    repository: Repository,
    point: Point,
    sources: Sequence[Held],
    lists: dict[str, str],
    top: str,
    budget: int,
) -> dict[str, Any]:
    picked: list[tuple[float, Held, manifest.Entry]] = []
    for source in sources:
        for entry in _entries(lists[source.name]):
            if entry.kind != "f":
                continue
            # The smallest of random numbers: a fair sample of a list of unknown length.
            first = -1 if entry.path.endswith(_DATABASES) or _is_own(entry.path) else 0
            picked.append((first + random.random(), source, entry))  # noqa: S311
            if len(picked) > 4 * SAMPLE:
                picked = sorted(picked, key=lambda each: each[0])[:SAMPLE]
    taken: list[tuple[Held, manifest.Entry]] = []
    for _, source, entry in sorted(picked, key=lambda each: each[0])[:SAMPLE]:
        if entry.size <= budget:
            budget -= entry.size
            taken.append((source, entry))
    if picked and not taken:
        raise BackupError(
            "no room",
            f"no room: nothing was drilled, since none of {len(picked)} files fits into the "
            f"{budget} bytes that backup_drill_size and half of what is free in backup_scratch "
            "leave. Give it more",
        )
    words = [f"--include={_pattern(source.place, entry.path)}" for source, entry in taken]
    failed, without = _restore(repository, point, top, *words) if taken else (None, ())
    for source in sources:
        inside = os.path.join(top, source.place)
        entries = [entry for each, entry in taken if each == source]
        _demand(source, _wrong(entries, inside, source, without), failed)
        _demand(source, list(_unsound(inside, entries)), None)
    return {
        "drill_point": point.id,
        "drill_bytes": sum(entry.size for _, entry in taken),
        "drill_files": len(taken),
    }


def volume(
    settings: Settings, repository: Repository, point: Point, source: Source, found: Held
) -> Restored:
    """Restore a volume as one more of its snapshots, which it can be rolled back to.

    What its source excludes is in no point, and comes from the present volume.

    :raises BackupError: it is not as it was; nothing of it is left then.
    """
    if not snapshots.is_subvolume(source.path):
        raise BackupError(
            "failed",
            f"{source.name}: {source.path} is no subvolume, or is not mounted: let the storage "
            "playbook make it first",
        )
    name = source.place.split("/")[-1]
    draft = os.path.join(source.folder, _DRAFT, name)
    backup.private_folders(source.folder, os.path.dirname(draft))
    _drop(draft)
    btrfs.call("btrfs", "subvolume", "create", "--", draft)
    try:
        _prepare(source.path, draft)
        with _stage(settings) as top, contextlib.ExitStack() as stack:
            (listed,) = _manifests(repository, point, [found], top).values()
            tree = os.path.join(top, "tree")
            inside = os.path.join(tree, found.place)
            private.bind(draft, inside, read_only=False)
            stack.callback(private.unmount, inside)
            include = f"--include={_pattern(found.place, '')}"
            failed, without = _restore(repository, point, tree, include)
            wrong = list(manifest.compare(_entries(listed), inside, found.settled, without))
            _demand(found, wrong, failed)
        _bring_excluded(source, draft)
        return Restored(source.name, _finish(source.folder, name, draft), found.files)
    except BaseException:
        with contextlib.suppress(btrfs.BtrfsError):
            _drop(draft)
        raise


def folder(
    settings: Settings, repository: Repository, point: Point, found: Held, target: str, path: str
) -> Restored:
    """Bring files back into a folder. What they replace is moved into a folder ``.before-TIME`` in
    it; folders that are there stay as they are, and so does what the point does not have. What the
    roles generate for each machine comes back only where ``path`` asks for it.

    :param path: one file or folder below the source, of a database also its journals; an empty
        text: all.
    :raises BackupError: what was restored is not as it was; nothing was replaced then.
    """
    target = os.path.realpath(target)
    if os.path.lexists(target) and not os.path.isdir(target):
        raise BackupError("failed", f"{target} is no folder, and files should be put in it")
    with _stage(settings) as top:
        (listed,) = _manifests(repository, point, [found], top).values()
        paths = _along(listed, path)
        if not any(_entries(listed, *paths)):
            raise BackupError("failed", f"{found.name}: {point.short} has no {path!r}")
        with _made(target) as is_new, merging.draft(target) as (draft, shown):
            tree = os.path.join(top, "tree")
            # By a path of our own: whoever owns the target may rename what is in it.
            private.bind(shown, tree, read_only=False)
            try:
                words = [f"--include={_pattern(found.place, each)}" for each in paths]
                failed, without = _restore(repository, point, tree, *words)
                inside = os.path.join(tree, found.place)
                wrong = _wrong(_entries(listed, *paths), inside, found, without)
                _demand(found, wrong, failed)
                merging.clothe(inside, _above(listed, path))
            finally:
                private.unmount(tree)
            merge = merging.Merge(target, draft, found.place, found.settled)
            entries = itertools.chain(_above(listed, path), _entries(listed, *paths))
            wanted = (
                entry
                for entry in entries
                if entry.path and (path or not is_generated(os.path.join(target, entry.path)))
            )
            merge.run(wanted, next(_entries(listed), None) if is_new else None)
    return Restored(found.name, "", merge.changed, merge.kept)


@contextlib.contextmanager
def _made(target: str) -> Iterator[bool]:
    """Make a folder where there is none, and give whether there was none.

    Only root can look into it until it has its owner and mode. On failure it is not left empty.
    """
    is_new = not os.path.lexists(target)
    if is_new:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.mkdir(target, 0o700)
    try:
        yield is_new
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(target)
        raise


def is_generated(path: str) -> bool:
    """Whether a file is one that the roles made for this machine from its inventory."""
    return any(_is_below(path, each) for each in GENERATED)


def shortage(found: Held, target: str) -> str:
    """Return what to say where a source may not fit beside what is there; else an empty text.

    No more than a word of warning: what has holes, or is compressed, takes less than its size.
    """
    # What is not there yet is made, on whatever is mounted there.
    while not os.path.exists(target):
        target = os.path.dirname(target)
    status = os.statvfs(target)
    free = status.f_bavail * status.f_frsize
    if found.bytes <= free:
        return ""
    return (
        f"{found.name}: its {found.bytes} bytes are restored beside what is there, and {free} are "
        f"free at {target}. Unless they compress well or have holes, make room first, or restore "
        "parts of it (path), or to another place (to)"
    )


def _above(listed: str, path: str) -> list[manifest.Entry]:
    """Return the folders that a path lies in, but for the topmost."""
    parts = path.split("/")
    wanted = {"/".join(parts[:count]) for count in range(1, len(parts))}
    return [each for each in _entries(listed) if each.path in wanted] if wanted else []


def _manifests(
    repository: Repository, point: Point, sources: Iterable[Held], folder: str
) -> dict[str, str]:
    """Fetch the manifests of sources; return their files by the sources' names."""
    files = {}
    for number, source in enumerate(sources):
        files[source.name] = os.path.join(folder, f"manifest{number}.jsonl")
        with open(files[source.name], "wb") as stream:
            repository.run("dump", point.id, f"/{source.manifest}", to=stream)
    return files


def _entries(listed: str, *paths: str) -> Iterator[manifest.Entry]:
    """Return the entries of a file that are at or below one of some paths; without any, all."""
    with open(listed, encoding="utf-8") as stream:
        for each in manifest.read(stream):
            if not paths or any(_is_below(each.path, path) for path in paths):
                yield each


def _along(listed: str, path: str) -> list[str]:
    """Return a path, and of a database also those of what lies beside it and is a part of it."""
    names = [f"{path}{ending}" for ending in merging.OF_DATABASES]
    files = {each.path for each in _entries(listed, path, *names) if each.kind == "f"}
    return [path, *(each for each in names if {path, each} <= files)]


def _restore(
    repository: Repository, point: Point, target: str, *words: str
) -> tuple[BackupError | None, tuple[str, ...]]:
    """Restore into a folder; return what restic said where it failed, and which fields of entries
    do not count then: attributes, where the filesystem there could not take them."""
    os.makedirs(target, mode=0o700, exist_ok=True)
    if repository.version >= _SPARSE:
        words += ("--sparse",)
    done = repository.attempt("restore", point.id, "--target", target, *words, accepted=(0, 1))
    if done.returncode == 0:
        return None, ()
    lines = [line for line in done.stderr.splitlines() if line.startswith("ignoring error")]
    if lines and all(_ATTRIBUTES.search(line) for line in lines):
        return None, ("attributes",)
    return repository.error("restore", done.stderr), ()


def _demand(source: Held, wrong: Sequence[str], failed: BackupError | None) -> None:
    """Refuse what is not as the manifest says.

    :param failed: what restic said, which is the reason then. Of what was written to while it was
        copied, nothing but that tells whether it is whole.
    """
    if not wrong and (not failed or source.settled):
        return
    shown = "; ".join(wrong[:3]) + (f" and more ({len(wrong)})" if len(wrong) > 3 else "")
    if failed and (failed.cause != "failed" or not wrong):
        raise BackupError(failed.cause, f"{failed} {source.name}: {shown}")
    more = f" ({failed})" if failed else ""
    raise BackupError("differs", f"differs: {source.name}: {shown}{more}")


def _wrong(
    entries: Iterable[manifest.Entry], inside: str, source: Held, without: Collection[str]
) -> list[str]:
    """Return which of some entries are not as the manifest says, as sentences."""
    found = ((each, manifest.difference(inside, each, source.settled, without)) for each in entries)
    return [f"{each.path} {text}" for each, text in found if text]


def _unsound(inside: str, entries: Iterable[manifest.Entry]) -> Iterator[str]:
    """Return which of some files their own program would not take: databases, keys, models."""
    for path in (each.path for each in entries if each.kind == "f"):
        said = _unsoundness(os.path.join(inside, path))
        if said:
            yield f"{path}: {said}"


def _unsoundness(place: str) -> str:
    """Return what a file's own program would say against it; an empty text: nothing."""
    try:
        with open(place, "rb") as stream:
            beginning = stream.read(len(merging.SQLITE))
        if place.endswith(".gguf") and not beginning.startswith(GGUF_MAGIC):
            return f"is no GGUF (it begins with {beginning[:4]!r})"
        if _is_own(place):
            with open(place, encoding="utf-8") as text:
                json.load(text)
        if beginning != merging.SQLITE:
            return ""
        with contextlib.closing(sqlite3.connect(place)) as database:
            said = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
        return "" if said == "ok" else said
    except sqlite3.OperationalError:
        # It wants functions of its program's, or is open elsewhere: nothing against the file.
        return ""
    except (OSError, ValueError, sqlite3.Error) as error:
        return str(error)


def _is_own(path: str) -> bool:
    """Whether a file is one that the assistant reads as JSON, as far as a name tells."""
    return os.path.basename(path) in _JSON


def _pattern(place: str, path: str) -> str:
    """What restic takes a path by, literally."""
    return str(literally(f"/{place}/{path}".rstrip("/")))


def _is_below(path: str, above: str) -> bool:
    return not above or path == above or path.startswith(f"{above}/")


@contextlib.contextmanager
def _stage(settings: Settings) -> Iterator[str]:
    """A folder for manifests and mount points."""
    # No copy can be called that: beside it are the records of copies, by their names.
    top = os.path.join(settings.state, ".restore")
    shutil.rmtree(top, ignore_errors=True)
    os.makedirs(top, mode=0o700)
    try:
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _prepare(present: str, draft: str) -> None:
    """Have files of the new subvolume written as those of the present one."""
    said = btrfs.call("btrfs", "property", "get", present, "compression").strip()
    if said:
        btrfs.call("btrfs", "property", "set", draft, "compression", said.partition("=")[2])
    if "C" in btrfs.call("lsattr", "-d", present).split(maxsplit=1)[0]:
        btrfs.call("chattr", "+C", draft)


def _bring_excluded(source: Source, draft: str) -> None:
    """Copy what a source excludes from the present volume into the restored one.

    From a snapshot, since who owns folders there could put a link in the way meanwhile.

    :raises BackupError: a folder that it lies in is none in the point; names it.
    """
    if not source.exclude:
        return
    present = f"{draft}.present"
    _drop(present)
    btrfs.call("btrfs", "subvolume", "snapshot", "-r", "--", source.path, present)
    try:
        for path in source.exclude:
            # Of a subvolume it has an empty folder; a rollback has its place from the old state.
            if _is_plain(present, path) and not snapshots.is_subvolume(f"{source.path}/{path}"):
                _bring(present, draft, path)
    finally:
        _drop(present)


def _bring(present: str, draft: str, path: str) -> None:
    """Copy what is at a path; the folders that it lies in stay as they were restored."""
    for part in _parts(path)[:-1]:
        source, target = os.path.join(present, part), os.path.join(draft, part)
        if not os.path.lexists(target):
            os.mkdir(target, 0o700)
            status = os.stat(source)
            os.chown(target, status.st_uid, status.st_gid)
            shutil.copystat(source, target)
        elif os.path.islink(target) or not os.path.isdir(target):
            raise BackupError(
                "failed",
                f"{path} is excluded, so that no copy has it, and {part} is no folder in the point "
                "to put it in: move it out of the volume first",
            )
    target = os.path.join(draft, path)
    # What the point has, since it was excluded only later, stays.
    if os.path.lexists(target):
        return
    above = os.path.dirname(target)
    status = os.stat(above)
    btrfs.call("cp", "-a", "--reflink=auto", "--", os.path.join(present, path), target)
    os.utime(above, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_plain(top: str, path: str) -> bool:
    """Whether something is at a path, and all that it lies in are folders and no links."""
    places = [os.path.join(top, part) for part in _parts(path)]
    return os.path.lexists(places[-1]) and not any(map(os.path.islink, places[:-1]))


def _parts(path: str) -> list[str]:
    """Return a path and those that it lies in, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _finish(folder: str, name: str, draft: str) -> str:
    """Make a subvolume one of the snapshots of a volume; return its name."""
    place = snapshots.look(draft)
    if not place:
        raise BackupError("failed", f"{draft} is gone")
    os.setxattr(draft, snapshots.ATTRIBUTE, place.uuid.encode())
    text, number = "", backup.now()
    while not text or os.path.lexists(os.path.join(folder, text)):
        text, number = snapshot_plan.snapshot_text(name, number), number + 1
    # Retention may look at any time, also before it was rolled back to.
    snapshots.take_over_holds()
    hold = os.path.join(snapshot_plan.HOLDS, snapshots.hold_name("restore", folder, name))
    replace(hold, snapshots.hold_text(hold, folder, place.uuid).encode(), 0, 0, 0o600)
    btrfs.call("btrfs", "filesystem", "sync", draft)
    # In this order: the kernel moves no subvolume that is read-only.
    os.rename(draft, os.path.join(folder, text))
    btrfs.call("btrfs", "property", "set", "-ts", os.path.join(folder, text), "ro", "true")
    return text


def _drop(draft: str) -> None:
    if snapshots.is_subvolume(draft):
        btrfs.call("btrfs", "subvolume", "delete", draft)
