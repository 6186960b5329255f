# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Snapshots' names and times, which are due, and what retention makes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import (
    _btrfs as btrfs,
    _snapshot_plan as plan,
    _snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import BtrfsError
from ansible_collections.nas.assistant.plugins.module_utils._snapshot_plan import Keep, Snapshot

HOUR, DAY = 3600, 86400
VOLUME = {"path": "/tank/data", "folder": "/tank/.snapshots"}


def at(text: str) -> int:
    """Seconds since the epoch of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def snapshots(*texts: str) -> list[Snapshot]:
    """One at each of these times; the time is its UUID too."""
    return [Snapshot(plan.snapshot_text("data", at(text)), at(text), text) for text in texts]


def times(found: tuple[Snapshot, ...]) -> list[str]:
    return [each.uuid for each in found]


@pytest.mark.parametrize(
    ("text", "name", "moment", "draft"),
    [
        ("data.20250131T040000Z", "data", "2025-01-31T04:00:00", False),
        (".data.20250131T040000Z.draft", "data", "2025-01-31T04:00:00", True),
        ("a b.ü.20240229T235959Z", "a b.ü", "2024-02-29T23:59:59", False),
        ("a.20250131T040000Z.20250131T050000Z", "a.20250131T040000Z", "2025-01-31T05:00", False),
        ("-rf.19700101T000000Z", "-rf", "1970-01-01", False),
        ("a\nb.19700101T000000Z", "a\nb", "1970-01-01", False),
        # What the calendar does not have looks like ours, and is not.
        ("data.20250229T040000Z", "data", None, False),
        ("data.20250131T240000Z", "data", None, False),
        ("data.20250131T235960Z", "data", None, False),
        (".data.00000131T040000Z.draft", "data", None, True),
    ],
)
def test_names_that_look_like_ours(text: str, name: str, moment: str | None, draft: bool) -> None:
    expected = plan.Entry(text, name, at(moment) if moment else None, draft)
    assert plan.entry(text) == expected
    if moment:
        made = plan.snapshot_text(name, at(moment))
        assert (plan.draft_text(made) if draft else made) == text


@pytest.mark.parametrize(
    "text",
    [
        "data",
        "data.20250131T040000",
        "data.20250131T040000z",
        "data.20250131T040000Z ",
        "data.20250131T040000Z\n",
        "data.20250131T040000Z.bak",
        ".20250131T040000Z",
        "data-20250131T040000Z",
        "data.\u0662\u0660\u0662\u0665\u0660\u0661\u0663\u0661T040000Z",
        "data.20250131T040000Z.draft",
        "..20250131T040000Z.draft",
    ],
)
def test_names_that_do_not(text: str) -> None:
    found = plan.entry(text)
    assert found is None or found.name != "data"


def test_names_sort_by_time() -> None:
    moments = [0, at("1999-12-31T23:59:59"), at("2000-01-01"), at("2025-10-26T01:00")]
    texts = [plan.snapshot_text("data", moment) for moment in moments]
    assert texts == sorted(texts)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (0, 0),
        ("0s", 0),
        ("90s", 90),
        ("15m", 900),
        ("1h", 3600),
        ("1d", 86400),
        ("2w", 1209600),
    ],
)
def test_durations(value: Any, seconds: int) -> None:
    assert plan.duration("every", value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "60",
        60,
        "1y",
        "1.5h",
        "-1h",
        " 1h",
        "1h\n",
        "1H",
        "h",
        True,
        None,
        "\u0661h",
        "9" * 5000,
    ],
)
def test_what_is_no_duration(value: Any) -> None:
    with pytest.raises(BtrfsError) as raised:
        plan.duration("volumes[0].every", value)
    assert f"volumes[0].every={value!r}: give a number with one of s, m, h, d, w" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("ages", "every", "due"),
    [
        ([], 0, True),
        ([], HOUR, True),
        ([0], 0, True),
        ([HOUR], HOUR, True),
        ([HOUR - 1], HOUR, False),
        ([DAY, HOUR - 1], HOUR, False),
        # Dated after now.
        ([-1], HOUR, True),
        ([-365 * DAY, HOUR], HOUR, True),
        ([-365 * DAY, 1], HOUR, False),
    ],
)
def test_what_is_due(ages: list[int], every: int, due: bool) -> None:
    moment = at("2025-06-01T12:00")
    assert plan.is_due([moment - age for age in ages], every, moment) == due


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ({"last": 3}, 3),
        ({"last": 1}, 1),
        ({"last": 10}, 6),
        ({"last": 1, "minimum": 3}, 3),
        ({"last": 3, "minimum": 1}, 3),
        ({"last": 1, "minimum": 0}, 1),
        ({"last": 1, "minimum": 10}, 6),
        ({"hourly": 2}, 2),
        ({"daily": 3}, 3),
        ({"daily": 10}, 3),
        ({"within": "1s"}, 1),
        # Hours and days without any count for a quarter of it each.
        ({"within": "1h"}, 4),
        ({"within": "4h"}, 4),
        ({"within": "301m"}, 5),
        ({"within": "0", "last": 2}, 2),
        ({"within": "4w"}, 6),
        ({}, 6),
        (None, 6),
    ],
)
def test_how_many_stay(keep: Any, kept: int) -> None:
    there = snapshots(
        *("2025-06-01T10:00", "2025-06-01T11:00", "2025-06-02T10:00", "2025-06-02T11:00"),
        *("2025-06-03T10:00", "2025-06-03T11:00"),
    )
    found = plan.retention(there, Keep.of("keep", keep), at("2025-06-03T11:00"), ())
    assert len(there) - len(found.drop) == kept
    assert there[-1] not in found.drop
    assert (found.held, found.ahead) == ((), ())


@pytest.mark.parametrize(
    ("keep", "there", "dropped"),
    [
        ({"hourly": 2}, ["2025-01-01T10:00", "2025-01-01T10:59:59", "2025-01-01T11:00"], [0]),
        # Periods without any do not count.
        ({"hourly": 2}, ["2024-01-01T10:00", "2025-01-01T10:00", "2025-01-02T10:00"], [0]),
        ({"daily": 2}, ["2025-01-01T23:59:59", "2025-01-02T00:00", "2025-01-02T00:01"], [1]),
        # ISO weeks begin on Monday, and go over the new year: the first one of 2025 on 2024-12-30.
        ({"weekly": 5}, ["2024-12-29", "2024-12-30", "2025-01-05", "2025-01-06"], [1]),
        # 2026 has a week 53, the first days of 2027 in it.
        ({"weekly": 5}, ["2026-12-27", "2026-12-28", "2027-01-03", "2027-01-04"], [1]),
        # The same number of week in two years.
        ({"weekly": 5}, ["2024-01-03", "2025-01-03"], []),
        ({"monthly": 5}, ["2024-02-29", "2024-03-01", "2024-03-31", "2025-03-31"], [1]),
        ({"yearly": 5}, ["2024-01-01", "2024-12-31T23:59:59", "2025-01-01"], [0]),
        ({"yearly": 1}, ["2023-06-01", "2024-06-01", "2025-06-01"], [0, 1]),
        # What one key keeps no other drops.
        ({"last": 1, "yearly": 3}, ["2023-06-01", "2024-06-01", "2025-05-01", "2025-06-01"], [2]),
        (
            {"within": "1d", "monthly": 2},
            ["2025-04-30", "2025-05-01", "2025-05-02", "2025-05-03", "2025-05-04", "2025-05-31"],
            [1],
        ),
    ],
)
def test_periods(keep: Any, there: list[str], dropped: list[int]) -> None:
    found = plan.retention(snapshots(*there), Keep.of("keep", keep), at("2030-01-01"), ())
    assert times(found.drop) == [there[number] for number in reversed(dropped)]


def test_what_is_held_stays_and_does_not_count() -> None:
    there = snapshots("2025-01-01", "2025-01-02", "2025-01-03")
    keep = Keep(last=1, minimum=1)
    found = plan.retention(there, keep, at("2025-01-03"), {"2025-01-01", "2025-01-03"})
    assert times(found.held) == ["2025-01-01"]
    assert times(found.drop) == ["2025-01-02"]


def test_what_is_ahead_stays_and_does_not_count() -> None:
    there = snapshots("2025-01-01", "2025-01-02", "2025-01-03", "2026-01-01")
    found = plan.retention(there, Keep(last=1), at("2025-01-02"), ())
    assert times(found.ahead) == ["2026-01-01", "2025-01-03"]
    assert times(found.drop) == ["2025-01-01"]
    only_ahead = plan.retention(there, Keep(last=1), at("2024-01-01"), ())
    assert only_ahead.drop == ()


def test_nothing_goes_at_once_after_a_long_time_off() -> None:
    there = snapshots("2025-01-01", "2025-01-02", "2025-01-03")
    found = plan.retention(there, Keep(within=7 * DAY), at("2026-01-01"), ())
    assert found.drop == ()
    # Nor with the one that is made first thing: those go as new ones come.
    nas = Nas({"within": "2d"})
    now = nas.run(at("2025-01-01"), 200)
    assert len(nas.hours()) == 48
    now += 30 * DAY
    for hours, left in ((1, 37), (20, 37), (15, 37), (1, 37), (11, 48), (100, 48)):
        now = nas.run(now, hours)
        assert len(nas.hours()) == left


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (
            {"lasst": 3},
            "keep.lasst=3: the keys are last, hourly, daily, weekly, monthly, yearly, w",
        ),
        ({3: 3}, "keep.3=3: the keys are"),
        ({"last": -1}, "keep.last=-1: give a whole number, 0 or more"),
        ({"last": 1.0}, "keep.last=1.0: give"),
        ({"last": "3"}, "keep.last='3': give"),
        ({"last": True}, "keep.last=True: give"),
        ({"last": None}, "keep.last=None: give"),
        ({"last": [3]}, "keep.last=[3]: give"),
        ({"last": 1, "minimum": -1}, "keep.minimum=-1: give"),
        ({"last": 0}, "keep={'last': 0} keeps nothing"),
        ({"last": 0, "within": "0"}, "keeps nothing"),
        ({"minimum": 3}, "keep={'minimum': 3} keeps nothing"),
        ({"within": 7}, "keep.within=7: give a number with one of"),
        ({"within": "1y"}, "keep.within='1y': give"),
        ([3], "keep=[3]: give a dictionary"),
        ("last", "keep='last': give a dictionary"),
    ],
)
def test_what_cannot_be_kept(keep: Any, words: str) -> None:
    with pytest.raises(BtrfsError) as raised:
        plan.wishes([{**VOLUME, "keep": keep}], "present")
    assert words in str(raised.value)
    assert str(raised.value).startswith("volumes[0].keep")


@pytest.mark.parametrize(
    ("volume", "state", "words"),
    [
        ({"path": "tank/data"}, "present", "volumes[0].path='tank/data': give the whole path"),
        ({"path": "/tank/../data"}, "present", "volumes[0].path='/tank/../data': give"),
        ({"path": "/tank/\0"}, "present", r"volumes[0].path='/tank/\x00': give"),
        ({"path": None}, "present", "volumes[0].path=None: give"),
        ({"folder": "../x"}, "present", "volumes[0].folder='../x': give"),
        ({"folder": "/link/."}, "present", "volumes[0].folder='/link/.': give"),
        ({"folder": ""}, "present", "volumes[0].folder='': give"),
        ({"path": "/"}, "present", "volumes[0].name='': give a name"),
        ({"name": ""}, "present", "volumes[0].name='': give a name"),
        ({"name": ".."}, "present", "volumes[0].name='..': give a name"),
        ({"name": "../x"}, "present", "volumes[0].name='../x': give a name"),
        ({"name": "a\nb"}, "present", r"volumes[0].name='a\nb': give a name"),
        ({"path": "/tank/a\nb"}, "present", r"volumes[0].name='a\nb': give a name"),
        ({"name": "a\udcff"}, "present", r"volumes[0].name='a\udcff': give a name"),
        ({"name": "ü" * 116}, "present", "of 231 bytes at most"),
        ({"every": "1"}, "present", "volumes[0].every='1': give a number"),
        ({"snapshots": ["x"]}, "present", "volumes[0].snapshots=['x']: state=absent deletes"),
        ({"snapshots": ["x"]}, "pruned", "volumes[0].snapshots=['x']: state=absent deletes"),
        ({}, "absent", "volumes[0].snapshots=[]: state=absent deletes"),
        (
            {"snapshots": ["../x"]},
            "absent",
            "volumes[0].snapshots='../x': this volume's are called",
        ),
        ({"snapshots": ["-rf"]}, "absent", "snapshots='-rf': this volume's are called data.YYYY"),
        ({"snapshots": ["x.20250131T040000Z"]}, "absent", "this volume's are called data.YYYY"),
        ({"snapshots": ["data.20250231T040000Z"]}, "absent", "this volume's are called data."),
        ({"snapshots": [".data.20250131T040000Z.draft"]}, "absent", "this volume's are called"),
        ({"snapshots": ["../data.20250131T040000Z"]}, "absent", "this volume's are called"),
    ],
)
def test_volumes_that_cannot_be(volume: dict[str, Any], state: str, words: str) -> None:
    with pytest.raises(BtrfsError) as raised:
        plan.wishes([{**VOLUME, **volume}], state)
    assert words in str(raised.value)


def test_volumes_that_can_be() -> None:
    text = "data.20250131T040000Z"
    values = [
        {"path": "/tank/data/", "folder": "/tank/.snapshots//", "name": None, "keep": None},
        {**VOLUME, "name": "-rf", "every": "1h", "keep": {"last": 3}},
        {**VOLUME, "name": "ü" * 115},
        {**VOLUME, "folder": "/", "name": "data"},
    ]
    first, second, _, root = plan.wishes(values, "present")
    assert first == plan.Wish("/tank/data", "/tank/.snapshots", "data", None, 0, ())
    assert (second.name, second.every, second.keep) == ("-rf", HOUR, Keep(last=3))
    assert root.folder == "/"
    (named,) = plan.wishes([{**VOLUME, "snapshots": [text, text]}], "absent")
    assert named.snapshots == (text,)


def test_volumes_that_would_mix_their_snapshots() -> None:
    with pytest.raises(BtrfsError) as raised:
        plan.wishes([VOLUME, {**VOLUME, "path": "/tank/other/data/"}], "present")
    assert "volumes[1]: volumes[0] has folder='/tank/.snapshots' and name='data' too" in str(
        raised.value
    )


class Nas:
    """A NAS that makes a snapshot each hour and keeps what retention keeps."""

    def __init__(self, keep: dict[str, Any]) -> None:
        self.keep = Keep.of("keep", keep)
        self.there: dict[str, Snapshot] = {}
        self.ahead: list[str] = []

    def run(self, now: int, hours: int) -> int:
        """Let hours go by; return the time at their end."""
        for _ in range(hours):
            own = [each.time for each in self.there.values()]
            if plan.is_due(own, HOUR, now):
                text = plan.snapshot_text("data", now)
                self.there.setdefault(text, Snapshot(text, now, text))
            found = plan.retention(self.there.values(), self.keep, now, ())
            newest = max(each.time for each in self.there.values() if each.time <= now)
            for each in found.drop:
                assert each.time < newest
                del self.there[each.text]
            self.ahead = times(found.ahead)
            now += HOUR
        return now

    def days(self) -> list[str]:
        return [plan.snapshot_text("", each.time)[1:9] for each in self._sorted()]

    def hours(self) -> list[int]:
        return [each.time // HOUR for each in self._sorted()]

    def _sorted(self) -> list[Snapshot]:
        return sorted(self.there.values(), key=lambda each: each.time)


def test_a_year_of_hours(berlin: None) -> None:
    nas = Nas({"hourly": 24, "daily": 7, "weekly": 4, "monthly": 12, "yearly": 5})
    started = at("2024-11-01T00:30")
    # Over both changes of the clock: 24 hours without a gap and without one twice.
    for end in ("2025-03-30T12:30", "2025-10-26T12:30", "2025-11-01T00:30"):
        started = nas.run(started, (at(end) - started) // HOUR)
        hours = nas.hours()[-24:]
        assert hours == list(range(hours[0], hours[0] + 24))
    days = nas.days()
    assert days[-1] == "20251031"
    # The last of each day, week and month; the year's is among them.
    assert {"20251030", "20251029", "20251028", "20251027", "20251026", "20251025"} <= {*days}
    assert {"20251019", "20251012"} <= {*days}
    assert [day for day in days if day < "20251001"] == [
        *("20241130", "20241231", "20250131", "20250228", "20250331", "20250430"),
        *("20250531", "20250630", "20250731", "20250831", "20250930"),
    ]
    assert len(days) == 24 + 6 + 2 + 11
    assert not nas.ahead


def test_the_last_three() -> None:
    nas = Nas({"last": 3})
    end = nas.run(at("2025-01-01"), 1000)
    assert nas.hours() == [end // HOUR - 3, end // HOUR - 2, end // HOUR - 1]


def test_a_clock_set_back_by_three_days() -> None:
    nas = Nas({"hourly": 48, "daily": 7})
    now = nas.run(at("2025-06-01"), 240)
    before = nas.hours()
    now = nas.run(now - 3 * DAY, 1)
    assert len(nas.ahead) == 49
    # Of those ahead none is lost, and those before are kept as if they were alone.
    assert {*before} <= {*nas.hours()}
    now = nas.run(now, 71)
    assert {hour for hour in before if hour * HOUR >= now} <= {*nas.hours()}
    now = nas.run(now, 240)
    assert not nas.ahead
    assert nas.hours()[-48:] == list(range(now // HOUR - 48, now // HOUR))


def test_a_clock_set_ahead_by_a_year() -> None:
    nas = Nas({"last": 10, "hourly": 48, "daily": 7, "monthly": 12})
    now = nas.run(at("2025-06-01"), 2400)
    before = nas.hours()
    nas.run(now + 365 * DAY, 5)
    # Five hours, one day and one month of the wrong year cost as many of the right one, no more.
    assert len({*before} - {*nas.hours()}) <= 5 + 1 + 1
    now = nas.run(now + 5 * HOUR, 100)
    assert len(nas.ahead) == 5
    assert nas.hours()[-5 - 48 : -5] == list(range(now // HOUR - 48, now // HOUR))
    # A year later they are like any other, and go.
    nas.run(now + 366 * DAY, 100)
    assert not nas.ahead


@pytest.mark.parametrize("ahead", [3, 40, 4000])
@pytest.mark.parametrize("hours", [1, 5])
def test_within_a_clock_set_ahead(ahead: int, hours: int) -> None:
    nas = Nas({"within": "2d"})
    now = nas.run(at("2025-06-01"), 240)
    before = nas.hours()
    nas.run(now + ahead * DAY, hours)
    # A quarter, and as many as were made.
    assert len({*before} - {*nas.hours()}) <= 12 + hours
    now = nas.run(now + hours * HOUR, 48)
    assert nas.hours()[-hours - 48 : -hours] == list(range(now // HOUR - 48, now // HOUR))


def test_what_was_held_before_stays_for_a_week(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = at("2026-11-24T09:00")
    there = {
        "data.20261117T090001Z": "young",
        "data.20261117T090000Z": "old",
        "photos.20261124T080000Z": "another",
        "data.20261125T090000Z": "ahead",
        "notes": "none",
    }
    for text in there:
        (tmp_path / text).mkdir()

    def look(path: str) -> SimpleNamespace:
        return SimpleNamespace(uuid=there[Path(path).name])

    monkeypatch.setattr(_snapshots, "now", lambda: now)
    monkeypatch.setattr(_snapshots, "look", look)
    hold = tmp_path / "hold"
    assert _snapshots.hold_text(str(hold), str(tmp_path), "new") == "new\n"
    hold.write_text("old\nyoung\ngone\nahead\nnew\n")
    said = _snapshots.hold_text(str(hold), str(tmp_path), "new")
    assert said == "young\nahead\nnew\n"


def listed(number: int, parent: int, path: str) -> btrfs.Subvolume:
    return btrfs.Subvolume(number, parent, path, f"uuid{number}", "", "", 7, 7)


@pytest.mark.parametrize(
    ("start", "printed"),
    [
        (5, ["data", "data/in", "data/in/deep", "other"]),
        (256, ["data", "in", "in/deep", "other"]),
        (257, ["data", "data/in", "deep", "other"]),
        (259, ["data", "data/in", "data/in/deep", "other"]),
    ],
)
def test_paths_wherever_they_were_listed_from(start: int, printed: list[str]) -> None:
    numbers = [(256, 5), (257, 256), (258, 257), (259, 5)]
    found = [listed(*each, path) for each, path in zip(numbers, printed, strict=True)]
    whole = [each.path for each in btrfs.from_top(found, start)]
    assert whole == ["data", "data/in", "data/in/deep", "other"]


def test_lines_that_a_name_forges() -> None:
    line = "ID {} gen 7 cgen 7 parent {} top level 5 parent_uuid - received_uuid - uuid {} path {}"
    lines = [
        line.format(256, 5, "a", "data"),
        line.format(257, 256, "b", "data/x"),
        "ID x gen path data",
        "ID 1 path data",
        "ID path",
        line.format(300, 301, "c", "round"),
        line.format(301, 300, "d", "and round"),
    ]
    found = btrfs.parse_subvolumes("\n".join(lines), "ID 257 gen 7\nID x gen 7\nID 256gen")
    assert [(each.id, each.read_only) for each in found] == [
        *((256, False), (257, True), (300, False), (301, False))
    ]
    assert [each.path for each in btrfs.from_top(found, 256)][2:] == ["round", "and round"]
