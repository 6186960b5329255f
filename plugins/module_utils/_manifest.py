# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Lists all that a folder holds, with checksums, so that a copy can be proven against it.

A manifest is a file of lines, each a JSON list of an ``Entry``'s fields, in the order of a walk
that takes a folder before what is in it and names by their bytes. Two of them, or one and a folder,
are compared side by side, so that memory does not grow with the number of files.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

# Not of the files: what the filesystem keeps to itself, and our own mark of a snapshot.
NOT_COMPARED = ("btrfs.", "user.nas_assistant.")
# Of the empty folder that a snapshot of Btrfs has in place of each subvolume that lay in it.
_PLACEHOLDER = 2
_KINDS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}
_Key = tuple[bytes, ...]


class Entry(NamedTuple):
    """One file, folder or link. ``path``: below the top, an empty text for the top itself; bytes
    that are no UTF-8 as os.fsdecode gives them. ``kind``: ``f``, ``d``, ``l``, or ``o`` for devices
    and pipes. ``size``: bytes of a file. ``digest``: SHA-256 of a file, the target of a link, the
    number of a device. ``attributes``: SHA-256 of the extended ones, empty where there are none."""

    path: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    modified_ns: int
    digest: str
    attributes: str
    inode: int
    changed_ns: int

    @property
    def key(self) -> _Key:
        """What entries are in order of."""
        return _key(self.path)

    @property
    def line(self) -> str:
        """The entry as a line of a manifest."""
        return f"{json.dumps(list(self), separators=(',', ':'))}\n"


def read(lines: Iterable[str]) -> Iterator[Entry]:
    """Return the entries of a manifest.

    :raises ValueError: a line is none of a manifest.
    """
    for line in lines:
        try:
            yield Entry(*json.loads(line))
        except TypeError:
            raise ValueError(f"{line[:50]!r} is no line of a manifest") from None


def walk(
    top: str,
    exclude: Collection[str] = (),
    earlier: Iterable[Entry] = (),
    unreadable: Callable[[str], None] = lambda text: None,
    trust: bool = True,
    apart: Callable[[str], None] | None = None,
) -> Iterator[Entry]:
    """Return the entries of a folder.

    :param exclude: paths below the top that are left out, with what is in them.
    :param earlier: entries of the same folder at another time: the checksum of a file that has the
        inode, size and times of then is taken from there, and its content is not read.
    :param unreadable: told of what cannot be read, and is left out.
    :param trust: whether to take those checksums. Otherwise all is read, and ``unreadable`` is told
        of a file whose content is another one than its times say; its checksum stays what it was.
    :param apart: of a snapshot of Btrfs: told of each place of another subvolume, which is left
        out. It is an empty folder, whose time may be another one whenever it is read.
    """
    behind = iter(earlier)
    known: Entry | None = next(behind, None)
    for path, status in _statuses(top, exclude, unreadable):
        if apart and path and stat.S_ISDIR(status.st_mode) and status.st_ino == _PLACEHOLDER:
            apart(path)
            continue
        key = _key(path)
        while known and known.key < key:
            known = next(behind, None)
        same = known if known and known.key == key else None
        try:
            found = _entry(top, path, status, same if trust else None)
            if same and not trust and _unwritten(same, found) and same.digest != found.digest:
                unreadable(f"{os.path.join(top, path)}: changed though nobody wrote it")
                # Told again each time; and what comes from the copy is compared with what was good.
                found = found._replace(digest=same.digest)
            yield found
        except FileNotFoundError:  # gone since the listing, from a folder in use
            continue
        except OSError as error:
            unreadable(f"{os.path.join(top, path)}: {error.strerror}")


def difference(top: str, entry: Entry, settled: bool = True, without: Collection[str] = ()) -> str:
    """Return how what is at an entry's place differs from it, or an empty text.

    :param settled: whether nothing was written between the manifest and the copy. Otherwise what
        has another time may differ, and content too: what is written through memory keeps its time.
    :param without: fields that do not count.
    """
    try:
        found = _entry(top, entry.path, os.lstat(os.path.join(top, entry.path)), None)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing" if settled else ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not settled and found.modified_ns != entry.modified_ns:
        return ""
    left_out = {*without, *(() if settled else ("digest",))}
    if entry.path and entry.kind == "d" and entry.inode == _PLACEHOLDER:
        # Of a point that has it, since it was made before they were left out.
        left_out.add("modified_ns")
    fields = ("kind", "size", "mode", "uid", "gid", "modified_ns", "digest", "attributes")
    wrong = [
        field
        for field in fields
        if field not in left_out and getattr(found, field) != getattr(entry, field)
    ]
    return f"has another {', '.join(wrong)}" if wrong else ""


def compare(
    entries: Iterable[Entry],
    top: str,
    settled: bool = True,
    without: Collection[str] = (),
    limit: int = 20,
) -> Iterator[str]:
    """Return what differs between a manifest and a folder, as sentences.

    :param settled: as for ``difference``, as ``without``.
    :param limit: sentences after which it ends.
    """
    yield from itertools.islice(_differences(entries, top, settled, without), limit)


def _differences(
    entries: Iterable[Entry], top: str, settled: bool, without: Collection[str]
) -> Iterator[str]:
    # What cannot be read is missing here, and told of by its entry.
    paths = (path for path, _ in _statuses(top, (), lambda text: None))
    path = next(paths, None)
    for entry in entries:
        while path is not None and _key(path) < entry.key:
            if settled:
                yield f"{path} is there and should not be"
            path = next(paths, None)
        if path == entry.path:
            path = next(paths, None)
        if wrong := difference(top, entry, settled, without):
            yield f"{entry.path or 'the folder itself'} {wrong}"
    while path is not None and settled:
        yield f"{path} is there and should not be"
        path = next(paths, None)


def _key(path: str) -> _Key:
    return tuple(os.fsencode(path).split(b"/")) if path else ()


def _statuses(
    top: str, exclude: Collection[str], unreadable: Callable[[str], None]
) -> Iterator[tuple[str, os.stat_result]]:
    """Return all paths below a folder in order, itself first; links are not followed."""
    left = [""]
    while left:
        path = left.pop()
        place = os.path.join(top, path) if path else top
        try:
            status = os.lstat(place)
            inside = []
            if stat.S_ISDIR(status.st_mode):
                names = sorted(os.listdir(place), key=os.fsencode, reverse=True)
                inside = [os.path.join(path, name) for name in names]
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable(f"{place}: {error.strerror}")
            continue
        # A socket is no more than the program behind it.
        if not stat.S_ISSOCK(status.st_mode):
            yield path, status
        left.extend(each for each in inside if each not in exclude)


def _entry(top: str, path: str, status: os.stat_result, known: Entry | None) -> Entry:
    place = os.path.join(top, path) if path else top
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "o")
    size = status.st_size if kind == "f" else 0
    found = Entry(
        path=path,
        kind=kind,
        size=size,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        modified_ns=status.st_mtime_ns,
        digest="",
        attributes=_attributes(place),
        inode=status.st_ino,
        changed_ns=status.st_ctime_ns,
    )
    if kind == "l":
        return found._replace(digest=os.readlink(place))
    if kind == "o":
        return found._replace(digest=str(status.st_rdev))
    if kind == "d":
        return found
    if known and _unwritten(known, found):
        return found._replace(digest=known.digest)
    # Whoever owns the folder may have put something else there since, which must not be waited for.
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as stream:
        return found._replace(digest=hashlib.file_digest(stream, "sha256").hexdigest())


def _unwritten(before: Entry, after: Entry) -> bool:
    """Whether a file is, by all that its filesystem says of it, the one that it was."""
    fields = ("kind", "size", "modified_ns", "inode", "changed_ns")
    return all(getattr(before, field) == getattr(after, field) for field in fields)


def _attributes(place: str) -> str:
    found: dict[str, bytes] = {}
    # Some filesystems have none at all.
    with contextlib.suppress(OSError):
        for name in sorted(os.listxattr(place, follow_symlinks=False)):
            if not name.startswith(NOT_COMPARED):
                with contextlib.suppress(OSError):
                    found[name] = os.getxattr(place, name, follow_symlinks=False)
    if not found:
        return ""
    joined = b"".join(name.encode() + b"\0" + value + b"\0" for name, value in found.items())
    return hashlib.sha256(joined).hexdigest()
