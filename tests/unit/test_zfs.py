# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is read from ZFS's commands, what is planned from it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.nas.assistant.plugins.filter.backup import backup_sources
from ansible_collections.nas.assistant.plugins.filter.storage import (
    storage_datasets,
    storage_pools,
)
from ansible_collections.nas.assistant.plugins.module_utils import (
    _standstill,
    _zfs as zfs,
    _zfs_plan as zfs_plan,
    _zfs_snapshots as zfs_snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._standstill import Standstill
from ansible_collections.nas.assistant.plugins.modules import (
    btrfs_rollback,
    folder_copy,
    zfs_rollback,
)

A, B, C, D = (f"/dev/disk/by-id/ata-EXAMPLE-{number}" for number in range(1, 5))

HEALTHY = """\
  pool: tank
 state: ONLINE
  scan: scrub repaired 0B in 00:00:01 with 0 errors on Sun Nov  8 00:24:02 2026
config:

\tNAME           STATE     READ WRITE CKSUM
\ttank           ONLINE       0     0     0
\t  mirror-0     ONLINE       0     0     0
\t    /dev/vdb1  ONLINE       0     0     0
\t    /dev/vdc1  ONLINE       0     0     0
\t  /dev/vdd1    ONLINE       0     0     0
\tlogs\t
\t  /dev/vde1    ONLINE       0     0     0
\tspares
\t  /dev/vdf1    AVAIL

errors: No known data errors
"""
REPLACING = """\
  pool: tank
 state: DEGRADED
status: One or more devices is currently being resilvered.
action: Wait for the resilver to complete.
  scan: resilver in progress since Sun Nov  8 00:24:02 2026
\t100M scanned at 50M/s, 20M issued at 10M/s, 100M total
config:

\tNAME                       STATE     READ WRITE CKSUM
\ttank                       DEGRADED     0     0     0
\t  raidz1-0                 DEGRADED     0     0     0
\t    /dev/vdb1              ONLINE       0     0     0
\t    replacing-1            DEGRADED     0     0     0
\t      9876543210987654321  UNAVAIL      0     0     0  was /dev/vdc1
\t      /dev/vde1            ONLINE       0     0     0  (resilvering)
\t    1234567890123456789    UNAVAIL      0     0     0  was /dev/vdd1

errors: 3 data errors, use '-v' for a list
"""
IMPORTABLE = """\
   pool: tank
     id: 1234
  state: ONLINE
 action: The pool can be imported using its name or numeric identifier.
 config:

\ttank        ONLINE
\t  vdb       ONLINE

   pool: tank
     id: 5678
  state: DEGRADED
 config:

\ttank        DEGRADED
"""


def test_a_whole_pool_is_read() -> None:
    pool = zfs.parse_status(HEALTHY)
    assert (pool.name, pool.state, pool.busy, pool.errors) == ("tank", "ONLINE", "", "")
    assert [(group.kind, [leaf.name for leaf in group.leaves]) for group in pool.groups] == [
        ("mirror", ["/dev/vdb1", "/dev/vdc1"]),
        ("disk", ["/dev/vdd1"]),
    ]


def test_a_pool_in_the_middle_of_a_replacement_is_read() -> None:
    pool = zfs.parse_status(REPLACING)
    assert pool.busy == "resilver"
    assert pool.errors.startswith("3 data errors")
    (group,) = pool.groups
    assert group.kind == "raidz1"
    assert [(leaf.name, leaf.failed, leaf.replaced) for leaf in group.leaves] == [
        ("/dev/vdb1", False, False),
        ("9876543210987654321", True, True),
        ("/dev/vde1", False, True),
        ("1234567890123456789", True, False),
    ]
    assert group.leaves[3].was == "/dev/vdd1"


def test_pools_that_are_not_in_use_are_read() -> None:
    found = zfs.parse_importable(IMPORTABLE)
    assert [(each.name, each.guid) for each in found] == [("tank", "1234"), ("tank", "5678")]
    assert zfs.parse_importable("no pools available to import\n") == []


def test_datasets_and_snapshots_are_read() -> None:
    assert zfs.parse_datasets("tank\t1\t/srv/tank\tyes\ntank/a b\t2\tlegacy\tno\n") == [
        zfs.Dataset("tank", "1", "/srv/tank", True),
        zfs.Dataset("tank/a b", "2", "legacy", False),
    ]
    rows = "tank@nas.20250131T040000Z\t7\t1738296000\t1\t42\ntank@mine\t8\t1738296001\t0\t-\n"
    assert zfs.parse_snapshots(rows) == [
        zfs.Snapshot("nas.20250131T040000Z", "7", 1738296000, True, "42"),
        zfs.Snapshot("mine", "8", 1738296001, False, ""),
    ]


def made_of(*groups: zfs.Group) -> zfs.Pool:
    return zfs.Pool("tank", "1234", groups=list(groups))


def leaf(device: str, state: str = "ONLINE") -> zfs.Leaf:
    return zfs.Leaf(f"{device}-part1", state)


def mirror(*devices: str) -> zfs.Group:
    return zfs.Group("mirror", [leaf(device) for device in devices])


def wish(*devices: str, inside: str = "", **given: Any) -> zfs_plan.Wish:
    """``inside``: of the devices, the numbers of those that are in the pool."""
    holders = {devices[int(at)]: f"{devices[int(at)]}-part1" for at in inside}
    return zfs_plan.Wish("tank", devices=devices, holders=holders, **{"format": True, **given})


@pytest.mark.parametrize(
    ("devices", "profile", "created"),
    [
        ([A], "", (A,)),
        ([A, B], "", ("mirror", A, B)),
        ([A, B], "single", (A, B)),
        ([A, B, C], "", ("mirror", A, B, C)),
        ([A, B, C, D], "", ("mirror", A, B, "mirror", C, D)),
        ([A, B, C], "raidz1", ("raidz1", A, B, C)),
    ],
)
def test_what_a_new_pool_is_made_of(
    devices: list[str], profile: str, created: tuple[str, ...]
) -> None:
    assert zfs_plan.plan(wish(*devices, profile=profile), None).create == created


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (wish(A, B, format=False), "would be overwritten. If that is what you want, set format"),
        (wish(A, profile="mirror"), "profile=mirror wants 2 devices, and it has 1"),
        (wish(A, B, profile="raid1"), "profile='raid1' is none of single, mirror, raidz1"),
        (wish(A, B, gone=frozenset([B])), f"{B} is not there"),
        (wish(A, B, C, D, f"{D}5", profile="mirror"), "5 devices make no pairs"),
    ],
)
def test_what_no_new_pool_can_be_made_of(given: zfs_plan.Wish, message: str) -> None:
    with pytest.raises(zfs.ZfsError, match=message):
        zfs_plan.plan(given, None)


def test_what_is_as_it_should_be_stays() -> None:
    assert not zfs_plan.plan(wish(A, B, inside="01"), made_of(mirror(A, B))).overwritten
    assert not zfs_plan.plan(wish(format=False), made_of(mirror(A, B))).overwritten


def test_a_device_that_failed_is_replaced_first() -> None:
    pool = made_of(zfs.Group("mirror", [leaf(A), zfs.Leaf("1234", "UNAVAIL", f"{B}-part1")]))
    assert zfs_plan.plan(wish(A, C, inside="0"), pool).replace == (("1234", C),)
    # It is only late, or there is no other yet.
    assert not zfs_plan.plan(wish(A, B, inside="0", gone=frozenset([B])), pool).overwritten
    with pytest.raises(zfs.ZfsError, match=r"1234 \(was .*-2-part1\) belongs to it"):
        zfs_plan.plan(wish(A, inside="0"), pool)


def test_a_sound_device_is_swapped_for_another() -> None:
    pool = made_of(mirror(A, B))
    assert zfs_plan.plan(wish(A, C, inside="0"), pool).replace == ((f"{B}-part1", C),)
    with pytest.raises(zfs.ZfsError, match="ZFS gives up no device by itself"):
        zfs_plan.plan(wish(A, inside="0"), pool)


def test_one_that_is_being_replaced_is_left_alone() -> None:
    pool = zfs.parse_status(REPLACING)
    given = zfs_plan.Wish(
        "tank",
        devices=("/dev/vdb", "/dev/vde", "/dev/vdd"),
        gone=frozenset(["/dev/vdd"]),
        holders={"/dev/vdb": "/dev/vdb1", "/dev/vde": "/dev/vde1"},
    )
    assert not zfs_plan.plan(given, pool).overwritten


def test_a_pool_grows_by_what_it_is_made_of() -> None:
    added = zfs_plan.plan(wish(A, B, C, D, inside="01"), made_of(mirror(A, B))).add
    assert added == ("mirror", C, D)
    with pytest.raises(zfs.ZfsError, match="it grows by 2 devices at a time"):
        zfs_plan.plan(wish(A, B, C, inside="01"), made_of(mirror(A, B)))
    raidz = made_of(zfs.Group("raidz1", [leaf(A), leaf(B), leaf(C)]))
    with pytest.raises(zfs.ZfsError, match="profile=mirror, and it is a pool of raidz1"):
        zfs_plan.plan(wish(A, B, C, D, inside="012", profile="mirror"), raidz)


def test_a_single_disk_becomes_a_mirror() -> None:
    alone = made_of(zfs.Group("disk", [leaf(A)]))
    assert zfs_plan.plan(wish(A, B, inside="0"), alone).attach == ((f"{A}-part1", B),)
    assert zfs_plan.plan(wish(A, B, inside="0", profile="single"), alone).add == (B,)
    with pytest.raises(zfs.ZfsError, match="1 disks become mirrors with as many more"):
        zfs_plan.plan(wish(A, B, C, inside="0"), alone)


def test_the_pool_that_is_meant_is_found() -> None:
    there = zfs.parse_importable(IMPORTABLE)
    present = zfs.Pool("tank", "1234")
    assert zfs_plan.found(wish(), present, []) is present
    assert zfs_plan.found(wish(A), None, []) is None
    assert zfs_plan.found(wish(guid="5678"), None, there) is there[1]
    for given, pools, message in (
        (wish(guid="9"), there, "no such pool is in use, and of others the disks have tank"),
        (wish(), there, "several pools on the disks have this name"),
        (wish(), [], "no such pool is in use, and of others the disks have none"),
    ):
        with pytest.raises(zfs.ZfsError, match=message):
            zfs_plan.found(given, None, pools)
    with pytest.raises(zfs.ZfsError, match="has the uuid 1234, not 9"):
        zfs_plan.found(wish(guid="9"), present, [])


def test_a_machine_without_zfs_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(zfs.os.path, "exists", lambda path: False)
    with pytest.raises(zfs.ZfsError, match=r"tank: provider=zfs, and .* Debian, add the component"):
        zfs.need("tank")


def pool(**entry: Any) -> dict[str, Any]:
    (found,) = storage_pools([{"name": "tank", "provider": "zfs", "devices": [A, B], **entry}])
    return dict(found)


def test_what_datasets_are_made_of_a_pool() -> None:
    entry = pool(
        compression="lz4",
        volumes=[
            {"name": "media", "path": "/srv/media", "compression": "none", "quota": "none"},
            {"name": "docs", "quota": "20G", "mode": "0750"},
        ],
    )
    top, docs, media = storage_datasets(entry)
    assert (top["name"], top["path"], top["properties"]) == (
        "tank",
        "/srv/tank",
        {"compression": "lz4"},
    )
    assert (docs["name"], docs["path"]) == ("tank/docs", "/srv/tank/docs")
    assert docs["properties"] == {"refquota": str(20 << 30)}
    assert media["properties"] == {"compression": "off", "refquota": "0"}
    assert media["path"] == "/srv/media"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"options": ["noatime"]}, "options: not with provider=zfs"),
        ({"remove": True}, "remove: not with provider=zfs: it gives up no device"),
        ({"volumes": [{"name": "a", "migrate": True}]}, "migrate: not with provider=zfs"),
        ({"profile": "raid1"}, "profile='raid1' is none of ZFS's: single, mirror"),
        ({"uuid": "2f7c8a1e-0000"}, "uuid='2f7c8a1e-0000' is not a guid"),
        ({"name": "mirror1"}, "a pool of ZFS may not be called so"),
        ({"compression": "zstd:3"}, "compression='zstd:3' is nothing that may stand here"),
    ],
)
def test_what_zfs_has_not_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        pool(**entry)


def test_a_dataset_is_copied_from_where_it_is() -> None:
    pools = [pool(volumes=[{"name": "docs"}, {"name": "media", "path": "/srv/media"}])]
    docs, media = backup_sources([{"volume": "tank/docs"}, {"volume": "tank/media"}], pools)
    assert (docs["path"], docs["folder"]) == ("/srv/tank/docs", "")
    assert media["path"] == "/srv/media"


class FakeZfs:
    """A dataset whose snapshots are a list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there: list[zfs.Snapshot] = []
        self.kept: set[str] = set()
        self.now = 1_738_296_000  # 2025-01-31T04:00:00Z
        monkeypatch.setattr(zfs, "dataset", lambda name: zfs.Dataset(name, "42", "/srv", True))
        monkeypatch.setattr(zfs, "snapshots", self.snapshots)
        monkeypatch.setattr(zfs, "call", self.call)
        monkeypatch.setattr(zfs_snapshots.time, "time", lambda: self.now)

    def snapshots(self, name: str, mark: str) -> list[zfs.Snapshot]:
        if mark == zfs_snapshots.PROPERTY:
            return list(self.there)
        return [replace(each, mark="42" if each.text in self.kept else "") for each in self.there]

    def call(self, *argv: str) -> str:
        text = argv[-1].partition("@")[2]
        if argv[1] == "hold":
            return ""
        if argv[1] == "snapshot":
            mark = argv[3].partition("=")[2]
            if f"{zfs_snapshots.KEPT}=42" in argv:
                self.kept.add(text)
            self.there.append(zfs.Snapshot(text, f"guid{len(self.there)}", self.now, False, mark))
        else:
            assert argv[:2] == ("zfs", "destroy")
            assert len(argv) == 3, "nothing is destroyed with what depends on it"
            (gone,) = [each for each in self.there if each.text == text]
            if gone.guid == "busy":
                raise zfs.ZfsError("cannot destroy: has dependent clones")
            self.there.remove(gone)
        return ""


def test_retention_leaves_what_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(zfs_snapshots, "LOCKS", str(tmp_path))
    fake = FakeZfs(monkeypatch)
    foreign = [
        zfs.Snapshot("mine", "a", 1, False, "42"),
        zfs.Snapshot("nas.20200101T000000Z", "b", 2, False, "another"),
    ]
    held = zfs.Snapshot("nas.20200102T000000Z", "c", 3, True, "42")
    cloned = zfs.Snapshot("nas.20200103T000000Z", "busy", 4, False, "42")
    fake.there = [*foreign, held, cloned]
    wanted = zfs_snapshots.wishes([{"dataset": "tank/docs", "every": "1h", "keep": {"last": 2}}])
    for _ in range(6):
        (outcome,) = zfs_snapshots.carry_out(wanted)
        fake.now += 1800
    assert {*foreign, held, cloned} < {*fake.there}
    assert [each.text for each in fake.there[4:]] == [
        "nas.20250131T050000Z",
        "nas.20250131T060000Z",
    ]
    assert outcome.held == [held.text]
    assert outcome.foreign == ["nas.20200101T000000Z"]
    assert "dependent clones" in outcome.problems[0]


def test_a_pool_that_is_full_gets_room_by_retention(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(zfs_snapshots, "LOCKS", str(tmp_path))
    fake = FakeZfs(monkeypatch)
    fake.there = [
        zfs.Snapshot(f"nas.2020010{day}T000000Z", f"{day}", day, False, "42") for day in range(1, 5)
    ]

    def full(*argv: str) -> str:
        if argv[1] == "snapshot":
            raise zfs.ZfsError("cannot create snapshot: out of space")
        return fake.call(*argv)

    monkeypatch.setattr(zfs, "call", full)
    wanted = zfs_snapshots.wishes([{"dataset": "tank/docs", "every": "1h", "keep": {"last": 2}}])
    (outcome,) = zfs_snapshots.carry_out(wanted)
    assert outcome.problems == ["cannot create snapshot: out of space"]
    assert outcome.deleted == ["nas.20200102T000000Z", "nas.20200101T000000Z"]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Standstill:
    """What a rollback has stopped."""
    monkeypatch.setattr(_standstill, "FOLDER", str(tmp_path))
    monkeypatch.setattr(_standstill, "LOCK", str(tmp_path / "standstill.lock"))
    return Standstill(zfs_rollback.WORK)


def test_the_same_again_does_not_bring_back_the_ruin(
    monkeypatch: pytest.MonkeyPatch, work: Standstill
) -> None:
    fake = FakeZfs(monkeypatch)
    first = zfs_snapshots.make("tank/docs", fake.now)
    kept = []
    for _ in range(2):
        fake.now += 60
        assert zfs_rollback.chosen("tank/docs", "newest", []) == first
        kept.append(zfs_rollback.keep("tank/docs", work))
        work.notes = []
    # A clock that was wrong, and what somebody else made.
    fake.there += [
        zfs.Snapshot("nas.20300101T000000Z", "ahead", fake.now + 1, False, "42"),
        zfs.Snapshot("mine", "foreign", fake.now, False, ""),
    ]
    assert zfs_rollback.chosen("tank/docs", "newest", []) == first
    for text in (*kept, "nas.20300101T000000Z", "mine"):
        assert zfs_rollback.chosen("tank/docs", text, []) == text
    fake.there = fake.there[1:]
    with pytest.raises(zfs.ZfsError, match="rollbacks kept or which are dated after now: name one"):
        zfs_rollback.chosen("tank/docs", "newest", [])


def test_one_stands_still_at_a_time(
    monkeypatch: pytest.MonkeyPatch, work: Standstill, call: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.setattr(_standstill, "PATIENCE", 0.0)
    monkeypatch.setattr(_standstill, "SETTLE", 0.0)
    monkeypatch.setattr(_standstill, "running", list)
    monkeypatch.setattr(_standstill, "demand", lambda argv: "")
    Standstill("copy").begin(["smbd.service"])
    # What one run has stopped, no other one starts, of whatever kind they are.
    with _standstill.alone():
        for main in (zfs_rollback.main, btrfs_rollback.main, folder_copy.main):
            assert "busy: another run" in call(main, state="resumed")["msg"]
            assert not call(main, check=True, state="resumed").get("failed")
    assert Standstill("copy").stopped == ["smbd.service"]
    assert call(folder_copy.main, state="resumed")["resumed"] == ["smbd.service"]


def test_what_rollbacks_kept_is_held_for_a_week(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeZfs(monkeypatch)
    day = 86400
    fake.there = [
        zfs.Snapshot(f"nas.{age}", str(age), fake.now - age * day, age != 5, "42")
        for age in (30, 7, 6, 5, 1)
    ]
    released: list[str] = []

    def call(*argv: str) -> str:
        if argv[1] == "release":
            released.append(argv[-1])
        tag = "somebody" if argv[-1] == "tank/docs@nas.30" else zfs_rollback.HOLD
        return f"{argv[-1]}\t{tag}\tFri Jan 31 2025\n"

    monkeypatch.setattr(zfs, "call", call)
    zfs_rollback.release("tank/docs", "nas.1")
    assert released == ["tank/docs@nas.7"]


def test_what_a_rollback_that_was_cut_off_left_standing_goes_on(
    monkeypatch: pytest.MonkeyPatch, work: Standstill, call: Callable[..., dict[str, Any]]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(_standstill, "demand", lambda argv: done.append(" ".join(argv[1:])))
    monkeypatch.setattr(_standstill, "running", list)
    monkeypatch.setattr(_standstill, "SETTLE", 0.0)
    assert not call(zfs_rollback.main, state="resumed")["changed"]
    work.begin(["smbd.service"], ["tank/docs@nas.20250131T040000Z"])
    # Half of it may be of one state and half of the other.
    for wish in ({"state": "resumed"}, {"dataset": "tank/media"}):
        said = call(zfs_rollback.main, **wish)["msg"]
        assert "tank/docs: a rollback was cut off, and smbd.service stand still" in said
    assert done == ["stop smbd.service"]
    # Stopped, and nothing more.
    work.notes = []
    work.save()
    assert call(zfs_rollback.main, check=True, state="resumed")["changed"]
    assert call(zfs_rollback.main, state="resumed")["resumed"] == ["smbd.service"]
    assert done == ["stop smbd.service", "start smbd.service"]
    assert not call(zfs_rollback.main, state="resumed")["changed"]
