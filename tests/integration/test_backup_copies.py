# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Copies of a real Btrfs, to an append-only server and to another disk, and what becomes of them
when something breaks."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.filter.backup import backup_sources
from ansible_collections.nas.assistant.plugins.module_utils import (
    _backup,
    _snapshot_plan,
    _standstill,
)
from ansible_collections.nas.assistant.plugins.module_utils._backup_plan import Copy
from ansible_collections.nas.assistant.plugins.modules import (
    backup_device,
    backup_prune,
    btrfs_rollback,
)
from copies import CODES, Nas, listing, packs
from shell import sh


def test_points_in_both_copies(nas: Nas) -> None:
    for copy in ("offsite", "usb"):
        assert "point " in nas.run("run", copy)
        assert len(nas.points(copy)) == 1
        assert f'nas_backup_failed{{copy="{copy}",cause=""}} 0' in nas.metric(copy)
        assert f'nas_backup_restore_points{{copy="{copy}"}} 1' in nas.metric(copy)
        assert "restored and proven: " in nas.run("drill", copy)
        assert f'nas_backup_drill_failed{{copy="{copy}",cause=""}} 0' in nas.metric(copy)
    # Nothing of it is left on the NAS, and the disk can be taken away.
    assert os.listdir(nas.pool / ".snapshots/.backup") == []
    assert not list(nas.folder.glob("nas-assistant-drill*"))
    mounts = Path("/proc/self/mounts").read_text()
    assert nas.disk not in mounts
    assert "backup-offsite" not in mounts


def test_what_has_not_changed_costs_nothing(nas: Nas) -> None:
    nas.run("run", "offsite")
    size = sum(each.stat().st_size for each in nas.off_site.packs)
    assert size > 3 << 20
    (nas.documents / "new").write_bytes(os.urandom(50_000))
    nas.run("run", "offsite")
    grown = sum(each.stat().st_size for each in nas.off_site.packs) - size
    assert 50_000 < grown < 250_000
    assert len(nas.points("offsite")) == 2


def test_a_volume_comes_back_as_a_snapshot(nas: Nas) -> None:
    before = listing(nas.documents)
    sh("btrfs", "property", "set", str(nas.documents), "compression", "zstd")
    for copy in ("offsite", "usb"):
        nas.run("run", copy)
    shutil.rmtree(nas.documents / "letters")
    (nas.documents / "usage.db").write_bytes(b"overwritten")
    for copy in ("offsite", "usb"):
        answer = nas.restore(copy, sources=["tank/documents"])
        (restored,) = answer["restored"]
        snapshot = nas.pool / ".snapshots" / restored["snapshot"]
        assert listing(snapshot) == before
        assert "ro=true" in sh("btrfs", "property", "get", str(snapshot), "ro")
        assert "zstd" in sh("btrfs", "property", "get", str(snapshot), "compression")
        assert os.listdir(nas.pool / ".snapshots/.nas-assistant-restore") == []
    assert (nas.documents / "usage.db").read_bytes() == b"overwritten"
    shown = nas.restore("usb", _ansible_check_mode=True)
    assert [each["name"] for each in shown["restored"]] == [
        *("tank/documents", "tank/photos"),
        str(nas.etc),
    ]


def test_a_volume_in_another_one_comes_back_and_so_does_that_one(
    nas: Nas, call: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = nas.documents / "letters/inner"
    sh("btrfs", "subvolume", "create", str(inner))
    (inner / "one").write_text("one")
    above = nas.settings["sources"][0]
    below = {**above, "volume": "tank/documents/letters/inner", "path": str(inner)}
    nas.settings["sources"].append(below)
    nas.run("run", "usb")
    assert "restored and proven" in nas.run("drill", "usb")
    (inner / "one").write_text("two")
    (nas.documents / "usage.db").unlink()
    names = [above["volume"], below["volume"]]
    monkeypatch.setattr(_standstill, "FOLDER", str(nas.folder))
    monkeypatch.setattr(_snapshot_plan, "HOLDS", str(nas.folder / "holds"))
    # In either order, as the inventory may have them.
    for order in (names, names[::-1]):
        found = {each["name"]: each for each in nas.restore("usb", sources=names)["restored"]}
        for name in order:
            path = str(nas.pool / name.partition("/")[2])
            back = {"path": path, "folder": above["folder"], "to": found[name]["snapshot"]}
            back["name"] = name.partition("/")[2].replace("/", ".")
            volumes = [str(nas.documents), str(inner)]
            answer = call(btrfs_rollback.main, volumes=volumes, **back)
            assert answer.get("kept"), answer
        assert (inner / "one").read_text() == "one"
        assert (nas.documents / "usage.db").exists()
        (inner / "one").write_text("three")
        (nas.documents / "usage.db").unlink()


def test_what_is_excluded_is_not_lost_with_a_volume_that_comes_back(nas: Nas) -> None:
    nas.settings["sources"][0]["exclude"] = ["letters/cache", "thumbnails"]
    (nas.documents / "letters/cache").mkdir()
    (nas.documents / "letters/cache/one").write_bytes(os.urandom(1 << 20))
    os.chown(nas.documents / "letters/cache/one", 1234, 5678)
    (nas.documents / "thumbnails").write_text("all of them")
    nas.run("run", "usb")
    before = listing(nas.documents)
    (nas.documents / "letters/run").unlink()
    (restored,) = nas.restore("usb", sources=["tank/documents"])["restored"]
    assert listing(nas.pool / ".snapshots" / restored["snapshot"]) == before
    assert os.listdir(nas.pool / ".snapshots/.nas-assistant-restore") == []


def test_names_that_people_give(nas: Nas) -> None:
    odd = ["Bücher", 'it\'s 50€ & "more" {2]', "$HOME !x ~"]
    top = nas.folder / odd[1]
    sources = [{"folder": str(top), "exclude": odd}]
    for name in (*odd, "kept"):
        (top / name).mkdir(parents=True)
        (top / name / odd[0]).write_text("one")
    nas.settings["sources"] = [
        {key: each[key] for key in ("path", "exclude")} for each in backup_sources(sources, [])
    ]
    nas.run("run", "usb")
    assert "proven: 1 files" in nas.run("drill", "usb")
    shutil.rmtree(top / "kept")
    for wish in ({}, {"sources": [str(top)], "path": f"kept/{odd[0]}"}):
        answer = nas.restore("usb", **wish)
        assert not answer.get("failed"), answer
        assert (top / "kept" / odd[0]).read_text() == "one"
        (top / "kept" / odd[0]).unlink()
    # A source that lies on the disk of the copy is seen, whatever it is called.
    place = nas.folder / odd[2] / odd[0]
    place.mkdir(parents=True)
    sh("mount", nas.disk, str(place))
    nas.settings["sources"] = [{"path": str(place)}]
    assert "is on the same disk" in nas.fails("device", "run", "usb")
    sh("umount", str(place))


def test_files_come_back_and_nothing_is_overwritten(nas: Nas) -> None:
    nas.run("run", "offsite")
    letter = nas.documents / "letters/a [1]*?.txt"
    letter.write_text("Dear nobody\n")
    (nas.documents / "letters/run").unlink()
    (nas.documents / "letters/newer").write_text("stays\n")
    (nas.documents / "usage.db").write_bytes(b"stays too")
    answer = nas.restore("offsite", sources=["tank/documents"], path="letters")
    (restored,) = answer["restored"]
    assert restored["changed"] == 2
    assert letter.read_text() == "Dear reader\n"
    assert os.stat(letter).st_mtime_ns == 1_234_567_890_123_456_789
    assert os.stat(nas.documents / "letters/run").st_mode & 0o7777 == 0o4750
    assert (nas.documents / "letters/newer").read_text() == "stays\n"
    assert (nas.documents / "usage.db").read_bytes() == b"stays too"
    assert Path(restored["kept"], "letters", letter.name).read_text() == "Dear nobody\n"
    assert not nas.restore("offsite", sources=["tank/documents"], path="letters")["changed"]
    # Another folder, of a NAS that never had it.
    elsewhere = nas.folder / "elsewhere"
    nas.restore("offsite", sources=["tank/documents"], path="letters/run", to=str(elsewhere))
    assert (elsewhere / "letters/run").stat().st_size == 3 << 20
    (nas.etc / "config.ini").unlink()
    nas.restore("offsite", sources=[str(nas.etc)])
    assert (nas.etc / "config.ini").read_text() == "[server]\n"
    for wrong, why in (
        ({"sources": ["tank/music"]}, "tank/music is not in this point, which holds tank/docu"),
        ({"sources": ["tank/documents"], "path": "../x"}, "give it from the source on"),
        ({"sources": ["tank/documents"], "path": "nowhere"}, "has no 'nowhere'"),
        ({"path": "letters"}, "name it in sources"),
        ({"point": "ffff"}, "is no restore point; there are: "),
    ):
        assert why in nas.restore("offsite", **wrong)["msg"]


def flip(path: Path) -> None:
    """Change one bit of a file, and nothing else about it."""
    status = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.seek(status.st_size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def on_disk(nas: Nas, work: Callable[[Path], None]) -> None:
    """Do something with what is on the disk of copies."""
    point = nas.folder / "there"
    point.mkdir(exist_ok=True)
    sh("mount", nas.disk, str(point))
    work(point / "nas-assistant/nas1")
    sh("umount", str(point))


def test_a_flipped_bit_is_found_and_the_other_copy_restores(nas: Nas) -> None:
    before = listing(nas.documents)
    nas.run("run", "offsite")
    nas.run("run", "usb")
    # Which of the large ones has the documents is up to how busy the machine was.
    for pack in nas.off_site.packs:
        if pack.stat().st_size > 100_000:
            flip(pack)
    # A backup writes, and does not see it; a drill reads.
    nas.run("run", "offsite")
    nas.fails("damaged", "drill", "offsite")
    answer = nas.restore("offsite", sources=["tank/documents"])
    assert "damaged" in answer["msg"]
    assert os.listdir(nas.pool / ".snapshots") == [".backup", ".nas-assistant-restore"]
    (restored,) = nas.restore("usb", sources=["tank/documents"])["restored"]
    assert listing(nas.pool / ".snapshots" / restored["snapshot"]) == before


# restic, after whose backup the medium no longer has what it took.
FORGETFUL = """#!{python}
import os, subprocess, sys
done = subprocess.run(["{restic}", *sys.argv[1:]])
if "backup" in sys.argv and done.returncode == 0:
    with open("{image}", "r+b") as medium:
        whole, lost = medium.read(), 0
        for top, _, names in os.walk(os.environ["RESTIC_REPOSITORY"] + "/data"):
            for name in names:
                pack = open(os.path.join(top, name), "rb").read()
                place = whole.find(pack[8192:12288]) if len(pack) > 100_000 else -1
                if place > 0:
                    medium.seek(place)
                    medium.write(bytes(4096))
                    lost += 1
    assert lost
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("mounted", [False, True])
def test_what_was_just_written_is_read_from_the_disk(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, mounted: bool
) -> None:
    nas.run("run", "usb")
    programs = nas.folder / "programs"
    programs.mkdir()
    image = sh("losetup", "--noheadings", "--output", "BACK-FILE", nas.disk).strip()
    forgetful = programs / "restic"
    restic = shutil.which("restic")
    forgetful.write_text(FORGETFUL.format(python=sys.executable, restic=restic, image=image))
    forgetful.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    if mounted:
        # By somebody else too, who keeps in memory what was written.
        point = nas.folder / "there"
        point.mkdir()
        sh("mount", nas.disk, str(point))
    (nas.documents / "much").write_bytes(os.urandom(5 << 20))
    nas.fails("damaged", "run", "usb")
    record = json.loads((nas.state / "usb/record.json").read_text())
    assert record["verified"] != record["point"]


def test_a_truncated_weekly_copy_is_found_and_nothing_of_it_deleted(nas: Nas) -> None:
    nas.settings["copies"][1]["keep"] = {"last": 1}
    for _ in range(3):
        nas.run("run", "usb")
    nas.run("run", "offsite")

    def cut(repository: Path) -> None:
        largest = packs(repository)[0]
        largest.chmod(0o600)
        os.truncate(largest, 1000)

    on_disk(nas, cut)
    nas.fails("damaged", "run", "usb")
    # The floor is 3, and the fourth was not proven.
    assert len(nas.points("usb")) == 4
    nas.fails("damaged", "drill", "usb")
    assert nas.restore("offsite", sources=["tank/documents"])["changed"]


def test_a_wrong_key_is_called_one_and_the_other_copy_restores(nas: Nas) -> None:
    before = listing(nas.documents)
    nas.run("run", "offsite")
    nas.run("run", "usb")
    # The off-site copy has another one from here on.
    (nas.folder / "another").write_text("another\n")
    restic = ("restic", "--no-cache", "--repo", str(nas.off_site.folder / "nas1"))
    passwords = ("--password-file", str(nas.folder / "key"))
    sh(*restic, *passwords, "key", "passwd", "--new-password-file", str(nas.folder / "another"))
    shutil.rmtree(nas.folder / "cache")
    assert "backup_password" in nas.fails("wrong key", "run", "offsite")
    nas.fails("wrong key", "drill", "offsite")
    assert "wrong key" in nas.restore("offsite")["msg"]
    (restored,) = nas.restore("usb", sources=["tank/documents"])["restored"]
    assert listing(nas.pool / ".snapshots" / restored["snapshot"]) == before


def test_an_off_site_that_is_away(nas: Nas) -> None:
    nas.run("run", "offsite")
    nas.off_site.stop()
    nas.fails("unreachable", "run", "offsite")
    success = "nas_backup_success_time_seconds"
    assert success in nas.metric("offsite")
    nas.run("run", "usb")
    assert nas.restore("usb", sources=["tank/photos"])["changed"]
    nas.off_site.start()
    nas.run("run", "offsite")


class _InTrouble(http.server.BaseHTTPRequestHandler):
    """A server, or a proxy before it, that answers all requests with one error."""

    status = 0

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "cause"), [(429, "unreachable"), (503, "unreachable"), (507, "no room")]
)
def test_a_server_in_trouble_is_not_one_without_a_repository(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, status: int, cause: str
) -> None:
    nas.run("run", "offsite")
    monkeypatch.setattr(_InTrouble, "status", status)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _InTrouble)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = nas.settings["copies"][0]["repository"]
    nas.settings["copies"][0]["repository"] = f"rest:http://127.0.0.1:{server.server_port}/nas1/"
    # Nobody is told to begin anew, and systemd tries again.
    done = nas.call("run", "offsite")
    assert (done.returncode, "accept" in done.stderr) == (CODES[cause], False), done.stderr
    server.shutdown()
    server.server_close()
    nas.settings["copies"][0]["repository"] = address
    nas.run("run", "offsite")


def test_a_server_that_deletes_is_told(nas: Nas) -> None:
    assert "delete" not in nas.run("run", "offsite")
    nas.off_site.stop()
    nas.off_site.start("--append-only=false")
    said = nas.run("run", "offsite")
    assert "offsite: the server of offsite takes more than new data: whoever has this NAS" in said
    assert len(nas.points("offsite")) == 2


def test_a_folder_must_be_elsewhere(nas: Nas) -> None:
    elsewhere = nas.folder / "elsewhere"
    elsewhere.mkdir()
    (nas.pool / "copies").mkdir()
    for place, said in (
        (f"/nas-assistant-{os.getpid()}/copies", "nothing is mounted at"),
        (str(nas.pool / "copies/new"), "is on the same disk as tank/documents"),
    ):
        nas.settings["copies"][0]["repository"] = place
        assert said in nas.fails("device", "run", "offsite")
        assert not Path(place).exists()
    sh("mount", nas.disk, str(elsewhere))
    nas.settings["copies"][0]["repository"] = str(elsewhere / "nas1")
    nas.run("run", "offsite")
    sh("umount", str(elsewhere))


def test_the_folder_of_snapshots_is_roots_alone(nas: Nas) -> None:
    folder = nas.pool / ".snapshots"
    folder.rmdir()
    nas.run("run", "usb")
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / ".backup").rmdir()
    folder.rmdir()
    nas.restore("usb", sources=["tank/documents"])
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_off_site_that_was_emptied_is_not_begun_anew_in_silence(nas: Nas) -> None:
    nas.run("run", "offsite")
    (nas.off_site.folder / "nas1").rename(nas.off_site.folder / "gone")
    assert "nas-backup accept offsite" in nas.fails("gone", "run", "offsite")
    assert not (nas.off_site.folder / "nas1/config").exists()
    nas.run("accept", "offsite")
    nas.run("run", "offsite")


def test_a_blank_nas_does_not_hide_the_points_of_the_lost_one(nas: Nas) -> None:
    nas.run("run", "offsite")
    nas.run("run", "usb")
    shutil.rmtree(nas.state)
    shutil.rmtree(nas.documents / "letters")
    assert "nas.assistant.restore" in nas.fails("foreign", "run", "offsite")
    nas.fails("foreign", "run", "usb")
    # A part of it is not what was lost.
    part = nas.restore("offsite", sources=["tank/documents"], path="letters")
    assert (part["changed"], part["whole"]) == (True, False)
    nas.fails("foreign", "run", "offsite")
    assert nas.restore("offsite")["whole"]
    # Nor is the whole, until it was put in place and somebody says so, as the playbook does.
    nas.fails("foreign", "run", "offsite")
    nas.run("accept", "offsite")
    nas.run("run", "offsite")
    nas.fails("foreign", "run", "usb")
    nas.run("accept", "usb")
    nas.run("run", "usb")


def test_an_incomplete_point_is_not_taken_for_all_of_a_lost_nas(nas: Nas) -> None:
    nas.run("run", "usb")
    sh("btrfs", "subvolume", "delete", str(nas.pool / "photos"))
    nas.fails("incomplete", "run", "usb")
    shutil.rmtree(nas.state)
    sh("btrfs", "subvolume", "create", str(nas.pool / "photos"))
    whole, lacking = [line.split()[0] for line in nas.points("usb")]
    answer = nas.restore("usb", point=lacking)
    assert [each["name"] for each in answer["restored"]] == ["tank/documents", str(nas.etc)]
    said = str(answer["warnings"])
    assert f"{lacking} is incomplete: it lacks all of tank/photos." in said
    assert not answer["whole"]
    # So nothing takes the place of the point that has all.
    nas.fails("foreign", "run", "usb")
    nas.restore("usb", point=whole, sources=["tank/photos"])
    nas.run("accept", "usb")


def test_what_was_not_restored_is_not_accepted(nas: Nas) -> None:
    nas.run("run", "usb")
    (nas.etc / "config.ini").unlink()
    (nas.pool / "photos/one").unlink()
    # As the playbook does it once it has brought all back that a point has.
    nas.run("accept", "usb", "tank/documents", "tank/photos")
    said = nas.fails("incomplete", "run", "usb")
    assert f"{nas.etc} is empty and had 1 files" in said
    assert "tank/photos" not in said
    # A record that was damaged is as good as none.
    (nas.state / "usb/record.json").write_text("{")
    nas.fails("foreign", "run", "usb")


def test_the_device_must_be_another_disk_and_there(nas: Nas) -> None:
    copy = nas.settings["copies"][1]
    own = sh("findmnt", "-n", "-o", "SOURCE", "--target", str(nas.pool)).strip()
    copy["device"] = sh("blkid", "-o", "value", "-s", "UUID", own).strip()
    assert "is on the same disk as tank/documents" in nas.fails("device", "run", "usb")
    copy["device"] = "00000000-0000-4000-8000-000000000001"
    assert "Connect it" in nas.fails("device", "run", "usb")


def test_a_disk_of_the_data_is_refused_before_it_is_formatted(
    nas: Nas, call: Callable[..., dict[str, Any]]
) -> None:
    own = sh("findmnt", "-n", "-o", "SOURCE", "--target", str(nas.pool)).strip()
    sources = [str(nas.documents), str(nas.folder / "nowhere")]
    answer = call(backup_device.main, devices={"usb": nas.disk, "other": own}, sources=sources)
    assert f"other ({own}) is on the same disk as {nas.documents}" in answer["msg"]
    answer = call(backup_device.main, devices={"usb": nas.disk}, sources=sources)
    assert answer["disks"] == {"usb": [Path(nas.disk).name]}


def test_a_source_whose_disks_nobody_knows_is_told(
    nas: Nas, call: Callable[..., dict[str, Any]]
) -> None:
    sh("mount", "-t", "tmpfs", "none", str(nas.etc))
    (nas.etc / "config.ini").write_text("[server]\n")
    text = f"{nas.etc} is on tmpfs, whose disks are not known"
    assert text in nas.run("run", "usb")
    assert text not in nas.run("run", "offsite")
    # Where a controller's plugins were imported too, warnings are not in the answer.
    with mock.patch.object(AnsibleModule, "warn") as warn:
        call(backup_device.main, devices={"usb": nas.disk}, sources=[str(nas.etc)])
    assert text in warn.call_args.args[0]


def test_a_source_that_is_away_makes_the_point_incomplete(nas: Nas) -> None:
    for _ in range(2):
        nas.run("run", "usb")
    sh("btrfs", "subvolume", "delete", str(nas.pool / "photos"))
    (nas.pool / "photos").mkdir()
    for _ in range(3):
        assert "photos is no subvolume" in nas.fails("incomplete", "run", "usb")
    assert 'nas_backup_restore_points{copy="usb"} 2' in nas.metric("usb")
    assert sum("incomplete" in line for line in nas.points("usb")) == 3
    # The newest that has all is what comes back.
    assert len(nas.restore("usb", _ansible_check_mode=True)["restored"]) == 3


def test_a_source_that_was_lost_makes_all_points_incomplete_until_that_is_accepted(
    nas: Nas,
) -> None:
    for _ in range(2):
        nas.run("run", "usb")
    (nas.etc / "config.ini").unlink()
    # The disk behind a folder, or a pool that was made anew, does not come back by itself.
    for _ in range(4):
        said = nas.fails("incomplete", "run", "usb")
        assert f"{nas.etc} is empty and had 1 files" in said
        assert "nas-backup accept usb" in said
    # Nor is one that was away in between forgotten.
    nas.etc.rename(nas.folder / "away")
    assert "is no folder" in nas.fails("incomplete", "run", "usb")
    nas.etc.mkdir()
    assert "is empty and had 1 files" in nas.fails("incomplete", "run", "usb")
    assert sum("incomplete" not in line for line in nas.points("usb")) == 2
    nas.restore("usb", sources=[str(nas.etc)])
    nas.run("run", "usb")
    (nas.etc / "config.ini").unlink()
    nas.fails("incomplete", "run", "usb")
    nas.run("accept", "usb")
    nas.run("run", "usb")


def test_what_is_on_another_filesystem_is_not_taken_for_what_it_was(nas: Nas) -> None:
    path = str(nas.etc)
    for size in ("1", "2"):
        image = nas.folder / f"ext4 {size}"
        with image.open("wb") as stream:
            stream.truncate(8 << 20)
        sh("mkfs.ext4", "-q", str(image))
    sh("mount", "-o", "loop", str(nas.folder / "ext4 1"), path)
    (nas.etc / "film").write_text("a film")
    nas.run("run", "offsite")
    nas.run("run", "usb")
    sh("umount", path)
    # The disk is another one, and something was written there already.
    sh("mount", "-o", "loop", str(nas.folder / "ext4 2"), path)
    (nas.etc / "thumbnail").write_text("of nothing")
    for _ in range(2):
        assert f"{path} is on another filesystem" in nas.fails("incomplete", "run", "offsite")
    sh("umount", path)
    sh("mount", "-o", "loop", str(nas.folder / "ext4 1"), path)
    nas.run("run", "offsite")
    sh("umount", path)
    sh("mount", "-o", "loop", str(nas.folder / "ext4 2"), path)
    nas.run("accept", "offsite")
    nas.run("run", "offsite")
    assert f"{path} is on another filesystem" in nas.fails("incomplete", "run", "usb")


def test_what_restic_could_not_read_makes_the_point_incomplete(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root can read all but what a disk fails to give, which a wrapper stands for."""
    nas.run("run", "usb")
    program = nas.folder / "bin/restic"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    script = """#!/bin/sh
{restic} "$@" || exit
case " $* " in
*" backup "*)
    echo '{{"message_type":"error","error":{{"Op":"read","Path":"/x","Err":{number}}}}}' >&2
    exit 3 ;;
esac
"""
    restic = shutil.which("restic", path="/usr/bin:/usr/local/bin")
    program.write_text(script.format(restic=restic, number=5))
    program.chmod(0o755)
    assert '"Err":5' in nas.fails("incomplete", "run", "usb")
    assert ["incomplete" in line for line in nas.points("usb")] == [False, True]
    assert 'nas_backup_restore_points{copy="usb"} 1' in nas.metric("usb")
    # What went from a folder in use is none.
    program.write_text(script.format(restic=restic, number=2))
    nas.run("run", "usb")
    # Where this NAS may not change what is there, the run fails all the same.
    program.write_text(script.format(restic=restic, number=5))
    nas.fails("incomplete", "run", "offsite")
    assert len(nas.points("offsite")) == 1


def test_a_full_disk_costs_no_point(nas: Nas) -> None:
    nas.run("run", "usb")
    (nas.documents / "much").write_bytes(os.urandom(120 << 20))
    nas.fails("no room", "run", "usb")
    (nas.documents / "much").unlink()
    assert len(nas.points("usb")) == 1
    assert "proven" in nas.run("drill", "usb")
    nas.run("run", "usb")


def test_the_nas_itself_cannot_delete_or_overwrite_what_is_off_site(nas: Nas) -> None:
    """With all that the NAS has: its key, its settings, its program."""
    nas.run("run", "offsite")
    before = {
        each: each.read_bytes()
        for each in (nas.off_site.folder / "nas1").rglob("*")
        if each.is_file()
    }
    environ = {
        **os.environ,
        "RESTIC_REPOSITORY": nas.off_site.address,
        "RESTIC_PASSWORD_FILE": str(nas.folder / "key"),
        "RESTIC_CACHE_DIR": str(nas.folder / "cache"),
    }
    # Below data there are folders of two letters, of which the protocol does not speak.
    names = [each.relative_to(nas.off_site.folder / "nas1").parts for each in before]
    assert {parts[0] for parts in names} == {"config", "data", "index", "keys", "snapshots"}
    for parts in names:
        place = "/".join(parts if len(parts) < 3 else (parts[0], parts[2]))
        for method in ("DELETE", "POST"):
            server = http.client.HTTPConnection("127.0.0.1", nas.off_site.port)
            server.request(method, f"/nas1/{place}", b"x")
            assert server.getresponse().status == 403, (method, place)
            server.close()
    # Junk, dated today and in time to come, evicts nothing: the NAS has no say in that.
    junk = nas.folder / "junk"
    junk.write_text("encrypted by somebody else")
    for date in ("2099-01-01 00:00:00", "2099-01-02 00:00:00"):
        subprocess.run(
            ["restic", "backup", "-q", "--host", "nas1", "--time", date, str(junk)],
            env=environ,
            check=True,
        )
    assert {each: each.read_bytes() for each in before} == before
    assert "proven" in nas.run("drill", "offsite")


def test_a_killed_run_leaves_nothing_and_the_next_one_works(nas: Nas) -> None:
    (nas.documents / "much").write_bytes(os.urandom(40 << 20))
    for delay in (0.3, 0.8, 1.5, 2.5):
        process = subprocess.Popen(
            nas.command("run", "usb"), stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert str(nas.pool / ".snapshots/.backup") not in Path("/proc/self/mounts").read_text()
    nas.run("run", "usb")
    assert os.listdir(nas.pool / ".snapshots/.backup") == []
    assert "proven" in nas.run("drill", "usb")


def test_what_was_cut_off_is_begun_again(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = nas.folder / "bin"
    tools.mkdir()
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {nas.folder}/started\n')
    (tools / "systemctl").chmod(0o755)
    nas.run("run", "usb")
    nas.run("drill", "usb")
    (tools / "restic").write_text("#!/bin/sh\nkill -9 $PPID\n")
    (tools / "restic").chmod(0o755)
    path = os.environ["PATH"]
    assert nas.run("unfinished") == ""
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tools}:{path}")
        assert nas.call("drill", "usb").returncode == -signal.SIGKILL
        assert nas.call("run", "offsite").returncode == -signal.SIGKILL
        assert "nas-backup@offsite.service was cut off" in nas.run("unfinished")
    started = (nas.folder / "started").read_text().splitlines()
    units = ["nas-backup@offsite.service", "nas-drill@usb.service"]
    assert started == [f"start --no-block {unit}" for unit in units]
    # One that failed has ended all the same.
    nas.off_site.stop()
    nas.fails("unreachable", "run", "offsite")
    nas.run("drill", "usb")
    assert nas.run("unfinished") == ""


def test_two_runs_at_once(nas: Nas) -> None:
    nas.run("run", "usb")
    before = nas.metric("usb")
    # As a run does that takes long.
    with _backup.alone(Copy("usb")):
        for word in ("run", "drill", "accept"):
            done = nas.call(word, "usb")
            assert done.returncode == CODES["busy"], (word, done.stdout, done.stderr)
            assert "busy: another run is at usb" in done.stderr
        assert "busy" in nas.restore("usb")["msg"]
        # What another one is at says nothing of how it ends, and keeps nobody from the other copy.
        assert nas.metric("usb") == before
        nas.run("run", "offsite")
    assert len(nas.points("usb")) == 1
    nas.run("run", "usb")


def test_a_drill_finds_a_database_that_was_copied_damaged(nas: Nas) -> None:
    path = nas.documents / "usage.db"
    content = bytearray(path.read_bytes())
    content[4096 + 8 : 4096 + 40] = b"\xff" * 32
    path.write_bytes(content)
    nas.run("run", "offsite")
    assert "usage.db" in nas.fails("differs", "drill", "offsite")


def test_what_is_too_large_is_drilled_by_a_sample(nas: Nas) -> None:
    for number in range(30):
        (nas.documents / f"file {number} [x]").write_bytes(os.urandom(50_000))
    nas.run("run", "offsite")
    nas.settings["drill"] = 1_000_000
    said = nas.run("drill", "offsite")
    assert "restored and proven" in said
    (metric,) = [
        line
        for line in nas.metric("offsite").splitlines()
        if line.startswith("nas_backup_drill_bytes")
    ]
    assert 100_000 < float(metric.split()[-1]) <= 1_000_000
    # Nothing is no sample.
    nas.settings["drill"] = 1
    assert "nothing was drilled" in nas.fails("no room", "drill", "offsite")


def test_twelve_drills_read_all_whenever_they_are(nas: Nas) -> None:
    record = nas.state / "offsite/record.json"
    nas.run("run", "offsite")
    # Whatever month it is.
    nas.run("drill", "offsite")
    assert json.loads(record.read_text())["drill_parts"] == 1
    nas.run("run", "offsite")
    nas.run("drill", "offsite")
    assert json.loads(record.read_text())["drill_parts"] == 2
    # A pack is of the part that its name says. Where it is damaged, that part is read until it is
    # sound.
    pack = nas.off_site.packs[0]
    part = int(pack.name[:2], 16) % 12 + 1
    nas.settings["drill"] = 1_000_000  # the sample has none of the large files' data
    sound = pack.read_bytes()
    flip(pack)
    for number in range(2):
        record.write_text(json.dumps({**json.loads(record.read_text()), "drill_parts": part - 1}))
        assert "repository contains errors" in nas.fails("damaged", "drill", "offsite"), number
        assert json.loads(record.read_text())["drill_parts"] == part - 1
    pack.write_bytes(sound)
    nas.run("drill", "offsite")
    assert json.loads(record.read_text())["drill_parts"] == part


def test_keys_and_models_that_were_copied_damaged(nas: Nas) -> None:
    (nas.documents / "small.gguf").write_bytes(b"GGUF and more")
    (nas.etc / "keys.json").write_text('{"owner": {}}')
    nas.run("run", "offsite")
    nas.run("drill", "offsite")
    (nas.etc / "keys.json").write_text('{"owner": {')
    nas.run("run", "offsite")
    assert "keys.json: Expecting" in nas.fails("differs", "drill", "offsite")
    (nas.etc / "keys.json").write_text("{}")
    (nas.documents / "small.gguf").write_bytes(b"<html>")
    nas.run("run", "offsite")
    assert "small.gguf: is no GGUF" in nas.fails("differs", "drill", "offsite")


def test_databases_come_first_into_a_sample(nas: Nas) -> None:
    for number in range(30):
        (nas.documents / f"photo {number}").write_bytes(os.urandom(50_000))
    path = nas.documents / "usage.db"
    content = bytearray(path.read_bytes())
    content[4096 + 8 : 4096 + 40] = b"\xff" * 32
    path.write_bytes(content)
    nas.run("run", "offsite")
    nas.settings["drill"] = len(content) + 100_000
    assert "usage.db" in nas.fails("differs", "drill", "offsite")


def test_a_full_copy_tells_of_what_changed_though_nobody_wrote_it(nas: Nas) -> None:
    nas.run("run", "usb")
    listed = nas.state / "usb/manifest" / "volumes%tank%photos.jsonl"
    lines = listed.read_text().splitlines(keepends=True)
    lines[-1] = lines[-1].replace(json.loads(lines[-1])[7], "0" * 64)
    listed.write_text("".join(lines))
    # As often as it is so: what is rotten must not become what it should be. Nor does the copy that
    # has it as it was compare it with that.
    for _ in range(3):
        assert "though nobody wrote it" in nas.fails("incomplete", "run", "usb")
    nas.run("run", "offsite")
    assert "0" * 64 in listed.read_text()
    # Whoever wants it as it is touches it, or brings it back from a copy.
    os.utime(nas.pool / "photos/one")
    nas.run("run", "usb")


def test_old_points_go_where_the_nas_has_no_say(
    nas: Nas, call: Callable[..., dict[str, Any]]
) -> None:
    """As the server that holds them, or the controller, would prune them."""
    given = {
        "host": "nas1",
        "repository": str(nas.off_site.folder / "nas1"),
        "password": "correct horse battery staple",
        "keep": {"last": 1, "within": "1h"},
    }
    environ = {
        **os.environ,
        "RESTIC_REPOSITORY": nas.off_site.address,
        "RESTIC_PASSWORD_FILE": str(nas.folder / "key"),
        "RESTIC_CACHE_DIR": str(nas.folder / "cache"),
    }
    junk = nas.folder / "junk"
    junk.write_text("encrypted by somebody else")

    def push(date: str) -> None:
        tag = ("--tag", "nas.assistant")
        command = ["restic", "backup", "-q", "--host", "nas1", *tag, "--time", date, str(junk)]
        subprocess.run(command, env=environ, check=True)

    nas.run("run", "offsite")
    (good,) = [line.split()[0] for line in nas.points("offsite")]
    # Dated in time to come, and today: neither is a reason to give up what is good.
    for year in range(2090, 2096):
        push(f"{year}-01-01 00:00:00")
    for _ in range(4):
        push(time.strftime("%Y-%m-%d %H:%M:%S"))
    # Data that restic has written twice, as it does on a busy machine, may go.
    assert not call(backup_prune.main, **given)["deleted"]
    # The years until then count for a quarter of an hour, and so does each day: three stay.
    for day in range(1, 9):
        push(f"2020-01-0{day} 00:00:00")
    assert len(call(backup_prune.main, check=True, **given)["deleted"]) == 5
    # A damaged pack ends it before anything is deleted.
    pack = nas.off_site.packs[0]
    whole = pack.read_bytes()
    flip(pack)
    assert "damaged" in call(backup_prune.main, **given)["msg"]
    assert len(nas.points("offsite")) == 19
    pack.write_bytes(whole)
    answer = call(backup_prune.main, **given)
    assert len(answer["deleted"]) == 5
    assert good in [each[:8] for each in answer["kept"]]
    assert not call(backup_prune.main, **given)["changed"]
    assert "wrong key" in call(backup_prune.main, **{**given, "password": "another"})["msg"]
    # Its server's own user could not read what we would leave.
    os.chown(nas.off_site.folder / "nas1", 65534, 65534)
    assert "belongs to nobody" in call(backup_prune.main, **given)["msg"]
    os.chown(nas.off_site.folder / "nas1", 0, 0)
    assert nas.restore("offsite", point=good, sources=["tank/photos"])["changed"]


@pytest.mark.usefixtures("_restic")
def test_a_full_server_has_room_again(folder: Path, call: Callable[..., dict[str, Any]]) -> None:
    server, data, alone = folder / "server", folder / "data", folder / "alone"
    for path in (server, data):
        path.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=12m", "none", str(server))
    alone.write_bytes(os.urandom(2 << 20))
    (folder / "key").write_text("key")
    environ = {
        **os.environ,
        "RESTIC_REPOSITORY": str(server / "nas1"),
        "RESTIC_PASSWORD_FILE": str(folder / "key"),
        "RESTIC_CACHE_DIR": str(folder / "cache"),
    }

    def restic(*words: str) -> str:
        done = subprocess.run(["restic", *words], env=environ, check=True, capture_output=True)
        return done.stdout.decode()

    def free() -> int:
        return shutil.disk_usage(server).free

    restic("init")
    # Of the first point, nobody else wants anything; of the second, all others want most.
    for day in range(1, 6):
        for number in range(20) if day < 3 else range(day * 3, day * 3 + 3):
            (data / f"{number}").write_bytes(os.urandom(100_000))
        own = ("--tag", "nas.assistant", "--host", "nas1", "--time", f"2020-01-0{day} 00:00:00")
        restic("backup", "-q", *own, str(alone if day == 1 else data))
    with (server / "filled").open("wb") as stream:
        stream.write(bytes(free() - 300_000))
    given: dict[str, Any] = {"host": "nas1", "password": "key", "keep": {"last": 1}}
    given["repository"] = str(server / "nas1")
    assert len(call(backup_prune.main, **given)["deleted"]) == 2
    assert free() > 2 << 20
    # One that was cut off has deleted a point, and not its data.
    oldest = json.loads(restic("snapshots", "--json"))[0]["id"]
    restic("forget", oldest)
    before = free()
    answer = call(backup_prune.main, **given)
    assert (answer["changed"], answer["deleted"]) == (True, [])
    assert free() > before + 200_000
    assert not call(backup_prune.main, **given)["changed"]


def test_what_nobody_prunes_is_counted(nas: Nas) -> None:
    for _ in range(4):
        nas.run("run", "offsite")
        nas.run("run", "usb")
    assert len(nas.points("offsite")) == 4
    assert 'nas_backup_old_points{copy="offsite"} 1' in nas.metric("offsite")
    assert 'nas_backup_old_points{copy="usb"} 0' in nas.metric("usb")


def test_who_owns_the_folders_gains_nothing_by_a_restore(nas: Nas) -> None:
    """Root restores where a user may rename and link at will."""
    nobody = 65534
    secret = nas.documents / "alice"
    secret.mkdir(mode=0o700)
    (secret / "diary").write_text("hers")
    bob = nas.documents / "bob"
    (bob / "d/e").mkdir(parents=True)
    (bob / "d/diary").write_text("his")
    (bob / "d/e/f").write_text("his too")
    for path in (bob, *bob.rglob("*")):
        os.chown(path, nobody, nobody)
    (bob / "d").chmod(0o750)
    nas.run("run", "usb")
    shutil.rmtree(bob / "d")
    (bob / "d").symlink_to("../alice")
    wish = {"sources": ["tank/documents"], "path": "bob/d/diary"}
    # The link is moved aside, and what comes in its place is not behind it.
    kept = nas.restore("usb", **wish)["restored"][0]["kept"]
    assert (secret / "diary").read_text() == "hers"
    assert (bob / "d/diary").read_text() == "his"
    assert Path(kept, "bob/d").is_symlink()
    status = os.stat(bob / "d")
    assert (status.st_uid, status.st_mode & 0o7777) == (nobody, 0o750)
    # Of two folders above, the outer is a link into what is not his.
    shutil.rmtree(bob)
    bob.symlink_to(nas.etc)
    answer = nas.restore("usb", sources=["tank/documents"], path="bob/d/e")
    assert not list(nas.etc.glob("d*"))
    assert answer["changed"]
    assert not list(nas.documents.glob(".nas-assistant-restore*"))


def test_what_the_roles_made_for_the_new_machine_stays(nas: Nas) -> None:
    (nas.etc / "backup").mkdir()
    for name in ("backup/id_ed25519", "backup.json", "keys.json"):
        (nas.etc / name).write_text('{"of": "the old"}')
    nas.run("run", "usb")
    (nas.etc / "backup/id_ed25519").write_text("of the new")
    (nas.etc / "keys.json").write_text("of the new")
    (nas.etc / "backup.json").unlink()
    (restored,) = nas.restore("usb", sources=[str(nas.etc)])["restored"]
    assert restored["changed"] == 1
    assert (nas.etc / "backup/id_ed25519").read_text() == "of the new"
    assert not (nas.etc / "backup.json").exists()
    assert (nas.etc / "keys.json").read_text() == '{"of": "the old"}'
    # Unless somebody asks for it, or wants to look at it elsewhere.
    nas.restore("usb", sources=[str(nas.etc)], path="backup")
    assert (nas.etc / "backup/id_ed25519").read_text() == '{"of": "the old"}'
    nas.restore("usb", sources=[str(nas.etc)], to=str(nas.folder / "found"))
    assert (nas.folder / "found/backup.json").exists()


def test_a_folder_that_is_gone_comes_back_as_it_was(nas: Nas) -> None:
    nas.etc.chmod(0o2750)
    os.chown(nas.etc, 1234, 5678)
    nas.etc.chmod(0o2750)
    nas.run("run", "usb")
    shutil.rmtree(nas.etc)
    # What it was not proven for is not there either.
    assert nas.restore("usb", sources=[str(nas.etc)], path="nowhere")["msg"]
    assert not nas.etc.exists()
    nas.restore("usb", sources=[str(nas.etc)])
    status = os.stat(nas.etc)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 5678, 0o2750)
    assert (nas.etc / "config.ini").read_text() == "[server]\n"


def test_what_a_restore_that_was_killed_left_goes_with_the_next(nas: Nas) -> None:
    nas.run("run", "usb")
    (nas.etc / "config.ini").unlink()
    left = nas.etc / ".nas-assistant-restore.abcdefgh"
    left.mkdir(mode=0o700)
    (left / "half").write_text("x")
    nas.restore("usb", sources=[str(nas.etc)])
    assert os.listdir(nas.etc) == ["config.ini"]


def test_a_folder_that_others_use_stays_as_it_is(nas: Nas) -> None:
    nas.run("run", "offsite")
    place = nas.folder / "common"
    place.mkdir()
    place.chmod(0o1777)
    nas.restore("offsite", sources=["tank/documents"], path="letters", to=str(place))
    assert os.stat(place).st_mode & 0o7777 == 0o1777
    assert os.stat(place / "letters").st_mode & 0o7777 == 0o750
    file = nas.folder / "file"
    file.write_text("x")
    wish = {"sources": ["tank/documents"], "path": "letters", "to": str(file)}
    assert "is no folder" in nas.restore("offsite", **wish)["msg"]


def test_a_restored_database_is_not_played_over(nas: Nas) -> None:
    nas.run("run", "offsite")
    path = nas.documents / "usage.db"
    script = """
import os, sqlite3, sys
c = sqlite3.connect(sys.argv[1])
c.execute("pragma journal_mode=wal")
c.execute("pragma wal_autocheckpoint=0")
c.executemany("insert into usage values (?)", [(n,) for n in range(5000)])
c.commit()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert Path(f"{path}-wal").exists()
    nas.restore("offsite", sources=["tank/documents"], path="usage.db")
    assert not Path(f"{path}-wal").exists()
    with sqlite3.connect(path) as database:
        assert database.execute("select * from usage").fetchall() == [(42,)]
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_database_comes_back_with_its_journal(nas: Nas) -> None:
    path = nas.documents / "usage.db"
    script = """
import os, sqlite3, sys
c = sqlite3.connect(sys.argv[1])
c.execute("pragma journal_mode=wal")
c.execute("pragma wal_autocheckpoint=0")
c.execute("insert into usage values (?)", (int(sys.argv[2]),))
c.commit()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script, str(path), "43"], check=True)
    nas.run("run", "offsite")
    # Only the journal has what came since: the file itself is the same.
    subprocess.run([sys.executable, "-c", script, str(path), "44"], check=True)
    wish = {"sources": ["tank/documents"], "path": "usage.db"}
    assert nas.restore("offsite", **wish)["changed"]
    assert not nas.restore("offsite", **wish)["changed"]

    def rows() -> list[int]:
        with sqlite3.connect(path) as database:
            found = [tokens for (tokens,) in database.execute("select * from usage")]
        database.close()
        return found

    assert rows() == [42, 43]
    for each in path.parent.glob("usage.db*"):
        each.unlink()
    nas.restore("offsite", **wish)
    assert rows() == [42, 43]


def test_damage_is_found_in_a_folder_that_was_copied_in_use(nas: Nas) -> None:
    (nas.etc / "large").write_bytes(os.urandom(8 << 20))
    nas.run("run", "offsite")
    (nas.etc / "large").write_bytes(b"lost")
    flip(nas.off_site.packs[0])
    answer = nas.restore("offsite", sources=[str(nas.etc)])
    assert "damaged" in answer["msg"]
    nas.fails("damaged", "drill", "offsite")


def test_what_lies_in_a_source_and_is_not_of_it_is_told(nas: Nas) -> None:
    sh("btrfs", "subvolume", "create", str(nas.documents / "inner"))
    (nas.etc / "mounted").mkdir()
    sh("mount", "-t", "tmpfs", "none", str(nas.etc / "mounted"))
    said = nas.fails("incomplete", "run", "offsite")
    assert f"{nas.documents}/inner lies in it and is not copied: make it a volume" in said
    assert f"{nas.etc}/mounted lies in it" in said
    # The rest comes back.
    assert not nas.restore("offsite", sources=["tank/documents"]).get("failed")
    nas.settings["sources"][0]["exclude"] = ["inner"]
    nas.settings["sources"][2]["exclude"] = ["mounted"]
    nas.run("run", "offsite")
    sh("umount", str(nas.etc / "mounted"))
    (nas.etc / "config.ini").unlink()
    assert "is empty and had 1 files" in nas.fails("incomplete", "run", "offsite")


def test_a_folder_in_a_volume_comes_back_after_it(
    nas: Nas, call: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = nas.documents / "odd [x]*/ledger"
    sh("btrfs", "subvolume", "create", str(ledger.parent))
    ledger.write_text("all we own")
    nas.settings["sources"].append({"path": str(ledger.parent)})
    nas.run("run", "usb")
    assert "proven" in nas.run("drill", "usb")
    # The NAS is gone, and a blank one in its place.
    for path in (ledger.parent, nas.documents):
        sh("btrfs", "subvolume", "delete", str(path))
    sh("btrfs", "subvolume", "create", str(nas.documents))
    answer = nas.restore("usb")
    assert (answer["later"], answer["whole"]) == ([str(ledger.parent)], True)
    assert str(ledger.parent) not in [each["name"] for each in answer["restored"]]
    monkeypatch.setattr(_standstill, "FOLDER", str(nas.folder))
    monkeypatch.setattr(_snapshot_plan, "HOLDS", str(nas.folder / "holds"))
    snapshot = answer["restored"][0]["snapshot"]
    back = {"path": str(nas.documents), "folder": f"{nas.pool}/.snapshots", "name": "documents"}
    assert call(btrfs_rollback.main, to=snapshot, **back).get("kept")
    assert nas.restore("usb", point=answer["point"], sources=answer["later"])["changed"]
    assert ledger.read_text() == "all we own"


def test_what_is_mounted_where_a_volume_is_mounted_is_told(nas: Nas) -> None:
    place, inner = nas.folder / "mounted", nas.folder / "mounted/empty"
    containers = nas.documents / "overlay2/0123/merged"
    containers.mkdir(parents=True)
    place.mkdir()
    device = sh("findmnt", "-n", "-o", "SOURCE", "--nofsroot", "--target", str(nas.pool)).strip()
    sh("mount", "-o", "subvol=documents", device, str(place))
    for point in (inner, place / "overlay2/0123/merged"):
        sh("mount", "-t", "tmpfs", "none", str(point))
    nas.settings["sources"][0]["mounted"] = str(place)
    said = nas.fails("incomplete", "run", "usb")
    assert f"{inner} lies in it and is not copied" in said
    assert "merged" not in said
    nas.settings["sources"][0]["exclude"] = ["empty"]
    nas.run("run", "usb")


def test_a_first_run_that_is_cut_off_late_knows_its_own(nas: Nas) -> None:
    (nas.documents / "much").write_bytes(os.urandom(30 << 20))
    process = subprocess.Popen(nas.command("run", "usb"), start_new_session=True)
    record = nas.state / "usb/record.json"
    deadline = time.monotonic() + 60
    while not record.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    nas.run("run", "usb")


def test_what_may_have_no_room_is_said_first(nas: Nas) -> None:
    nas.run("run", "usb")
    assert "warnings" not in nas.restore("usb", _ansible_check_mode=True)
    with (nas.documents / "image").open("wb") as stream:
        stream.truncate(400 << 20)
    nas.run("run", "usb")
    told = str(nas.restore("usb", _ansible_check_mode=True)["warnings"])
    assert "tank/documents: its 4" in told
    assert f"are free at {nas.documents}" in told
    assert "tank/photos" not in told


def test_room_comes_back_when_fewer_are_kept(nas: Nas) -> None:
    nas.settings["copies"][1]["keep"] = {"last": 6}
    for number in range(6):
        (nas.documents / "much").write_bytes(os.urandom(9 << 20))
        nas.run("run", "usb")
        assert len(nas.points("usb")) == number + 1
    (nas.documents / "much").write_bytes(os.urandom(25 << 20))
    nas.fails("no room", "run", "usb")
    assert len(nas.points("usb")) == 6
    nas.settings["copies"][1]["keep"] = {"last": 3}
    nas.run("run", "usb")
    assert len(nas.points("usb")) == 3
