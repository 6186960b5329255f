# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Mounts that nobody else sees, and that are gone when the process is, however it ends."""

from __future__ import annotations

import ctypes
import os
import time

from ansible_collections.nas.assistant.plugins.module_utils._commands import demand, run

_CLONE_NEWNS = 0x00020000  # linux/sched.h
# How often, and how many seconds apart, it is tried to unmount what is still in use.
_TRIES, _PAUSE = 20, 0.25


class MountError(Exception):
    """Something cannot be mounted; what the command said."""


def enter() -> None:
    """Give this process mounts of its own. What others mount and unmount is still followed.

    :raises MountError: it may not.
    """
    # os.unshare comes with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        raise MountError(f"mounts of its own: {os.strerror(ctypes.get_errno())}")
    demand(["mount", "--make-rslave", "/"], MountError)


def empty(point: str) -> None:
    """Mount a folder for mount points and little files, which lives in memory."""
    os.makedirs(point, mode=0o700, exist_ok=True)
    demand(["mount", "-t", "tmpfs", "-o", "mode=0700,size=4m", "nas-assistant", point], MountError)


def bind(source: str, point: str, read_only: bool = True) -> None:
    """Show a folder, without what is mounted in it, in another place."""
    os.makedirs(point, exist_ok=True)
    demand(["mount", "--bind", source, point], MountError)
    if read_only:
        demand(["mount", "-o", "remount,bind,ro", point], MountError)


def mount(device: str, point: str, options: str, kind: str = "auto") -> None:
    """Mount a device, or what else a ``kind`` of filesystem takes."""
    os.makedirs(point, mode=0o700, exist_ok=True)
    demand(["mount", "-t", kind, "-o", options, device, point], MountError)


def unmount(point: str) -> None:
    """Unmount what is at a point, and what is mounted in it.

    Who began in it may still be leaving, such as the ssh of a restic that has ended.
    """
    command = ["umount", "--recursive", point]
    for _ in range(_TRIES):
        done = run(command)
        if done.returncode == 0:
            return
        if "busy" not in done.stderr:
            break
        time.sleep(_PAUSE)
    demand(command, MountError)
