# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Which snapshots are sent from which parent, what goes, what is in the way; how ssh is called."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._replicate_plan import (
    Entry,
    ReplicateError,
    Ssh,
    Wish,
    differences,
    held,
    is_stamped,
    plan,
    replicas,
    snapshots,
)


def name(day: int) -> str:
    return f"data.202601{day:02}T000000Z"


def own(day: int, **fields: Any) -> Entry:
    """A snapshot of the source; its UUID is told by its day."""
    return Entry(**{"name": name(day), "uuid": f"u{day}", "read_only": True, **fields})


def copy(day: int, **fields: Any) -> Entry:
    """A whole replica of it."""
    given = {"uuid": f"r{day}", "received_uuid": f"u{day}", "received_at": 7}
    return own(day, **{**given, **fields})


def days(*numbers: int) -> list[Entry]:
    return [own(number) for number in numbers]


def copies(*numbers: int) -> list[Entry]:
    return [copy(number) for number in numbers]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("data.20260101T000000Z", True),
        ("data.20240229T235959Z", True),
        ("data.20260229T000000Z", False),  # no such day
        ("data.20261301T000000Z", False),
        ("data.20260101T240000Z", False),
        ("data.20260101T000000", False),
        ("data.20260101T000000Z.bak", False),
        ("data.20260101T000000Z\n", False),
        ("data.\u0662\u0660\u0662\u06660101T000000Z", False),  # digits, but not these
        ("data2.20260101T000000Z", False),
        ("data.more.20260101T000000Z", False),
        ("dataX20260101T000000Z", False),
        (".20260101T000000Z", False),
        ("20260101T000000Z", False),
    ],
)
def test_names(entry: str, expected: bool) -> None:
    assert is_stamped("data", entry) is expected


@pytest.mark.parametrize("odd", ["-rf", "a b", "x.20260101T000000Z", "ü", "[a]*"])
def test_a_name_is_no_pattern(odd: str) -> None:
    assert is_stamped(odd, f"{odd}.20260101T000000Z")
    assert not is_stamped(odd, "aa.20260101T000000Z")


def test_what_counts_on_either_side() -> None:
    entries = [
        own(3),
        own(1),
        own(2, read_only=False),
        Entry(name(4), subvolume=False),
        own(5, name="data.notes"),
    ]
    assert [entry.name for entry in snapshots("data", entries)] == [name(1), name(3)]
    assert replicas("data", entries) == []
    there = [copy(2), copy(1), copy(3, read_only=False), copy(4, received_uuid=""), own(5)]
    assert [entry.name for entry in replicas("data", there)] == [name(1), name(2)]


@pytest.mark.parametrize(
    ("source", "destination", "options", "transfers", "deletions"),
    [
        # Nothing in common: all of it.
        (days(1, 2, 3), [], {}, [(3, None)], []),
        (days(4), copies(1, 2), {}, [(4, None)], []),
        # From the newest that both have.
        (days(1, 2, 3), copies(1), {}, [(3, 1)], []),
        (days(1, 2, 3), copies(1, 2), {}, [(3, 2)], []),
        (days(1, 3), copies(1, 2), {}, [(3, 1)], []),
        (days(1, 2, 3), copies(3), {}, [], []),
        # All: in order, each from its nearest.
        (days(1, 2, 3), [], {"every": True}, [(1, None), (2, 1), (3, 2)], []),
        (days(1, 2, 3), copies(2), {"every": True}, [(1, 2), (3, 2)], []),
        (days(1, 2, 3, 4), copies(1, 4), {"every": True}, [(2, 1), (3, 2)], []),
        # With a number, only as many are sent as stay.
        (days(1, 2, 3), [], {"every": True, "keep_last": 2}, [(2, None), (3, 2)], []),
        (days(1, 2, 3), copies(2, 3), {"every": True, "keep_last": 2}, [], []),
        (days(2, 3, 4), copies(1, 2, 3), {"every": True, "keep_last": 2}, [(4, 3)], [1, 2]),
        # What the source has no more counts among those that stay.
        (days(4), copies(1, 2, 3), {"keep_last": 3}, [(4, None)], [1]),
        (days(3, 4), copies(1, 2, 3), {"keep_last": 1}, [(4, 3)], [1, 2, 3]),
        (days(4), copies(1, 2, 3, 4), {"keep_last": 2}, [], [1, 2]),
        # A clock ran ahead once: the newest of the source stays, however it is called.
        (days(1, 2), copies(1, 8, 9), {"keep_last": 2}, [(2, 1)], [1]),
        (days(1, 2), copies(2, 8, 9), {"keep_last": 2}, [], []),
    ],
)
def test_plan(
    source: list[Entry],
    destination: list[Entry],
    options: dict[str, Any],
    transfers: list[tuple[int, int | None]],
    deletions: list[int],
) -> None:
    made = plan("data", source, destination, **options)
    parents = [(each.snapshot.name, each.parent and each.parent.name) for each in made.transfers]
    assert parents == [(name(each), parent and name(parent)) for each, parent in transfers]
    assert made.deletions == [name(day) for day in deletions]
    assert made.remainders == []
    # Carried out, there is nothing left to do.
    there = [each for each in destination if each.name not in made.deletions]
    there += [copy(day) for day, _ in transfers]
    again = plan("data", source, there, **options)
    assert (again.transfers, again.deletions) == ([], [])


@pytest.mark.parametrize(
    "broken",
    [
        copy(1, read_only=False),
        copy(1, received_uuid=""),
        copy(1, subvolume=False),
        copy(1, received_uuid="another"),
        copy(1, name="data.notes"),
    ],
)
def test_what_is_not_whole_is_no_parent_and_is_left_alone(broken: Entry) -> None:
    made = plan("data", days(1, 2), [broken], keep_last=1)
    assert [each.parent for each in made.transfers] == [None]
    gone = [name(1)] if broken.complete and broken.name == name(1) else []
    assert (made.remainders, made.deletions) == ([], gone)
    assert held(days(1, 2), replicas("data", [broken])) == []


def test_a_source_that_was_received_is_known_by_what_it_was_received_as() -> None:
    source = [own(1, uuid="x1", received_uuid="u1"), own(2, uuid="x2", received_uuid="u2")]
    (sent,) = plan("data", source, copies(1)).transfers
    assert (sent.snapshot.uuid, sent.parent) == ("x2", source[0])
    assert held(source, copies(1, 2)) == [source[1]]


def test_snapshots_that_share_a_received_uuid_are_no_parents() -> None:
    """As those of a subvolume do that was received and then made writable by force."""
    source = [own(day, uuid=f"x{day}", received_uuid="u1") for day in (1, 2)]
    made = plan("data", source, copies(1), every=True)
    assert [(each.snapshot.name, each.parent) for each in made.transfers] == [(name(2), None)]
    assert held(source, copies(1)) == []


@pytest.mark.parametrize(
    ("standing", "message"),
    [
        (Entry(name(1), subvolume=False), "no subvolume"),
        (copy(1, received_uuid="another"), "a replica of another snapshot (received UUID another)"),
        (own(1), "made there, or changed after it was received"),
        (copy(1, read_only=False), "a replica that was made writable"),
        # As `btrfs property set -f` leaves it.
        (copy(1, read_only=False, received_uuid=""), "a replica that was made writable"),
    ],
)
def test_what_is_in_the_way(standing: Entry, message: str) -> None:
    with pytest.raises(
        ReplicateError, match=rf"{name(1)} at the destination is in the way"
    ) as said:
        plan("data", days(1), [standing])
    assert message in str(said.value)
    # Where nothing is to be sent by that name, it is nobody's business.
    assert plan("data", days(1, 2), [standing]).remainders == []


def test_a_remainder_goes_first() -> None:
    rest = own(2, uuid="rest", read_only=False)
    made = plan("data", days(1, 2), [copy(1), rest])
    assert made.remainders == [name(2)]
    assert [(each.snapshot.name, each.parent) for each in made.transfers] == [(name(2), own(1))]


def test_no_snapshot_is_an_error() -> None:
    with pytest.raises(ReplicateError, match=r"no read-only snapshot called data\.YYYYMMDD"):
        plan("data", [own(1, read_only=False)], copies(1), keep_last=1)


def wish(**fields: Any) -> Wish:
    given = {
        "source": "/srv/s//",
        "name": "data",
        "destination": "/mnt/d",
        "ssh": None,
        "select": "newest",
        "keep_last": None,
        "verify": "received",
        "holds": "/holds",
        "timeout": 600,
    }
    return Wish.of({**given, **fields})


def test_holds_of_different_replications_have_different_files() -> None:
    wishes = [
        wish(),
        wish(name="data-mnt", destination="/d"),
        wish(ssh={"host": "nas2"}),
        wish(ssh={"host": "nas2", "port": 2222}),
        wish(destination="/mnt/ä"),
        wish(destination="/mnt/ö"),
        wish(destination="/mnt/" + "x" * 300),
        wish(name="a'; rm"),
    ]
    files = {each.hold_file for each in wishes}
    assert len(files) == len(wishes)
    for file in files:
        folder, _, last = file.rpartition("/")
        assert folder == "/holds"
        assert last.startswith("replicate-")
        assert len(last) < 128
    assert wish().hold_file == wish(source="/elsewhere", destination="/mnt//d/").hold_file


def test_ssh_asks_for_exactly_the_words() -> None:
    words = ["btrfs", "receive", "--", "/a b/$(id)\n'x'", "-rf"]
    value = {"host": "nas2", "user": "u", "become": True, "identity_file": "/k y", "port": None}
    argv = Ssh.of(value).argv(words)
    assert argv[:3] == ["ssh", "-F", "none"]
    assert argv[-3:-1] == ["--", "nas2"]
    assert shlex.split(argv[-1]) == ["sudo", "-n", "--", "env", "LC_ALL=C", *words]
    assert 'IdentityFile="/k y"' in argv
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes", "IdentityAgent=none"} <= set(argv)
    assert "ControlPath=none" in argv


@pytest.mark.parametrize("host", ["nas", "nas-2.example.net", "192.168.1.2", "fe80::1%eth0", "::1"])
def test_hosts(host: str) -> None:
    assert Ssh.of({"host": host}).host == host


@pytest.mark.parametrize(
    "host",
    ["", "-x", "-oProxyCommand=x", "a b", "a\n", "root@nas", "ssh://nas", "nas/x", "$(x)", "%h"],
)
def test_no_hosts(host: str) -> None:
    with pytest.raises(ReplicateError, match=r"ssh\.host="):
        Ssh.of({"host": host})


def line(path: str, **fields: Any) -> dict[str, Any]:
    return {"path": path, "mode": 1, **fields}


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [
        ([], [], []),
        ([line(""), line("a")], [line(""), line("a")], []),
        ([line(""), line("a")], [line("")], ["a is missing"]),
        ([line("")], [line(""), line("a b")], ["'a b' is too much"]),
        ([line("", mode=2)], [line("")], [". has another mode"]),
        ([line("a", size=1)], [line("a")], ["a has another size"]),
        # In a folder first, then what has its name and more: not the order of whole paths.
        (
            [line("a"), line("a/b"), line("a-c")],
            [line("a"), line("a-c")],
            ["a/b is missing"],
        ),
        ([line("a"), line("c")], [line("b"), line("c")], ["a is missing", "b is too much"]),
        ([line("\udcff")], [], ["'\\xff' is missing"]),
    ],
)
def test_differences(
    near: list[dict[str, Any]], far: list[dict[str, Any]], expected: list[str]
) -> None:
    assert list(differences(near, far)) == expected
