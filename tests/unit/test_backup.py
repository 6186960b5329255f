# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of the backup role mean, which points go, what restic's words mean."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import sqlite3
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
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
    _backup as copies,
    _backup_plan as plan,
    _manifest as manifest,
    _merge as merging,
    _metrics as metrics,
    _restic as restic,
    _restore as restore,
)
from expressions import ROLES, load, templar

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
        "overwritable": False,
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


BUCKET = "s3:https://s3.example.com/backups/nas1"
OWN = {"environment": {"AWS_ACCESS_KEY_ID": "of-the-controller"}}


@pytest.mark.parametrize(
    ("entry", "exposed"),
    [
        ({"repository": REST}, False),
        ({"device": {"uuid": "12ab"}}, False),
        ({"repository": SFTP, "ssh": {"host_key": KEY}}, True),
        ({"repository": SFTP, "ssh": {"host_key": KEY}, "prune": OWN}, True),
        ({"repository": SFTP, "ssh": {"host_key": KEY, "append_only": True}}, False),
        ({"repository": "/mnt/elsewhere"}, True),
        ({"repository": BUCKET}, True),
        ({"repository": BUCKET, "prune": {"on": "localhost"}}, True),
        ({"repository": BUCKET, "prune": OWN}, False),
        ({"repository": "b2:backups:nas1"}, True),
        ({"repository": "gs:backups:/nas1"}, True),
        ({"repository": "azure:backups:/nas1"}, True),
        ({"repository": "swift:backups:/nas1"}, True),
        ({"repository": "rclone:remote:nas1"}, True),
        ({"repository": "rclone:remote:nas1", "prune": OWN}, False),
    ],
)
def test_what_the_nas_could_delete(entry: dict[str, Any], exposed: bool) -> None:
    found = copy(**entry)
    assert found["exposed"] is exposed
    # Where only its own key keeps it from that, it may write over what is there all the same.
    assert found["overwritable"] is (not exposed and "environment" in entry.get("prune", {}))


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
        "mounted": "",
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
        *[([{"folder": f"/srv/a{odd}b"}], "no plain path") for odd in "%*?[\\\n"],
        *[([{"folder": "/etc", "exclude": f"a{odd}b"}], "no pattern") for odd in "*?[\\\n"],
        ([{"folder": f"/{'ü' * 115}"}], "no plain path"),
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


def test_names_that_people_give() -> None:
    names = ["Bücher", "my files (old), {2]", 'it\'s 50€ & "more"', "$HOME !x"]
    for name in names:
        (found,) = backup_sources([{"folder": f"/srv/{name}", "exclude": [name, f"a/{name}"]}], [])
        assert (found["path"], found["exclude"]) == (f"/srv/{name}", [name, f"a/{name}"])


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

    filters = (backup.FilterModule(), storage.FilterModule())
    role = templar("backup", filters, **variables)
    return [
        " ".join(role.template(task["ansible.builtin.debug"]["msg"]).split())
        for task in load(ROLES / "backup/tasks/assert.yml")
        if "ansible.builtin.debug" in task and role.evaluate_conditional(task["when"])
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
    bucket = {"name": "offsite", "repository": BUCKET, "prune": OWN}
    (overwritable,) = said(**{**all_of_it, "backup_copies": [bucket]})
    assert overwritable.startswith(
        "backup: whoever has nas1 can write over all of offsite. See that"
    )
    assert unpruned.startswith("backup: nothing deletes old restore points of offsite,")
    assert said(backup_copies=[], backup_sources=[]) == []


@pytest.mark.parametrize("given", [12345678, "12345678", "12345678\n", " 12345678\r\n"])
def test_a_key_is_the_same_on_the_second_run(given: int | str, tmp_path: Path) -> None:
    there = {"content": base64.b64encode(b"12345678\n").decode()}
    found = yaml.safe_load((ROOT / "roles/backup/vars/main.yml").read_text())
    tasks = yaml.safe_load((ROOT / "roles/backup/tasks/key.yml").read_text())
    (refuse,) = [each for each in tasks if each["name"].startswith("Refuse to lose the key")]
    for there_now, same in ((there, True), ({"content": "YWJj"}, False)):
        templar = Templar(
            DataLoader(),
            {
                "backup_password": given,
                "ansible_check_mode": False,
                "__backup_key_kept": str(tmp_path / "key"),
                "__backup_key_there": there_now,
                "__backup_kept": {"stat": {"exists": False}},
                "__backup_password": trust_as_template(found["__backup_password"]),
            },
        )
        that = trust_as_template(refuse["ansible.builtin.assert"]["that"])
        assert templar.evaluate_conditional(that) is same


def test_a_disk_is_looked_at_before_it_is_formatted() -> None:
    tasks = yaml.safe_load((ROOT / "roles/backup/tasks/schedule.yml").read_text())
    order = [key for task in tasks for key in task if key.startswith("nas.assistant.")]
    assert order.index("nas.assistant.backup_device") < order.index("nas.assistant.btrfs_pool")


def test_the_first_copy_may_be_over_ssh(tmp_path: Path) -> None:
    """The role's own tasks, as on a NAS that has no folder for keys yet."""
    tasks = yaml.safe_load((ROOT / "roles/backup/tasks/schedule.yml").read_text())
    folder = tmp_path / "nas-assistant/backup"
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {
            "__backup_folder": str(folder),
            "__backup_copies": [{"host_key": KEY}],
            "__backup_ssh": True,
            "__backup_installed": {"planned": False},
        },
        "tasks": [each for each in tasks if "for SSH" in each["name"]],
    }
    playbook = tmp_path / "playbook.yml"
    playbook.write_text(yaml.safe_dump([play]))
    for more in (["--check"], []):
        done = subprocess.run(
            ["ansible-playbook", str(playbook), *more],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / "id_ed25519").exists() is not bool(more)
    assert folder.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("state", "names"), [("present", ["old", "usb-old"]), ("absent", ["old", "usb", "usb-old"])]
)
def test_metrics_go_with_their_copy(state: str, names: list[str]) -> None:
    timers = [
        "nas-backups",
        *(f"nas-{kind}" for kind in ("backup-usb", "drill-old", "backup-old", "drill-usb-old")),
    ]
    role = templar(
        "backup",
        (backup.FilterModule(), storage.FilterModule()),
        backup_state=state,
        backup_copies=[{"name": "usb", "device": {"uuid": "12ab"}, "schedule": "never"}],
        __backup_found={
            "files": [{"path": f"/etc/systemd/system/{each}.timer"} for each in timers]
        },
        monitoring_textfile_dir="/metrics",
    )
    found = role.template(trust_as_template("{{ __backup_metrics_left }}"))
    assert {*found} == {f"/metrics/nas_backup_{name}.prom" for name in names}


@pytest.mark.parametrize("name", ["restore", "rollback", "backup"])
@pytest.mark.parametrize(
    ("hosts", "limit", "passes"),
    [(["nas1"], {}, True), (["nas1", "nas2"], {}, False),
     (["nas1", "nas2"], {"ansible_limit": "nas1,nas2"}, True)],
)  # fmt: skip
def test_a_forgotten_limit_does_not_bring_a_fleet_back(
    name: str, hosts: list[str], limit: dict[str, str], passes: bool
) -> None:
    play = load(ROOT / f"playbooks/{name}.yml")[1]
    first = (play.get("pre_tasks") or play["tasks"])[0]
    assert first["any_errors_fatal"] is True
    known = Templar(DataLoader(), {"ansible_play_hosts_all": hosts, "backup_accept": [], **limit})
    assert known.evaluate_conditional(first["ansible.builtin.assert"]["that"]) is passes
    if "when" in first:
        assert not known.evaluate_conditional(first["when"])


def test_timers_elapse_by_the_calendar_or_once_after_a_boot() -> None:
    found = yaml.safe_load((ROOT / "roles/backup/vars/main.yml").read_text())
    variables = {
        "__backup_copies": [copy(name="usb", device={"uuid": "12ab"}, drill="never")],
        "__backup_mark": found["__backup_mark"],
        "ansible_managed": "x",
    }
    templar = Templar(DataLoader(), variables)
    boot, usb = templar.template(trust_as_template(found["__backup_times"]))
    assert (boot["name"], usb["name"]) == ("nas-backups.timer", "nas-backup-usb.timer")
    text = (ROOT / "roles/backup/templates/timer.j2").read_text()
    written = [
        Templar(DataLoader(), {**variables, "timer": each}).template(trust_as_template(text))
        for each in (boot, usb)
    ]
    for each, once in zip(written, (True, False), strict=True):
        lines = each.splitlines()
        assert ("OnBootSec=10min" in lines, "OnCalendar=weekly" in lines) == (once, not once)
    assert "Unit=nas-backups.service" in written[0]


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
        {"point": "0123456789", "time": 1_700_000_000, "restored": restored},
        [{"snapshot": "documents.1", "kept": "documents.0"}],
    )
    assert told == [
        "From the restore point 01234567 of 2023-11-14 22:13:20 UTC:",
        "tank/documents: as a whole; what was there before is the snapshot documents.0",
        "/etc: 2 files; what they replaced is in /etc.before",
    ]


def test_what_comes_back_after_its_volume_counts_too() -> None:
    folder = "/srv/tank/documents/db"
    back = {"snapshot": "", "changed": 1, "kept": ""}
    for later, restarted in (
        ({"skipped": True}, []),
        ({"restored": [{"name": folder, **back}]}, ["db"]),
    ):
        role = templar(
            "backup",
            (backup.FilterModule(), storage.FilterModule()),
            storage_pools=[{"name": "tank", "uuid": "1", "volumes": [{"name": "documents"}]}],
            backup_sources=[
                {"volume": "tank/documents", "used_by": ["never.service"]},
                {"folder": folder, "used_by": ["db.service"]},
            ],
            backup_restore={"copy": "usb"},
            __backup_restored={
                "restored": [{"name": "tank/documents", **back, "snapshot": "documents.1"}],
                "time": NOW,
                "point": "0123456789",
            },
            __backup_restored_later=later,
            __backup_put={"results": [{"snapshot": "documents.1", "kept": "documents.0"}]},
        )
        tasks = {each["name"].split()[0]: each for each in load(ROLES / "backup/tasks/restore.yml")}
        argv = role.template(tasks["Take"]["ansible.builtin.command"]["argv"])
        named = ["tank/documents", *([folder] if restarted else [])]
        assert argv == ["/usr/local/sbin/nas-backup", "accept", "usb", *named]
        told = role.template(tasks["Say"]["ansible.builtin.debug"]["msg"])
        assert len(told) == 1 + len(named)
        assert role.template(trust_as_template("{{ __backup_restart }}")) == [
            f"{name}.service" for name in restarted
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
        (points(*range(3, 46, 7)), {"last": 3, "within": "30d"}, ["45", "38"]),
        # The disk was in a drawer for a month, or the clock ran ahead.
        (points(40, 35, 5, 4, 3), {"last": 3, "within": "30d"}, []),
        (
            points(*range(30, 67), 0),
            {"last": 3, "within": "30d"},
            [f"{day}" for day in range(53, 67)],
        ),
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


@pytest.mark.parametrize(
    ("had", "found", "said"),
    [
        ({}, (0, ""), ""),
        ({"files": 3, "filesystem": "1"}, (1, "1"), ""),
        ({"files": 3, "filesystem": "1"}, (0, "1"), "is empty and had 3 files"),
        ({"files": 3, "filesystem": "1"}, (3, "2"), "is on another filesystem (2) than it was (1)"),
        # Nobody knows, of mergerfs or NFS.
        ({"files": 3, "filesystem": "1"}, (3, ""), ""),
        ({"files": 3}, (3, "2"), ""),
    ],
)
def test_what_tells_that_a_source_was_lost(
    had: dict[str, Any], found: tuple[int, str], said: str
) -> None:
    told = plan.lost(had, {"files": found[0], "filesystem": found[1]})
    assert told.startswith(said)
    assert bool(told) == bool(said)


def test_what_a_source_had_is_known_until_it_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = plan.Source("/srv/media"), plan.Source("/etc")
    copy = plan.Copy("usb")
    settings = plan.Settings(
        host="nas1",
        sources=(source, other),
        copies=(copy,),
        password_file="/key",
        state=str(tmp_path),
        scratch="/scratch",
        metrics=str(tmp_path),
        cache="/cache",
        drill=1,
    )
    (tmp_path / "usb").mkdir()
    monkeypatch.setattr(copies.block, "filesystem", lambda path: "1")

    def lost(shown: list[plan.Source], media: int) -> list[str]:
        files = {source.place: media, other.place: 1}
        return list(copies._lost(settings, copy, shown, files))

    assert lost([source, other], 7) == []
    for shown in ([source, other], [other], [source]):
        assert len(lost(shown, 0)) == (source in shown)
    (said,) = lost([source], 0)
    assert "/srv/media is empty and had 7 files" in said
    assert said.endswith("nas-backup accept usb")
    copies.remember(settings, "usb", {"had": {}})
    assert lost([source, other], 0) == []


def test_what_is_mounted_in_a_source_is_found_wherever_that_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = storage_pools([
        {"name": "tank", "uuid": "1", "volumes": [
            {"name": "documents", "path": "/srv/documents"},
            {"name": "old", "path": "/srv/documents/old"},
            {"name": "docker", "path": "/var/lib/docker"},
        ]}
    ])  # fmt: skip
    given = [
        {"volume": "tank/documents", "exclude": ["cache"]},
        *({"volume": f"tank/{name}"} for name in ("old", "docker")),
        {"folder": "/etc"},
    ]
    sources = []
    for each in backup_sources(given, pools):
        del each["used_by"]
        sources.append(plan.Source(**{**each, "exclude": tuple(each["exclude"])}))
    mounted = [
        *("/srv/tank", "/srv/documents", "/srv/documents/old", "/srv/documents/cache/x"),
        *("/srv/documents/disk", "/srv/documents2", "/srv/tank/documents/other", "/etc/x\\040y"),
        "/var/lib/docker",
        f"/var/lib/docker/overlay2/{'0' * 64}/merged",
        f"/var/lib/docker/containers/{'0' * 64}/mounts/shm",
        "/var/lib/docker/volumes/films/_data/disk",
    ]
    mounts = tmp_path / "mountinfo"
    mounts.write_text("".join(f"1 2 0:1 / {each} rw - ext4 /dev/x rw\n" for each in mounted))
    monkeypatch.setattr(copies.btrfs, "MOUNTS", str(mounts))
    monkeypatch.setattr(copies.snapshots, "look", lambda path: None)
    settings = SimpleNamespace(sources=sources)
    found = {
        "tank/documents": ["/srv/documents/disk", "/srv/tank/documents/other"],
        "tank/old": [],
        "tank/docker": ["/var/lib/docker/volumes/films/_data/disk"],
        "/etc": ["/etc/x y"],
    }
    remedy = "name it in backup_sources too, or name it in exclude"
    assert [copies._apart(settings, each) for each in sources] == [
        [f"{name}: {point} lies in it and is not copied: {remedy}" for point in points]
        for name, points in found.items()
    ]


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
        *[
            (
                "Fatal: unable to open config file: unexpected HTTP response "
                f"({status})\nIs there a repository at the following location?",
                cause,
            )
            for status, cause in (
                ("500): 500 Internal Server Error", "unreachable"),
                ("502): 502 Bad Gateway", "unreachable"),
                ("503): 503 Service Unavailable", "unreachable"),
                ("429): 429 Too Many Requests", "unreachable"),
                ("507): 507 ", "no room"),
            )
        ],
        ("Save(<data/8f1a2b>) returned error, retrying after 552ms: server response unexpected: "
         "500 Internal Server Error (500)", "unreachable"),
        ("Save(<data/8f1a2b>) returned error: server response unexpected: 507  (507)", "no room"),
        # A full disk behind a server that takes new data alone.
        ("Save(<data/8f1a2b>) returned error, retrying after 552ms: server response unexpected: "
         "500 Internal Server Error (500)\nSave(<data/8f1a2b>) returned error, retrying after 1s: "
         "server response unexpected: 403 Forbidden (403)", "unreachable"),
        ("Load(<data/f12d79ace3>, 0, 0) returned error: unexpected HTTP response (502): 502 Bad "
         "Gateway\nFatal: repository contains errors", "unreachable"),
        ('client.Head: Head "https://x/config": net/http: TLS handshake timeout\n'
         "Is there a repository at the following location?", "unreachable"),
        ('client.Head: Head "https://x/config": EOF\nIs there a repository at the following '
         "location?", "unreachable"),
        ("dial tcp: lookup x: Temporary failure in name resolution", "unreachable"),
        ("Stat: Please reduce your request rate.\nIs there a repository", "unreachable"),
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


def test_points_of_time_to_come_are_told() -> None:
    assert plan.ahead(points(3, 2, 1, incomplete=(-1,)), NOW) == ""
    # All of them: the last is taken.
    assert plan.ahead(points(-1, -2), NOW) == ""
    said = plan.ahead(points(3, -1, -2), NOW)
    assert said.startswith("2 restore points are dated after now (")
    assert "the last of them -2 (" in said


def of_restic(error: dict[str, Any]) -> str:
    said = {"message_type": "error", "error": error, "during": "archival", "item": "/a"}
    return json.dumps(said, separators=(",", ":"))


def test_what_went_while_it_was_read_is_no_error() -> None:
    gone = [
        of_restic({"Op": "lstat", "Path": "/error", "Err": 2}),  # restic 0.14
        of_restic({"message": "lstat /a: no such file or directory"}),
        "error: lstat /a: no such file or directory",
        "Warning: at least one source file could not be read",
    ]
    assert restic.unreadable("\n".join(gone)) == []
    wrong = [
        of_restic({"Op": "open", "Path": "/no such file or directory", "Err": 5}),
        of_restic({"message": "read /a: input/output error"}),
        of_restic({}),
        '{"error": "of another kind"}',
        "error: read /a: input/output error",
    ]
    assert restic.unreadable("\n".join([*gone, *wrong])) == wrong


class _Server(http.server.BaseHTTPRequestHandler):
    """Answers all that is to be deleted with a status, and notes who asked for what."""

    status = 0
    asked: list[str] = []  # noqa: RUF012

    def do_DELETE(self) -> None:
        self.asked.append(f"{self.path} {self.headers['Authorization']}")
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "erasable"), [(403, False), (404, True), (200, True), (401, False), (520, False)]
)
def test_a_server_is_asked_whether_it_deletes(
    monkeypatch: pytest.MonkeyPatch, status: int, erasable: bool
) -> None:
    monkeypatch.setattr(_Server, "status", status)
    monkeypatch.setattr(_Server, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        for address, environment in (
            (f"rest:http://nas1:p%40ss@{host}/nas1/", {}),
            (f"rest:http://{host}/nas1", {"USERNAME": "nas1", "PASSWORD": "p@ss"}),
        ):
            variables = {f"RESTIC_REST_{key}": value for key, value in environment.items()}
            repository = restic.Repository(address, "/key", "/cache", variables)
            assert repository.erasable is erasable
        server.shutdown()
    # No data have this name, and all of it is said to whom the address names.
    assert _Server.asked == [f"/nas1/data/{'0' * 64} Basic bmFzMTpwQHNz"] * 2
    # Nobody there: the run itself says so.
    assert not repository.erasable
    assert not restic.Repository("s3:https://x/y", "/key", "/cache").erasable


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
    # The time of a folder that a snapshot has in place of a subvolume is nobody's.
    (folder,) = [each for each in entries if each.path == "a"]
    for inode, said in ((folder.inode, "has another modified_ns"), (2, "")):
        given = folder._replace(inode=inode, modified_ns=1)
        assert manifest.difference(str(tmp_path), given) == said
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
    walk = [*manifest.walk(str(tmp_path), (), earlier, told.append, trust=False)]
    assert told == [f"{tmp_path}/same: changed though nobody wrote it"]
    # Until somebody writes it, it is told of each time.
    assert [each.path for each in walk if each.digest == "known"] == ["same"]
    list(manifest.walk(str(tmp_path), (), walk, told.append, trust=False))
    assert told == 2 * told[:1]
    os.utime(tmp_path / "same")
    left = [*manifest.walk(str(tmp_path), (), walk, told.append, trust=False)]
    assert len(told) == 2
    assert "known" not in [each.digest for each in left]


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
    # Where nothing is mounted yet, it would fill what is there.
    assert f"free at {tmp_path}. " in restore.shortage(large, str(tmp_path / "no/where"))


def test_what_is_excluded_comes_from_the_present_volume(tmp_path: Path) -> None:
    present, draft = tmp_path / "present", tmp_path / "draft"
    for top in (present, draft):
        (top / "kept").mkdir(parents=True)
        (top / "kept").chmod(0o750)
    (present / "kept/cache").mkdir()
    (present / "kept/cache/one").write_text("one")
    (present / "new/deep").mkdir(parents=True)
    (present / "new").chmod(0o711)
    (present / "new/deep/two").write_text("two")
    (present / "later").write_text("present")
    (draft / "later").write_text("restored")
    os.utime(draft / "kept", ns=(1, 1))
    for path in ("kept/cache", "new/deep/two", "later"):
        assert restore._is_plain(str(present), path)
        restore._bring(str(present), str(draft), path)
    assert (draft / "kept/cache/one").read_text() == "one"
    assert (draft / "kept").stat().st_mtime_ns == 1
    assert (draft / "new/deep/two").read_text() == "two"
    assert (draft / "new").stat().st_mode & 0o7777 == 0o711
    assert (draft / "later").read_text() == "restored"
    # Nothing is read or written behind a link.
    (present / "link").symlink_to("kept")
    assert not restore._is_plain(str(present), "link/cache")
    assert not restore._is_plain(str(present), "nowhere/x")
    (draft / "trap").symlink_to(present)
    (present / "trap").mkdir()
    (present / "trap/three").write_text("three")
    with pytest.raises(restic.BackupError, match=r"three is excluded, .* trap is no folder"):
        restore._bring(str(present), str(draft), "trap/three")
    assert not (present / "three").exists()


def test_a_database_comes_with_what_lies_beside_it(tmp_path: Path) -> None:
    for name in ("a.db", "a.db-wal", "a.db-journal", "b", "folder/x", "folder-wal"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_text(name)
    (tmp_path / "top/b-wal").mkdir()
    listed = tmp_path / "listed"
    listed.write_text("".join(each.line for each in manifest.walk(str(tmp_path / "top"))))
    for path, wanted in (
        ("a.db", ["a.db", "a.db-wal", "a.db-journal"]),
        *((path, [path]) for path in ("b", "folder", "nowhere", "")),
    ):
        assert restore._along(str(listed), path) == wanted
    found = [each.path for each in restore._entries(str(listed), "a.db", "folder")]
    assert found == ["a.db", "folder", "folder/x"]


@pytest.mark.parametrize(
    ("path", "generated"),
    [
        ("/etc/nas-assistant/backup/id_ed25519", True),
        ("/etc/nas-assistant/backup", True),
        ("/etc/nas-assistant/backup.json", True),
        ("/etc/nas-assistant/snapshots.json", True),
        ("/etc/nas-assistant/firewall.nft", True),
        ("/etc/nas-assistant", False),
        ("/etc/nas-assistant/config.ini", False),
        ("/etc/nas-assistant/backup.json.old", False),
        ("/etc/nas-assistant/tls/server.crt", False),
        ("/srv/found/backup.json", False),
    ],
)
def test_what_the_roles_make_for_each_machine(path: str, generated: bool) -> None:
    assert restore.is_generated(path) is generated


def test_what_is_generated_is_where_the_roles_put_it() -> None:
    """A file that a role puts elsewhere would be brought back over this machine's."""
    for role, name in (
        ("backup", "__backup_folder"),
        ("backup", "__backup_settings_file"),
        ("firewall", "__firewall_file"),
    ):
        given = yaml.safe_load((ROOT / f"roles/{role}/vars/main.yml").read_text())
        assert restore.is_generated(given[name]), name
    storage = (ROOT / "roles/storage/vars/main.yml").read_text()
    assert "'dest': '/etc/nas-assistant/snapshots.json'" in storage


def test_a_folder_that_was_missing_is_as_it_was(tmp_path: Path) -> None:
    inside = tmp_path / "draft/place"
    inside.mkdir(parents=True)
    inside.chmod(0o2751)
    (inside / "file").write_text("x")
    top, *entries = manifest.walk(str(inside))
    target = tmp_path / "above/target"
    with restore._made(str(target)) as is_new:
        assert is_new
        assert target.stat().st_mode & 0o7777 == 0o700
        draft = os.open(tmp_path / "draft", os.O_RDONLY)
        merging.Merge(str(target), draft, "place", settled=True).run(entries, top)
        os.close(draft)
    assert target.stat().st_mode & 0o7777 == 0o2751
    assert (target / "file").read_text() == "x"
    # Where that fails, the next one finds none again, and no other folder is touched.
    for path in (tmp_path / "another", target):
        with pytest.raises(ValueError, match="x"), restore._made(str(path)):
            raise ValueError("x")
    assert not (tmp_path / "another").exists()
    assert target.exists()


def test_what_a_restore_that_was_killed_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".nas-assistant-restore.abcdefgh"
    (left / "files/deep").mkdir(parents=True)
    (left / "files/deep/one").write_text("one")
    left.chmod(0o700)
    open_to_all = tmp_path / ".nas-assistant-restore.of-a-user"
    open_to_all.mkdir(mode=0o755)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / ".nas-assistant-restore.link").symlink_to("mine")
    (tmp_path / ".nas-assistant-restore.file").write_text("x")
    # As one that a group shares, which what is made in it takes on.
    tmp_path.chmod(0o2770)
    with merging.draft(str(tmp_path)) as (_, shown):
        assert not left.exists()
        assert os.listdir(shown) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f".nas-assistant-restore.{name}" for name in ("file", "link", "of-a-user")),
        "mine",
    ]


JOURNALS = {"-wal", "-shm", "-journal"}


@pytest.mark.parametrize(
    ("database", "restored", "present", "kept"),
    [
        # The file is the same, and what would be played into it is not of that state.
        ("same", {}, JOURNALS, JOURNALS),
        ("same", {"-wal": "restored"}, {"-wal", "-shm"}, {"-wal", "-shm"}),
        ("same", {"-wal": "present"}, {"-wal"}, set()),
        ("same", {"-wal": "restored"}, set(), set()),
        ("other", {"-wal": "restored"}, {"-wal", "-shm"}, {"", "-wal", "-shm"}),
        ("other", {}, set(), {""}),
        ("none", {}, JOURNALS, set()),
    ],
)
def test_a_database_is_put_in_place_with_its_own_journals(
    tmp_path: Path, database: str, restored: dict[str, str], present: set[str], kept: set[str]
) -> None:
    target, inside = tmp_path / "target", tmp_path / "draft/place"
    target.mkdir()
    inside.mkdir(parents=True)
    head = b"" if database == "none" else merging.SQLITE
    (inside / "a.db").write_bytes(head + b"same")
    (target / "a.db").write_bytes(head + (b"other" if database == "other" else b"same"))
    for ending, text in restored.items():
        (inside / f"a.db{ending}").write_text(text)
    for ending in present:
        (target / f"a.db{ending}").write_text("present")
    for path in (*inside.iterdir(), *target.iterdir()):
        os.utime(path, ns=(1, 1))
    entries = [each for each in manifest.walk(str(inside)) if each.path]
    draft = os.open(tmp_path / "draft", os.O_RDONLY)
    merge = merging.Merge(str(target), draft, "place", settled=True)
    merge.run(entries)
    os.close(draft)
    there = {path.name.removeprefix("a.db"): path.read_bytes() for path in target.glob("a.db*")}
    aside = {path.name.removeprefix("a.db") for path in target.glob(".before-*/*")}
    assert aside == kept
    assert there.pop("") == head + b"same"
    left = {} if database != "none" else dict.fromkeys(present, b"present")
    assert there == {**left, **{ending: text.encode() for ending, text in restored.items()}}
    assert bool(merge.changed) == bool(kept or set(restored) - present)


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    with pytest.raises(restic.BackupError, match="run the backup role"):
        plan.Settings.read(str(path))
    path.write_text('{"sources": [], "copies": [{"colour": "blue"}]}')
    with pytest.raises(restic.BackupError, match="none of this version"):
        plan.Settings.read(str(path))
