# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is read of a NAS's own files, of those that are there and of those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _condition as condition

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


def test_copies_as_their_records_have_them(tmp_path: Path) -> None:
    record: dict[str, Any] = {"run": 9, "success": 7, "cause": "unreachable", "points": 3}
    write(tmp_path / "offsite/record.json", json.dumps(record))
    copies = [{"name": "offsite", "full": False}, {"name": "usb", "full": True}]
    drill = {"drill_run": 0, "drill_success": 0, "drill_cause": ""}
    assert condition.copies({"state": str(tmp_path), "copies": copies}) == [
        {"name": "offsite", "full": False, **record, **drill},
        {"name": "usb", "full": True, "run": 0, "success": 0, "cause": "", "points": 0, **drill},
    ]
    assert condition.copies({}) == []
    assert condition.settings(str(tmp_path / "none.json")) == {}


def test_pools(tmp_path: Path) -> None:
    btrfs = tmp_path / "fs/btrfs"
    write(btrfs / "features/x", "1")
    write(btrfs / UUID / "label", "tank\n")
    write(btrfs / UUID / "devinfo/1/missing", "0\n")
    write(btrfs / UUID / "devinfo/1/error_stats", "write_errs 0\nread_errs 3\n")
    write(btrfs / UUID / "devinfo/2/missing", "1\n")
    write(btrfs / UUID.replace("5", "6") / "label", "\n")
    write(tmp_path / "block/md0/md/degraded", "1\n")
    write(tmp_path / "block/sda/size", "8")
    found = condition.pools(str(tmp_path))
    problems = ["device 1 had 3 read_errs", "device 2 is missing"]
    assert found[:3] == [
        {"name": "tank", "kind": "btrfs", "problems": problems},
        {"name": UUID.replace("5", "6"), "kind": "btrfs", "problems": []},
        {"name": "md0", "kind": "md", "problems": ["1 of its disks are missing"]},
    ]
    assert condition.pools(str(tmp_path / "none"))[:1] in ([], found[3:4])


def test_packages(tmp_path: Path) -> None:
    assert condition.packages(str(tmp_path)) == {"changed": 0, "fetched": 0, "reboot": []}
    write(tmp_path / "var/lib/dpkg/status")
    write(tmp_path / "run/reboot-required")
    found = condition.packages(str(tmp_path))
    assert found["changed"] > 1_700_000_000
    assert found["reboot"] == ["it does not say which"]
    write(tmp_path / "run/reboot-required.pkgs", "linux-image\nlinux-image\ndbus\n")
    assert condition.packages(str(tmp_path))["reboot"] == ["dbus", "linux-image"]


def test_nobody_answers(tmp_path: Path) -> None:
    found = condition.assistant("no-such-container", str(tmp_path / "none.sock"))
    assert (found["state"], found["ready"], found["models"]) == ("missing", False, [])
    assert "none.sock" in found["reason"]
