# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the entries of storage_pools mean, and what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.nas.assistant.plugins.filter.storage import (
    storage_mounts,
    storage_pools,
    storage_unit,
)

ROOT = Path(__file__).parents[2]
DISKS = ["/dev/disk/by-id/ata-EXAMPLE-1", "/dev/disk/by-id/ata-EXAMPLE-2"]


def one(**entry: Any) -> dict[str, Any]:
    (found,) = storage_pools([{"name": "tank", "devices": DISKS, **entry}])
    return dict(found)


def volume(**entry: Any) -> dict[str, Any]:
    (found,) = one(volumes=[{"name": "docker", **entry}])["volumes"]
    return dict(found)


def test_what_is_left_out() -> None:
    assert one() == {
        "name": "tank",
        "provider": "btrfs",
        "devices": DISKS,
        "uuid": "",
        "format": False,
        "remove": False,
        "profile": {"data": "raid1", "metadata": "raid1"},
        "mount": "/srv/tank",
        "options": ["noatime"],
        "compression": "",
        "scrub": "monthly",
        "volumes": [],
    }
    assert volume() == {
        "name": "docker",
        "path": "",
        "owner": None,
        "group": None,
        "mode": None,
        "compression": None,
        "copy_on_write": None,
        "quota": None,
        "snapshots": {},
        "migrate": False,
        "needed_by": [],
    }


def test_one_word_or_many() -> None:
    assert one(devices=DISKS[0])["devices"] == DISKS[:1]
    assert one(profile="raid1")["profile"] == {"data": "raid1", "metadata": "raid1"}
    assert one(profile={"data": "single"})["profile"] == {"data": "single", "metadata": "raid1"}
    assert one(devices=DISKS[0])["profile"] == {"data": "single", "metadata": "dup"}
    # One that is adopted stays as it is.
    assert one(devices=[], uuid="2f7c")["profile"] == {"data": "", "metadata": ""}
    assert one(scrub="never")["scrub"] == ""
    assert one(scrub="Sat *-*-1..7 03:00")["scrub"] == "Sat *-*-1..7 03:00"
    assert one(scrub="weekly")["scrub"] == "weekly"
    assert volume(snapshots={})["snapshots"] == {}
    assert volume(snapshots={"every": "1d"})["snapshots"] == {"every": "1d", "keep": {"last": 3}}
    for every in ("0", "0m", "15m", "900s", "45m", "1h", "2w"):
        assert volume(snapshots={"every": every})["snapshots"]["every"] == every
    assert volume(snapshots={"every": 0})["snapshots"]["every"] == "0"


def test_docker_waits_for_what_it_writes_to() -> None:
    assert volume(path="/var/lib/docker")["needed_by"] == ["docker.service"]
    assert volume(path="/var/lib/nas-assistant/models")["needed_by"] == ["docker.service"]
    assert volume(path="/var/lib/dockerless")["needed_by"] == []
    both = ["docker.service", "containerd.service"]
    assert volume(path="/var/lib/containerd")["needed_by"] == both
    given = [{"name": "tank", "devices": DISKS, "volumes": [{"name": "d", "path": "/mnt/docker"}]}]
    (pool,) = storage_pools(given, "/mnt/docker")
    assert pool["volumes"][0]["needed_by"] == ["docker.service"]
    assert volume(path="/srv/photos", needed_by="smbd.service")["needed_by"] == ["smbd.service"]


def test_mounts_come_after_those_that_they_lie_in() -> None:
    pool = one(
        compression="zstd:3",
        volumes=[
            {"name": "models", "path": "/var/lib/nas-assistant/models"},
            {"name": "state", "path": "/var/lib/nas-assistant"},
            {"name": "unmounted"},
        ],
    )
    mounts = storage_mounts([pool])
    assert [mount["path"] for mount in mounts] == [
        "/srv/tank",
        "/var/lib/nas-assistant",
        "/var/lib/nas-assistant/models",
    ]
    assert mounts[0]["options"] == ["subvol=/", "noatime", "compress=zstd:3"]
    assert mounts[2]["options"][0] == "subvol=/models"


@pytest.mark.parametrize(
    "path", ["/srv/tank", "/srv/a-b", "/srv/.hidden/x", "/.first/y", "/srv/ä b", "/srv/a@b+c:d_e.f"]
)
def test_units_are_named_as_systemd_names_them(path: str) -> None:
    if not shutil.which("systemd-escape"):
        pytest.skip("needs systemd-escape")
    done = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert storage_unit(path) == done.stdout.strip()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"name": "a b"}, "name is of letters"),
        ({"device": "/dev/sda"}, "a pool is a dictionary with some of compression, devices"),
        ({"provider": "ext4"}, "provider='ext4' is none of btrfs or zfs"),
        ({"devices": ["sda"]}, "'sda' is no device such as"),
        ({"devices": ["/dev/../etc/passwd x"]}, "is no device"),
        ({"devices": [DISKS[0], DISKS[0]]}, "is given twice"),
        ({"format": "yes"}, "format='yes' is neither true nor false"),
        ({"mount": "srv"}, "mount='srv' is no plain path"),
        ({"mount": "/srv/../etc"}, "is no plain path"),
        ({"mount": "/etc/x"}, "mount=/etc/x belongs to the system"),
        ({"mount": "/"}, "is no plain path"),
        ({"options": ["subvol=x"]}, "'subvol=x' is no mount option that may be set here"),
        ({"options": ["a,b"]}, "'a,b' is no mount option"),
        ({"compression": "zstd:99"}, "compression='zstd:99' is nothing that may stand here"),
        ({"scrub": "montly"}, "scrub='montly' is neither never"),
        (
            {"volumes": [{"name": "a", "path": "/srv"}]},
            "the pool mounted at /srv/tank would be hidden",
        ),
        ({"volumes": [{"name": "a", "path": "/srv/tank/a"}]}, "or lies around it"),
        ({"volumes": [{"name": "a/b"}, {"name": "a.b"}]}, "the volume of tank a.b is given twice"),
        ({"volumes": [{"name": "a", "quota": "500GB"}]}, "quota='500GB' is not none, or a size"),
        ({"volumes": [{"name": "a", "mode": "rwx"}]}, "mode='rwx' is not an octal mode"),
        (
            {"volumes": [{"name": "a", "snapshots": {"every": "1hour"}}]},
            "every='1hour' is not such",
        ),
        *(
            (
                {"volumes": [{"name": "a", "snapshots": {"every": every}}]},
                f"tank: volume a: snapshots.every={every}: whether one is due is looked each",
            )
            for every in ("5m", "20m", "1s", "61m")
        ),
        (
            {"volumes": [{"name": "a", "snapshots": {"keep": {"foo": 1}}}]},
            "keep is a dictionary with",
        ),
        (
            {"volumes": [{"name": "a", "snapshots": {"keep": {"last": "3"}}}]},
            "last='3' is no count",
        ),
        ({"volumes": [{"name": "a", "snapshots": {"keep": {"last": 0}}}]}, "keeps nothing"),
        ({"scrub": "often; rm"}, "scrub='often; rm' is neither never"),
        ({"volumes": {"name": "a"}}, "give a list of entries"),
        ({"volumes": [{"name": "../a"}]}, "volume '../a': a name is of letters"),
        ({"volumes": [{"name": "a"}, {"name": "a"}]}, "the volume of tank a is given twice"),
        ({"volumes": [{"name": "a", "path": "/var/lib"}]}, "belongs to the system"),
        ({"volumes": [{"name": "a", "path": "/srv/tank"}]}, "mount point /srv/tank is given twice"),
        ({"volumes": [{"name": "a", "compression": "zstd:3"}]}, "compression='zstd:3' is nothing"),
        ({"volumes": [{"name": "a", "needed_by": "x"}]}, "'x' is no unit such as smbd.service"),
        (
            {"volumes": [{"name": "a", "snapshots": {"hourly": 1}}]},
            "snapshots is a dictionary with",
        ),
        ({"volumes": [{"name": "a", "copy_on_write": "no"}]}, "copy_on_write='no' is no true"),
    ],
)
def test_refused(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnsibleFilterError) as refusal:
        one(**entry)
    assert reason in str(refusal.value)
    assert "storage_pools" in str(refusal.value)


def test_snapshots_are_made_wherever_a_pool_is_mounted() -> None:
    (found,) = storage_pools([{"name": "tank", "devices": DISKS, "mount": "/home/tank"}])
    assert found["mount"] == "/home/tank"
    unit = ROOT / "roles/storage/templates/etc/systemd/system/nas-snapshots.service.j2"
    # It would be read-only to what makes and deletes them.
    assert not re.search(r"^Protect(Home|System)=", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("check", "said"), [(True, "would be as it"), (False, "is as it")])
def test_check_mode_does_not_say_that_it_is_done(check: bool, said: str) -> None:
    tasks = yaml.safe_load((ROOT / "roles/storage/tasks/rollback.yml").read_text())
    text = tasks[-1]["ansible.builtin.debug"]["msg"]
    variables = {
        "ansible_check_mode": check,
        "inventory_hostname": "nas1",
        "storage_rollback": {"volume": "tank/documents"},
        "__storage_rolled_back": {"snapshot": "documents.1", "kept": ""},
        "__storage_rolled": [{"snapshots": {}}],
    }
    shown = Templar(DataLoader(), variables).template(trust_as_template(text))
    assert shown.startswith(f"tank/documents on nas1 {said} was in documents.1.")


def test_pools_do_not_share() -> None:
    for second in ({"name": "tank"}, {"name": "other"}, {"name": "b", "mount": "/srv/tank"}):
        with pytest.raises(AnsibleFilterError, match="is given twice"):
            storage_pools([{"name": "tank", "devices": DISKS}, {"devices": DISKS, **second}])
    with pytest.raises(AnsibleFilterError, match="give a list of entries"):
        storage_pools({"name": "tank"})
