# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Snapshots sent from one real Btrfs to another, here and over SSH, and cut off where it hurts."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _replicate as replicate
from ansible_collections.nas.assistant.plugins.modules import btrfs_replicate
from shell import sh
from sshd import Sshd, children

Call = Callable[..., dict[str, Any]]
Disks = Callable[..., list[str]]

FIRST, SECOND, THIRD = (f"data.2026010{day}T000000Z" for day in (1, 2, 3))
HALF = 4 << 20  # bytes of the half of what Nas.fill puts there
SET_FLAGS = 1 << 30 | 8 << 16 | 0x94 << 8 | 26  # BTRFS_IOC_SUBVOL_SETFLAGS
RUNNER = """
import json, os, signal, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.nas.assistant.plugins.module_utils import _replicate as replicate
from ansible_collections.nas.assistant.plugins.modules import btrfs_replicate
arguments, replicate.LOCKS, point = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if point.isdigit():
    splice, moved = os.splice, 0
    def counted(*words, **named):
        global moved
        count = splice(*words, **named)
        moved += count
        return die() if moved >= int(point) else count
    os.splice = counted
else:
    setattr(replicate.Replication, point, die)
with patch_module_args(json.loads(arguments)):
    btrfs_replicate.main()
"""


class Nas:
    """A folder with snapshots on one filesystem, and one for replicas on another."""

    def __init__(self, folder: Path, make_disks: Disks, size: int) -> None:
        self.source_disk, self.disk = make_disks(1)[0], make_disks(1, size)[0]
        self.tank, self.backup = folder / "tank", folder / "backup"
        for disk, point in ((self.source_disk, self.tank), (self.disk, self.backup)):
            sh("mkfs.btrfs", "-q", disk)
            point.mkdir()
            sh("mount", disk, str(point))
        self.live = self.tank / "live"
        self.source, self.destination = self.tank / "snapshots", self.backup / "replicas"
        self.holds, self.locks = folder / "holds", folder / "locks"
        sh("btrfs", "subvolume", "create", str(self.live))
        self.source.mkdir()
        self.destination.mkdir()

    def fill(self) -> None:
        """Put 8 MiB there that cannot be compressed."""
        (self.live / "bulk").write_bytes(os.urandom(2 * HALF))

    def snapshot(self, name: str) -> Path:
        made = self.source / name
        sh("btrfs", "subvolume", "snapshot", "-r", str(self.live), str(made))
        return made

    def snapshots(self) -> None:
        """Make three, each with 8 MiB of its own."""
        for name in (FIRST, SECOND, THIRD):
            self.fill()
            self.snapshot(name)

    def wish(self, **arguments: Any) -> dict[str, Any]:
        given = {
            "source": str(self.source),
            "name": "data",
            "destination": str(self.destination),
            "holds": str(self.holds),
        }
        return {**given, **arguments}

    def there(self) -> list[str]:
        return sorted(os.listdir(self.destination))

    def held(self) -> list[str]:
        (file,) = self.holds.iterdir()
        return file.read_text().splitlines()


@pytest.fixture
def nas(folder: Path, make_disks: Disks, monkeypatch: pytest.MonkeyPatch) -> Nas:
    made = Nas(folder, make_disks, 256 << 20)
    monkeypatch.setattr(replicate, "LOCKS", str(made.locks))
    return made


@pytest.fixture
def run(call: Call, nas: Nas) -> Call:
    """Return a function that runs the module and gives its answer; it must not fail."""

    def run(**arguments: Any) -> dict[str, Any]:
        answer = call(btrfs_replicate.main, **nas.wish(**arguments))
        assert "msg" not in answer, answer["msg"]
        return answer

    return run


@pytest.fixture
def fail(call: Call, nas: Nas) -> Callable[..., str]:
    """Return a function that runs the module, which must fail, and gives its message."""

    def fail(**arguments: Any) -> str:
        answer = call(btrfs_replicate.main, **nas.wish(**arguments))
        assert answer.get("failed"), answer
        return str(answer["msg"])

    return fail


def info(path: Path) -> dict[str, str]:
    lines = sh("btrfs", "subvolume", "show", str(path)).splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def tree(top: Path) -> dict[bytes, object]:
    """All that is in a folder, read without anything of the module."""
    found: dict[bytes, object] = {}
    inodes: dict[int, bytes] = {}
    for folder, folders, files in os.walk(os.fsencode(top)):
        # Where a snapshot lacks a nested subvolume, it has an empty folder with inode 2.
        folders[:] = [each for each in folders if os.lstat(os.path.join(folder, each)).st_ino != 2]
        folders.sort()
        for name in [b".", *folders, *sorted(files)]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = hashlib.md5(Path(os.fsdecode(path)).read_bytes()).digest()  # noqa: S324
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            found[os.path.relpath(path, os.fsencode(top))] = (
                status.st_mode,
                (status.st_uid, status.st_gid, status.st_mtime_ns),
                0 if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_nlink),
                stat.S_ISDIR(status.st_mode)
                or inodes.setdefault(status.st_ino, path[len(bytes(top)) :]),
                {
                    each: os.getxattr(path, each, follow_symlinks=False)
                    for each in os.listxattr(path, follow_symlinks=False)
                },
                content,
            )
    return found


def odd_tree(top: Path) -> None:
    """Whatever a file system may hold."""
    (top / "folder with blank" / "deep").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o1777)
    for name in ("new\nline", "ümläut €", "-rf", "'quoted\"", "back\\slash"):
        (top / name).write_text(name)
    Path(os.fsdecode(os.fsencode(top) + b"/no utf-8 \xff\xfe")).write_text("x")
    (top / "secret").write_text("s")
    (top / "secret").chmod(0o4750)
    os.chown(top / "secret", 1234, 4321)
    os.utime(top / "secret", ns=(5, 1_000_000_000_123_456_789))
    os.link(top / "-rf", top / "folder with blank" / "second name")
    os.link(top / "-rf", top / "folder with blank" / "deep" / "third name")
    (top / "link").symlink_to("no such\nplace")
    (top / "to folder").symlink_to("folder with blank")
    with (top / "sparse").open("wb") as stream:
        stream.seek(64 << 20)
        stream.write(b"end")
    os.mkfifo(top / "fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        here = os.open(top, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.setxattr(top / "secret", "user.note", b"\x00binary\xff")
    os.setxattr(top / "link", "trusted.note", b"on a link", follow_symlinks=False)
    sh("btrfs", "property", "set", str(top / "sparse"), "compression", "zstd")
    sh("btrfs", "subvolume", "create", str(top / "nested"))
    (top / "nested" / "inside").write_text("not part of a snapshot")


def flip(path: Path, read_only: bool) -> None:
    """Set the flag as the kernel allows it, so that the received UUID stays."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.ioctl(descriptor, SET_FLAGS, (2 if read_only else 0).to_bytes(8, sys.byteorder))
    os.close(descriptor)


def damage(replica: Path) -> None:
    """Change bytes of a replica, and nothing else that shows."""
    flip(replica, False)
    target = replica / "bulk"
    times = target.stat()
    with target.open("r+b") as stream:
        stream.write(b"damaged")
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    flip(replica, True)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Return a function that has something happen once so many bytes went through."""

    def at(count: int, happen: Callable[[], None]) -> None:
        splice, moved = os.splice, [0]

        def counted(*words: Any, **named: Any) -> int:
            new = splice(*words, **named)
            before, moved[0] = moved[0], moved[0] + new
            if before < count <= moved[0]:
                happen()
            return new

        monkeypatch.setattr(os, "splice", counted)

    return at


def end(which: str, how: signal.Signals) -> None:
    """Send a signal to the child that has this word in its command line."""
    for pid, line in children(os.getpid()):
        if f" {which} " in line:
            os.kill(pid, how)


def test_full_then_incremental_then_nothing(nas: Nas, run: Call) -> None:
    odd_tree(nas.live)
    nas.fill()
    first = nas.snapshot(FIRST)
    answer = run(verify="content")
    assert answer["changed"]
    (sent,) = answer["sent"]
    assert (sent["name"], sent["parent"]) == (FIRST, None)
    assert sent["bytes"] > 2 * HALF
    assert sent["seconds"] > 0
    assert tree(first) == tree(nas.destination / FIRST)
    assert info(nas.destination / FIRST)["Received UUID"] == info(first)["UUID"]
    assert nas.held() == answer["held"] == [info(first)["UUID"]]

    (nas.live / "new\nline").rename(nas.live / "empty" / "moved")
    (nas.live / "-rf").write_text("changed by one of its names")
    (nas.live / "link").unlink()
    second = nas.snapshot(SECOND)
    answer = run(verify="content")
    (sent,) = answer["sent"]
    assert (sent["name"], sent["parent"]) == (SECOND, FIRST)
    assert sent["bytes"] < 1 << 20
    assert tree(second) == tree(nas.destination / SECOND)
    assert tree(first) == tree(nas.destination / FIRST)
    assert answer["present"] == nas.there() == [FIRST, SECOND]
    assert nas.held() == [info(second)["UUID"]]

    # The parent may go from both sides where it is not held.
    sh("btrfs", "subvolume", "delete", str(first))
    answer = run(verify="content")
    assert (answer["changed"], answer["sent"], answer["deleted"]) == (False, [], [])


def test_all_that_is_missing_each_from_its_neighbour(nas: Nas, run: Call) -> None:
    nas.snapshots()
    run()  # the newest
    answer = run(select="all")
    parents = [(each["name"], each["parent"]) for each in answer["sent"]]
    assert parents == [(FIRST, THIRD), (SECOND, FIRST)]
    for name in (FIRST, SECOND, THIRD):
        assert tree(nas.source / name) == tree(nas.destination / name)
    assert nas.held() == [info(nas.source / THIRD)["UUID"]]


def test_a_parent_that_is_gone_there_means_all_of_it_again(nas: Nas, run: Call) -> None:
    nas.snapshots()
    run(select="all")
    for name in (FIRST, SECOND, THIRD):
        sh("btrfs", "subvolume", "delete", str(nas.destination / name))
    (sent,) = run()["sent"]
    assert (sent["name"], sent["parent"]) == (THIRD, None)
    assert tree(nas.source / THIRD) == tree(nas.destination / THIRD)


def test_a_replica_is_replicated_on(nas: Nas, run: Call, make_disks: Disks, folder: Path) -> None:
    """From a filesystem that is mounted at a subvolume, to one that is, too."""
    nas.snapshots()
    run(select="all", keep_last=2)
    (device,) = make_disks(1)
    sh("mkfs.btrfs", "-q", device)
    third = folder / "third"
    third.mkdir()
    sh("mount", device, str(third))
    sh("btrfs", "subvolume", "create", str(third / "inner"))
    sh("umount", str(third))
    sh("mount", "-o", "subvol=inner", device, str(third))
    onward = {"source": str(nas.destination), "destination": str(third), "verify": "content"}
    answer = run(**onward, select="all")
    assert [each["parent"] for each in answer["sent"]] == [None, SECOND]
    assert tree(third / THIRD) == tree(nas.source / THIRD)
    received = {info(point / THIRD)["Received UUID"] for point in (third, nas.destination)}
    assert received == {info(nas.source / THIRD)["UUID"]}
    # Both sides of it were read; the third does not know the first's own UUIDs.
    assert answer["held"] == [info(nas.destination / THIRD)["UUID"]]


def test_only_the_last_stay_and_nothing_else_goes(nas: Nas, run: Call) -> None:
    nas.snapshots()
    there = nas.destination
    foreign = [f"{FIRST}.bak", "data2.20250101T000000Z", "data.20250101T000000Z", "data.notes"]
    for name in foreign:
        sh("btrfs", "subvolume", "create", str(there / name))
    for name in foreign[1:3]:
        sh("btrfs", "property", "set", str(there / name), "ro", "true")
    (there / "data.20250102T000000Z").mkdir()
    (there / "data.20250103T000000Z").symlink_to(there / foreign[0])
    before = nas.there()
    answer = run(select="all", keep_last=2)
    assert [each["name"] for each in answer["sent"]] == [SECOND, THIRD]
    fourth = nas.snapshot("data.20260104T000000Z").name
    answer = run(select="all", keep_last=2)
    assert answer["deleted"] == [SECOND]
    assert answer["present"] == [THIRD, fourth]
    assert nas.there() == sorted([*before, THIRD, fourth])
    assert run(keep_last=1)["deleted"] == [THIRD]
    assert not run(keep_last=1)["changed"]


def test_nothing_goes_before_the_new_one_is_there(
    nas: Nas, run: Call, fail: Callable[..., str], at: Callable[..., None]
) -> None:
    nas.fill()
    nas.snapshot(FIRST)
    run()
    nas.fill()
    nas.snapshot(SECOND)
    held = []

    def die() -> None:
        held.extend(nas.held())
        end("receive", signal.SIGKILL)

    at(HALF, die)
    fail(keep_last=1)
    assert nas.there() == [FIRST]
    assert set(held) == {info(nas.source / name)["UUID"] for name in (FIRST, SECOND)}
    assert nas.held() == [info(nas.source / FIRST)["UUID"]]


@pytest.mark.parametrize("which", ["send", "receive"])
@pytest.mark.parametrize("count", [1, HALF])
def test_an_end_that_dies_is_named_and_the_next_run_goes_on(
    nas: Nas, run: Call, call: Call, at: Callable[..., None], which: str, count: int
) -> None:
    nas.snapshots()
    run(select="all")
    for name in (SECOND, THIRD):
        sh("btrfs", "subvolume", "delete", str(nas.destination / name))
    at(count, lambda: end(which, signal.SIGKILL))
    answer = call(btrfs_replicate.main, **nas.wish(select="all"))
    path = nas.source / SECOND if which == "send" else nas.destination / ".incoming-data"
    message = answer["msg"]
    assert f"{SECOND} was not replicated: btrfs -q {which} " in message
    assert str(path) in message.split("was ended by SIGKILL")[0]
    assert "at the other end, btrfs -q " in message
    assert nas.there() == [FIRST]
    answer = run(select="all")
    assert [each["parent"] for each in answer["sent"]] == [FIRST, SECOND]
    for name in (FIRST, SECOND, THIRD):
        assert tree(nas.source / name) == tree(nas.destination / name)


@pytest.mark.parametrize("point", ["1", str(HALF), "_must_be_replica", "_compare", "_remove"])
def test_a_run_that_is_killed_is_gone_on_with(nas: Nas, run: Call, point: str) -> None:
    nas.snapshots()
    arguments = json.dumps(nas.wish(select="all"))
    words = [sys.executable, "-c", RUNNER, arguments, str(nas.locks), point]
    killed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    published = point == "_remove"
    assert nas.there() == [".incoming-data", *([FIRST] if published else [])]
    answer = run(select="all")
    assert [each["name"] for each in answer["sent"]] == [FIRST, SECOND, THIRD][published:]
    assert nas.there() == [FIRST, SECOND, THIRD]
    left = [each for each in answer["deleted"] if each.startswith(".incoming-data/")]
    assert left == answer["deleted"]
    # The moment decides whether receive had made anything yet after the first bytes.
    assert len(left) == 1 or point == "1"
    for name in (FIRST, SECOND, THIRD):
        assert tree(nas.source / name) == tree(nas.destination / name)


def test_an_end_that_hangs_is_ended(
    nas: Nas, run: Call, fail: Callable[..., str], at: Callable[..., None]
) -> None:
    nas.fill()
    nas.snapshot(FIRST)
    at(1, lambda: end("receive", signal.SIGSTOP))
    began = time.monotonic()
    message = fail(timeout=2)
    assert "no byte went through for 2 s, so both ends were stopped: btrfs -q send" in message
    assert time.monotonic() - began < 20
    assert children(os.getpid()) == []
    assert nas.there() == []


def test_a_broken_receive_by_hand_is_replaced(nas: Nas, run: Call) -> None:
    nas.snapshots()
    run(keep_last=1)
    stream = subprocess.run(
        ["btrfs", "-q", "send", "-p", str(nas.source / THIRD), str(nas.source / SECOND)],
        capture_output=True,
        check=True,
    ).stdout
    words = ["btrfs", "receive", str(nas.destination)]
    broken = subprocess.run(words, input=stream[:HALF], capture_output=True, check=False)
    assert broken.returncode == 1
    assert (nas.destination / SECOND / "bulk").exists()
    answer = run(select="all")
    assert answer["deleted"] == [SECOND]
    assert tree(nas.source / SECOND) == tree(nas.destination / SECOND)


def test_what_is_in_the_way_stays(nas: Nas, run: Call, fail: Callable[..., str]) -> None:
    nas.snapshots()
    run()
    replica = nas.destination / THIRD
    # Somebody works in it, the others are changed and locked again, foreign, or no subvolume.
    sh("btrfs", "property", "set", "-f", str(replica), "ro", "false")
    (replica / "bulk").write_text("what somebody works on")
    for _ in range(2):
        assert f"{THIRD} at the destination is in the way" in fail()
        assert (replica / "bulk").read_text() == "what somebody works on"
        sh("btrfs", "property", "set", str(replica), "ro", "true")
    sh("btrfs", "subvolume", "delete", str(replica))
    sh("btrfs", "subvolume", "create", str(nas.backup / "other"))
    sh("btrfs", "subvolume", "snapshot", "-r", str(nas.backup / "other"), str(replica))
    assert "made there" in fail()
    sh("btrfs", "subvolume", "delete", str(replica))
    replica.mkdir()
    assert "no subvolume" in fail()
    replica.rmdir()
    (nas.destination / ".incoming-data").symlink_to(nas.backup)
    assert "is in the way; it must be root's folder" in fail()
    assert sorted(os.listdir(nas.backup)) == ["other", "replicas"]


def test_a_replica_of_another_snapshot_stays(nas: Nas, run: Call, fail: Callable[..., str]) -> None:
    nas.fill()
    nas.snapshot(FIRST)
    run()
    sh("btrfs", "subvolume", "delete", str(nas.source / FIRST))
    nas.snapshot(FIRST)
    assert "a replica of another snapshot" in fail()
    assert nas.there() == [FIRST]


def test_content_is_compared_byte_by_byte(nas: Nas, run: Call, fail: Callable[..., str]) -> None:
    nas.fill()
    nas.snapshot(FIRST)
    run()
    damage(nas.destination / FIRST)
    assert not run()["changed"]
    message = fail(verify="content", keep_last=1)
    assert f"{nas.destination / FIRST} is not the same as {nas.source / FIRST}" in message
    assert "bulk has another sha256" in message
    # What is sent on top of it is damaged too, and never becomes a replica.
    (nas.live / "small").write_text("x")
    nas.snapshot(SECOND)
    message = fail(verify="content", keep_last=1)
    assert f"remove {nas.destination / FIRST}, and run it again" in message
    assert nas.there() == [FIRST]
    sh("btrfs", "subvolume", "delete", str(nas.destination / FIRST))
    assert run(verify="content")["sent"][0]["parent"] is None


def test_a_full_destination_keeps_what_it_has(
    folder: Path, make_disks: Disks, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas = Nas(folder, make_disks, 128 << 20)
    monkeypatch.setattr(replicate, "LOCKS", str(nas.locks))
    nas.fill()
    nas.snapshot(FIRST)
    assert call(btrfs_replicate.main, **nas.wish())["changed"]
    (nas.live / "large").write_bytes(os.urandom(130 << 20))
    nas.snapshot(SECOND)
    answer = call(btrfs_replicate.main, **nas.wish(keep_last=1))
    assert "btrfs -q receive" in answer["msg"].split("at the other end")[0]
    assert "No space left on device" in answer["msg"]
    assert (answer["present"], answer["deleted"], nas.there()) == ([FIRST], [], [FIRST])
    assert tree(nas.source / FIRST) == tree(nas.destination / FIRST)
    (nas.live / "large").unlink()
    nas.snapshot(THIRD)
    answer = call(btrfs_replicate.main, **nas.wish(verify="content"))
    assert answer["sent"][0]["parent"] == FIRST


def test_check_mode_says_and_does_nothing(nas: Nas, run: Call) -> None:
    nas.snapshots()
    run(select="all", keep_last=2)
    nas.snapshot("data.20260104T000000Z")
    stands = (nas.there(), nas.held(), sh("btrfs", "subvolume", "list", str(nas.backup)))
    for _ in range(2):
        answer = run(check=True, keep_last=1, select="all")
        assert answer["changed"]
        assert answer["sent"] == [
            {"name": "data.20260104T000000Z", "parent": THIRD, "bytes": None, "seconds": None}
        ]
        assert answer["deleted"] == [SECOND, THIRD]
        assert answer["present"] == [SECOND, THIRD]
        assert answer["diff"]["before"] == f"{SECOND}\n{THIRD}\n"
        assert answer["diff"]["after"] == "data.20260104T000000Z\n"
    assert stands == (nas.there(), nas.held(), sh("btrfs", "subvolume", "list", str(nas.backup)))
    done = run(keep_last=1, select="all")
    assert [each["parent"] for each in done["sent"]] == [THIRD]
    assert done["deleted"] == [SECOND, THIRD]
    assert answer["held"] == done["held"]
    assert not run(check=True, keep_last=1, select="all")["changed"]


def test_places_that_will_not_do(
    nas: Nas, fail: Callable[..., str], tmp_path: Path, run: Call
) -> None:
    empty = fail()
    assert "the source has no read-only snapshot called data.YYYYMMDDTHHMMSSZ" in empty
    nas.fill()
    nas.snapshot(FIRST)
    # A writable one, and one with more behind the time, do not count.
    sh("btrfs", "subvolume", "snapshot", str(nas.live), str(nas.source / SECOND))
    sh("btrfs", "subvolume", "snapshot", "-r", str(nas.live), str(nas.source / f"{THIRD}x"))
    same = nas.tank / "elsewhere"
    same.mkdir()
    assert "is on the filesystem of the source" in fail(destination=str(same))
    assert "there is no such folder" in fail(destination=str(nas.backup / "none"))
    assert "there is no such folder" in fail(source=str(nas.tank / "none"))
    plain = (
        tmp_path if "btrfs" not in sh("stat", "-f", "-c", "%T", str(tmp_path)) else Path("/proc")
    )
    assert "is not on a Btrfs" in fail(destination=str(plain))
    sh("mount", "-o", "remount,ro", str(nas.backup))
    assert "is read-only" in fail()
    sh("mount", "-o", "remount,rw", str(nas.backup))
    assert [each["name"] for each in run()["sent"]] == [FIRST]


def test_another_partition_of_the_disk_will_not_do(
    nas: Nas, fail: Callable[..., str], make_disks: Disks, folder: Path
) -> None:
    (device,) = make_disks(1, 300 << 20)
    sectors = 140 << 11  # of half a KiB
    with contextlib.ExitStack() as undo:
        points = []
        for number in (1, 2):
            start = str(2048 + (number - 1) * sectors)
            added = subprocess.run(
                ["addpart", device, str(number), start, str(sectors)], check=False
            )
            if added.returncode != 0:
                pytest.skip("this kernel takes no partitions of a loop device")
            undo.callback(sh, "delpart", device, str(number))
            sh("mkfs.btrfs", "-q", f"{device}p{number}")
            points.append(folder / f"part{number}")
            points[-1].mkdir()
            sh("mount", f"{device}p{number}", str(points[-1]))
            undo.callback(sh, "umount", str(points[-1]))
        sh("btrfs", "subvolume", "create", str(points[0] / "live"))
        sh("btrfs", "subvolume", "snapshot", "-r", f"{points[0]}/live", f"{points[0]}/{FIRST}")
        message = fail(source=str(points[0]), destination=str(points[1]))
        assert f"is on the same disk as the source ({Path(device).name})" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "../x"}, "name='../x'"),
        ({"name": "a\nb"}, "name='a\\nb'"),
        ({"name": ""}, "name=''"),
        ({"source": "snapshots"}, "source='snapshots': give the whole path"),
        ({"destination": "/srv/../etc"}, "without . and .."),
        ({"keep_last": 0}, "keep_last=0: give 1 or more"),
        ({"timeout": 0}, "timeout=0"),
        ({"ssh": {"host": "-oProxyCommand=touch x"}}, "ssh.host='-oProxyCommand=touch x'"),
        ({"ssh": {"host": "host; touch x"}}, "ssh.host="),
        ({"ssh": {"host": "root@host"}}, "ssh.host="),
        ({"ssh": {"host": "h", "user": "-lroot"}}, "ssh.user='-lroot'"),
        ({"ssh": {"host": "h", "port": 0}}, "ssh.port=0"),
        ({"ssh": {"host": "h", "identity_file": '/k" -x'}}, "ssh.identity_file="),
        ({"ssh": {"host": "h", "known_hosts_file": "/k/%h"}}, "ssh.known_hosts_file="),
        ({"ssh": {"host": "h", "identity_file": "/no/such"}}, "there is no such file"),
        ({"ssh": {"host": "h", "known_hosts_file": "/no/such"}}, "there is no such file"),
    ],
)
def test_hostile_options_are_refused(
    fail: Callable[..., str], arguments: dict[str, Any], message: str
) -> None:
    assert message in fail(**arguments)


def test_odd_names_are_only_names(nas: Nas, run: Call) -> None:
    odd = nas.backup / "-rf; touch $(id)\n'x' ü"
    odd.mkdir()
    nas.fill()
    sh("btrfs", "subvolume", "snapshot", "-r", str(nas.live), f"{nas.source}/-rf.20260101T000000Z")
    answer = run(name="-rf", destination=str(odd), verify="content")
    assert answer["present"] == ["-rf.20260101T000000Z"]
    assert os.listdir(odd) == ["-rf.20260101T000000Z"]
    assert len(list(nas.holds.iterdir())) == 1


def test_two_at_once_wait_for_each_other(
    nas: Nas, run: Call, fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nas.fill()
    nas.snapshot(FIRST)
    run()
    (lock,) = nas.locks.iterdir()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(replicate, "LOCK_PATIENCE", 0.5)
        assert "another run has been sending from" in fail()
        assert not run(check=True)["changed"]
        monkeypatch.setattr(replicate, "LOCK_PATIENCE", 30)
        timer = threading.Timer(0.5, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        timer.start()
        assert not run()["changed"]
        timer.join()


def test_over_ssh(nas: Nas, run: Call, sshd: Sshd) -> None:
    odd_tree(nas.live)
    nas.fill()
    nas.snapshot(FIRST)
    odd = nas.backup / "-rf; touch $(id)\n'x' ü"
    odd.mkdir()
    there = {"ssh": sshd.options(), "destination": str(odd), "verify": "content"}
    assert run(**there)["present"] == [FIRST]
    (nas.live / "more").write_text("x")
    nas.snapshot(SECOND)
    foretold = run(check=True, **there, keep_last=1)
    assert (foretold["sent"][0]["parent"], foretold["deleted"]) == (FIRST, [FIRST])
    answer = run(**there, keep_last=1)
    assert answer["sent"][0]["parent"] == FIRST
    assert (answer["deleted"], os.listdir(odd)) == ([FIRST], [SECOND])
    assert tree(nas.source / SECOND) == tree(odd / SECOND)
    assert not run(**there, keep_last=1)["changed"]
    assert sorted(os.listdir(nas.backup)) == sorted([odd.name, "replicas"])


def test_content_is_compared_over_ssh(
    nas: Nas, run: Call, fail: Callable[..., str], sshd: Sshd
) -> None:
    nas.fill()
    nas.snapshot(FIRST)
    run(ssh=sshd.options())
    damage(nas.destination / FIRST)
    assert "bulk has another sha256" in fail(ssh=sshd.options(), verify="content")


@pytest.mark.parametrize("count", [1, HALF])
def test_a_connection_that_breaks(
    nas: Nas,
    run: Call,
    fail: Callable[..., str],
    sshd: Sshd,
    at: Callable[..., None],
    count: int,
) -> None:
    nas.fill()
    nas.snapshot(FIRST)
    run(ssh=sshd.options())
    nas.fill()
    nas.snapshot(SECOND)
    at(count, sshd.break_off)
    message = fail(ssh=sshd.options())
    first, second = message.split("at the other end, ")
    assert f"ssh root@127.0.0.1:{sshd.port} btrfs -q receive" in first
    assert "the connection broke. Run it again" in first
    assert second.startswith("btrfs -q send")
    assert FIRST in nas.there()
    assert SECOND not in nas.there()
    (sent,) = run(ssh=sshd.options(), verify="content")["sent"]
    assert (sent["name"], sent["parent"]) == (SECOND, FIRST)
    assert nas.there() == [FIRST, SECOND]


def test_what_keeps_ssh_from_working_is_said(
    nas: Nas, fail: Callable[..., str], run: Call, sshd: Sshd, folder: Path
) -> None:
    nas.fill()
    nas.snapshot(FIRST)

    def said(**options: Any) -> str:
        return fail(ssh=sshd.options(**options))

    wrong = str(sshd.folder / "wrong")
    assert "Put the public key in that user's" in said(identity_file=wrong)
    assert "the host key is not the one" in said(known_hosts_file=str(sshd.folder / "strange"))
    (sshd.folder / "empty").touch()
    assert "the host key is not the one" in said(known_hosts_file=str(sshd.folder / "empty"))
    assert "nothing answers" in said(port=9)
    assert "no host has that name" in said(host="no-such-host.invalid")
    same = nas.tank / "elsewhere"
    same.mkdir()
    message = fail(ssh=sshd.options(), destination=str(same))
    assert f"at root@127.0.0.1:{sshd.port} is on the filesystem of the source" in message

    programs = folder / "programs"
    programs.mkdir()
    for name in ("env", "python3"):
        (programs / name).symlink_to(Path("/usr/bin", name).resolve())
    sshd.start(str(programs))
    assert "Install the package btrfs-progs" in said()
    (programs / "python3").unlink()
    assert "Install the packages btrfs-progs, python3 and" in said()
    assert "Install the packages btrfs-progs, python3 and" in said(become=True)
    assert nas.there() == []


def test_sudo(nas: Nas, run: Call, sshd: Sshd) -> None:
    if not shutil.which("sudo"):
        pytest.skip("there is no sudo on this machine")
    nas.fill()
    nas.snapshot(FIRST)
    assert run(ssh=sshd.options(become=True), verify="content")["present"] == [FIRST]
