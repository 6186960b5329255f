# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Folders that are copied before something is mounted over them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _standstill
from ansible_collections.nas.assistant.plugins.module_utils._standstill import Standstill
from ansible_collections.nas.assistant.plugins.modules import folder_copy
from shell import sh

from lab import apt

Call = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of its own; the real one is the system's."""
    monkeypatch.setattr(_standstill, "FOLDER", str(tmp_path))
    monkeypatch.setattr(_standstill, "LOCK", str(tmp_path / "standstill.lock"))
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


@pytest.fixture
def docker(source: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Docker's data root with a container that runs, one of whose mounts is of the same filesystem;
    what is done to its units. Stopped, it takes away the mounts that are listed as its own."""
    done: list[str] = []
    for place in ("overlay2/x/merged", "containers/x/mounts/shm"):
        (source / place).mkdir(parents=True)
        sh("mount", "-t", "tmpfs", "tmpfs", str(source / place))
        (source / place / "of a layer").write_text("x")
    models = source.parent / "models"
    models.mkdir()
    (models / "model").write_text("large")
    (source / "volumes/models/_data").mkdir(parents=True)
    sh("mount", "--bind", str(models), str(source / "volumes/models/_data"))

    def begin(standstill: Standstill, units: Iterable[str], notes: Iterable[str] = ()) -> None:
        standstill.units, standstill.notes = list(units), list(notes)
        standstill.save()
        done.append("stopped")
        for place in ("overlay2/x/merged", "containers/x/mounts/shm", "volumes/models/_data"):
            if place not in done:
                sh("umount", str(source / place))

    monkeypatch.setattr(Standstill, "begin", begin)
    monkeypatch.setattr(folder_copy, "running", list)
    monkeypatch.setattr(_standstill, "running", list)
    monkeypatch.setattr(_standstill, "demand", lambda argv: done.append(argv[1]))
    monkeypatch.setattr(_standstill, "SETTLE", 0.0)
    return done


DOCKER = ["docker.service"]


def test_mounts_of_containers_go_with_them(
    call: Call, pool: Path, source: Path, docker: list[str]
) -> None:
    to = pool / "docker"
    sh("btrfs", "subvolume", "create", str(to))
    # Not of somebody whom nobody stops.
    assert "is a mount or a subvolume of its own" in copied(call, source, to)["msg"]
    assert docker == []
    wish = {"path": str(source), "to": str(to), "allowed": True, "users": DOCKER}
    planned = call(folder_copy.main, check=True, folders=[wish])
    assert planned["copied"] == [str(source)]
    assert copied(call, source, to, users=DOCKER)["copied"] == [str(source)]
    for place in ("overlay2/x/merged", "containers/x/mounts/shm", "volumes/models/_data"):
        assert list((to / place).iterdir()) == []
    assert (to / "deep/file").read_bytes() == (source / "deep/file").read_bytes()
    assert call(folder_copy.main, state="resumed")["resumed"] == DOCKER
    assert docker == ["stopped", "start"]


@pytest.mark.parametrize("stays", ["overlay2/x/merged", "volumes/models/_data"])
def test_a_mount_that_stays_is_refused_and_all_goes_on(
    call: Call, pool: Path, source: Path, docker: list[str], stays: str
) -> None:
    to = pool / "docker"
    sh("btrfs", "subvolume", "create", str(to))
    docker.append(stays)
    said = copied(call, source, to, users=DOCKER)["msg"]
    assert f"{source / stays} is a mount or a subvolume of its own still" in said
    assert list(to.iterdir()) == []
    assert call(folder_copy.main, state="resumed")["resumed"] == DOCKER
    assert docker == [stays, "stopped", "start"]


def test_other_mounts_are_refused_before_anything_stops(
    call: Call, pool: Path, source: Path, docker: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = pool / "docker"
    sh("btrfs", "subvolume", "create", str(to))
    (source / "volumes/own/_data/photos").mkdir(parents=True)
    sh("mount", "-t", "tmpfs", "tmpfs", str(source / "volumes/own/_data/photos"))
    said = copied(call, source, to, users=DOCKER)["msg"]
    assert f"{source}/volumes/own/_data/photos in {source} is a mount" in said
    sh("umount", str(source / "volumes/own/_data/photos"))
    # What was left by one that does not run is taken away by nobody.
    monkeypatch.setattr(folder_copy, "running", lambda _: [])
    assert "is a mount or a subvolume of its own" in copied(call, source, to, users=DOCKER)["msg"]
    assert docker == []


def test_folders_may_vanish_while_they_are_looked_through(source: Path) -> None:
    gone, seen = str(source / "deep/er"), os.lstat

    def look(path: str) -> os.stat_result:
        if path == gone:
            raise FileNotFoundError(path)
        return seen(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "lstat", look)
        assert folder_copy.first_apart(str(source), set()) == ""


def test_disk_full_leaves_the_old_one(call: Call, pool: Path, source: Path) -> None:
    to = pool / "docker"
    sh("btrfs", "subvolume", "create", str(to))
    with (source / "large").open("wb") as stream:
        for _ in range(300):
            stream.write(os.urandom(1 << 20))
    answer = copied(call, source, to)
    assert "No space left on device" in answer["msg"]
    assert (source / "large").stat().st_size == 300 << 20
