# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A subvolume that is brought back to one of its snapshots, and forth again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _snapshots, _standstill
from ansible_collections.nas.assistant.plugins.modules import (
    btrfs_rollback,
    btrfs_snapshot,
    btrfs_subvolume,
)
from shell import sh

Call = Callable[..., dict[str, Any]]


class Volume:
    """A subvolume with its snapshots, and a clock that each snapshot moves on."""

    def __init__(self, call: Call, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.call = call
        self.path, self.folder = pool / "documents", pool / ".snapshots"
        self.time = 1_700_000_000
        monkeypatch.setattr(_snapshots, "now", lambda: self.time)
        wish = {"path": "documents", "quota": "64M", "compression": "zstd", "mode": "0750"}
        call(btrfs_subvolume.main, pool=str(pool), subvolumes=[wish])

    def snapshot(self) -> str:
        self.time += 60
        wish = {"path": str(self.path), "folder": str(self.folder)}
        (volume,) = self.call(btrfs_snapshot.main, volumes=[wish])["volumes"]
        return str(volume["made"][0])

    def back(self, to: str = "newest", check: bool = False) -> dict[str, Any]:
        self.time += 60
        where = {"path": str(self.path), "folder": str(self.folder)}
        return self.call(btrfs_rollback.main, check=check, to=to, **where)

    def write(self, text: str) -> None:
        (self.path / "file").write_text(text)

    def read(self) -> str:
        return (self.path / "file").read_text()


@pytest.fixture
def volume(call: Call, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    monkeypatch.setattr(_standstill, "FOLDER", str(tmp_path))
    monkeypatch.setattr(btrfs_rollback, "HOLDS", str(tmp_path / "holds"))
    return Volume(call, pool, monkeypatch)


def test_back_and_forth(volume: Volume, call: Call, tmp_path: Path) -> None:
    volume.write("one")
    first = volume.snapshot()
    volume.write("two")
    volume.snapshot()
    volume.write("three")
    assert volume.back(first, check=True)["snapshot"] == first
    assert volume.read() == "three"
    answer = volume.back(first)
    assert volume.read() == "one"
    assert answer["snapshot"] == first
    # What was there is there still, and so is the way forth.
    assert (volume.folder / answer["kept"] / "file").read_text() == "three"
    # Retention leaves it alone, however many come after it.
    for _ in range(3):
        volume.snapshot()
    wish = {"path": str(volume.path), "folder": str(volume.folder), "keep": {"last": 1}}
    holds = str(tmp_path / "holds")
    (pruned,) = call(btrfs_snapshot.main, state="pruned", holds=holds, volumes=[wish])["volumes"]
    assert pruned["held"] == [answer["kept"]]
    assert len(pruned["deleted"]) == 4
    volume.back(answer["kept"])
    assert volume.read() == "three"
    assert sorted(path.name for path in volume.path.parent.iterdir()) == [".snapshots", "documents"]


def test_what_the_subvolume_has_stays(volume: Volume) -> None:
    volume.write("one")
    volume.snapshot()
    assert not volume.back().get("failed")
    assert volume.path.stat().st_mode & 0o7777 == 0o750
    volume.write("writable")
    said = sh("btrfs", "property", "get", str(volume.path), "compression")
    assert said == "compression=zstd\n"
    assert "67108864" in sh("btrfs", "qgroup", "show", "-re", "--raw", str(volume.path))
    # Snapshots go on being made of it, and the copy is none itself.
    name = volume.snapshot()
    assert (volume.folder / name / "file").read_text() == "writable"


def test_what_is_no_snapshot_of_ours_is_refused(volume: Volume) -> None:
    volume.write("one")
    made = volume.snapshot()
    foreign = "documents.20300101T000000Z"
    sh("btrfs", "subvolume", "snapshot", "-r", str(volume.path), str(volume.folder / foreign))
    for to in (foreign, "documents", "../documents"):
        answer = volume.back(to)
        assert f"has no such snapshot of documents; there are {made}" in answer["msg"]
    assert volume.back()["snapshot"] == made


def test_subvolumes_in_it_are_not_lost(volume: Volume) -> None:
    volume.write("one")
    volume.snapshot()
    sh("btrfs", "subvolume", "create", str(volume.path / "inner"))
    answer = volume.back()
    assert "other subvolumes lie in it (documents/inner)" in answer["msg"]
    assert (volume.path / "inner").is_dir()


@pytest.mark.parametrize("step", ["copied", "moved away", "swapped"])
def test_one_that_was_cut_off_is_finished(volume: Volume, step: str) -> None:
    volume.write("one")
    first = volume.snapshot()
    volume.write("two")
    volume.snapshot()
    draft, old = (
        volume.path.parent / ".documents.rollback",
        volume.path.parent / ".documents.before",
    )
    sh("btrfs", "subvolume", "snapshot", str(volume.folder / first), str(draft))
    if step != "copied":
        os.rename(volume.path, old)
    if step == "swapped":
        os.rename(draft, volume.path)
    # Until then nothing else touches it.
    wish = {"pool": str(volume.path.parent), "subvolumes": [{"path": "documents"}]}
    assert "left of a rollback" in volume.call(btrfs_subvolume.main, **wish)["msg"]
    assert not volume.back(first).get("failed")
    assert volume.read() == "one"
    assert not draft.exists()
    assert not old.exists()


def test_what_is_written_meanwhile_is_not_lost(volume: Volume) -> None:
    volume.write("one")
    volume.snapshot()
    with (volume.path / "file").open("a") as stream:  # of somebody who was not stopped
        answer = volume.back()
        stream.write(" and late")
    assert (volume.path / "file").read_text() == "one"
    assert answer["kept"] in [path.name for path in volume.folder.iterdir()]


def test_a_link_in_the_way_is_not_followed(volume: Volume, pool: Path) -> None:
    volume.write("one")
    volume.snapshot()
    sh("btrfs", "subvolume", "create", str(pool / "photos"))
    (pool / ".documents.before").symlink_to(pool / "photos")
    volume.back()
    assert (pool / "photos").is_dir()


def test_no_snapshot_at_all(volume: Volume) -> None:
    assert "there are none" in volume.back()["msg"]


def test_volumes_of_one_name_in_two_pools_are_held_apart() -> None:
    held = {
        _snapshots.hold_name(reason, f"/srv/{pool}/.snapshots", "documents")
        for reason in ("rollback", "restore")
        for pool in ("tank", "vault")
    }
    assert len(held) == 4
    # What begins with a full stop is a draft, and holds nothing.
    assert not any(name.startswith(".") or "/" in name for name in held)
