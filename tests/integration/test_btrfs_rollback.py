# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A subvolume that is brought back to one of its snapshots, and forth again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import (
    _snapshot_plan,
    _snapshots,
    _standstill,
)
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

    def back(self, to: str = "newest", check: bool = False, **more: Any) -> dict[str, Any]:
        self.time += 60
        where = {"path": str(self.path), "folder": str(self.folder), **more}
        return self.call(btrfs_rollback.main, check=check, to=to, **where)

    def write(self, text: str) -> None:
        (self.path / "file").write_text(text)

    def read(self) -> str:
        return (self.path / "file").read_text()


@pytest.fixture
def volume(call: Call, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    monkeypatch.setattr(_standstill, "FOLDER", str(tmp_path))
    monkeypatch.setattr(_standstill, "LOCK", str(tmp_path / "standstill.lock"))
    monkeypatch.setattr(_snapshot_plan, "HOLDS", str(tmp_path / "holds"))
    monkeypatch.setattr(_snapshot_plan, "EARLIER_HOLDS", str(tmp_path / "earlier"))
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


def test_a_second_rollback_does_not_give_up_what_the_first_kept(
    volume: Volume, call: Call, tmp_path: Path
) -> None:
    volume.write("one")
    first = volume.snapshot()
    kept = []
    for text in ("two", "three"):
        volume.write(text)
        kept.append(volume.back(first)["kept"])
    volume.snapshot()
    wish = {"path": str(volume.path), "folder": str(volume.folder), "keep": {"last": 1}}
    prune = {"state": "pruned", "holds": str(tmp_path / "holds"), "volumes": [wish]}
    (pruned,) = call(btrfs_snapshot.main, **prune)["volumes"]
    assert pruned["held"] == kept
    # A week later another one lets them go, and holds its own.
    volume.time += _snapshots.HELD
    later = volume.back(kept[1])["kept"]
    volume.snapshot()
    (pruned,) = call(btrfs_snapshot.main, **prune)["volumes"]
    assert pruned["held"] == [later]
    assert set(kept) <= set(pruned["deleted"])


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
    for check in (True, False):
        answer = volume.back(check=check)
        assert "other subvolumes lie in it (documents/inner)" in answer["msg"]
    assert (volume.path / "inner").is_dir()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("inner", ["inner", "deep/folder/inner"])
@pytest.mark.parametrize("snapshot", ["after it", "before it"])
def test_volumes_in_it_stay_as_they_are(volume: Volume, inner: str, snapshot: str) -> None:
    place = volume.path / inner
    volumes = [str(volume.path), str(place)]
    volume.write("one")
    first = volume.snapshot() if snapshot == "before it" else ""
    place.parent.mkdir(parents=True, exist_ok=True)
    sh("btrfs", "subvolume", "create", str(place))
    (place / "letter").write_text("mine")
    (volume.path / "deep").mkdir(exist_ok=True)
    (volume.path / "deep").chmod(0o710)
    first = first or volume.snapshot()
    volume.write("two")
    with (place / "letter").open("a") as stream:
        answer = volume.back(first, volumes=volumes)
        stream.write(" still")
    assert (volume.read(), (place / "letter").read_text()) == ("one", "mine still")
    assert _snapshots.is_subvolume(str(place))
    if inner != "inner":
        assert (volume.path / "deep").stat().st_mode & 0o777 == 0o710
    # Forth again, and the volume is a source of snapshots and rollbacks as before.
    assert volume.back(answer["kept"], volumes=volumes)["snapshot"] == answer["kept"]
    assert (volume.read(), (place / "letter").read_text()) == ("two", "mine still")
    assert names(volume.path.parent) == [".snapshots", "documents"]


def test_a_volume_in_it_needs_its_place(volume: Volume) -> None:
    place = volume.path / "inner"
    place.mkdir()
    (place / "letter").write_text("older")
    first = volume.snapshot()
    (place / "letter").unlink()
    place.rmdir()
    sh("btrfs", "subvolume", "create", str(place))
    said = volume.back(first, volumes=[str(place)])["msg"]
    assert f"the snapshot has something else at its place ({volume.folder}/{first}/inner)" in said
    assert place.is_dir()


def test_the_same_again_does_not_bring_back_the_ruin(volume: Volume) -> None:
    volume.write("one")
    first = volume.snapshot()
    ruins = []
    for ruin in ("ruined", "ruined again"):
        volume.write(ruin)
        answer = volume.back()
        assert answer["snapshot"] == first
        assert volume.read() == "one"
        ruins.append(answer["kept"])
    # Only by its name. What is made of it afterwards is a state as any other.
    volume.back(ruins[0])
    assert volume.read() == "ruined"
    volume.write("mended")
    mended = volume.snapshot()
    volume.write("ruined once more")
    assert volume.back()["snapshot"] == mended
    assert volume.read() == "mended"
    for name in (first, mended):
        sh("btrfs", "subvolume", "delete", str(volume.folder / name))
    said = volume.back()["msg"]
    assert f"there are {ruins[0]}, {ruins[1]}, " in said
    assert "which rollbacks kept or which are dated after now: name one" in said


def test_what_is_dated_after_now_is_not_the_newest(volume: Volume) -> None:
    volume.write("one")
    first = volume.snapshot()
    volume.time += 1_000_000
    volume.write("while the clock was wrong")
    ahead = volume.snapshot()
    volume.time -= 1_000_000
    assert volume.back()["snapshot"] == first
    assert volume.back(ahead)["snapshot"] == ahead


class Units:
    """Units of systemd that run, one of which cannot be started. What needs another one stops with
    it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running = {"srv-documents.mount", "smbd.service"}
        self.needed_by: dict[str, list[str]] = {}
        self.by_hand: set[str] = set()
        self.broken = ""
        self.started: list[str] = []
        monkeypatch.setattr(_standstill, "SETTLE", 0.0)
        for module in (_standstill, btrfs_rollback):
            monkeypatch.setattr(module, "running", self.those_that_run)
            monkeypatch.setattr(module, "demand", self.demand)
        monkeypatch.setattr(btrfs_rollback, "run", self.show)

    def those_that_run(self, units: Sequence[str]) -> list[str]:
        return [unit for unit in units if unit in self.running]

    def show(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        text = " ".join(self.needed_by.get(argv[-1], []))
        if "--property=FragmentPath" in argv:
            text = "" if argv[-1] in self.by_hand else f"/etc/systemd/system/{argv[-1]}"
        return subprocess.CompletedProcess(argv, 0, f"{text}\n", "")

    def demand(self, argv: Sequence[str]) -> str:
        _, verb, *units = argv
        if verb == "stop":
            while units:
                self.running.discard(unit := units.pop())
                units += self.needed_by.get(unit, [])
            return ""
        self.started += units
        self.running |= {*units} - {self.broken}
        if self.broken in units:
            raise _standstill.StandstillError(f"systemctl start {self.broken}: it is broken")
        return ""


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Units:
    return Units(monkeypatch)


USED: dict[str, Any] = {"mount_unit": "srv-documents.mount", "users": ["smbd.service"]}


def test_what_stood_still_goes_on_although_the_mount_does_not(volume: Volume, units: Units) -> None:
    volume.write("one")
    volume.snapshot()
    units.broken = "srv-documents.mount"
    assert "srv-documents.mount: it is broken" in volume.back(**USED)["msg"]
    assert "smbd.service" in units.running
    # What failed first is said first.
    (volume.path.parent / ".documents.before/something").mkdir(parents=True)
    said = volume.back(**USED)["msg"]
    assert said.index("Directory not empty") < said.index("Then systemctl start srv-documents")


def test_what_is_mounted_beneath_is_mounted_again(volume: Volume, units: Units, call: Call) -> None:
    beneath = ["srv-documents-photos.mount", "srv-documents-photos-old.mount"]
    units.needed_by = {
        "srv-documents.mount": [*beneath, "idle.service"],
        beneath[0]: [beneath[1], "photos.service", "local-fs.target"],
    }
    units.running |= {*beneath, "photos.service", "local-fs.target"}
    before = {*units.running}
    volume.snapshot()
    assert "photos.service" in volume.back(**USED)["resumed"]
    assert units.running == before
    assert units.started[:3] == ["srv-documents.mount", *beneath], "mounts come before their users"
    # One that is cut off while all of it stands still remembers it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(btrfs_rollback.Rollback, "swap", mock.Mock(side_effect=KeyboardInterrupt))
        patch.setattr(btrfs_rollback, "mount", lambda standstill: None)
        patch.setattr(_standstill.Standstill, "end", lambda *_, **__: [])
        with pytest.raises(KeyboardInterrupt):
            volume.back(**USED)
    assert not units.running
    assert "photos.service" in call(btrfs_rollback.main, state="resumed")["resumed"]
    assert units.running == before


def test_what_was_mounted_by_hand_is_not_unmounted(volume: Volume, units: Units) -> None:
    units.needed_by = {"srv-documents.mount": ["srv-documents-usb.mount"]}
    units.by_hand = {"srv-documents-usb.mount"}
    units.running |= units.by_hand
    before = {*units.running}
    volume.write("one")
    volume.snapshot()
    volume.write("two")
    for check in (True, False):
        said = volume.back(check=check, **USED)["msg"]
        assert "srv-documents-usb.mount is mounted beneath and was mounted by hand" in said
        assert (volume.read(), units.running, units.started) == ("two", before, [])
    # What containers had mounted goes with them; with what they leave, all goes on as it was.
    docker = {"mount_unit": USED["mount_unit"], "users": ["docker.service"]}
    assert "was mounted by hand" in volume.back(**docker)["msg"]
    assert (volume.read(), units.running) == ("two", before)
    units.needed_by["docker.service"] = ["srv-documents-usb.mount"]
    units.running |= {"docker.service"}
    assert not volume.back(**docker).get("failed")
    assert volume.read() == "one"


def test_what_a_run_that_was_cut_off_left_standing_goes_on(
    volume: Volume, units: Units, call: Call
) -> None:
    assert not call(btrfs_rollback.main, state="resumed")["changed"]
    standstill = _standstill.Standstill("rollback")
    standstill.begin(["smbd.service"], [f"srv-documents.mount {volume.path}"])
    units.running.clear()
    # In its midst, nothing is started, and no other volume is worked on.
    old = volume.path.parent / ".documents.before"
    os.rename(volume.path, old)
    other = {"path": str(volume.path.parent / "photos"), "folder": str(volume.folder)}
    sh("btrfs", "subvolume", "create", other["path"])
    sh("btrfs", "subvolume", "create", str(volume.path))
    wish = {"path": other["path"], "folder": other["folder"]}
    (made,) = call(btrfs_snapshot.main, volumes=[wish])["volumes"]
    assert made["made"]
    for arguments in ({"state": "resumed"}, other):
        said = call(btrfs_rollback.main, **arguments)["msg"]
        assert f"{volume.path}: a rollback of it was cut off ({old} is left of it), and" in said
        assert "smbd.service stand still" in said
    assert units.started == []
    sh("btrfs", "subvolume", "delete", str(volume.path))
    os.rename(old, volume.path)
    assert call(btrfs_rollback.main, check=True, state="resumed")["changed"]
    assert call(btrfs_rollback.main, state="resumed")["resumed"] == ["smbd.service"]
    assert units.started == ["srv-documents.mount", "smbd.service"]
    assert not call(btrfs_rollback.main, state="resumed")["changed"]


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
    inner = volume.path / "inner"
    sh("btrfs", "subvolume", "create", str(inner))
    sh("btrfs", "subvolume", "snapshot", str(volume.folder / first), str(draft))
    if step != "copied":
        os.rename(volume.path, old)
    if step == "swapped":
        os.rename(draft, volume.path)
    # Until then nothing else touches it.
    wish = {"pool": str(volume.path.parent), "subvolumes": [{"path": "documents"}]}
    assert "left of a rollback" in volume.call(btrfs_subvolume.main, **wish)["msg"]
    assert not volume.back(first, volumes=[str(inner)]).get("failed")
    assert volume.read() == "one"
    assert _snapshots.is_subvolume(str(inner))
    assert not draft.exists()
    assert not old.exists()


def test_what_is_written_meanwhile_is_not_lost(volume: Volume) -> None:
    volume.write("one")
    volume.snapshot()
    with (volume.path / "file").open("a") as stream:  # of somebody who was not stopped
        answer = volume.back()
        stream.write(" and late")
    assert volume.read() == "one"
    assert (volume.folder / answer["kept"] / "file").read_text() == "one and late"


def test_a_link_in_the_way_is_not_followed(volume: Volume, pool: Path) -> None:
    volume.write("one")
    volume.snapshot()
    sh("btrfs", "subvolume", "create", str(pool / "photos"))
    (pool / ".documents.before").symlink_to(pool / "photos")
    volume.back()
    assert (pool / "photos").is_dir()


def test_no_snapshot_at_all(volume: Volume) -> None:
    assert "there are none" in volume.back()["msg"]


def test_what_was_held_where_holds_were_before_stays_held(volume: Volume, tmp_path: Path) -> None:
    volume.write("one")
    first = volume.snapshot()
    old, new = tmp_path / "earlier", tmp_path / "holds"
    old.mkdir()
    uuids = [_snapshots.look(str(volume.folder / first)), _snapshots.look(str(volume.path))]
    lines = [place.uuid for place in uuids if place]
    name = _snapshots.hold_name("rollback", str(volume.folder), "documents")
    (old / name).write_text(f"{lines[0]}\n")
    (old / "replicate-usb").write_text(f"{lines[1]}\n")
    assert _snapshots.read_holds(str(new)) == {*lines}
    kept = _snapshots.look(str(volume.folder / volume.back(first)["kept"]))
    assert kept
    assert not old.exists()
    assert (new / name).read_text().split() == [lines[0], kept.uuid]
    assert (new / "replicate-usb").read_text().split() == [lines[1]]
    # Where somebody wrote both, neither is forgotten.
    old.mkdir()
    (old / "replicate-usb").write_text(lines[0])
    _snapshots.take_over_holds()
    assert (new / "replicate-usb").read_text().split() == [lines[1], lines[0]]


def test_volumes_of_one_name_in_two_pools_are_held_apart() -> None:
    held = {
        _snapshots.hold_name(reason, f"/srv/{pool}/.snapshots", "documents")
        for reason in ("rollback", "restore")
        for pool in ("tank", "vault")
    }
    assert len(held) == 4
    # What begins with a full stop is a draft, and holds nothing.
    assert not any(name.startswith(".") or "/" in name for name in held)
