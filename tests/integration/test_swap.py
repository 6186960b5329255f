# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Swap files on real filesystems, which the kernel takes. The units are tests/vm's to try."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _swap as swap
from shell import sh

Disks = Callable[..., list[str]]


def used(place: Path) -> list[str]:
    """Swap of the test's own that the kernel has."""
    return [path for path in swap.in_use() if Path(path).is_relative_to(place)]


MIB = 1 << 20


@pytest.fixture(params=["ext4", "btrfs"])
def place(request: pytest.FixtureRequest, folder: Path, make_disks: Disks) -> Path:
    (disk,) = make_disks(1, 3 << 30)
    sh(f"mkfs.{request.param}", "-q", disk)
    point = folder / "system"
    point.mkdir()
    sh("mount", disk, str(point))
    return point


def test_a_folder_that_was_there_stays(place: Path) -> None:
    path = place / "own/swap"
    path.parent.mkdir(mode=0o755)
    if sh("stat", "-f", "-c", "%T", str(place)).strip() == "btrfs":
        path.parent.rmdir()
        sh("btrfs", "subvolume", "create", str(path.parent))
    swap.make(str(path), 64 * MIB)
    swap.put(str(path))
    swap.remove(str(path))
    assert path.parent.is_dir()


def test_made_used_replaced_and_removed(place: Path) -> None:
    path = place / "lib/swap/file"
    swap.refuse_place(str(path), 256 * MIB)
    swap.make(str(path), 256 * MIB)
    assert used(place) == []
    swap.put(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert swap.size_of(str(path)) == 256 * MIB
    sh("swapon", str(path))
    try:
        assert used(place) == [str(path)]
        # What holds it can be snapshotted all the same.
        if sh("stat", "-f", "-c", "%T", str(place)).strip() == "btrfs":
            assert (place / "lib").stat().st_dev != path.stat().st_dev
            sh("btrfs", "subvolume", "snapshot", "-r", str(place), str(place / "snapshot"))
        # The next one is made, and was tried, while this one is in use.
        swap.refuse_place(str(path), 128 * MIB)
        swap.make(str(path), 128 * MIB)
        assert used(place) == [str(path)]
    finally:
        sh("swapoff", str(path))
    swap.put(str(path))
    assert swap.size_of(str(path)) == 128 * MIB
    assert os.listdir(path.parent) == ["file"]
    swap.remove(str(path))
    assert not path.parent.exists()


def test_what_is_left_by_a_run_that_was_cut_off(place: Path) -> None:
    path = str(place / "swap/file")
    swap.make(path, 64 * MIB)
    sh("swapon", swap.draft_of(path))
    swap.make(path, 32 * MIB)
    swap.put(path)
    assert swap.size_of(path) == 32 * MIB
    assert used(place) == []


def test_what_is_refused(place: Path) -> None:
    with pytest.raises(swap.SwapError, match="would leave less than 1 GiB of"):
        swap.refuse_place(str(place / "swap/file"), 2 << 30)
    if "lost+found" not in os.listdir(place):
        (place / "shared").mkdir()
        for path in (place / "file", place / "shared/file"):
            with pytest.raises(swap.SwapError, match="is no subvolume for it alone"):
                swap.refuse_place(str(path), 64 * MIB)
    (place / "memory").mkdir()
    sh("mount", "-t", "tmpfs", "tmpfs", str(place / "memory"))
    with pytest.raises(swap.SwapError, match="lies on tmpfs, and the kernel takes no swap file"):
        swap.make(str(place / "memory/file"), 1 * MIB)
    assert os.listdir(place / "memory") == []


def test_a_mirror_takes_none_and_keeps_nothing(pool: Path) -> None:
    with pytest.raises(swap.SwapError, match="lies on btrfs, and the kernel takes no swap file"):
        swap.make(str(pool / "swap/file"), 32 * MIB)
    assert os.listdir(pool / "swap") == []
