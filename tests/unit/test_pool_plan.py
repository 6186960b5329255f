# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What it takes to get from the filesystem that is there to the pool that is wanted."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import (
    BtrfsError,
    Device,
    Filesystem,
)
from ansible_collections.nas.assistant.plugins.module_utils._pool_plan import (
    Plan,
    Wish,
    find,
    plan,
    unmirrored,
)

RAID1 = {"data": "raid1", "metadata": "raid1"}
ONE, TWO = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"


def filesystem(*paths: str, label: str = "tank", uuid: str = ONE) -> Filesystem:
    """One over these devices; an empty path is one that is missing."""
    devices = [Device(number, path, 9, 1) for number, path in enumerate(paths, 1)]
    return Filesystem(uuid, label, 1, devices)


def wish(*devices: str, **more: Any) -> Wish:
    return Wish("tank", devices=devices, **{"format": True, **more})


def steps(wanted: Wish, there: Filesystem | None, **profiles: list[str]) -> Plan:
    now = {"data": ["raid1"], "metadata": ["raid1"], **profiles}
    return plan(wanted, there, now if there else {})


def test_a_new_one() -> None:
    found = steps(wish("/dev/a", "/dev/b"), None)
    assert (found.create, found.profiles) == (("/dev/a", "/dev/b"), RAID1)
    assert steps(wish("/dev/a"), None).profiles == {"data": "single", "metadata": "dup"}
    given = steps(wish("/dev/a", "/dev/b", profiles={"data": "single"}), None)
    assert given.profiles == {"data": "single", "metadata": "raid1"}


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        (wish("/dev/a", "/dev/b", format=False), ("/dev/a", "/dev/b"), Plan()),
        (wish(), ("/dev/a", ""), Plan(missing=(2,))),
        (wish("/dev/a", "/dev/b", "/dev/c"), ("/dev/a", "/dev/b"), Plan(add=("/dev/c",))),
        (wish("/dev/a", "/dev/c"), ("/dev/a", ""), Plan(replace=((2, "/dev/c"),))),
        (wish("/dev/a", "/dev/c"), ("/dev/a", "/dev/b"), Plan(replace=((2, "/dev/c"),))),
        # What is gone before what is merely no longer wanted, and then growth.
        (
            wish("/dev/c", "/dev/d", "/dev/e"),
            ("/dev/a", ""),
            Plan(replace=((2, "/dev/c"), (1, "/dev/d")), add=("/dev/e",)),
        ),
        (
            wish("/dev/a", "/dev/b", gone=frozenset({"/dev/b"})),
            ("/dev/a", ""),
            Plan(missing=(2,)),
        ),
        (wish("/dev/a", remove=True), ("/dev/a", "/dev/b"), Plan(remove=("/dev/b",))),
        # One that is unplugged and named still is waited for; the new one is for more room.
        (
            wish("/dev/a", "/dev/b", "/dev/c", gone=frozenset({"/dev/b"})),
            ("/dev/a", ""),
            Plan(add=("/dev/c",), missing=(2,)),
        ),
    ],
)
def test_devices(wanted: Wish, there: tuple[str, ...], expected: Plan) -> None:
    assert steps(wanted, filesystem(*there)) == expected


def test_room_is_taken_where_devices_are_named() -> None:
    sizes = {"/dev/a": 1 << 30, "/dev/b": 9 + (1 << 20)}
    there = filesystem("/dev/a", "/dev/b")
    assert steps(wish("/dev/a", "/dev/b", sizes=sizes, format=False), there).grow == (1,)
    # Of one that is used as it is, of one that goes, and without a device.
    assert not steps(wish(sizes=sizes), there).changes
    assert steps(wish("/dev/b", sizes=sizes, remove=True), there).grow == ()
    gone = wish("/dev/a", "/dev/b", sizes=sizes, gone=frozenset({"/dev/b"}))
    assert not steps(gone, filesystem("/dev/a", "")).changes


def test_profiles_are_converted_where_they_differ() -> None:
    wanted, there = wish(profiles=RAID1), filesystem("/dev/a", "/dev/b")
    assert not steps(wanted, there).changes
    assert steps(wanted, there, data=["single"]).convert == {"data": "raid1"}
    # Written while a device was missing.
    assert steps(wanted, there, data=["raid1", "single"]).convert == {"data": "raid1"}
    assert not steps(wish(), there, data=["single"]).changes
    gone = wish("/dev/a", "/dev/b", gone=frozenset({"/dev/b"}), profiles={"data": "single"})
    assert not steps(gone, filesystem("/dev/a", "")).changes


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        # Written while a device of an adopted mirror was missing, and by its owner's own tools.
        ({"data": ["raid1", "single"]}, {"data": "raid1"}),
        ({"metadata": ["dup", "raid1"]}, {"metadata": "raid1"}),
        ({"system": ["raid1", "single"]}, {"metadata": "raid1"}),
        (
            {"data": ["single", "raid1"], "metadata": ["single", "raid1"], "system": ["raid1"]},
            {"data": "raid1", "metadata": "raid1"},
        ),
        # As its owner has it.
        ({"data": ["single"], "metadata": ["dup"], "system": ["dup"]}, {}),
        ({"data": ["single", "dup"]}, {}),
        ({"metadata": ["single"], "system": ["raid1", "single"]}, {}),
        # Not plain what is meant, and not possible.
        ({"data": ["raid1", "raid10"]}, {}),
        ({"data": ["raid1c3", "single"]}, {}),
    ],
)
def test_an_adopted_mirror_becomes_whole(
    profiles: dict[str, list[str]], expected: dict[str, str]
) -> None:
    adopted = wish(uuid=ONE, profiles={"data": "", "metadata": ""})
    assert steps(adopted, filesystem("/dev/a", "/dev/b"), **profiles).convert == expected
    # By the replacement, and not before.
    repair = wish("/dev/a", "/dev/c", uuid=ONE)
    assert steps(repair, filesystem("/dev/a", ""), **profiles).convert == expected
    assert not steps(adopted, filesystem("/dev/a", ""), **profiles).changes
    # What is asked for counts.
    given = {"data": "single", "metadata": "raid1"}
    asked = wish(uuid=ONE, profiles=given)
    converted = steps(asked, filesystem("/dev/a", "/dev/b"), **profiles).convert
    assert {**given, **converted} == given


def test_what_has_no_mirror_and_was_not_asked_for() -> None:
    there = {"data": ["single"], "metadata": ["dup"], "system": ["dup"]}
    assert unmirrored(wish(uuid=ONE), there) == {"data": "single", "metadata": "dup"}
    assert unmirrored(wish(profiles={"data": "single"}), there) == {"metadata": "dup"}
    assert unmirrored(wish(), {"data": ["raid1", "single"], "metadata": ["raid5"]}) == {}


@pytest.mark.parametrize(
    ("wanted", "there", "reason"),
    [
        (wish(), None, "give devices to make it on"),
        (wish("/dev/a", format=False), None, "/dev/a would be overwritten"),
        (wish("/dev/a", gone=frozenset({"/dev/a"})), None, "/dev/a is not there"),
        (
            wish("/dev/a", profiles={"data": "raid1"}),
            None,
            "data=raid1 wants 2 devices, and it has 1",
        ),
        (wish("/dev/a", profiles={"data": "raid6"}), None, "data='raid6' is none of"),
        (wish("/dev/a"), ("/dev/a", "/dev/b"), "/dev/b belongs to it and is not among"),
        (wish("/dev/a"), ("/dev/a", ""), "it lacks a device, and devices=/dev/a names none"),
        (wish("/dev/a", "/dev/c", format=False), ("/dev/a", ""), "/dev/c would be overwritten"),
        (wish("/dev/a", "/dev/x", gone=frozenset({"/dev/x"})), ("/dev/a",), "/dev/x is not there"),
        (
            wish("/dev/a", remove=True, profiles=RAID1),
            ("/dev/a", "/dev/b"),
            "data=raid1 wants 2 devices, and it has 1",
        ),
    ],
)
def test_refused(wanted: Wish, there: tuple[str, ...] | None, reason: str) -> None:
    with pytest.raises(BtrfsError) as refusal:
        steps(wanted, filesystem(*there) if there else None)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith("tank: ")


def test_which_one_is_meant() -> None:
    ours, other = filesystem("/dev/a"), filesystem("/dev/b", label="photos", uuid=TWO)
    assert find(wish("/dev/a"), [ours, other]) is ours
    assert find(wish("/dev/c"), [other]) is None
    assert find(wish(uuid=TWO), [ours, other]) is other
    for wanted, reason in (
        (wish("/dev/b"), f"give uuid={TWO}; nothing here is formatted over it"),
        (wish(uuid="none"), "no disk here has the Btrfs uuid=none"),
        (wish("/dev/c", "/dev/d"), f"the Btrfs uuid={ONE} on /dev/a has this label already"),
    ):
        with pytest.raises(BtrfsError) as refusal:
            find(wanted, [ours, other])
        assert reason in str(refusal.value)
    twin = filesystem("/dev/c", uuid=TWO)
    with pytest.raises(BtrfsError, match="hold several filesystems"):
        find(wish("/dev/a", "/dev/c"), [ours, twin])
