# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What snapshots are called, which are due, and which ones retention drops.

Times are whole seconds since the epoch, and calendars are those of UTC: there is no hour twice and
none missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._btrfs import BtrfsError

#: Where holds are: not where a volume may be mounted, as at /var/lib/nas-assistant, which is
#: unmounted or brought back while a hold is written.
HOLDS = "/var/lib/nas-assistant-storage/holds"
# Where they were before that.
EARLIER_HOLDS = "/var/lib/nas-assistant/holds"
_STAMP = "%Y%m%dT%H%M%SZ"
_SNAPSHOT = re.compile(r"(.+)\.([0-9]{8}T[0-9]{6}Z)", re.DOTALL)
_DRAFT = re.compile(r"\.(.+)\.([0-9]{8}T[0-9]{6}Z)\.draft", re.DOTALL)
# A name in a folder has up to 255 bytes, of which a draft needs 24 more than NAME.
_LONGEST = 255 - len("..20250131T040000Z.draft")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(rf"([0-9]{{1,9}})([{''.join(_UNITS)}])|0")

# What makes two snapshots be of the same hour, day, ISO week, month or year.
_PERIODS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda time: (time.date(), time.hour),
    "daily": datetime.date,
    # The year of the ISO week: 2024-12-30 lies in the first week of 2025.
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: time.year,
}
_COUNTS = ("last", *_PERIODS)
# As which part of ``within`` a time without a snapshot counts at most. With a quarter, that of a
# copy once a week is exact for a month.
_GAP = 4


@dataclass(frozen=True)
class Entry:
    """A name in a folder that looks like one of ours. ``time`` None: the calendar has no such."""

    text: str
    name: str
    time: int | None
    draft: bool


@dataclass(frozen=True)
class Snapshot:
    """A snapshot: its name in the folder, when it was made, its UUID (empty: it is planned)."""

    text: str
    time: int
    uuid: str


@dataclass(frozen=True)
class Keep:
    """What retention keeps: the newest ones, the newest of each period, and what is younger than
    ``within`` seconds, as ``_younger`` counts them; in any case ``minimum`` of them."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: int = 0
    minimum: int = 1

    @classmethod
    def of(cls, where: str, value: Any) -> Keep | None:
        """From the dictionary that the module takes; None keeps all.

        :raises BtrfsError: a key or a value is none that it may have, or nothing would be kept.
        """
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise BtrfsError(f"{where}={value!r}: give a dictionary such as {{'last': 3}}")
        keys = (*_COUNTS, "within", "minimum")
        for key, number in value.items():
            if key not in keys:
                raise BtrfsError(f"{where}.{key}={number!r}: the keys are {', '.join(keys)}")
            # True is an int to Python, and no count to anybody.
            if key != "within" and (type(number) is not int or number < 0):
                raise BtrfsError(f"{where}.{key}={number!r}: give a whole number, 0 or more")
        within = duration(f"{where}.within", value.get("within", 0))
        counts: dict[str, int] = {key: value[key] for key in value if key != "within"}
        if not within and not any(counts.get(key) for key in _COUNTS):
            raise BtrfsError(
                f"{where}={value!r} keeps nothing: give one of {', '.join(_COUNTS)} a number above "
                "0, or within an age; leave keep out to keep all"
            )
        return cls(within=within, **counts)


@dataclass(frozen=True)
class Wish:
    """What is asked for of one volume, checked. ``every``: seconds; ``keep`` None keeps all."""

    path: str
    folder: str
    name: str
    keep: Keep | None
    every: int
    snapshots: tuple[str, ...]


@dataclass(frozen=True)
class Retention:
    """What retention drops; what it would drop if it were not held; what is dated after now."""

    drop: tuple[Snapshot, ...]
    held: tuple[Snapshot, ...]
    ahead: tuple[Snapshot, ...]


def wishes(volumes: Sequence[Mapping[str, Any]], state: str) -> list[Wish]:
    """From the volumes that the module takes.

    :raises BtrfsError: an option has a value that cannot be, or two volumes would mix their
        snapshots; with the option's name, the value, the remedy.
    """
    found: list[Wish] = []
    for number, value in enumerate(volumes):
        wish = _wish(f"volumes[{number}]", value, state)
        for other, earlier in enumerate(found):
            if (earlier.folder, earlier.name) == (wish.folder, wish.name):
                raise BtrfsError(
                    f"volumes[{number}]: volumes[{other}] has folder={wish.folder!r} and "
                    f"name={wish.name!r} too. Give each a name of its own"
                )
        found.append(wish)
    return found


def absolute(where: str, value: Any) -> str:
    """Return a path without slashes at its end.

    :raises BtrfsError: it is none from the root on, or goes back with ``..``.
    """
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or "\0" in value
        or {".", ".."} & set(value.split("/"))
    ):
        raise BtrfsError(f"{where}={value!r}: give the whole path, without . and ..")
    return value.rstrip("/") or "/"


def duration(where: str, value: Any) -> int:
    """Return the seconds of a duration such as ``15m``.

    :raises BtrfsError: it is none.
    """
    matched = None if isinstance(value, bool) else _DURATION.fullmatch(str(value))
    if not matched:
        raise BtrfsError(
            f"{where}={value!r}: give a number with one of {', '.join(_UNITS)}, such as 15m, or 0"
        )
    return int(matched[1]) * _UNITS[matched[2]] if matched[1] else 0


def snapshot_text(name: str, time: int) -> str:
    """Return what a snapshot is called; names sort by time."""
    return f"{name}.{stamp(time)}"


def stamp(time: int) -> str:
    """Return a time as names have it."""
    return datetime.fromtimestamp(time, UTC).strftime(_STAMP)


def draft_text(text: str) -> str:
    """Return what a snapshot is called until it is finished."""
    return f".{text}.draft"


def entry(text: str) -> Entry | None:
    """Return what a name in a folder stands for; None where it does not look like one of ours."""
    for pattern, draft in ((_SNAPSHOT, False), (_DRAFT, True)):
        if matched := pattern.fullmatch(text):
            return Entry(text, matched[1], _time(matched[2]), draft)
    return None


def is_due(times: Collection[int], every: int, now: int) -> bool:
    """Whether none of them is younger than ``every`` seconds; those after now do not count."""
    return all(now - time >= every for time in times if time <= now)


def retention(
    snapshots: Collection[Snapshot], keep: Keep | None, now: int, held: Collection[str]
) -> Retention:
    """Return what becomes of a volume's snapshots.

    :param held: UUIDs of what must stay whatever ``keep`` says. They do not count as kept by it, so
        that nothing else is missing once they are released.
    """
    newest_first = sorted(snapshots, key=lambda each: each.time, reverse=True)
    ahead = tuple(each for each in newest_first if each.time > now)
    past = newest_first[len(ahead) :]
    if keep is None or not past:
        return Retention((), (), ahead)
    kept = set(past[: keep.last])
    for period, same in _PERIODS.items():
        kept |= _newest_of_each(past, same, getattr(keep, period))
    kept |= _younger(past, keep.within)
    others = [each for each in past if each not in kept]
    others = others[max(0, keep.minimum - len(kept)) :]
    return Retention(
        tuple(each for each in others if each.uuid not in held),
        tuple(each for each in others if each.uuid in held),
        ahead,
    )


def _younger(newest_first: Sequence[Snapshot], within: int) -> set[Snapshot]:
    """Return the snapshots that are younger than so many seconds, counted from the newest one.

    A time in which none was made counts for a quarter of that at most. The NAS was off for it, or
    the newest is of a clock that ran ahead: most of what there is stays then, and goes as new ones
    come.
    """
    kept: set[Snapshot] = set()
    age, after = 0, newest_first[0].time
    for each in newest_first:
        age += min(after - each.time, -(-within // _GAP))
        after = each.time
        if age >= within:
            break
        kept.add(each)
    return kept


def _newest_of_each(
    newest_first: Sequence[Snapshot], same: Callable[[datetime], object], count: int
) -> set[Snapshot]:
    """Return the newest snapshot of each of the last ``count`` periods that have any."""
    found: dict[object, Snapshot] = {}
    for each in newest_first:
        if len(found) >= count:
            break
        found.setdefault(same(datetime.fromtimestamp(each.time, UTC)), each)
    return set(found.values())


def _wish(where: str, value: Mapping[str, Any], state: str) -> Wish:
    path = absolute(f"{where}.path", value.get("path"))
    name = _name(f"{where}.name", value.get("name"), path)
    snapshots = tuple(dict.fromkeys(value.get("snapshots") or ()))
    if bool(snapshots) != (state == "absent"):
        raise BtrfsError(
            f"{where}.snapshots={list(snapshots)!r}: state=absent deletes what is named there, and "
            "no other state takes it"
        )
    for text in snapshots:
        named = entry(text)
        if not named or named.draft or named.time is None or named.name != name:
            raise BtrfsError(
                f"{where}.snapshots={text!r}: this volume's are called {name}.YYYYMMDDTHHMMSSZ"
            )
    return Wish(
        path=path,
        folder=absolute(f"{where}.folder", value.get("folder")),
        name=name,
        keep=Keep.of(f"{where}.keep", value.get("keep")),
        every=duration(f"{where}.every", value.get("every", 0)),
        snapshots=snapshots,
    )


def _name(where: str, value: Any, path: str) -> str:
    name = os.path.basename(path) if value is None else value
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        # A line break would forge lines of what btrfs prints, and of logs.
        or not name.isprintable()
        or len(name.encode()) > _LONGEST
    ):
        raise BtrfsError(
            f"{where}={name!r}: give a name for the snapshots, of printable characters without a "
            f"slash, and of {_LONGEST} bytes at most"
        )
    return name


def _time(stamp: str) -> int | None:
    # Ten times as quick as strptime, which counts with thousands of names.
    fields = (stamp[:4], stamp[4:6], stamp[6:8], stamp[9:11], stamp[11:13], stamp[13:15])
    year, month, day, hour, minute, second = map(int, fields)
    try:
        return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError:
        return None
