# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is read of a NAS's own files, of those that are there and of those that are not."""

from __future__ import annotations

import gzip
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.filter import status
from ansible_collections.nas.assistant.plugins.module_utils import _condition as condition
from ansible_collections.nas.assistant.plugins.modules import status_info
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

UUID = "5f8e1c52-7f0e-4b53-9f0e-0c5a3f7c9d11"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("notAfter=2027-01-15 08:00:00Z\n", 1_800_000_000), ("", 0), ("Could not read\n", 0)],
)
def test_the_end_of_a_certificate(said: str, seconds: int) -> None:
    assert condition.parse_enddate(said) == seconds


@pytest.mark.parametrize("own", [True, False])
def test_who_made_a_certificate(tmp_path: Path, own: bool) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    subject, other = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("nas1", "CA")
    )
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder(subject if own else other, subject, private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=380))
        .sign(private, hashes.SHA256())
    )
    path = tmp_path / "server.crt"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    assert condition.certificate(str(path)) == {
        "path": str(path),
        "expires": int((begin + timedelta(days=380)).timestamp()),
        "own": own,
        "fingerprint": made.fingerprint(hashes.SHA256()).hex(":"),
    }
    path.write_text("damaged")
    found = {"path": str(path), "expires": 0, "own": False, "fingerprint": ""}
    assert condition.certificate(str(path)) == found


def test_snapshots_of_each_volume(tmp_path: Path) -> None:
    """Ours, and complete ones; a volume that has none yet is named too."""
    folder = tmp_path / ".snapshots"
    for name in (
        *("docs.20270115T070000Z", "docs.20270115T080000Z", ".docs.20270115T090000Z.draft"),
        *("docs.old.20270116T080000Z", "notes", "docs.20271315T080000Z"),
    ):
        write(folder / name)
    common = {"folder": str(folder), "every": "1h"}
    volumes = [
        {"path": "/tank/docs", "name": "docs", **common},
        {"path": "/tank/new", "name": "new", **common},
    ]
    assert condition.snapshots({"volumes": volumes}) == [
        {"volume": "/tank/docs", "every": 3600, "count": 2, "newest": 1_800_000_000},
        {"volume": "/tank/new", "every": 3600, "count": 0, "newest": 0},
    ]
    assert condition.snapshots({}) == []


NEVER = "ActiveState=active\nLastTriggerUSec=n/a\n"
OFF = "ActiveState=inactive\nLastTriggerUSec=n/a\n"
SHOWN = {
    "nas-backup-offsite.timer": "ActiveState=active\n"
    "LastTriggerUSec=Fri 2027-01-15 08:00:00.000000 UTC\n",
    "nas-backup-usb.timer": NEVER,
    "nas-backup-cut.timer": NEVER,
    **{f"nas-drill-{name}.timer": OFF for name in ("offsite", "usb", "cut")},
}


def test_copies_as_their_records_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record: dict[str, Any] = {"run": 9, "success": 7, "cause": "unreachable", "points": 3, "old": 1}
    write(tmp_path / "offsite/record.json", json.dumps(record))
    write(tmp_path / "cut/record.json", '{"run": 9, "succ')
    monkeypatch.setattr(condition, "answer", lambda argv, patience: SHOWN[argv[2]])
    settings = {"state": str(tmp_path), "copies": [{"name": n} for n in ("offsite", "usb", "cut")]}
    drill = {"drill_run": 0, "drill_success": 0, "drill_cause": "", "drill_due": None}
    offsite, usb, cut = condition.copies(settings)
    assert offsite == {"name": "offsite", **record, **drill, "due": 1_800_000_000}
    blank = {"run": 0, "success": 0, "cause": "", "points": 0, "old": 0}
    assert usb == {"name": "usb", **blank, **drill, "due": 0}
    assert "its record is damaged: " in cut["cause"]
    assert condition.copies({}) == []


def test_what_a_role_left(tmp_path: Path) -> None:
    assert condition.settings(str(tmp_path / "none.json")) == {}
    write(tmp_path / "list.json", "[]")
    with pytest.raises(ValueError, match="no dictionary"):
        condition.settings(str(tmp_path / "list.json"))


def test_pools(tmp_path: Path) -> None:
    btrfs = tmp_path / "fs/btrfs"
    write(btrfs / "features/x", "1")
    write(btrfs / UUID / "label", "tank\n")
    write(btrfs / UUID / "devinfo/1/missing", "0\n")
    write(btrfs / UUID / "devinfo/1/error_stats", "write_errs 0\nread_errs 3\n")
    write(btrfs / UUID / "devinfo/2/missing", "1\n")
    write(btrfs / UUID / "devinfo/2/error_stats", "invalid\n")
    write(btrfs / UUID.replace("5", "6") / "label", "\n")
    write(tmp_path / "block/md0/md/degraded", "1\n")
    write(tmp_path / "block/sda/size", "8")
    found = condition.pools(str(tmp_path))
    errors = ["device 1: 3 read_errs"]
    assert found[:3] == [
        {"name": "tank", "kind": "btrfs", "missing": ["device 2"], "errors": errors},
        {"name": UUID.replace("5", "6"), "kind": "btrfs", "missing": [], "errors": []},
        {"name": "md0", "kind": "md", "missing": ["1 of its disks"], "errors": []},
    ]


UPGRADE = """\
NOTE: This is only a simulation!
Inst dbus [1.14.8] (1.14.10-1 Debian:12.9/stable [amd64]) []
Inst libssl3 [3.0.14] (3.0.15-1 Debian-Security:12/stable-security [amd64])
Conf dbus (1.14.10-1 Debian:12.9/stable [amd64])
"""


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition, "answer", lambda argv, patience: UPGRADE)
    upgrade = {"pending": ["dbus", "libssl3"], "security": 1}
    found = condition.packages(str(tmp_path))
    assert found == {"fetched": 0, "upgraded": 0, **upgrade, "reboot": []}
    write(tmp_path / "var/lib/apt/lists/x")
    write(tmp_path / "run/reboot-required")
    found = condition.packages(str(tmp_path))
    assert found["fetched"] > 1_700_000_000
    assert found["reboot"] == ["it does not say which"]
    write(tmp_path / "run/reboot-required.pkgs", "linux-image\nlinux-image\ndbus\n")
    assert condition.packages(str(tmp_path))["reboot"] == ["dbus", "linux-image"]


def test_when_packages_were_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the log of this month has no upgrade yet."""
    monkeypatch.setattr(condition, "answer", lambda argv, patience: "")
    logs = tmp_path / "var/log"
    write(logs / "dpkg.log.1", "2026-10-01 06:00:00 upgrade a:amd64 1 2\n")
    os.utime(logs / "dpkg.log.1", (1000, 1000))
    row = "2026-09-05 06:00:00 upgrade a:amd64 0 1\n2026-09-05 06:00:01 status installed a 1\n"
    (logs / "dpkg.log.2.gz").write_bytes(gzip.compress(row.encode()))
    os.utime(logs / "dpkg.log.2.gz", (900, 900))
    write(logs / "dpkg.log", "2026-11-01 06:00:00 install b:amd64 <none> 1\n")

    def then() -> str:
        found = condition.packages(str(tmp_path))["upgraded"]
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(found))

    assert then() == "2026-10-01 06:00"
    (logs / "dpkg.log.1").unlink()
    assert then() == "2026-09-05 06:00"


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"docker": "20.10.24\n", "dpkg-query": ""}
    monkeypatch.setattr(condition, "answer", lambda argv, patience: said[argv[0]])
    write(tmp_path / "etc/debian_version", "12.9\n")
    found = condition.versions(str(tmp_path))
    assert found == {"Debian": "12.9", "Docker": "20.10.24", "Nginx": ""}


def test_mounts(tmp_path: Path) -> None:
    assert condition.not_mounted(["/", str(tmp_path)]) == [str(tmp_path)]


def test_nobody_answers(tmp_path: Path) -> None:
    found = condition.assistant("no-such-container", str(tmp_path / "none.sock"))
    assert (found["state"], found["ready"], found["models"]) == ("missing", False, [])
    assert "none.sock" in found["reason"]
    assert found["degraded"] == ""
    assert condition.front("https://127.0.0.1:1/readyz")["status"] == 0


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"status": "ready", "models": ["default"]}, (True, "", "")),
        (200, {"status": "degraded", "models": [], "reason": "gone"}, (True, "", "gone")),
        (503, {"error": {"message": "it loads"}}, (False, "it loads", "")),
    ],
)
def test_what_the_service_says(
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: dict[str, object],
    expected: tuple[bool, str, str],
) -> None:
    monkeypatch.setattr(condition.gateway, "ask", lambda _: (status, body))
    found = condition.assistant("no-such-container", "/socket")
    assert (found["ready"], found["reason"], found["degraded"]) == expected


def test_a_part_that_cannot_be_looked_at_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs() -> list[str]:
        raise TimeoutError("no end after 30 s")

    monkeypatch.setattr(condition, "failed_units", hangs)
    params = {"container": "no-such", "socket": "/none", "certificates": [], "front": ""}
    found = status_info.look({**params, "mounts": [], "paths": ["/"]})
    assert found["blind"] == [{"part": "failed_units", "why": "TimeoutError: no end after 30 s"}]
    assert found["rooms"]
    checks = {each["check"]: each["value"] for each in status.status_findings(found)}
    assert checks["failed_units"] == "no look: TimeoutError: no end after 30 s"
