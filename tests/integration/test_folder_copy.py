# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Folders that are copied before something is mounted over them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _standstill
from ansible_collections.nas.assistant.plugins.modules import folder_copy
from shell import sh

from lab import apt

Call = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of its own; the real one is the system's."""
    monkeypatch.setattr(_standstill, "FOLDER", str(tmp_path))
    if not shutil.which("rsync"):
        apt.install(["rsync"], why="the test copies folders as a NAS does")


@pytest.fixture
def source(folder: Path) -> Path:
    """A folder with what is easily lost on the way."""
    source = folder / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/file").write_bytes(os.urandom(3 << 20))
    os.link(source / "deep/file", source / "deep/er/hard link")
    (source / "symbolic").symlink_to("deep/nowhere")
    with (source / "sparse").open("wb") as stream:
        stream.truncate(20 << 20)
    os.setxattr(source / "deep", "trusted.overlay.opaque", b"y")
    os.mknod(source / "whiteout", 0o020000, os.makedev(0, 0))
    os.chown(source / "deep", 1234, 4321)
    (source / "name\nwith ü").write_text("odd")
    return source


def copied(call: Call, source: Path, to: Path, **more: Any) -> dict[str, Any]:
    wish = {"path": str(source), "to": str(to), "allowed": True, **more}
    return call(folder_copy.main, folders=[wish])


def test_everything_comes_along(call: Call, pool: Path, source: Path) -> None:
    to = pool / "docker"
    sh("btrfs", "subvolume", "create", str(to))
    sh("btrfs", "property", "set", str(to), "compression", "zstd")
    wish = {"path": str(source), "to": str(to), "allowed": True}
    assert call(folder_copy.main, check=True, folders=[wish])["copied"] == [str(source)]
    assert list(to.iterdir()) == []
    assert copied(call, source, to)["copied"] == [str(source)]
    assert os.getxattr(to / "deep", "trusted.overlay.opaque") == b"y"
    assert os.stat(to / "deep/file").st_nlink == 2
    assert os.stat(to / "sparse").st_blocks < 8
    assert os.stat(to / "whiteout").st_mode == 0o020000
    assert (to / "deep").stat().st_uid == 1234
    for path in (to, to / "deep/file"):
        assert "compression=zstd" in sh("btrfs", "property", "get", str(path), "compression")
    assert (to / "name\nwith ü").read_text() == "odd"
    # The old one is as it was, until somebody removes it.
    assert (source / "deep/file").read_bytes() == (to / "deep/file").read_bytes()


def test_a_copy_that_was_cut_off_is_finished(call: Call, pool: Path, source: Path) -> None:
    to = pool / "docker"
    sh("btrfs", "subvolume", "create", str(to))
    assert not copied(call, source, to).get("failed")
    (to / "deep/file").write_bytes(b"half")
    (to / "of an earlier try").write_text("x")
    assert not copied(call, source, to).get("failed")
    assert not (to / "of an earlier try").exists()
    assert (source / "deep/file").read_bytes() == (to / "deep/file").read_bytes()


def test_both_hold_something(call: Call, pool: Path, source: Path) -> None:
    to = pool / "docker"
    to.mkdir()
    (to / "precious").write_text("x")
    answer = copied(call, source, to)
    assert "both hold something (precious there)" in answer["msg"]
    assert (to / "precious").exists()


def test_refused_unless_allowed(call: Call, pool: Path, source: Path) -> None:
    for check in (True, False):
        wish = {"path": str(source), "to": str(pool / "docker")}
        answer = call(folder_copy.main, check=check, folders=[wish])
        assert f"{source} holds deep, name\nwith ü, sparse, symbolic, whiteout" in answer["msg"]


def test_an_empty_folder_keeps_its_owner_and_mode(call: Call, pool: Path, folder: Path) -> None:
    """A service that has written nothing yet is to be able to."""
    empty, to = folder / "empty", pool / "state"
    empty.mkdir(mode=0o700)
    os.chown(empty, 1234, 4321)
    sh("btrfs", "subvolume", "create", str(to))
    assert not copied(call, empty, to, allowed=False)["changed"]
    assert copied(call, empty, to)["copied"] == [str(empty)]
    found = to.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 4321, 0o700)


def test_nothing_to_copy(call: Call, pool: Path, folder: Path) -> None:
    assert "something else is mounted at" in copied(call, Path("/proc"), pool)["msg"]
    assert "something else is mounted at" in copied(call, pool, pool, root="/docker")["msg"]
    for path in (folder / "missing", pool):
        answer = copied(call, path, pool / "docker")
        assert (answer["changed"], answer["copied"]) == (False, [])
    (folder / "file").write_text("x")
    assert "is no folder" in copied(call, folder / "file", pool / "docker")["msg"]


def test_disk_full_leaves_the_old_one(call: Call, pool: Path, source: Path) -> None:
    to = pool / "docker"
    sh("btrfs", "subvolume", "create", str(to))
    with (source / "large").open("wb") as stream:
        for _ in range(300):
            stream.write(os.urandom(1 << 20))
    answer = copied(call, source, to)
    assert "No space left on device" in answer["msg"]
    assert (source / "large").stat().st_size == 300 << 20
