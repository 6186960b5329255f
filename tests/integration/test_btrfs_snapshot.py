# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Snapshots on a real Btrfs: made, kept, deleted, and what is somebody else's left alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _btrfs as btrfs, _snapshots
from ansible_collections.nas.assistant.plugins.modules import btrfs_snapshot
from shell import sh

Call = Callable[..., dict[str, Any]]
HOUR = 3600
START = 1748736000  # 2025-06-01 in UTC
# Runs in a process of its own, as a timer would have it, and prints what came of each volume.
RUN = """
import dataclasses, json, sys
from ansible_collections.nas.assistant.plugins.module_utils import _snapshot_plan, _snapshots
volumes, holds, _snapshots.LOCKS = json.loads(sys.argv[1])
wishes = _snapshot_plan.wishes(volumes, "present")
found = _snapshots.carry_out(wishes, "present", holds)
print(json.dumps([dataclasses.asdict(outcome) for outcome in found]))
"""


class Nas:
    """A pool with a subvolume, and a clock that can be set."""

    def __init__(self, call: Call, pool: Path, folder: Path) -> None:
        self.call, self.pool = call, pool
        self.data, self.snapshots = pool / "data", pool / ".snapshots"
        self.holds, self.locks = folder / "holds", folder / "run"
        self.now = START
        sh("btrfs", "subvolume", "create", str(self.data))
        (self.data / "file").write_text("first", encoding="utf-8")

    def volume(self, **options: Any) -> dict[str, Any]:
        return {"path": str(self.data), "folder": str(self.snapshots), **options}

    def answer(self, *volumes: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        """Call the module, for the one subvolume unless told otherwise."""
        return self.call(
            btrfs_snapshot.main,
            volumes=list(volumes) or [self.volume()],
            holds=str(self.holds),
            **arguments,
        )

    def run(self, *volumes: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        """The same of a call that must succeed; return what it says of the first volume."""
        answer = self.answer(*volumes, **arguments)
        assert "msg" not in answer, answer
        found = dict(answer["volumes"][0])
        assert answer["changed"] == any(
            each["made"] or each["deleted"] for each in answer["volumes"]
        )
        return found

    def make(self, count: int, **options: Any) -> list[str]:
        """Make snapshots, one an hour; return their names."""
        made = []
        for _ in range(count):
            made += self.run(self.volume(**options))["made"]
            self.now += HOUR
        return made

    def there(self) -> list[str]:
        return sorted(os.listdir(self.snapshots)) if self.snapshots.exists() else []

    def start(self, *volumes: dict[str, Any], path: str = "") -> subprocess.Popen[str]:
        """Start a run in a process of its own."""
        given = json.dumps([volumes, str(self.holds), str(self.locks)])
        return subprocess.Popen(
            [sys.executable, "-c", RUN, given],
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def nas(call: Call, pool: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Nas:
    made = Nas(call, pool, folder)
    monkeypatch.setattr(_snapshots, "now", lambda: made.now)
    monkeypatch.setattr(_snapshots, "LOCKS", str(made.locks))
    return made


def place(path: Path) -> _snapshots.Place:
    found = _snapshots.look(str(path))
    assert found
    return found


def test_made_once_and_read_only(nas: Nas) -> None:
    made = nas.run(nas.volume(every="1h"))
    assert made["made"] == ["data.20250601T000000Z"]
    (path,) = nas.snapshots.iterdir()
    assert (path / "file").read_text(encoding="utf-8") == "first"
    found = place(path)
    assert (found.read_only, found.marked) == (True, True)
    assert found.parent_uuid == place(nas.data).uuid
    assert os.getxattr(path, "user.nas_assistant.snapshot").decode() == found.uuid
    assert sh("btrfs", "property", "get", "-ts", str(path), "ro") == "ro=true\n"
    assert (nas.snapshots.stat().st_mode & 0o7777, nas.snapshots.stat().st_uid) == (0o700, 0)
    nas.now += HOUR - 1
    again = nas.run(nas.volume(every="1h"))
    assert (again["made"], again["deleted"], again["foreign"]) == ([], [], [])
    nas.now += 1
    assert nas.run(nas.volume(every="1h"))["made"] == ["data.20250601T010000Z"]
    # In the same second it is there already, and that is no error.
    assert nas.run()["made"] == []


def test_retention_deletes_for_real(nas: Nas) -> None:
    made = nas.make(5)
    planned = nas.run(nas.volume(keep={"last": 3}), state="pruned", check=True)
    assert planned["deleted"] == made[:2]
    assert nas.there() == made
    kept = nas.run(nas.volume(keep={"last": 3}))
    assert kept["deleted"] == made[:3]
    assert nas.there() == [*made[3:], *kept["made"]]
    assert len(btrfs.subvolumes(str(nas.pool))) == 4
    pruned = nas.run(nas.volume(keep={"last": 1}), state="pruned")
    assert (pruned["made"], pruned["deleted"]) == ([], made[3:])
    assert nas.run(nas.volume(keep={"last": 1}), state="pruned")["deleted"] == []
    assert nas.there() == kept["made"]


def test_many_are_deleted_with_few_commands(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [nas.volume(name=f"v{number}", keep={"last": 1}) for number in range(30)]
    nas.run(*volumes)
    nas.now += HOUR
    commands: list[tuple[str, ...]] = []
    real = btrfs.call

    def counted(*argv: str) -> Any:
        commands.append(argv)
        return real(*argv)

    monkeypatch.setattr(btrfs, "call", counted)
    monkeypatch.setattr(_snapshots, "CHUNK", 20)
    answer = nas.answer(*volumes)
    assert sum(len(each["deleted"]) for each in answer["volumes"]) == 30
    assert len([argv for argv in commands if argv[:3] == ("btrfs", "subvolume", "delete")]) == 2
    assert len([argv for argv in commands if argv[:3] == ("btrfs", "subvolume", "list")]) == 2


def test_what_only_looks_like_ours_stays(nas: Nas, folder: Path) -> None:
    ours, other, sent = nas.make(3)

    def path(hour: int) -> Path:
        return nas.snapshots / f"data.20240101T{hour:02}0000Z"

    # What others made: of this subvolume, read-only, with exactly our naming; an empty folder.
    sh("btrfs", "subvolume", "snapshot", "-r", str(nas.data), str(path(0)))
    path(1).mkdir()
    path(2).write_text("", encoding="utf-8")
    path(3).symlink_to(nas.snapshots / ours)
    # Copies of ours: writable, read-only, renamed by hand with another date than it can have.
    sh("btrfs", "subvolume", "snapshot", str(nas.snapshots / ours), str(path(4)))
    sh("btrfs", "subvolume", "snapshot", "-r", str(nas.snapshots / ours), str(path(5)))
    sh("btrfs", "subvolume", "snapshot", str(nas.snapshots / ours), str(path(25)))
    # One of ours that somebody made writable, and a replica that was received here.
    sh("btrfs", "property", "set", "-ts", str(nas.snapshots / other), "ro", "false")
    stream, own = folder / "stream", place(nas.snapshots / sent).uuid
    sh("btrfs", "send", "-f", str(stream), str(nas.snapshots / sent))
    sh("btrfs", "subvolume", "delete", str(nas.snapshots / sent))
    sh("btrfs", "receive", "-f", str(stream), str(nas.snapshots))
    assert os.getxattr(nas.snapshots / sent, _snapshots.ATTRIBUTE).decode() == own
    # Names of other volumes.
    for name in ("data2.20240101T000000Z", "dat.20240101T000000Z", "data.20240101T000000Z.bak"):
        sh("btrfs", "subvolume", "snapshot", "-r", str(nas.data), str(nas.snapshots / name))
    before = nas.there()
    nas.now += HOUR
    found = nas.run(nas.volume(keep={"last": 1}))
    assert found["deleted"] == [ours]
    alike = [path(hour).name for hour in (0, 1, 2, 3, 4, 5, 25)]
    assert found["foreign"] == sorted([*alike, other, sent])
    assert nas.there() == sorted({*before, *found["made"]} - {ours})
    named = nas.run(nas.volume(snapshots=[alike[0], alike[4]]), state="absent")
    assert named["deleted"] == []
    assert {*before} - {ours} <= {*nas.there()}


def test_a_foreign_one_in_the_place_of_ours(nas: Nas) -> None:
    nas.snapshots.mkdir(mode=0o700)
    for text in ("data.20250601T000000Z", ".data.20250601T000000Z.draft"):
        (nas.snapshots / text).mkdir()
        answer = nas.answer()
        assert f"{nas.snapshots / text} is there and is not of this volume" in answer["msg"]
        assert not list((nas.snapshots / text).iterdir())
        (nas.snapshots / text).rmdir()
    assert nas.run()["made"]


def test_what_is_held_stays(nas: Nas) -> None:
    made = nas.make(4)
    nas.holds.mkdir()
    uuids = [place(nas.snapshots / text).uuid for text in made]
    (nas.holds / "offsite").write_text(f"{uuids[0].upper()}\n\n{uuid.uuid4()}", encoding="utf-8")
    (nas.holds / "usb").write_text(f" {uuids[1]} \n", encoding="utf-8")
    (nas.holds / ".usb.draft").write_text("half a li", encoding="utf-8")
    found = nas.run(nas.volume(keep={"last": 1}), state="pruned")
    assert (found["held"], found["deleted"]) == (made[:2], [made[2]])
    named = nas.run(nas.volume(snapshots=made[:2]), state="absent")
    assert (named["held"], named["deleted"]) == (made[:2], [])
    (nas.holds / "usb").unlink()
    found = nas.run(nas.volume(keep={"last": 1}), state="pruned")
    assert (found["held"], found["deleted"]) == (made[:1], [made[1]])


@pytest.mark.parametrize("content", ["half a li", "\0\n", None])
def test_holds_that_make_no_sense(nas: Nas, content: str | None) -> None:
    made = nas.make(2)
    (nas.holds / "offsite").parent.mkdir()
    if content is None:
        (nas.holds / "offsite").mkdir()
    else:
        (nas.holds / "offsite").write_text(f"{uuid.uuid4()}\n{content}", encoding="utf-8")
    # What keeps all deletes nothing, so it needs not to know.
    assert len(nas.make(1)) == 1
    answer = nas.answer(nas.volume(keep={"last": 1}))
    assert f"{nas.holds / 'offsite'}" in answer["msg"]
    assert "so nothing is deleted" in answer["msg"]
    (found,) = answer["volumes"]
    assert (len(found["made"]), found["deleted"], answer["changed"]) == (1, [], True)
    answer = nas.answer(nas.volume(snapshots=made), state="absent")
    assert "so nothing is deleted" in answer["msg"]
    assert len(nas.there()) == 4


def test_absent_deletes_what_is_named(nas: Nas) -> None:
    made = nas.make(3)
    gone = "data.20200101T000000Z"
    wish = nas.volume(snapshots=[made[0], made[2], gone], keep={"last": 3})
    assert nas.run(wish, state="absent", check=True)["deleted"] == [made[0], made[2]]
    assert nas.there() == made
    assert nas.run(wish, state="absent")["deleted"] == [made[0], made[2]]
    assert nas.there() == [made[1]]
    assert nas.run(wish, state="absent")["deleted"] == []


def test_a_clock_that_was_wrong(nas: Nas) -> None:
    nas.now += 365 * 24 * HOUR
    ahead = nas.make(2)
    nas.now = START
    made = nas.make(3, every="1h", keep={"last": 2})
    found = nas.run(nas.volume(keep={"last": 1}), state="pruned")
    assert found["ahead"] == ahead
    assert nas.there() == [made[2], *ahead]
    assert nas.run(nas.volume(snapshots=ahead), state="absent")["deleted"] == ahead


@pytest.mark.usefixtures("berlin")
def test_a_year_with_a_clock_that_is_changed_and_set_back(nas: Nas) -> None:
    """One a day, one an hour where the clock is changed; what each holds is of its own time."""
    day = 24 * HOUR
    start = int(datetime(2025, 6, 1, 22, 30, tzinfo=UTC).timestamp())
    # Half past midnight of the next day in summer, half past eleven in winter.
    moments = {start + number * day for number in range(366)}
    for changed in (datetime(2025, 10, 26, 1), datetime(2026, 3, 29, 1)):
        middle = int(changed.replace(tzinfo=UTC).timestamp())
        moments |= {middle + number * HOUR for number in range(-6, 7)}
    wish = nas.volume(keep={"daily": 7, "weekly": 4, "monthly": 12})

    def run(moment: int) -> None:
        nas.now = moment
        (nas.data / "file").write_text(str(moment), encoding="utf-8")
        assert nas.run(wish)["made"]

    for moment in sorted(moments):
        run(moment)
        if moment == start + 200 * day:
            # A battery is empty: for three days, it makes what is there by date already.
            before = nas.there()
            for number in range(3):
                run(moment - (3 - number) * day + HOUR)
                now = f"data.{datetime.fromtimestamp(nas.now, UTC):%Y%m%dT%H%M%SZ}"
                ahead = {name for name in before if name > now}
                assert ahead <= {*nas.there()}
    days = [name[5:13] for name in nas.there()]
    # The last of each month, week and day in UTC, as if nobody had touched a clock.
    months = ["20250731", "20250831", "20250930", "20251031", "20251130", "20251231"]
    months += ["20260131", "20260228", "20260331", "20260430"]
    last = [f"202605{number}" for number in range(26, 32)]
    assert days == [*months, "20260517", "20260524", *last, "20260601"]
    for path in nas.snapshots.iterdir():
        written = int((path / "file").read_text(encoding="utf-8"))
        assert path.name == f"data.{datetime.fromtimestamp(written, UTC):%Y%m%dT%H%M%SZ}"


def test_check_mode_changes_nothing(nas: Nas) -> None:
    found = nas.run(check=True, _ansible_diff=True)
    assert found["made"] == ["data.20250601T000000Z"]
    assert sorted(os.listdir(nas.pool)) == ["data"]
    assert not nas.locks.exists()
    made = nas.make(2)
    generation = btrfs.subvolumes(str(nas.pool))
    answer = nas.answer(nas.volume(keep={"last": 1}), check=True, _ansible_diff=True)
    (found,) = answer["volumes"]
    assert (found["made"], found["deleted"]) == (["data.20250601T020000Z"], made)
    (difference,) = answer["diff"]
    assert difference["before"] == "".join(f"{text}\n" for text in made)
    assert difference["after"] == "data.20250601T020000Z\n"
    assert nas.there() == made
    assert btrfs.subvolumes(str(nas.pool)) == generation
    done = nas.answer(nas.volume(keep={"last": 1}), _ansible_diff=True)
    assert (done["volumes"], done["diff"]) == (answer["volumes"], answer["diff"])
    assert "diff" not in nas.answer(nas.volume(every="1h"))


def test_blanks_and_other_letters(nas: Nas) -> None:
    odd = nas.pool / "Ümläute & 'quotes' $HOME %s"
    inner = odd / "-rf * ; ü\nnew line"
    sh("btrfs", "subvolume", "create", str(odd))
    sh("btrfs", "subvolume", "create", str(inner))
    wish = {
        "path": f"{odd}/",
        "folder": f"{nas.pool}/Schnappschüsse von allem",
        "keep": {"last": 1},
    }
    made = nas.run(wish)["made"]
    assert made == [f"{odd.name}.20250601T000000Z"]
    nas.now += HOUR
    assert nas.run(wish)["deleted"] == made
    answer = nas.answer({**wish, "path": str(inner)})
    assert "name='-rf * ; ü\\nnew line': give a name" in answer["msg"]
    assert answer["volumes"] == []
    named = nas.run({**wish, "path": str(inner), "name": "-rf"})
    assert named["made"] == ["-rf.20250601T010000Z"]
    nas.now += HOUR
    assert nas.run({**wish, "path": str(inner), "name": "-rf"})["deleted"] == named["made"]


def test_lines_that_a_name_forges(nas: Nas) -> None:
    (made,) = nas.make(1)
    own = place(nas.snapshots / made).uuid
    replica = nas.snapshots / "data.20240101T000000Z"
    sh("btrfs", "subvolume", "snapshot", "-r", str(nas.data), str(replica))
    top = place(nas.data).id
    head = f"parent {top} top level {top} parent_uuid - received_uuid - uuid {own} path"
    for text in (
        f"x\nID 999 gen 1 cgen 1 {head} {replica.name}",
        f"x\nID {top} gen 1 cgen 1 {head} round",
        "x\nID what gen path",
    ):
        sh("btrfs", "subvolume", "create", str(nas.data / text))
    found = nas.run(nas.volume(keep={"last": 1}))
    assert (found["deleted"], found["foreign"]) == ([made], [replica.name])


def test_mounted_elsewhere_and_what_is_excluded(nas: Nas, folder: Path) -> None:
    inside = nas.data / "plain"
    inside.mkdir()
    for path in (nas.data / "in ner", nas.data / "in ner/deep", inside / "ü"):
        sh("btrfs", "subvolume", "create", str(path))
    expected = ["in ner", "in ner/deep", "plain/ü"]
    assert nas.run()["excluded"] == expected
    data, snapshots = folder / "photos", folder / "elsewhere"
    device = next(each for each in btrfs.mounts() if each.point == str(nas.pool)).device
    for point, name in ((data, "data"), (snapshots, "")):
        point.mkdir()
        sh("mount", "-o", f"subvol=/{name}", device, str(point))
    nas.now += HOUR
    wish = {"path": str(data), "folder": str(snapshots / ".snapshots"), "keep": {"last": 1}}
    found = nas.run({**wish, "name": "data"})
    assert found["excluded"] == expected
    assert found["deleted"] == ["data.20250601T000000Z"]
    (snapshot,) = nas.snapshots.iterdir()
    assert not list((snapshot / "in ner").iterdir())
    assert nas.run(wish)["made"] == ["photos.20250601T010000Z"]
    # The same folder by another way.
    answer = nas.answer({**wish, "name": "data"}, nas.volume(name="data"))
    assert "1 of 2 volumes failed" in answer["msg"]
    assert f"{data} has its snapshots in the same folder under the same name" in answer["msg"]


def test_the_top_level_with_a_subvolume_for_its_snapshots(nas: Nas) -> None:
    sh("btrfs", "subvolume", "create", str(nas.snapshots))
    wish = {"path": str(nas.pool), "folder": str(nas.snapshots), "name": "all"}
    answer = nas.answer(wish)
    assert "others than root may write in it (owner 0, mode 0755)" not in answer.get("msg", "")
    nas.now += HOUR
    found = nas.run(wish)
    assert found["excluded"] == [".snapshots", "data"]
    assert len(nas.there()) == 2


def test_folders_that_cannot_be(nas: Nas, tmp_path: Path) -> None:
    real = nas.pool / "real"
    real.mkdir(mode=0o700)
    (nas.pool / "link").symlink_to(real)
    (nas.pool / "dangling").symlink_to("/nowhere")
    (nas.pool / "file").write_text("", encoding="utf-8")
    (nas.pool / "shared").mkdir()
    (nas.pool / "shared").chmod(0o777)
    (nas.pool / "users").mkdir(mode=0o700)
    os.chown(nas.pool / "users", 65534, 0)
    (nas.data / "plain").mkdir()
    for folder, words in (
        (tmp_path / "x", "is on another filesystem than path="),
        (nas.pool / "link", f"is a symbolic link to '{real}'"),
        (nas.pool / "dangling", "is a symbolic link to '/nowhere'"),
        (nas.pool / "file", "is no folder"),
        (nas.pool / "file/x", "is no folder"),
        (nas.pool / "shared", "others than root may write in it (owner 0, mode 0777)"),
        (nas.pool / "users", "others than root may write in it (owner 65534, mode 0700)"),
        (nas.data, "lies in the very subvolume"),
        (nas.data / "plain", "lies in the very subvolume"),
        (nas.data / "new/one", "lies in the very subvolume"),
    ):
        answer = nas.answer(nas.volume(folder=str(folder)))
        assert f"folder='{folder}'" in answer["msg"]
        assert words in answer["msg"]
        assert not answer["changed"]
    assert not list(real.iterdir())
    assert not (tmp_path / "x").exists()
    assert len(btrfs.subvolumes(str(nas.pool))) == 1


def test_one_that_fails_does_not_stop_the_others(nas: Nas, tmp_path: Path) -> None:
    made = nas.make(1)
    (nas.data / "plain").mkdir()
    answer = nas.answer(
        nas.volume(path=str(nas.pool / "gone")),
        nas.volume(keep={"last": 1}),
        nas.volume(path=str(nas.data / "plain")),
        nas.volume(path=str(tmp_path)),
    )
    assert answer["failed"]
    assert answer["changed"]
    assert answer["msg"].startswith("3 of 4 volumes failed. ")
    for words in (
        f"path='{nas.pool / 'gone'}' is no folder that is there",
        f"path='{nas.data / 'plain'}' is a plain folder",
        f"path='{tmp_path}' is not on Btrfs",
    ):
        assert words in answer["msg"]
    assert answer["volumes"][1]["deleted"] == made
    assert len(nas.there()) == 1


def test_wrong_options_change_nothing(nas: Nas) -> None:
    answer = nas.answer(nas.volume(), nas.volume(name="b", keep={"last": -1}))
    assert answer["msg"] == "volumes[1].keep.last=-1: give a whole number, 0 or more"
    assert nas.there() == []
    assert (
        "holds='x': give the whole path"
        in nas.call(btrfs_snapshot.main, volumes=[nas.volume()], holds="x")["msg"]
    )


def test_a_rollback(nas: Nas) -> None:
    made = nas.make(2)
    aside = nas.pool / "aside"
    nas.data.rename(aside)
    sh("btrfs", "subvolume", "snapshot", str(nas.snapshots / made[1]), str(nas.data))
    # What is younger than an hour is of the subvolume that was there before.
    found = nas.run(nas.volume(every="2h", keep={"last": 1}))
    assert (len(found["made"]), found["deleted"], found["foreign"]) == (1, [], made)
    nas.now += HOUR
    sh("btrfs", "subvolume", "delete", "--commit-after", str(aside))
    found = nas.run(nas.volume(every="2h", keep={"last": 1}))
    assert (found["made"], found["deleted"], found["foreign"]) == ([], made, [])


def fill(pool: Path) -> None:
    """Write until neither data nor metadata has room."""
    folder = pool / "filler"
    folder.mkdir()
    with contextlib.suppress(OSError), (folder / "data").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 20))
    sh("btrfs", "filesystem", "sync", str(pool))
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (folder / str(number)).touch()
            os.setxattr(folder / str(number), "user.filler", bytes(3800))


def test_a_full_disk(nas: Nas) -> None:
    made = nas.make(2)
    fill(nas.pool)
    answer: dict[str, Any] = {}
    # The kernel keeps a reserve, of which some more can be made.
    while "msg" not in answer:
        answer = nas.answer()
        nas.now += HOUR
        assert nas.now < START + 1000 * HOUR
    assert "No space left on device" in answer["msg"]
    assert f"{nas.snapshots}/.data." in answer["msg"]
    assert not answer["changed"]
    assert not [text for text in nas.there() if text.endswith(".draft")]
    # There is a way out.
    pruned = nas.run(nas.volume(keep={"last": 1}), state="pruned")
    assert made[0] in pruned["deleted"]
    assert len(nas.there()) == 1


def wrapped(folder: Path, script: str) -> str:
    """Return a folder for the PATH whose btrfs runs a script first or instead."""
    real = sh("which", "btrfs").strip()
    (folder / "bin").mkdir()
    tool = folder / "bin" / "btrfs"
    tool.write_text(f'#!/bin/sh\nreal={real}\n{script}\nexec $real "$@"\n', encoding="utf-8")
    tool.chmod(0o755)
    return str(tool.parent)


@pytest.mark.parametrize("fails", ["attribute", "property", "rename"])
def test_nothing_is_left_of_what_fails(
    nas: Nas, folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "attribute":
            patch.setattr(os, "setxattr", full)
        elif fails == "rename":
            patch.setattr(os, "rename", full)
        else:
            script = '[ "$1" = property ] && { echo "No space left on device" >&2; exit 1; }'
            patch.setenv("PATH", wrapped(folder, script), prepend=":")
        answer = nas.answer(nas.volume(keep={"last": 1}))
    assert "No space left on device" in answer["msg"]
    assert (answer["changed"], nas.there()) == (False, [])
    assert len(btrfs.subvolumes(str(nas.pool))) == 1
    assert nas.run()["made"]


@pytest.mark.parametrize(
    ("script", "left"),
    [
        # Writable and without our attribute, with it, read-only with it.
        ('[ "$2" = snapshot ] && { $real "$@"; kill -9 $PPID; exit; }', True),
        ('[ "$1" = property ] && { kill -9 $PPID; exit; }', True),
        ('[ "$1" = property ] && { $real "$@"; kill -9 $PPID; exit; }', True),
        ('[ "$2" = delete ] && { $real "$@"; kill -9 $PPID; exit; }', False),
        ('[ "$2" = delete ] && { kill -9 $PPID; exit; }', False),
    ],
)
def test_a_run_that_was_killed(nas: Nas, folder: Path, script: str, left: bool) -> None:
    made = nas.make(2)
    foreign = ".data.20240101T000000Z.draft"
    # A draft of somebody else's, and one that was made of another subvolume.
    sh("btrfs", "subvolume", "snapshot", "-r", str(nas.data), str(nas.snapshots / foreign))
    other = foreign.replace("01T", "02T")
    sh("btrfs", "subvolume", "create", str(nas.snapshots / other))
    killed = nas.start(nas.volume(keep={"last": 1}), path=wrapped(folder, script))
    killed.communicate()
    assert killed.returncode == -9
    drafts = [text for text in nas.there() if text.endswith(".draft")]
    assert len(drafts) == 2 + left
    nas.now = int(time.time()) + 1
    planned = nas.run(nas.volume(keep={"last": 1}), check=True)
    found = nas.run(nas.volume(keep={"last": 1}))
    assert found == planned
    assert found["foreign"] == [foreign, other]
    assert {*drafts} - {foreign, other} <= {*found["deleted"]}
    assert nas.there() == sorted([foreign, other, *found["made"]])
    assert not {*made} & {*nas.there()}


def test_a_draft_that_cannot_be_deleted_stays_the_only_one(nas: Nas, folder: Path) -> None:
    script = '[ "$2" = delete ] && { echo "ERROR: not now" >&2; exit 1; }'
    nas.snapshots.mkdir(mode=0o700)
    draft = ".data.20240101T000000Z.draft"
    sh("btrfs", "subvolume", "snapshot", str(nas.data), str(nas.snapshots / draft))
    run = nas.start(nas.volume(), path=wrapped(folder, script))
    (outcome,) = json.loads(run.communicate()[0])
    assert outcome["problems"] == [
        f"btrfs subvolume delete {nas.snapshots / draft}: ERROR: not now"
    ]
    assert nas.there() == [draft]


def test_one_that_cannot_be_deleted_does_not_keep_the_others(nas: Nas) -> None:
    made = nas.make(4)
    stuck = nas.snapshots / made[1]

    def set_immutable(flag: str) -> None:
        sh("btrfs", "property", "set", "-ts", str(stuck), "ro", "false")
        sh("chattr", flag, str(stuck))
        sh("btrfs", "property", "set", "-ts", str(stuck), "ro", "true")

    set_immutable("+i")
    answer = nas.answer(nas.volume(keep={"last": 1}), state="pruned")
    assert f"btrfs subvolume delete {stuck}: ERROR: Could not destroy" in answer["msg"]
    assert answer["volumes"][0]["deleted"] == [made[0], made[2]]
    set_immutable("-i")
    assert nas.run(nas.volume(keep={"last": 1}), state="pruned")["deleted"] == [made[1]]


def test_two_runs_at_once(nas: Nas, folder: Path) -> None:
    # So slow that both are at it at once.
    slow = wrapped(folder, '[ "$2" = snapshot ] && sleep 1')
    volumes = [nas.volume(every="1h"), nas.volume(name="other", every="1h")]
    runs = [nas.start(*volumes, path=slow) for _ in range(2)]
    found = []
    for run in runs:
        out, errors = run.communicate()
        assert run.returncode == 0, errors
        found.append(json.loads(out))
    assert not [outcome["problems"] for run in found for outcome in run if outcome["problems"]]
    # One makes them, and the other sees that they are there.
    assert sorted([len(outcome["made"]) for outcome in run] for run in found) == [[0, 0], [1, 1]]
    assert len(nas.there()) == 2


def test_another_run_that_does_not_end(
    nas: Nas, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = wrapped(folder, '[ "$2" = snapshot ] && touch $0.began && sleep 4')
    other = nas.start(nas.volume(name="other"), path=slow)
    while not Path(slow, "btrfs.began").exists():
        assert other.poll() is None
    monkeypatch.setattr(_snapshots, "PATIENCE", 0.3)
    answer = nas.answer()
    assert "another run has been at this filesystem for 0.3 s" in answer["msg"]
    assert f"fuser -v {nas.locks}/snapshots-" in answer["msg"]
    monkeypatch.setattr(_snapshots, "PATIENCE", 60)
    assert nas.run()["made"]
    assert json.loads(other.communicate()[0])[0]["made"]
