# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is said of a real Btrfs, against what was done to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.nas.assistant.plugins.module_utils import _btrfs
from ansible_collections.nas.assistant.plugins.modules import btrfs_info, btrfs_pool
from shell import LABEL, sh

Call = Callable[..., dict[str, Any]]
UNITS = Path(__file__).parents[2] / "roles/storage/templates/etc/systemd/system"


def look(call: Call, wish: Path | str, **arguments: Any) -> dict[str, Any]:
    answer = call(btrfs_info.main, filesystem=str(wish), **arguments)
    assert "msg" not in answer, answer
    (found,) = answer["filesystems"]
    return dict(found)


def test_devices_profiles_and_health(call: Call, pool: Path) -> None:
    (pool / "file").write_bytes(b"x" * (4 << 20))
    sh("sync", "-f", str(pool))
    found = look(call, pool)
    assert (found["label"], found["quotas"], found["subvolumes"]) == (LABEL, False, [])
    assert found["scrub"]["status"] == "never"
    assert found["profiles"]["data"] == ["raid1"]
    assert len(found["devices"]) == 2
    assert not any(device["missing"] for device in found["devices"])
    assert found["devices"][0]["errors"]["corruption"] == 0
    assert found["used"] > 4 << 20
    sh("btrfs", "scrub", "start", "-B", str(pool))
    scrub = look(call, found["uuid"])["scrub"]
    assert scrub["status"] == "finished"
    assert scrub["bytes"] >= 4 << 20
    assert scrub["errors"] == 0


def test_a_scrub_that_was_cut_off_goes_on(call: Call, pool: Path) -> None:
    """With the command of the role's unit."""
    text = (UNITS / "nas-scrub.service.j2").read_text()
    variables = {
        "pool": {"name": "tank", "mount": str(pool), "provider": "btrfs"},
        "ansible_managed": "x",
        "__storage_mark": "# x",
    }
    unit = Templar(DataLoader(), variables).template(trust_as_template(text))
    (command,) = re.findall(r"^ExecStart=/bin/sh -c '(.*?)'$", unit, re.M | re.S)
    # As systemd reads it.
    command = command.replace("\\\n", "").replace("$$", "$")
    (pool / "file").write_bytes(b"x" * (4 << 20))
    sh("sync", "-f", str(pool))
    status = ("btrfs", "scrub", "status", str(pool))
    for _ in range(2):
        sh("sh", "-c", command)
        assert "finished" in sh(*status)
        assert "Scrub resumed" not in sh(*status)
    noted = Path("/var/lib/btrfs", f"scrub.status.{look(call, pool)['uuid']}")
    noted.write_text(noted.read_text().replace("|finished:1", "|finished:0"))
    assert "interrupted" in sh(*status)
    sh("sh", "-c", command)
    assert "Scrub resumed" in sh(*status)
    assert "finished" in sh(*status)
    noted.unlink()


def test_subvolumes_with_their_uuids_and_quotas(call: Call, pool: Path) -> None:
    odd = pool / "with blank & path ü"
    sh("btrfs", "subvolume", "create", str(odd))
    sh("btrfs", "subvolume", "snapshot", "-r", str(odd), str(pool / "copy"))
    sh("btrfs", "quota", "enable", str(pool))
    sh("btrfs", "qgroup", "limit", "32M", str(odd))
    found = look(call, LABEL)
    assert found["quotas"]
    first, copy = found["subvolumes"]
    assert first["path"] == odd.name
    assert not first["read_only"]
    assert (first["max_referenced"], first["parent_uuid"]) == (32 << 20, "")
    assert copy["read_only"]
    assert copy["parent_uuid"] == first["uuid"]
    assert look(call, LABEL, subvolumes=False)["subvolumes"] == []


def test_a_path_leads_to_what_is_mounted_there(call: Call, pool: Path, folder: Path) -> None:
    sh("btrfs", "subvolume", "create", str(pool / "inner"))
    point = folder / "elsewhere"
    point.mkdir()
    device = look(call, pool)["devices"][1]["path"]
    sh("mount", "-o", "subvol=inner", device, str(point))
    found = look(call, point)
    assert {"point": str(point), "root": "/inner"}.items() <= found["mounts"][1].items()
    assert look(call, device)["uuid"] == found["uuid"]


def test_it_is_asked_where_it_can_be(call: Call, pool: Path, folder: Path) -> None:
    device = look(call, pool)["devices"][0]["path"]
    (pool / "file").write_text("one")
    sh("btrfs", "subvolume", "create", str(pool / "inner"))
    file, other = folder / "file", folder / "other"
    file.touch()
    other.mkdir()
    sh("mount", "--bind", str(pool / "file"), str(file))
    sh("mount", device, str(other))
    # One mount is covered, the next one is a file.
    sh("mount", "-t", "tmpfs", "tmpfs", str(pool))
    assert [each["path"] for each in look(call, device)["subvolumes"]] == ["inner"]
    sh("umount", str(other))
    assert (look(call, device)["profiles"], len(look(call, device)["mounts"])) == ({}, 2)
    uuid = look(call, device)["uuid"]
    (filesystem,) = [each for each in _btrfs.filesystems() if each.uuid == uuid]
    with btrfs_pool.mounted(filesystem) as point:
        assert (Path(point) / "file").read_text() == "one"


def test_one_that_is_not_mounted_and_lacks_a_device(
    call: Call, pool: Path, make_disks: Callable[..., list[str]]
) -> None:
    found = look(call, pool)
    sh("umount", str(pool))
    bare = look(call, found["uuid"])
    assert (bare["mounts"], bare["profiles"], bare["subvolumes"]) == ([], {}, [])
    lost, left = (device["path"] for device in found["devices"])
    sh("losetup", "--detach", lost)
    sh("btrfs", "device", "scan", "--forget")
    sh("mount", "-o", "degraded", left, str(pool))
    found = look(call, pool)
    assert [device["missing"] for device in found["devices"]] == [True, False]


def test_what_is_not_there_is_said(call: Call, pool: Path) -> None:
    answer = call(btrfs_info.main, filesystem="tonk")
    assert answer["failed"]
    assert "filesystem=tonk: there is no such Btrfs filesystem; there are" in answer["msg"]
    assert f"({LABEL})" in answer["msg"]
