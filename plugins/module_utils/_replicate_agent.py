# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a replication asks of the folders on either side; the far one runs the source of it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import shutil
import stat
import struct
import sys
import uuid
from collections.abc import Iterator
from typing import Any


class Agent:
    """What is asked of a folder on either side.

    The far side runs the source of this class and nothing else, so that it uses the standard
    library only. All methods yield what can be written as JSON; names that are no UTF-8 have
    surrogates.
    """

    SUBVOLUME = 256  # inode of a subvolume's root
    PLACEHOLDER = 2  # inode of the empty folder where a snapshot lacks a nested subvolume
    # linux/btrfs.h: struct btrfs_ioctl_get_subvol_info_args (id, name, parent, folder, generation,
    # flags, three UUIDs, four transactions, four times), and struct btrfs_ioctl_fs_info_args.
    INFO = struct.Struct("@Q256s4Q16s16s16s4QQIQIQIQI8Q")
    GET_SUBVOL_INFO = 2 << 30 | INFO.size << 16 | 0x94 << 8 | 60
    FS_INFO = 2 << 30 | 1024 << 16 | 0x94 << 8 | 31
    SYNC = 0x94 << 8 | 8
    READ_ONLY = 1

    @staticmethod
    def asked(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer a request: ``do`` names the method, the rest is its arguments."""
        wish = dict(request)
        answer: Iterator[dict[str, Any]] = getattr(Agent, wish.pop("do"))(**wish)
        return answer

    @staticmethod
    def main(request: str) -> None:
        """Answer in lines of JSON; an error is one line and exit code 1."""
        try:
            for line in Agent.asked(json.loads(request)):
                print(json.dumps(line))
        except OSError as error:
            sys.exit(str(error))

    @staticmethod
    def look(folder: str, name: str) -> Iterator[dict[str, Any]]:
        """Say what a folder is, and what is in it that may be of this name."""
        path = os.fsencode(folder)
        answer: dict[str, Any] = {
            "root": os.geteuid() == 0,
            "btrfs": bool(shutil.which("btrfs", path=os.environ.get("PATH", "") + ":/usr/sbin")),
            "folder": os.path.isdir(path),
            "filesystem": "",
            "writable": os.access(path, os.W_OK),
            "entries": [],
            "incoming": [],
        }
        if answer["root"] and answer["folder"]:
            answer["filesystem"] = Agent.filesystem(path)
        if answer["filesystem"]:
            first = os.fsencode(name + ".")
            names = sorted(each for each in os.listdir(path) if each.startswith(first))
            found = [Agent.entry(path, each) for each in names]
            answer["entries"] = [each for each in found if each]
            answer["incoming"] = list(Agent.remainders(path, os.fsencode(f".incoming-{name}"), 2))
        yield answer

    @staticmethod
    def filesystem(path: bytes) -> str:
        """Return the UUID of the Btrfs that a folder is on; an empty text on another one."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            told = bytearray(1024)
            fcntl.ioctl(descriptor, Agent.FS_INFO, told)
            return str(uuid.UUID(bytes=bytes(told[16:32])))
        except OSError:
            return ""
        finally:
            os.close(descriptor)

    @staticmethod
    def entry(folder: bytes, name: bytes) -> dict[str, Any]:
        """Describe what stands in a folder by a name, as the fields of Entry; ``{}`` if nothing."""
        path = os.path.join(folder, name)
        told: dict[str, Any] = {"name": os.fsdecode(name), "subvolume": False}
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return {}
        if not stat.S_ISDIR(status.st_mode) or status.st_ino != Agent.SUBVOLUME:
            return told
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            info = bytearray(Agent.INFO.size)
            fcntl.ioctl(descriptor, Agent.GET_SUBVOL_INFO, info)
        except OSError:  # the root of another filesystem that is mounted here
            return told
        finally:
            os.close(descriptor)

        values = Agent.INFO.unpack(info)
        own, received = (str(uuid.UUID(bytes=values[at])) for at in (6, 8))
        told.update(
            subvolume=True,
            id=values[0],
            uuid=own,
            received_uuid=received if any(values[8]) else "",
            read_only=bool(values[5] & Agent.READ_ONLY),
            received_at=values[12],
        )
        return told

    @staticmethod
    def remainders(folder: bytes, below: bytes, depth: int) -> Iterator[dict[str, Any]]:
        """Yield ``path`` (from the folder) and ``id`` of the subvolumes in one folder of it."""
        path = os.path.join(folder, below)
        if os.path.islink(path) or not os.path.isdir(path):
            return
        for name in sorted(os.listdir(path)):
            found = Agent.entry(path, name)
            inner = os.path.join(below, name)
            if found.get("subvolume"):
                yield {"path": os.fsdecode(inner), "id": found["id"]}
            elif depth > 1:
                yield from Agent.remainders(folder, inner, depth - 1)

    @staticmethod
    def prepare(folder: str, name: str, inner: str) -> Iterator[dict[str, Any]]:
        """Make the folder that a run receives into, and remove those of others that are empty."""
        list(Agent.tidy(folder, name))
        path = os.path.join(os.fsencode(folder), os.fsencode(f".incoming-{name}"))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
        # Somebody else's, or a link of theirs, would have root write where they want.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise FileExistsError(f"{os.fsdecode(path)} is in the way; it must be root's folder")
        os.chmod(path, 0o700)
        os.mkdir(os.path.join(path, os.fsencode(inner)), 0o700)
        yield {}

    @staticmethod
    def tidy(folder: str, name: str) -> Iterator[dict[str, Any]]:
        """Remove the folders of runs that are empty."""
        path = os.path.join(os.fsencode(folder), os.fsencode(f".incoming-{name}"))
        if os.path.isdir(path) and not os.path.islink(path):
            inner = [os.path.join(path, each) for each in os.listdir(path)]
            for each in [*inner, path]:
                with contextlib.suppress(OSError):
                    os.rmdir(each)
        yield {}

    @staticmethod
    def subvolume(folder: str, name: str) -> Iterator[dict[str, Any]]:
        """Describe one entry; ``{}`` where there is none."""
        yield Agent.entry(os.fsencode(folder), os.fsencode(name))

    @staticmethod
    def size(tree: str) -> Iterator[dict[str, Any]]:
        """Say how many files, folders and others a tree has, and of how many bytes."""
        entries = size = 0
        for _, status in Agent.paths(os.fsencode(tree)):
            entries += 1
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
        yield {"entries": entries, "bytes": size}

    @staticmethod
    def content(tree: str) -> Iterator[dict[str, Any]]:
        """Describe all of a tree, each folder before what is in it, in the order of bytes."""
        top = os.fsencode(tree)
        # What is still only in memory would be verified there.
        descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(descriptor, Agent.SYNC)
        os.close(descriptor)
        first: dict[int, str] = {}  # of files with several names, the first by inode
        for path, status in Agent.paths(top):
            full, mode, shown = os.path.join(top, path), status.st_mode, os.fsdecode(path)
            line: dict[str, Any] = {
                "path": shown,
                "type": stat.S_IFMT(mode),
                "mode": stat.S_IMODE(mode),
                "owner": status.st_uid,
                "group": status.st_gid,
                "mtime": status.st_mtime_ns,
                "xattrs": Agent.xattrs(full),
            }
            # The size of a folder counts nested subvolumes too, which a replica has not.
            if not stat.S_ISDIR(mode):
                line.update(size=status.st_size, links=status.st_nlink)
            if not stat.S_ISDIR(mode) and status.st_nlink > 1:
                line["same file as"] = first.setdefault(status.st_ino, shown)
            if stat.S_ISLNK(mode):
                line["target"] = os.fsdecode(os.readlink(full))
            elif stat.S_ISREG(mode) and line.get("same file as", shown) == shown:
                line["sha256"] = Agent.digest(full)
            elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                line["device"] = status.st_rdev
            yield line

    @staticmethod
    def paths(top: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """Yield the paths in a tree, from its top (an empty path) on, with what lstat says."""
        device, waiting = os.lstat(top).st_dev, [b""]
        while waiting:
            path = waiting.pop()
            full = os.path.join(top, path)
            status = os.lstat(full)
            folder = stat.S_ISDIR(status.st_mode)
            if folder and status.st_ino == Agent.PLACEHOLDER:
                continue
            yield path, status
            if folder and status.st_dev == device:
                names = sorted(os.listdir(full), reverse=True)
                waiting.extend(os.path.join(path, name) for name in names)

    @staticmethod
    def xattrs(path: bytes) -> dict[str, str]:
        """Return the extended attributes, access lists among them, in base 64."""
        found = {}
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            with contextlib.suppress(OSError):
                value = os.getxattr(path, name, follow_symlinks=False)
                found[name] = base64.b64encode(value).decode()
        return found

    @staticmethod
    def digest(path: bytes) -> str:
        """Return the SHA-256 of a file as the disk has it."""
        digest = hashlib.sha256()
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            # What has just been written must be read from the disk to be verified; and what is read
            # only for that is not to push out of memory what the NAS works with.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while block := os.read(descriptor, 1 << 20):
                digest.update(block)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        return digest.hexdigest()


def agent_script() -> str:
    """Return the program that the far side runs; its one argument is a request."""
    modules = "base64, contextlib, fcntl, hashlib, json, os, shutil, stat, struct, sys, uuid"
    head = ["from __future__ import annotations", f"import {modules}"]
    return "\n".join([*head, inspect.getsource(Agent), "Agent.main(sys.argv[1])", ""])
