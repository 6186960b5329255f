# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Files as they should be: compared with the disk, replaced in one step, put back when need be."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace as replace_fields
from typing import Any

# Bytes of a file that can come back after it was taken away. What is larger is no setting.
MOST_KEPT = 16 << 20


class FilesError(Exception):
    """A file cannot be brought to where it should be; one sentence with the path."""


@dataclass(frozen=True)
class Wanted:
    """A file as it should be. ``content`` None: only owner and mode count, of a file that exists.

    ``edits``: regular expressions and what takes the place of each line that they match, in a file
    that is somebody else's. ``absent``: it should not exist. ``secret``: its content is in no diff.
    ``directory``: it is a folder; what is in it does not count.
    """

    path: str
    content: str | None
    uid: int
    gid: int
    mode: int
    edits: tuple[tuple[str, str], ...] = ()
    absent: bool = False
    secret: bool = False
    directory: bool = False

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Wanted:
        """From the dictionary that the module takes.

        :raises FilesError: an owner does not exist, a mode is no mode, a path is relative.
        """
        path = str(value["dest"])
        if not path.startswith("/") or path.endswith("/"):
            raise FilesError(f"dest={path!r}: give the whole path of a file")
        state = value.get("state") or "present"
        mode = str(value.get("mode") or ("0755" if state == "directory" else "0644"))
        if not mode.isdigit() or set(mode) - set("01234567") or int(mode, 8) > 0o7777:
            raise FilesError(f"{path}: mode={mode!r} is no octal mode such as '0644'")
        if state == "present" and value.get("content") is None:
            raise FilesError(
                f"{path}: content is missing; state=attributes sets owner and mode only"
            )
        return cls(
            path=path,
            content=value.get("content") if state == "present" else None,
            uid=user_id(str(value.get("owner") or "root"), path),
            gid=group_id(str(value.get("group") or "root"), path),
            mode=int(mode, 8),
            edits=tuple(
                (str(edit["line"]), str(edit["becomes"])) for edit in value.get("edits") or ()
            ),
            absent=state == "absent",
            secret=bool(value.get("secret")),
            directory=state == "directory",
        )


@dataclass(frozen=True)
class Found:
    """A file as it is. ``content`` None: there is no regular file by that name.

    ``link``: what it points to, where it is a symbolic link.
    """

    exists: bool
    content: bytes | None = None
    uid: int = 0
    gid: int = 0
    mode: int = 0
    link: str | None = None


def edited(wanted: Wanted, found: Found) -> Wanted:
    """What is wanted of a file that only some lines are changed of: the content that comes out."""
    if not wanted.edits or found.content is None:
        return wanted
    lines = found.content.decode("utf-8", "surrogateescape").split("\n")
    for pattern, becomes in wanted.edits:
        # Whole lines; one that is as it should be already is not matched again by its own outcome.
        lines = [
            re.sub(pattern, becomes, line) if re.fullmatch(pattern, line) else line
            for line in lines
        ]
    return replace_fields(wanted, content="\n".join(lines))


def look(wanted: Wanted) -> Found:
    """Read a file as it is; content only where it counts, or must be put back when it is gone."""
    try:
        # A folder may be elsewhere, such as on a larger disk.
        status = os.stat(wanted.path) if wanted.directory else os.lstat(wanted.path)
    except (FileNotFoundError, NotADirectoryError):
        if wanted.directory and os.path.islink(wanted.path):
            raise FilesError(f"{wanted.path} is a link to what is not there") from None
        return Found(exists=False)
    if wanted.directory and not stat.S_ISDIR(status.st_mode):
        raise FilesError(f"{wanted.path} is a file, where a folder should be")
    content = None
    if stat.S_ISDIR(status.st_mode):
        if wanted.content is not None or wanted.absent:
            raise FilesError(f"{wanted.path} is a folder, where a file should be")
    elif stat.S_ISREG(status.st_mode) and (
        wanted.content is not None
        or wanted.edits
        or (wanted.absent and status.st_size <= MOST_KEPT)
    ):
        with open(wanted.path, "rb") as stream:
            content = stream.read()
    elif stat.S_ISLNK(status.st_mode) and wanted.content is None and not wanted.absent:
        # What a link points to is somebody else's; owner and mode of a link itself mean nothing.
        return Found(exists=False)
    link = os.readlink(wanted.path) if stat.S_ISLNK(status.st_mode) else None
    return Found(True, content, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), link)


def differs(wanted: Wanted, found: Found) -> bool:
    """Whether anything must be done."""
    if wanted.absent:
        return found.exists
    if wanted.content is None and not found.exists:
        return wanted.directory
    if wanted.content is None:
        return _attributes(wanted) != _attributes(found)
    return found.content != encoded(wanted.content) or _attributes(wanted) != _attributes(found)


def diff(wanted: Wanted, found: Found) -> dict[str, str]:
    """The difference, for Ansible's ``--diff``."""
    before, after = _shown(found), ""
    if not wanted.absent:
        target = encoded(wanted.content) if wanted.content is not None else found.content
        after = _shown(Found(True, target, wanted.uid, wanted.gid, wanted.mode))
    if wanted.secret or wanted.absent:
        # Who takes a file away does not say whether a secret is in it.
        before, after = (
            text and text.split("\n", 1)[0] + "\n(not shown)\n" for text in (before, after)
        )
    return {
        "before_header": wanted.path,
        "after_header": wanted.path,
        "before": before,
        "after": after,
    }


def apply(wanted: Wanted) -> None:
    """Bring a file to where it should be; a reader sees the old one or the new one, whole."""
    if wanted.absent:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(wanted.path)
    elif wanted.content is None:
        if wanted.directory:
            os.makedirs(wanted.path, exist_ok=True)
        os.chown(wanted.path, wanted.uid, wanted.gid, follow_symlinks=wanted.directory)
        os.chmod(wanted.path, wanted.mode)
    else:
        replace(wanted.path, encoded(wanted.content), wanted.uid, wanted.gid, wanted.mode)


def put_back(wanted: Wanted, found: Found) -> None:
    """Undo ``apply``."""
    if not found.exists and wanted.directory:
        # What somebody put there meanwhile stays.
        with contextlib.suppress(OSError):
            os.rmdir(wanted.path)
    elif not found.exists:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(wanted.path)
    elif found.link is not None:
        draft = f"{wanted.path}.nas-assistant-draft"
        os.symlink(found.link, draft)
        os.rename(draft, wanted.path)
    elif found.content is None:
        os.chown(wanted.path, found.uid, found.gid, follow_symlinks=wanted.directory)
        os.chmod(wanted.path, found.mode)
    else:
        replace(wanted.path, found.content, found.uid, found.gid, found.mode)


def replace(path: str, content: bytes, uid: int, gid: int, mode: int) -> None:
    """Write a file beside its place, flush it to the disk, and rename it over the old one."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    # A name that no daemon reads: drop-in folders are read by their endings.
    descriptor, draft = tempfile.mkstemp(prefix=".nas-assistant-", suffix=".draft", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            stream.flush()
            os.fsync(descriptor)
        os.rename(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def encoded(text: str) -> bytes:
    """A file's text as bytes; what was no UTF-8 when it was read comes out as it was."""
    return text.encode("utf-8", "surrogateescape")


def _attributes(file: Wanted | Found) -> tuple[int, int, int]:
    return file.uid, file.gid, file.mode


def _shown(found: Found) -> str:
    if not found.exists:
        return ""
    head = f"# owner {found.uid}, group {found.gid}, mode {found.mode:04o}\n"
    return head + (found.content or b"").decode("utf-8", "replace")


def user_id(name: str, path: str) -> int:
    """Return the number of a user, given by name or number, who is to have ``path``."""
    try:
        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise FilesError(f"{path}: owner={name!r} does not exist on this machine") from None


def group_id(name: str, path: str) -> int:
    """Return the number of a group, as ``user_id``."""
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise FilesError(f"{path}: group={name!r} does not exist on this machine") from None
