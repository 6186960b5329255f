# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of the backup role mean, which points go, what restic's words mean."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.nas.assistant.plugins.filter import backup, storage
from ansible_collections.nas.assistant.plugins.filter.backup import (
    backup_copies,
    backup_left_out,
    backup_sources,
    backup_told,
)
from ansible_collections.nas.assistant.plugins.filter.storage import storage_pools
from ansible_collections.nas.assistant.plugins.module_utils import (
    _backup_plan as plan,
    _manifest as manifest,
    _metrics as metrics,
    _restic as restic,
    _restore as restore,
)

ROOT = Path(__file__).parents[2]
DAY = 86400
NOW = 1_800_000_000
POOLS = storage_pools([
    {"name": "tank", "uuid": "1234", "volumes": [{"name": "documents"}, {"name": "a/b"}]}
])  # fmt: skip
REST = "rest:https://nas1:secret@backup.example.com:8000/nas1/"
SFTP = "sftp:nas1@backup.example.com:/srv/nas1"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE"


def copy(**entry: Any) -> dict[str, Any]:
    (found,) = backup_copies([{"name": "offsite", **entry}])
    return dict(found)


def test_what_a_copy_leaves_out() -> None:
    assert copy(repository=REST) == {
        "name": "offsite",
        "repository": REST,
        "device": {},
        "schedule": "daily",
        "drill": "monthly",
        "keep": {"last": 3, "within": "30d"},
        "verify": 0,
        "environment": {},
        "ca": "",
        "host_key": "",
        "options": [],
        "prune": {},
        "exposed": False,
    }
    usb = copy(device={"uuid": "2f7c8a1e-0000-4000-8000-000000000001"})
    assert (usb["schedule"], usb["verify"]) == ("weekly", 100)
    pruned = copy(repository=REST, prune={"repository": "/srv/nas1", "on": "backup.example.com"})
    assert (pruned["prune"]["on"], pruned["prune"]["user"]) == ("backup.example.com", "")


def test_sftp_knows_whom_it_talks_to() -> None:
    found = copy(repository=SFTP, ssh={"host_key": KEY})
    assert found["host_key"] == f"backup.example.com {KEY}"
    command = found["options"][1]
    assert "StrictHostKeyChecking=yes" in command
    assert command.endswith("-p 22 nas1@backup.example.com -s sftp")
    other = copy(repository="sftp://nas1@backup.example.com:2222//srv", ssh={"host_key": KEY})
    assert other["host_key"].startswith("[backup.example.com]:2222 ")
    assert other["exposed"]
    assert copy(repository="/mnt/elsewhere")["exposed"]


def test_ssh_where_the_server_takes_new_data_alone() -> None:
    ssh = {"host_key": KEY, "append_only": True, "port": 2222}
    found = copy(repository=SFTP, ssh=ssh, prune={"user": "nas1"})
    assert found["repository"] == "rclone:nas1@backup.example.com:/srv/nas1"
    assert not found["exposed"]
    word, option = found["options"]
    name, _, command = option.partition("=")
    assert (word, name) == ("-o", "rclone.program")
    assert "StrictHostKeyChecking=yes" in command
    # Whatever comes after this is no program of the server's.
    assert command.endswith("-p 2222 nas1@backup.example.com")
    assert found["host_key"] == f"[backup.example.com]:2222 {KEY}"
    # The controller prunes with what it may do there itself.
    assert found["prune"]["repository"] == SFTP


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({}, "give either a repository or a device"),
        ({"repository": REST, "device": {"uuid": "12ab"}}, "give either a repository or a device"),
        ({"repository": "ftp://x"}, "none that restic knows"),
        ({"repository": REST, "name": "off site"}, "name is of letters"),
        ({"repository": REST, "keep": {"last": 0}}, "keeps nothing"),
        ({"repository": REST, "keep": {"dayly": 3}}, "keep is a dictionary"),
        ({"repository": REST, "keep": {"within": "month"}}, "no age such as 30d"),
        ({"repository": REST, "schedule": "often"}, "schedule='often'"),
        ({"repository": REST, "verify": 101}, "no percentage"),
        ({"device": {"path": "/dev/disk/by-id/usb"}, "verify": 10}, "leave verify away"),
        ({"repository": REST, "ca": "/etc/ca.pem"}, "a lookup reads a file"),
        ({"repository": REST, "ssh": {"host_key": KEY}}, "ssh goes with"),
        (
            {"repository": SFTP, "ssh": {"host_key": KEY, "append_only": "yes"}},
            "append_only='yes' is neither true nor false",
        ),
        ({"repository": SFTP}, "ssh-keyscan backup.example.com"),
        ({"repository": "sftp:backup.example.com:/x", "ssh": {"host_key": KEY}}, "name the user"),
        ({"repository": REST, "environment": ["A=b"]}, "environment is a dictionary"),
        ({"device": {"path": "sdb"}}, "none such as /dev/disk/by-id"),
        ({"device": {"path": "/dev/sdb", "uuid": "12ab"}}, "give the uuid"),
        ({"device": {"path": "/dev/sdb", "format": "yes"}}, "neither true nor false"),
        ({"device": {"uuid": "12ab"}, "prune": {"on": "x"}}, "the NAS itself prunes a device"),
        ({"repository": REST, "prune": {"user": "-u root"}}, "'-u root' is no user"),
        ({"repository": REST, "retention": 3}, "a copy is a dictionary"),
        ({"repository": REST, "prune": {"on": "x"}, "keep": {"daily": 30}}, "give 7d or more"),
        ({"repository": "rest:https://nas1:ab/cdsecret@host/nas1/"}, "percent-encoded"),
        ({"repository": "rest:https://nas1:ab#cdsecret@host/nas1/"}, "percent-encoded"),
        ({"repository": "rest:https://nas1:ab?12secret@host/nas1/"}, "percent-encoded"),
        ({"repository": "rest:https://nas1:a secret@host/nas1/"}, "percent-encoded"),
    ],
)
def test_copies_that_cannot_be(entry: dict[str, Any], why: str) -> None:
    with pytest.raises(AnsibleFilterError, match="backup_copies") as caught:
        copy(**entry)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


def test_copies_are_named_once() -> None:
    with pytest.raises(AnsibleFilterError, match="offsite is given twice"):
        backup_copies([{"name": "offsite", "repository": REST}] * 2)
    with pytest.raises(AnsibleFilterError, match="the device 12ab is given twice"):
        backup_copies([{"name": name, "device": {"uuid": "12ab"}} for name in ("a", "b")])


def test_sources() -> None:
    given = [
        {"volume": "tank/a/b", "exclude": "cache"},
        {"folder": "/etc/nas-assistant", "used_by": ["nginx.service"]},
    ]
    volume, folder = backup_sources(given, POOLS)
    assert volume == {
        "volume": "tank/a/b",
        "path": "/srv/tank/a/b",
        "folder": "/srv/tank/.snapshots",
        "exclude": ["cache"],
        "used_by": [],
    }
    assert (folder["path"], folder["used_by"]) == ("/etc/nas-assistant", ["nginx.service"])


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([{}], "either a volume or a folder"),
        ([{"volume": "tank/music"}], "which has tank/documents, tank/a/b"),
        ([{"folder": "etc"}], "no plain path"),
        ([{"folder": "/etc/../root"}], "no plain path"),
        ([{"folder": "/etc", "exclude": "../x"}], "no path from the source on"),
        ([{"folder": "/etc", "exclude": "/x"}], "no path from the source on"),
        ([{"folder": "/etc", "used_by": "nginx"}], "no unit such as"),
        ([{"folder": "/etc"}, {"folder": "/etc/ssh"}], "/etc/ssh lies in /etc"),
        ([{"folder": "/etc"}] * 2, "given twice"),
        ([{"path": "/etc"}], "a source is a dictionary"),
    ],
)
def test_sources_that_cannot_be(entries: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(AnsibleFilterError, match="backup_sources") as caught:
        backup_sources(entries, POOLS)
    assert why in str(caught.value)


STATE, ETC = "/var/lib/nas-assistant/state", "/etc/nas-assistant"


@pytest.mark.parametrize(
    ("sources", "volumes", "left_out"),
    [
        ([{"folder": "/srv"}], [], [STATE, ETC]),
        ([{"folder": STATE}, {"folder": ETC}], [], []),
        ([{"folder": "/etc"}, {"folder": "/var/lib/nas-assistant"}], [], []),
        ([{"folder": "/etc", "exclude": "nas-assistant"}, {"folder": STATE}], [], [ETC]),
        ([{"folder": "/etc"}, {"folder": "/var/lib", "exclude": "nas-assistant"}], [], [STATE]),
        ([{"folder": f"{ETC}/tls"}, {"folder": STATE}], [], [ETC]),
        ([{"folder": f"{STATE}-of-another"}], [], [STATE, ETC]),
        # On a volume, which is said once.
        ([{"folder": ETC}], [{"name": "state", "path": STATE}], ["tank/state"]),
        ([{"folder": ETC}, {"volume": "tank/state"}], [{"name": "state", "path": STATE}], []),
        ([{"folder": ETC}, {"folder": STATE}], [{"name": "state", "path": STATE}], []),
        # A folder above ends where the volume is mounted.
        ([{"folder": "/var/lib"}], [{"name": "state", "path": STATE}], ["tank/state", ETC]),
        (
            [{"folder": ETC}, {"volume": "tank/all", "exclude": "state"}],
            [{"name": "all", "path": "/var/lib/nas-assistant"}],
            [STATE],
        ),
        (
            [{"folder": ETC}, {"volume": "tank/all"}],
            [{"name": "all", "path": "/var/lib/nas-assistant"}, {"name": "music"}],
            ["tank/music"],
        ),
    ],
)
def test_what_no_copy_has(
    sources: list[dict[str, Any]], volumes: list[dict[str, Any]], left_out: list[str]
) -> None:
    pools = storage_pools([{"name": "tank", "uuid": "1234", "volumes": volumes}] if volumes else [])
    found = backup_left_out(backup_sources(sources, pools), pools, [STATE, ETC])
    assert found == left_out


def said(**variables: Any) -> list[str]:
    """What a run of the role says before it changes anything, by an inventory."""

    def trusted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: trusted(each) for key, each in value.items()}
        if isinstance(value, list):
            return [trusted(each) for each in value]
        return trust_as_template(value) if isinstance(value, str) else value

    role = ROOT / "roles/backup"
    internal = trusted(yaml.safe_load((role / "vars/main.yml").read_text()))
    given = {"backup_state": "present", "inventory_hostname": "nas1", **internal, **variables}
    templar = Templar(loader=DataLoader(), variables=given)
    for plugins in (backup.FilterModule(), storage.FilterModule()):
        for name, function in plugins.filters().items():
            templar._engine.environment.filters[f"nas.assistant.{name}"] = function
    return [
        " ".join(templar.template(task["ansible.builtin.debug"]["msg"]).split())
        for task in trusted(yaml.safe_load((role / "tasks/assert.yml").read_text()))
        if "ansible.builtin.debug" in task and templar.evaluate_conditional(task["when"])
    ]


def test_a_run_says_what_its_owner_should_know() -> None:
    ssh = {"host_key": KEY}
    all_of_it: dict[str, Any] = {
        "backup_sources": [{"folder": "/etc/nas-assistant"}, {"folder": STATE}],
        "backup_copies": [
            {"name": "offsite", "repository": SFTP, "ssh": {**ssh, "append_only": True}}
        ],
    }
    all_of_it["backup_copies"][0]["prune"] = {"on": "backup.example.com"}
    assert said(**all_of_it) == []
    (left_out,) = said(**{**all_of_it, "backup_sources": [{"folder": "/srv"}]})
    assert left_out.startswith(f"backup: {STATE}, {ETC} of nas1 is in no copy.")
    (left_out,) = said(**all_of_it, assistant_data_dir="/srv/assistant")
    assert left_out.startswith("backup: /srv/assistant/state of nas1 is in no copy.")
    plain = {**all_of_it["backup_copies"][0], "ssh": ssh}
    (exposed,) = said(**{**all_of_it, "backup_copies": [plain]})
    assert exposed.startswith("backup: whoever has nas1 can delete all of offsite. Over SSH, give")
    del plain["prune"]
    _, unpruned = said(**{**all_of_it, "backup_copies": [plain]})
    assert unpruned.startswith("backup: nothing deletes old restore points of offsite,")
    assert said(backup_copies=[], backup_sources=[]) == []


def test_a_disk_is_looked_at_before_it_is_formatted() -> None:
    tasks = yaml.safe_load((ROOT / "roles/backup/tasks/schedule.yml").read_text())
    order = [key for task in tasks for key in task if key.startswith("nas.assistant.")]
    assert order.index("nas.assistant.backup_device") < order.index("nas.assistant.btrfs_pool")


def test_all_that_the_program_imports_is_on_the_nas() -> None:
    there = set(
        yaml.safe_load((ROOT / "roles/backup/vars/main.yml").read_text())["__backup_modules"]
    )
    utils = ROOT / "plugins/module_utils"
    for name in sorted(there):
        found = re.findall(
            r"^    (_\w+) as |module_utils\.(_\w+) import", (utils / name).read_text(), re.M
        )
        assert {f"{first or second}.py" for first, second in found} <= there, name


def test_what_a_restore_says() -> None:
    restored = [
        {"name": "tank/documents", "snapshot": "documents.1", "changed": 5, "kept": ""},
        {"name": "/etc", "snapshot": "", "changed": 2, "kept": "/etc.before"},
    ]
    told = backup_told(
        {"point": "0123456789", "restored": restored},
        [{"snapshot": "documents.1", "kept": "documents.0"}],
    )
    assert told == [
        "From the restore point 01234567:",
        "tank/documents: as a whole; what was there before is the snapshot documents.0",
        "/etc: 2 files; what they replaced is in /etc.before",
    ]


def points(*days: float, incomplete: tuple[float, ...] = ()) -> list[restic.Point]:
    """Points that many days old; those of ``incomplete`` lack something."""
    return [
        restic.Point(
            f"{day}", int(NOW - day * DAY), "nas1", ("nas.assistant", "incomplete")[: 1 + lacks]
        )
        for lacks, group in ((False, days), (True, incomplete))
        for day in group
    ]


@pytest.mark.parametrize(
    ("there", "keep", "gone"),
    [
        (points(5, 4, 3, 2, 1), {"last": 3}, ["5", "4"]),
        (points(3, 2, 1), {"last": 1}, []),
        (points(40, 35, 5, 4, 3), {"last": 3, "within": "30d"}, ["40", "35"]),
        # Points from time to come are no reason to drop one.
        (points(5, 4, 3, -1, -2, -3), {"last": 3}, []),
        # A flood of a single day: all that is younger than a month stays.
        (points(20, 10, *[n / 100 for n in range(50)]), {"last": 3, "within": "30d"}, []),
        (points(5, 4, 3, incomplete=(4.5, 1)), {"last": 3}, ["4.5"]),
        (points(5, 4, 3, 2, incomplete=(1, 0.5, 0.2)), {"last": 3}, ["5"]),
        (points(5, 4, 3, incomplete=(4.5, 40)), {"last": 3, "within": "30d"}, ["40"]),
        # Somebody's own, made with restic itself.
        ([restic.Point("x", NOW - 99 * DAY, "nas1"), *points(5, 4, 3, 2)], {"last": 3}, ["5"]),
        ([], {"last": 3}, []),
    ],
)
def test_which_points_go(there: list[restic.Point], keep: dict[str, Any], gone: list[str]) -> None:
    assert sorted(each.id for each in plan.drop(there, keep, NOW)) == sorted(gone)


def test_which_point_is_meant() -> None:
    there = points(9, 8, 2, -5, incomplete=(1,))
    there.sort(key=lambda each: each.time)
    assert plan.chosen(there, "newest", NOW).id == "2"
    assert plan.chosen(there, "8", NOW).id == "8"
    assert plan.chosen(points(-5), "newest", NOW).id == "-5"
    for wanted in ("", "7", "newest"):
        with pytest.raises(restic.BackupError, match="is no restore point"):
            plan.chosen([] if wanted == "newest" else there, wanted, NOW)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("Fatal: wrong password or no key found", "wrong key"),
        ('client.Head: Head "http://x/config": dial tcp 127.0.0.1:9: connect: connection refused\n'
         "Is there a repository at the following location?", "unreachable"),
        ("dial tcp: lookup no.such.example.com on 127.0.0.53:53: no such host", "unreachable"),
        ("unable to open config file: <config/> does not exist\nIs there a repository", "gone"),
        ("stat /srv/x/config: no such file or directory\nIs there a repository", "gone"),
        ("Pack ID does not match, want f1, got 7a\nFatal: repository contains errors", "damaged"),
        ("ignoring error for /x: ciphertext verification failed", "damaged"),
        ("pack f12d: unexpected file size: got 100000, expected 18543744", "damaged"),
        ("pack f12d79ac: does not exist\nFatal: repository contains errors", "damaged"),
        ("Load(<data/f12d79ace3>) returned error: ReadFull: unexpected EOF", "damaged"),
        ("Fatal: Unmarshal: unexpected end of JSON input", "damaged"),
        ("<data/f12d79ace3> does not exist", "damaged"),
        ("ignoring error for /certificates/403/x: ciphertext verification failed", "damaged"),
        ("Resolving password failed: Fatal: open /key: no such file or directory", "wrong key"),
        ("unable to create lock in backend: open x: read-only file system", "device"),
        ("blob not removed, server response: 403 Forbidden (403)", "refused"),
        ("Save(<data/1>) returned error: write: no space left on device", "no room"),
        ("unable to create lock: repository is already locked exclusively by PID 1", "busy"),
        ("x509: certificate signed by unknown authority", "untrusted"),
        ("subprocess ssh: Host key verification failed.", "untrusted"),
        (
            "Fatal: unable to open config file: Stat: The request signature we calculated does not "
            "match the signature you provided. Is there a repository at the following location?",
            "refused",
        ),
        ("Stat: The AWS Access Key Id you provided does not exist in our records.", "refused"),
        ("subprocess ssh: nas1@x: Permission denied (publickey).", "refused"),
        ("rclone: bash: line 1: serve: command not found\nFatal: error talking HTTP", "refused"),
        ("rclone: This service allows sftp connections only.\nFatal: unexpected EOF", "refused"),
        ("rclone: ssh: connect to host x port 22: Connection refused\nFatal: EOF", "unreachable"),
        ("something new", "failed"),
    ],
)  # fmt: skip
def test_what_restic_means(said: str, cause: str) -> None:
    assert restic.diagnosis(said)[0] == cause
    error = restic.Repository("x", "/key", "/cache").error("check", said)
    assert error.cause == cause
    assert error.code == restic.CODES[cause] > 0


def test_no_secret_is_told() -> None:
    repository = restic.Repository(REST, "/key", "/cache", {"AWS_SECRET_ACCESS_KEY": "0123456789"})
    said = str(repository.error("backup", f"{REST}: refused for 0123456789"))
    assert "secret" not in said.lower()
    assert "0123456789" not in said
    assert "rest:https://nas1:***@backup.example.com:8000/nas1/" in said
    assert REST not in " ".join(repository.argv("backup"))
    odd = restic.Repository("rest:https://nas1:ab/cd%secret@host/", "/key", "/cache")
    assert "secret" not in str(odd.error("backup", 'parse "https://nas1:ab/cd%secret@host/": port'))


def test_points_are_read() -> None:
    listed = [
        {"time": "2026-11-25T02:30:34.184864031Z", "id": "bb", "hostname": "nas1", "tags": ["a"]},
        {"time": "2026-11-24T02:30:34.1+02:00", "id": "aa", "hostname": "nas1"},
    ]
    first, second = restic.points(json.dumps(listed))
    assert (first.id, second.id, second.tags) == ("aa", "bb", ("a",))
    assert second.time - first.time == DAY + 7200
    assert restic.points("null") == []


def test_a_manifest_finds_what_differs(tmp_path: Path) -> None:
    (tmp_path / "a.b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").write_text("one")
    (tmp_path / "a/two").write_text("two")
    (tmp_path / "a.b/three").write_text("three")
    (tmp_path / "link").symlink_to("a/one")
    lines = [entry.line for entry in manifest.walk(str(tmp_path))]
    entries = list(manifest.read(lines))
    assert [each.path for each in entries] == [
        *("", "a", "a/one", "a/two", "a.b", "a.b/three", "link"),
    ]
    assert list(manifest.compare(entries, str(tmp_path))) == []
    (tmp_path / "a/one").chmod(0o600)
    status = os.stat(tmp_path / "a/two")
    (tmp_path / "a/two").write_text("owt")
    os.utime(tmp_path / "a/two", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "link").unlink()
    (tmp_path / "b").write_text("new")
    found = list(manifest.compare(entries, str(tmp_path)))
    assert found == [
        "the folder itself has another modified_ns",
        "a/one has another mode",
        "a/two has another digest",
        "b is there and should not be",
        "link is missing",
    ]
    # What was written to while it was copied may differ.
    assert list(manifest.compare(entries, str(tmp_path), settled=False)) == [
        "a/one has another mode",
    ]
    with pytest.raises(ValueError, match="no line of a manifest"):
        list(manifest.read(['["one"]']))


def test_checksums_are_taken_from_an_earlier_manifest(tmp_path: Path) -> None:
    (tmp_path / "same").write_text("same")
    (tmp_path / "other").write_text("other")
    earlier = [each._replace(digest="known") for each in manifest.walk(str(tmp_path))]
    (tmp_path / "other").write_text("another")
    (tmp_path / "new").write_text("new")
    found = {each.path: each.digest for each in manifest.walk(str(tmp_path), (), earlier)}
    assert found["same"] == "known"
    assert "known" not in (found["other"], found["new"])
    told: list[str] = []
    for each in manifest.walk(str(tmp_path), (), earlier, told.append, trust=False):
        assert each.digest != "known"
    assert told == [f"{tmp_path}/same: changed though nobody wrote it"]


def test_what_is_excluded_is_in_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "cache/tmp").mkdir(parents=True)
    (tmp_path / "cache/tmp/x").write_text("x")
    (tmp_path / "cache/tmp2").write_text("x")
    found = [each.path for each in manifest.walk(str(tmp_path), ("cache/tmp",))]
    assert found == ["", "cache", "cache/tmp2"]


def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    record = {"run": 2, "success": 1, "cause": "unreachable", "points": 3, "old": 1}
    found = plan.figures({"offsite": record})
    text = metrics.text(found)
    assert 'nas_backup_failed{copy="offsite",cause="unreachable"} 1\n' in text
    assert 'nas_backup_restore_points{copy="offsite"} 3\n' in text
    assert 'nas_backup_old_points{copy="offsite"} 1\n' in text
    assert "drill_failed{" not in text
    metrics.write(str(tmp_path), "nas_backup_offsite", found)
    assert (tmp_path / "nas_backup_offsite.prom").read_text() == text
    metrics.write(str(tmp_path / "nowhere"), "x", found)
    assert metrics.text([metrics.Metric("a", "b", [({"c": 'd"\n\\'}, 1)])]).endswith(
        'a{c="d\\"\\n\\\\"} 1\n'
    )


@pytest.mark.parametrize(
    ("known", "read"),
    # A record of before has none; nor is a damaged one a reason to read nothing.
    [(0, 1), (1, 2), (11, 12), (12, 1), (None, 1), ("x", 1), (True, 1), (99, 4)],
)
def test_each_drill_reads_the_next_part(known: Any, read: int) -> None:
    assert restore.part(known) == read


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("keys.json", b'{"owner": {}}', ""),
        ("keys.json", b'{"owner": {', "Expecting"),
        ("state/keys.json", b"", "Expecting value"),
        ("upstreams.json", b"\xff\xfe", "can't decode"),
        # Somebody's own, of which nobody knows what it may be.
        ("settings.json", b"{ // with a word on it\n}", ""),
        ("model.gguf", b"GGUF\x03\0\0\0", ""),
        ("model.gguf", b"<!DOCTYPE html>", "is no GGUF (it begins with b'<!DO')"),
        ("model.gguf", b"", "is no GGUF"),
        ("model.gguf.part", b"", ""),
        ("letter", b"GGUF", ""),
        ("usage.db", b"SQLite format 3\0 and no more", "file is not a database"),
        ("usage.db", b"something else", ""),
    ],
)
def test_what_a_drill_makes_of_a_file(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found = list(restore._unsound(str(tmp_path), manifest.walk(str(tmp_path))))
    if said:
        (text,) = found
        assert text.startswith(f"{name}: ")
        assert said in text
    else:
        assert found == []


def test_a_database_that_is_whole_is_sound(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "usage.db") as database:
        database.execute("CREATE TABLE usage (tokens INTEGER)")
    database.close()
    assert list(restore._unsound(str(tmp_path), manifest.walk(str(tmp_path)))) == []


def test_what_may_not_fit_is_said(tmp_path: Path) -> None:
    small = restore.Held("tank/a", "volumes/tank/a", "", True, 1, 1)
    assert restore.shortage(small, str(tmp_path)) == ""
    large = restore.Held("tank/a", "volumes/tank/a", "", True, 1, 1 << 60)
    assert "tank/a: its 1152921504606846976 bytes" in restore.shortage(large, str(tmp_path))
    assert restore.shortage(large, str(tmp_path / "nowhere")) == ""


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    with pytest.raises(restic.BackupError, match="run the backup role"):
        plan.Settings.read(str(path))
    path.write_text('{"sources": [], "copies": [{"colour": "blue"}]}')
    with pytest.raises(restic.BackupError, match="none of this version"):
        plan.Settings.read(str(path))
