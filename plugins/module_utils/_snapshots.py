# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Makes and deletes the read-only snapshots of Btrfs subvolumes, and knows its own from all others.

What a subvolume is, the kernel is asked about the opened folder itself, and nothing is deleted by
what btrfs lists: a subvolume with a line break in its name forges lines there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ansible_collections.nas.assistant.plugins.module_utils import (
    _btrfs as btrfs,
    _snapshot_plan as plan,
)
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import BtrfsError
from ansible_collections.nas.assistant.plugins.module_utils._files import replace
from ansible_collections.nas.assistant.plugins.module_utils._lock import held

# Its value is the UUID of the subvolume that carries it: in a copy or a replica it is wrong.
ATTRIBUTE = "user.nas_assistant.snapshot"
# The same on what a rollback kept of the state that it took away.
KEPT = "user.nas_assistant.kept"
LOCKS = "/run/nas-assistant"
PATIENCE = 300  # seconds that a run waits for another one
HELD = 7 * 86400  # seconds that what rollbacks and restores keep is held at the least
CHUNK = 100  # paths of one command; 100 of the longest are still within the kernel's limit

# linux/btrfs.h: struct btrfs_ioctl_get_subvol_info_args (id, name, parent, folder, generation,
# flags, three UUIDs, four transactions, four times), and struct btrfs_ioctl_fs_info_args.
_SUBVOLUME = struct.Struct("@Q256s4Q16s16s16s4QQIQIQIQI8Q")
_GET_SUBVOLUME = 2 << 30 | _SUBVOLUME.size << 16 | 0x94 << 8 | 60
_FILESYSTEM = struct.Struct("@QQ16s992x")
_GET_FILESYSTEM = 2 << 30 | _FILESYSTEM.size << 16 | 0x94 << 8 | 31
_READ_ONLY = 1
_ROOT_INODE = 256  # of the folder that a subvolume begins with


@dataclass(frozen=True)
class Place:
    """A folder, and the subvolume that it lies in. ``device``, ``inode``: the folder's;
    ``marked``: it carries our attribute with that subvolume's UUID; ``kept``: so that of what a
    rollback kept."""

    filesystem: str
    id: int
    uuid: str
    parent_uuid: str
    read_only: bool
    device: int
    inode: int
    marked: bool
    kept: bool

    @property
    def is_subvolume(self) -> bool:
        """Whether the folder is that subvolume itself."""
        return self.inode == _ROOT_INODE


@dataclass
class Outcome:
    """What was done for one volume, or would be. ``excluded`` are paths below the volume, all
    others names in its folder. ``before``: ours that were there; ``problems``: what failed."""

    wish: plan.Wish
    before: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def after(self) -> list[str]:
        """Ours that are there now, or would be."""
        return sorted({*self.before, *self.made} - {*self.deleted})

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note what fails, so that the other volumes get their turn."""
        try:
            yield
        except (BtrfsError, OSError) as error:
            self.problems.append(str(error))


@dataclass(eq=False)
class _Volume:
    """One volume while it is worked on. ``ours``, ``drafts``: what we may delete; ``planned``: what
    would have been made."""

    outcome: Outcome
    source: Place
    ours: dict[plan.Snapshot, Place] = field(default_factory=dict)
    drafts: dict[str, Place] = field(default_factory=dict)
    planned: list[plan.Snapshot] = field(default_factory=list)

    @property
    def wish(self) -> plan.Wish:
        return self.outcome.wish

    def path(self, text: str) -> str:
        """Where something by that name is."""
        return os.path.join(self.wish.folder, text)


_Victims = list[tuple[_Volume, str, Place]]


def now() -> int:
    """Return the time in whole seconds."""
    return int(time.time())


def carry_out(
    wishes: Sequence[plan.Wish], state: str, holds: str, check: bool = False
) -> list[Outcome]:
    """Bring all volumes to a state, one filesystem after the other; return what came of each.

    :param state: ``present`` makes what is due and deletes what retention drops, ``pruned`` does
        only the latter, ``absent`` deletes the snapshots that are named.
    :param holds: folder whose files name by UUID what must not be deleted.
    :param check: change nothing, and say what would be done.
    """
    if holds == plan.HOLDS and not check:
        take_over_holds()
    outcomes = [Outcome(wish) for wish in wishes]
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        with outcome.noting():
            groups.setdefault(_source(outcome.wish).filesystem, []).append(outcome)
    for filesystem, group in groups.items():
        try:
            with contextlib.nullcontext() if check else _alone(filesystem):
                _Run(state, holds, check).carry_out(group)
        except (BtrfsError, OSError) as error:
            for outcome in group:
                outcome.problems.append(str(error))
    return outcomes


def look(path: str, follow: bool = False) -> Place | None:
    """Return what a folder is; None where it is not there, or no folder of a Btrfs.

    :param follow: whether the path may end with a symbolic link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        return _place(descriptor)
    finally:
        os.close(descriptor)


def reached(filesystem: str, mounts: Iterable[btrfs.Mount]) -> str:
    """Return a folder where a filesystem can be asked; an empty text where none of its mounts is
    one: another may cover it, and a file may be mounted as well.

    :param filesystem: its UUID. ``mounts``: its mounts.
    """
    for mount in mounts:
        with contextlib.suppress(OSError):
            place = look(mount.point)
            if place and place.filesystem == filesystem:
                return str(mount.point)
    return ""


def is_subvolume(path: str) -> bool:
    """Whether a path is the topmost folder of a subvolume, and no link to one."""
    place = look(path)
    return bool(place and place.is_subvolume)


def hold_name(reason: str, folder: str, name: str) -> str:
    """Return what the file is called by which a volume's snapshot is held.

    :param folder: of its snapshots: volumes of two pools may have one name.
    """
    return "-".join([reason, *folder.strip("/").split("/"), name])


def hold_text(path: str, folder: str, own: str) -> str:
    """Return what a file is to say so that one more snapshot of a volume is held beside the others.

    Let go are those that are HELD old, by their names, or that are there no more.

    :param path: of the file, which need not be there yet; ``folder``: of the volume's snapshots.
    :param own: UUID of the one more, which need not be there either.
    """
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as stream:
        lines = stream.read().split()
    since = {}
    for entry in map(plan.entry, os.listdir(folder)):
        if entry and entry.time is not None and (place := look(os.path.join(folder, entry.text))):
            since[place.uuid] = entry.time
    stay = [line for line in lines if line in since and now() - since[line] < HELD]
    return "".join(f"{line}\n" for line in dict.fromkeys([*stay, own]))


def take_over_holds() -> None:
    """Bring what is held where holds were once to where they are; what cannot be brought is read
    there.
    """
    earlier = plan.EARLIER_HOLDS
    with contextlib.suppress(OSError):
        for name in os.listdir(earlier):
            old, new = os.path.join(earlier, name), os.path.join(plan.HOLDS, name)
            if name.startswith(".") or not stat.S_ISREG(os.lstat(old).st_mode):
                continue
            with open(old, "rb") as stream:
                content = stream.read()
            with contextlib.suppress(FileNotFoundError), open(new, "rb") as stream:
                content = b"\n".join(dict.fromkeys([*stream.read().split(), *content.split()]))
            replace(new, content, 0, 0, 0o600)
            os.unlink(old)
        with contextlib.suppress(OSError):
            os.rmdir(earlier)


def read_holds(folder: str) -> frozenset[str]:
    """Return the UUIDs that the files of a folder hold, one a line; none without the folder. Of
    ours, also what the one before it holds.

    Files with a full stop before their names are drafts of whoever writes there.

    :raises BtrfsError: something there makes no sense, so that it is not known what is held.
    """
    found: set[str] = set()
    if folder == plan.HOLDS:
        found |= read_holds(plan.EARLIER_HOLDS)
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return frozenset(found)
    for path in [os.path.join(folder, name) for name in names if not name.startswith(".")]:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise BtrfsError(f"{path} is no file, so nothing is deleted: move it away")
            with open(path, encoding="utf-8", errors="replace") as stream:
                lines = [line.strip() for line in stream]
        except FileNotFoundError:  # released since the listing
            continue
        for number, line in enumerate(lines, 1):
            try:
                found |= {str(uuid.UUID(line))} if line else set()
            except ValueError:
                raise BtrfsError(
                    f"{path}: line {number} is {line[:50]!r}, which is no UUID, so nothing is "
                    "deleted: mend or remove that file"
                ) from None
    return frozenset(found)


class _Run:
    """One run over the volumes of one filesystem."""

    def __init__(self, state: str, holds: str, check: bool) -> None:
        self.state, self.holds, self.check = state, holds, check
        # After the wait for another run: what that one made is not dated after this.
        self.time = now()

    def carry_out(self, outcomes: Sequence[Outcome]) -> None:
        volumes = self._look(outcomes)
        if self.state == "absent":
            self._drop_named(volumes)
            return
        self._delete([(v, text, place) for v in volumes for text, place in v.drafts.items()])
        if self.state == "present":
            for volume in volumes:
                with volume.outcome.noting():
                    self._make(volume)
            made = [volume.wish.folder for volume in volumes if volume.outcome.made]
            if made and not self.check:
                # What is said to be there is still there after a power cut.
                btrfs.call("btrfs", "filesystem", "sync", made[0])
        self._retain(volumes)

    def _look(self, outcomes: Sequence[Outcome]) -> list[_Volume]:
        """Return the volumes that can be worked on, with what there is of each."""
        volumes: list[_Volume] = []
        taken: dict[tuple[int, int, str, str], str] = {}
        for outcome in outcomes:
            with outcome.noting():
                wish, source = outcome.wish, _source(outcome.wish)
                # One folder may be spelt in several ways, and mounted at several places.
                key = (*_folder(wish, source), wish.name)
                if key in taken:
                    raise BtrfsError(
                        f"name={wish.name!r}: {taken[key]} has its snapshots in the same folder "
                        "under the same name. Give each a name of its own"
                    )
                taken[key] = wish.path
                volumes.append(_Volume(outcome, source))
        if not volumes:
            return []
        listed = btrfs.subvolumes(volumes[0].wish.path)
        alive = {each.uuid for each in listed}
        entries = {folder: _entries(folder) for folder in {v.wish.folder for v in volumes}}
        sound = []
        for volume in volumes:
            with volume.outcome.noting():
                _sort(volume, entries[volume.wish.folder].get(volume.wish.name, []), alive)
                sound.append(volume)
        snapshots = {place.id for volume in sound for place in volume.ours.values()}
        children: dict[int, list[btrfs.Subvolume]] = {}
        paths = {}
        for each in listed:
            paths[each.id] = f"{each.path}/"
            if each.id not in snapshots:
                children.setdefault(each.parent, []).append(each)
        for volume in sound:
            top = volume.source.id
            nested = [each.path.removeprefix(paths.get(top, "")) for each in _below(top, children)]
            volume.outcome.excluded = sorted(nested)
        return sound

    def _make(self, volume: _Volume) -> None:
        """Make a snapshot if it is due."""
        if volume.outcome.problems:  # A draft that cannot be deleted, and there would be one more.
            return
        wish, source = volume.wish, volume.source
        own = {
            each.text: each.time
            for each, place in volume.ours.items()
            if place.parent_uuid == source.uuid
        }
        text = plan.snapshot_text(wish.name, self.time)
        if text in own or not plan.is_due(own.values(), wish.every, self.time):
            return
        draft, final = volume.path(plan.draft_text(text)), volume.path(text)
        for path in (draft, final):
            if os.path.lexists(path):
                raise BtrfsError(
                    f"{path} is there and is not of this volume: move it away, or give another name"
                )
        if not self.check:
            os.makedirs(wish.folder, mode=0o700, exist_ok=True)
            _folder(wish, source)
            _make(wish.path, source, draft, final)
        volume.outcome.made.append(text)
        volume.planned.append(plan.Snapshot(text, self.time, ""))

    def _retain(self, volumes: Iterable[_Volume]) -> None:
        """Delete what retention drops."""
        held: Collection[str] = ()
        unknown = ""
        try:
            held = read_holds(self.holds)
        except (BtrfsError, OSError) as error:
            unknown = str(error)
        victims: _Victims = []
        for volume in volumes:
            outcome = volume.outcome
            there = [*volume.ours, *volume.planned]
            found = plan.retention(there, volume.wish.keep, self.time, held)
            outcome.ahead = _texts(found.ahead)
            outcome.held = _texts(found.held)
            if found.drop and unknown:
                outcome.problems.append(unknown)
            else:
                # The newest one always stays, so that none of them is only planned.
                victims += [(volume, each.text, volume.ours[each]) for each in found.drop]
        self._delete(victims)

    def _drop_named(self, volumes: Iterable[_Volume]) -> None:
        """Delete what the volumes name."""
        held = read_holds(self.holds)
        victims: _Victims = []
        for volume in volumes:
            volume.outcome.ahead = _texts(each for each in volume.ours if each.time > self.time)
            for each, place in volume.ours.items():
                if each.text not in volume.wish.snapshots:
                    continue
                if place.uuid in held:
                    volume.outcome.held.append(each.text)
                else:
                    victims.append((volume, each.text, place))
        self._delete(victims)

    def _delete(self, victims: _Victims) -> None:
        """Delete snapshots of any of the volumes, many with one command."""
        paths: dict[str, tuple[Outcome, str]] = {}
        for volume, text, place in victims:
            with volume.outcome.noting():
                # Making the others took its time: what is not as it was then stays.
                if look(volume.path(text)) == place:
                    paths[volume.path(text)] = (volume.outcome, text)
        if not self.check:
            _delete(paths)
        for path, (outcome, text) in sorted(paths.items()):
            if self.check or not os.path.lexists(path):
                outcome.deleted.append(text)


def _texts(snapshots: Iterable[plan.Snapshot]) -> list[str]:
    return sorted(each.text for each in snapshots)


@contextlib.contextmanager
def _alone(filesystem: str) -> Iterator[None]:
    """Wait until no other run is at this filesystem, and keep others waiting meanwhile."""
    path = os.path.join(LOCKS, f"snapshots-{filesystem}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(path, PATIENCE))
        except TimeoutError:
            raise BtrfsError(
                f"another run has been at this filesystem for {PATIENCE} s. Try again later, or "
                f"see with `fuser -v {path}` what it is"
            ) from None
        yield


def _place(descriptor: int) -> Place | None:
    subvolume, filesystem = bytearray(_SUBVOLUME.size), bytearray(_FILESYSTEM.size)
    try:
        fcntl.ioctl(descriptor, _GET_SUBVOLUME, subvolume)
        fcntl.ioctl(descriptor, _GET_FILESYSTEM, filesystem)
    except OSError as error:
        if error.errno == errno.ENOTTY:  # another kind of filesystem
            return None
        raise
    number, _, _, _, _, flags, own, parent, *_ = _SUBVOLUME.unpack(subvolume)
    status, text = os.fstat(descriptor), _uuid(own)
    return Place(
        filesystem=_uuid(_FILESYSTEM.unpack(filesystem)[2]),
        id=number,
        uuid=text,
        parent_uuid=_uuid(parent),
        read_only=bool(flags & _READ_ONLY),
        device=status.st_dev,
        inode=status.st_ino,
        marked=bool(text) and _attribute(descriptor, ATTRIBUTE) == text,
        kept=bool(text) and _attribute(descriptor, KEPT) == text,
    )


def _attribute(descriptor: int, name: str) -> str:
    try:
        return os.getxattr(descriptor, name).decode("ascii", "replace")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return ""


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value)) if any(value) else ""


def _source(wish: plan.Wish) -> Place:
    """Return the subvolume that snapshots are wanted of.

    :raises BtrfsError: there is none.
    """
    found = look(wish.path, follow=True)
    if found and found.is_subvolume:
        return found
    if found:
        why = "is a plain folder. Move its content to a subvolume (btrfs subvolume create)"
    elif os.path.isdir(wish.path):
        why = "is not on Btrfs. Give a subvolume, and see that it is mounted"
    else:
        why = "is no folder that is there. Give a subvolume, and see that it is mounted"
    raise BtrfsError(f"path={wish.path!r} {why}")


def _folder(wish: plan.Wish, source: Place) -> tuple[int, int, str]:
    """Return what tells the volume's folder from all others, whether it is there yet or not.

    :raises BtrfsError: snapshots cannot be there, or not safely.
    """
    folder = above = wish.folder
    if os.path.islink(folder):
        raise BtrfsError(
            f"folder={folder!r} is a symbolic link to {os.readlink(folder)!r}. Give the folder "
            "itself"
        )
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise BtrfsError(f"folder={folder!r}: {above} is no folder. Move it away, or give another")
    place = look(above, follow=above != folder)
    if place is None or place.filesystem != source.filesystem:
        raise BtrfsError(
            f"folder={folder!r} is on another filesystem than path={wish.path!r}, where no "
            "snapshot of it can be. Give a folder on the same one, and see that it is mounted"
        )
    if place.id == source.id:
        raise BtrfsError(
            f"folder={folder!r} lies in the very subvolume path={wish.path!r}, so that each "
            "snapshot would hold it again. Give a folder outside of it, or make a subvolume of it "
            "(btrfs subvolume create)"
        )
    status = os.stat(above)
    if above == folder and (status.st_uid != 0 or status.st_mode & 0o022):
        raise BtrfsError(
            f"folder={folder!r}: others than root may write in it (owner {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):04o}), and put something else in a snapshot's place. "
            "Make it root's own: chown root, chmod 0700"
        )
    return place.device, place.inode, folder.removeprefix(above)


def _entries(folder: str) -> dict[str, list[plan.Entry]]:
    """Return what in a folder looks like a snapshot, by the volume's name."""
    found: dict[str, list[plan.Entry]] = {}
    with contextlib.suppress(FileNotFoundError):
        for text in sorted(os.listdir(folder)):
            if entry := plan.entry(text):
                found.setdefault(entry.name, []).append(entry)
    return found


def _sort(volume: _Volume, entries: Iterable[plan.Entry], alive: Collection[str]) -> None:
    """Tell ours from what only looks alike.

    :param alive: UUIDs of the subvolumes that are there.
    """
    source = volume.source.uuid
    places = {entry: look(volume.path(entry.text)) for entry in entries}
    # A rollback keeps what the volume was before as one of its snapshots.
    earlier = {each.uuid for each in places.values() if each and each.marked and each.read_only}
    for entry, place in places.items():
        if place is None or not place.is_subvolume:
            volume.outcome.foreign.append(entry.text)
        elif entry.draft:
            made_here = not place.read_only and place.parent_uuid == source != ""
            if place.marked or made_here:
                volume.drafts[entry.text] = place
            else:
                volume.outcome.foreign.append(entry.text)
        # After a rollback its parent is gone, and it is still of this volume. One whose parent is
        # there under another path is of that one.
        elif (
            place.marked
            and place.read_only
            and entry.time is not None
            and (place.parent_uuid in {source, *earlier} or place.parent_uuid not in alive)
        ):
            volume.ours[plan.Snapshot(entry.text, entry.time, place.uuid)] = place
        else:
            volume.outcome.foreign.append(entry.text)
    volume.outcome.before = sorted([*_texts(volume.ours), *volume.drafts])


def _below(top: int, children: dict[int, list[btrfs.Subvolume]]) -> list[btrfs.Subvolume]:
    """Return the subvolumes in a subvolume, at any depth."""
    found, left = {}, [top]
    while left:
        for each in children.get(left.pop(), []):
            if each.id not in found:
                found[each.id] = each
                left.append(each.id)
    return list(found.values())


def _make(path: str, source: Place, draft: str, final: str) -> None:
    """Make a read-only snapshot that carries our attribute; leave nothing where that fails.

    It gets the attribute while it is writable, and its name last: what has the name is finished.
    """
    try:
        btrfs.call("btrfs", "subvolume", "snapshot", path, draft)
        made = look(draft)
        if not made or made.parent_uuid != source.uuid:
            raise BtrfsError(f"path={path!r} became another subvolume meanwhile. Try again")
        os.setxattr(draft, ATTRIBUTE, made.uuid.encode(), follow_symlinks=False)
        btrfs.call("btrfs", "property", "set", "-ts", draft, "ro", "true")
        os.rename(draft, final)
    except BaseException:
        if os.path.lexists(draft):
            # Where that fails too, the next run does it.
            with contextlib.suppress(BtrfsError):
                btrfs.call("btrfs", "subvolume", "delete", draft)
        raise


def _delete(paths: dict[str, tuple[Outcome, str]]) -> None:
    every = list(paths)
    for start in range(0, len(every), CHUNK):
        # The command goes on after one that it cannot delete, and does not say which that was.
        with contextlib.suppress(BtrfsError):
            btrfs.call("btrfs", "subvolume", "delete", *every[start : start + CHUNK])
    left: dict[int, tuple[Outcome, list[str]]] = {}
    for path, (outcome, _) in paths.items():
        if os.path.lexists(path):
            left.setdefault(id(outcome), (outcome, []))[1].append(path)
    for outcome, those in left.values():
        with outcome.noting():
            btrfs.call("btrfs", "subvolume", "delete", *those)
