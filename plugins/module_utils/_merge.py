# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Puts restored files in place, in folders whose owners may be hostile: root works there for them.

Whoever owns a folder may rename what is in it, or put a link there, at any moment. So all is done
from opened folders, and no link is ever followed; what is not finished yet lies where only root can
look in, and comes out with its owner and mode as they should be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator

from ansible_collections.nas.assistant.plugins.module_utils import (
    _manifest as manifest,
    _snapshot_plan as snapshot_plan,
)
from ansible_collections.nas.assistant.plugins.module_utils._restic import BackupError

SQLITE = b"SQLite format 3\0"
# What lies beside a database and is a part of it. Of another state, it would be played into that.
OF_DATABASES = ("-wal", "-shm", "-journal")
_DRAFT = ".nas-assistant-restore."
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def draft(target: str) -> Iterator[tuple[int, str]]:
    """Make a folder in the target that only root can look into, and that is gone at the end; and
    what one that was killed left before it. Nobody else may be at it.

    Gives it opened, and a path by which it can be found whatever it is called by then.
    """
    _remove_left(target)
    path = tempfile.mkdtemp(prefix=_DRAFT, dir=target)
    descriptor = os.open(path, _FOLDER)
    try:
        if not _is_draft(os.fstat(descriptor)):
            raise BackupError("failed", f"{path} was replaced by somebody else meanwhile")
        yield descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        # Opened anew: Btrfs lists what was there when a folder was opened.
        again = os.open(".", _FOLDER, dir_fd=descriptor)
        for name in os.listdir(again):
            _remove(name, descriptor)
        os.close(again)
        with contextlib.suppress(OSError):
            os.rmdir(path)
        os.close(descriptor)


def clothe(inside: str, folders: Iterable[manifest.Entry]) -> None:
    """Give folders in a draft, of which only something in them was restored, what they had."""
    for entry in folders:
        place = os.path.join(inside, entry.path)
        os.chown(place, entry.uid, entry.gid)
        os.chmod(place, entry.mode)


class Merge:
    """What is brought from a draft into a folder.

    :param draft: the opened draft; ``place``: where the source is in it.
    :param settled: whether all that is named must be there.
    """

    def __init__(self, target: str, draft: int, place: str, settled: bool) -> None:
        self.target, self.settled = target, settled
        self.draft, self.place = draft, place
        self.changed = 0
        #: Folder with what was replaced; empty while nothing was.
        self.kept = ""
        self._top = self._kept = -1
        self._moved = ""

    def run(self, entries: Iterable[manifest.Entry], top: manifest.Entry | None = None) -> None:
        """Bring entries in place, folders before what is in them.

        :param top: what the folder itself is to have, where it is a new one.
        :raises BackupError: something is in the way; what was replaced before is in ``kept``.
        """
        self._top = os.open(self.target, _FOLDER)
        try:
            for entry in entries:
                self._one(entry)
            if top:
                os.fchown(self._top, top.uid, top.gid)
                os.fchmod(self._top, top.mode)
            os.fsync(self._top)
        finally:
            os.close(self._top)
            if self._kept >= 0:
                os.close(self._kept)

    def _one(self, entry: manifest.Entry) -> None:
        if self._moved and entry.path.startswith(f"{self._moved}/"):
            self.changed += entry.kind != "d"
            return
        above, _, name = entry.path.rpartition("/")
        with self._opened(self._top, above) as there:
            present = _status(name, there)
            if entry.kind == "d" and present and stat.S_ISDIR(present.st_mode):
                return
            same = bool(present) and not manifest.difference(self.target, entry)
            beside = _beside(entry, name, there)
            if same and not beside:
                return
            inside = os.path.join(self.place, above) if above else self.place
            with self._opened(self.draft, inside) as source:
                if not _status(name, source):
                    # It went while it was copied.
                    if self.settled:
                        raise BackupError("failed", f"{entry.path} is gone from what was restored")
                    return
                if same:
                    # What was restored with it is looked at in its turn.
                    beside = [each for each in beside if not _status(each, source)]
                if not beside or not _is_database(name, source):
                    beside = []
                if same and not beside:
                    return
                if present and not same:
                    self._keep(entry.path, there)
                for each in beside:
                    self._keep(os.path.join(above, each), there)
                if not same:
                    os.rename(name, name, src_dir_fd=source, dst_dir_fd=there)
        self.changed += entry.kind != "d"
        if entry.kind == "d":
            self._moved = entry.path

    def _keep(self, path: str, there: int) -> None:
        """Move what is in the way aside."""
        if self._kept < 0:
            name = f".before-{snapshot_plan.stamp(int(time.time()))}"
            os.mkdir(name, 0o700, dir_fd=self._top)
            self._kept = os.open(name, _FOLDER, dir_fd=self._top)
            self.kept = os.path.join(self.target, name)
        above, _, name = path.rpartition("/")
        with self._opened(self._kept, above, make=True) as aside:
            os.rename(name, name, src_dir_fd=there, dst_dir_fd=aside)

    @contextlib.contextmanager
    def _opened(self, start: int, path: str, make: bool = False) -> Iterator[int]:
        """Open a folder below an opened one, one step after the other."""
        descriptor = os.dup(start)
        try:
            for part in path.split("/") if path else []:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=descriptor)
                try:
                    deeper = os.open(part, _FOLDER, dir_fd=descriptor)
                except OSError as error:
                    raise BackupError(
                        "failed",
                        f"{self.target}: {path} is a link now, or no folder ({error.strerror}), "
                        "and nothing is put behind it. Move it away",
                    ) from None
                os.close(descriptor)
                descriptor = deeper
            yield descriptor
        finally:
            os.close(descriptor)


def _status(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        return None


def _beside(entry: manifest.Entry, name: str, folder: int) -> list[str]:
    """Return the names of what would belong to a file if it were a database."""
    names = [f"{name}{ending}" for ending in OF_DATABASES] if entry.kind == "f" else []
    return [each for each in names if _status(each, folder)]


def _is_database(name: str, folder: int) -> bool:
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as stream:
        return stream.read(len(SQLITE)) == SQLITE


def _is_draft(status: os.stat_result | None) -> bool:
    """Whether something is a folder of ours that only we can look into: whoever may write where it
    is may give a name such as that to something else."""
    return bool(
        status
        and stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        # In a folder that gives its group on (setgid), this one does too.
        and status.st_mode & 0o777 == 0o700
    )


def _remove_left(target: str) -> None:
    """Remove drafts of restores that were killed."""
    folder = os.open(target, _FOLDER)
    try:
        for name in os.listdir(folder):
            if name.startswith(_DRAFT) and _is_draft(_status(name, folder)):
                _remove(name, folder)
    finally:
        os.close(folder)


def _remove(name: str, folder: int) -> None:
    status = _status(name, folder)
    if status and stat.S_ISDIR(status.st_mode):
        shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
    elif status:
        os.unlink(name, dir_fd=folder)
