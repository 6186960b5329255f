# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Subvolumes of a real Btrfs, and what the kernel makes of their settings."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.modules import btrfs_subvolume
from shell import sh

Call = Callable[..., dict[str, Any]]


def want(
    call: Call, pool: Path, *subvolumes: dict[str, Any], check: bool = False
) -> dict[str, Any]:
    answer = call(btrfs_subvolume.main, check=check, pool=str(pool), subvolumes=list(subvolumes))
    assert not answer.get("failed"), answer["msg"]
    return answer


def refused(call: Call, pool: Path, *subvolumes: dict[str, Any]) -> str:
    answer = call(btrfs_subvolume.main, pool=str(pool), subvolumes=list(subvolumes))
    assert answer.get("failed"), answer
    return str(answer["msg"])


def write(path: Path, mebibytes: int) -> None:
    with path.open("wb") as stream:
        for _ in range(mebibytes):
            stream.write(os.urandom(1 << 20))
            stream.flush()
            os.fsync(stream.fileno())


def test_they_are_made_as_wanted_and_once(call: Call, pool: Path) -> None:
    wishes = (
        {"path": "apps/state", "owner": "nobody", "mode": "0750", "compression": "zstd"},
        {"path": "data bases ü", "copy_on_write": False, "quota": "64M"},
    )
    plan = want(call, pool, *wishes, check=True)
    assert plan["made"] == ["apps/state", "data bases ü"]
    assert list(pool.iterdir()) == []
    assert want(call, pool, *wishes)["made"] == plan["made"]
    again = want(call, pool, *wishes)
    assert not again["changed"], again
    assert "path apps/state" in sh("btrfs", "subvolume", "list", str(pool))
    status = (pool / "apps/state").stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (65534, 0o750)
    (pool / "apps/state/file").write_bytes(b"")
    assert "c" in sh("lsattr", str(pool / "apps/state/file")).split()[0]
    (pool / "data bases ü/file").write_bytes(b"")
    assert "C" in sh("lsattr", str(pool / "data bases ü/file")).split()[0]


def test_those_first_that_others_lie_in(call: Call, pool: Path) -> None:
    wishes = [{"path": path} for path in ("a/b/c", "a/b", "other", "a")]
    want(call, pool, *wishes)
    listed = sh("btrfs", "subvolume", "list", str(pool)).splitlines()
    assert [line.partition(" path ")[2] for line in listed] == ["other", "a", "a/b", "a/b/c"]
    assert not want(call, pool, *wishes)["changed"]


def test_what_differs_is_altered_and_nothing_else(call: Call, pool: Path) -> None:
    want(call, pool, {"path": "a", "compression": "zstd", "mode": "0700"}, {"path": "b"})
    (pool / "a/file").write_text("kept")
    change = {"path": "a", "compression": "none", "quota": "32M"}
    found = want(call, pool, change, {"path": "b"})
    assert (found["made"], found["altered"]) == ([], ["a"])
    assert sh("btrfs", "property", "get", str(pool / "a"), "compression") == "compression=none\n"
    assert (pool / "a").stat().st_mode & 0o777 == 0o700
    assert (pool / "a/file").read_text() == "kept"
    # Altered by hand, it is mended.
    sh("btrfs", "property", "set", str(pool / "a"), "compression", "zstd")
    sh("btrfs", "qgroup", "limit", "none", str(pool / "a"))
    os.chmod(pool / "a", 0o500)
    found = want(call, pool, {**change, "mode": "0700"})
    assert found["altered"] == ["a"]
    assert "mode: 0500" in found["diff"][0]["before"]
    assert "quota: 33554432" in found["diff"][0]["after"]
    assert want(call, pool, {"path": "a", "quota": "none", "compression": ""})["changed"]


def test_counting_what_is_there_is_not_waited_for_without_end(
    call: Call, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a large pool it takes hours."""

    def run(argv: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(btrfs_subvolume, "run", run)
    wish = [{"path": "small", "quota": "16M"}]
    answer = call(btrfs_subvolume.main, pool=str(pool), subvolumes=wish, wait=1)
    assert answer["made"] == ["small"]
    assert "16777216" in sh("btrfs", "qgroup", "show", "-re", "--raw", str(pool / "small"))
    assert not want(call, pool, *wish)["changed"]
    monkeypatch.undo()
    sh("btrfs", "quota", "disable", str(pool))
    assert want(call, pool, *wish)["altered"] == ["small"]


def test_a_quota_is_hit(call: Call, pool: Path) -> None:
    want(call, pool, {"path": "small", "quota": "16M"}, {"path": "large"})
    with pytest.raises(OSError, match="quota") as hit:
        write(pool / "small/file", 40)
    assert hit.value.errno == errno.EDQUOT
    write(pool / "large/file", 40)
    # A larger one lets it go on.
    assert want(call, pool, {"path": "small", "quota": "64M"})["altered"] == ["small"]
    write(pool / "small/more", 4)


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"path": "/etc"}, "give a path below the pool"),
        ({"path": "../etc"}, "give a path below the pool"),
        ({"path": "a", "quota": "much"}, "quota='much' is no size such as 20G"),
        ({"path": "a", "quota": "0"}, "quota='0' is no size"),
        ({"path": "a", "compression": "zstd:3"}, "compression='zstd:3' is none of zstd"),
        ({"path": "a", "compression": "lzo", "copy_on_write": False}, "exclude each other"),
        ({"path": "a", "owner": "nobody-at-all"}, "owner='nobody-at-all' does not exist"),
        ({"path": "a", "mode": "rwx"}, "mode='rwx' is no octal mode"),
        ({"path": "plain"}, "is a plain folder, and should be a subvolume"),
        ({"path": "plain/file"}, "is no folder, and a subvolume should be there"),
        ({"path": "link/a"}, "is no folder, and a subvolume should be there"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    call: Call, pool: Path, folder: Path, wish: dict[str, Any], reason: str
) -> None:
    (pool / "plain").mkdir()
    (pool / "plain/file").write_text("kept")
    (pool / "link").symlink_to(folder)
    assert reason in refused(call, pool, {"path": "before"}, wish)
    assert not (pool / "before").exists()


def test_a_folder_that_is_no_pool(call: Call, pool: Path, folder: Path) -> None:
    want(call, pool, {"path": "a"})
    for place in (folder, pool / "a", folder / "nowhere"):
        assert "no top level of a Btrfs is mounted there" in refused(call, place, {"path": "b"})
