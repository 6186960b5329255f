# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Makes and deletes the snapshots of ZFS datasets, by the same rules as ``_snapshots``.

Ours carry a property with the id of their dataset. Others are never deleted, whatever their name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils import (
    _snapshot_plan as plan,
    _zfs as zfs,
)
from ansible_collections.nas.assistant.plugins.module_utils._lock import held
from ansible_collections.nas.assistant.plugins.module_utils._snapshots import (
    LOCKS,
    PATIENCE,
    Outcome,
)

#: Its value is the guid of the dataset: a dataset that was received from another has others'.
PROPERTY = "nas.assistant:made"
#: The same on what a rollback kept of the state that it took away.
KEPT = "nas.assistant:kept"
NAME = "nas"  # nas.20250131T040000Z


def wishes(datasets: Sequence[Mapping[str, Any]]) -> list[plan.Wish]:
    """From the role's settings: ``dataset``, ``every`` and ``keep`` each.

    :raises BtrfsError: a value cannot be.
    """
    return [
        plan.Wish(
            path=str(each["dataset"]),
            folder=f"{each['dataset']}@",
            name=NAME,
            keep=plan.Keep.of(f"{each['dataset']}: keep", each.get("keep")),
            every=plan.duration(f"{each['dataset']}: every", each.get("every", 0)),
            snapshots=(),
        )
        for each in datasets
    ]


def carry_out(wanted: Sequence[plan.Wish]) -> list[Outcome]:
    """Make what is due, and delete what retention drops; return what came of each dataset."""
    return [_carry_out(wish) for wish in wanted]


def make(name: str, now: int, kept: bool = False) -> str:
    """Make a snapshot of a dataset that is ours; return what it is called.

    :param kept: whether a rollback keeps it.
    """
    taken = {each.text for each in zfs.snapshots(name, PROPERTY)}
    while (text := plan.snapshot_text(NAME, now)) in taken:
        now += 1
    own = zfs.dataset(name).guid
    marks = ["-o", f"{PROPERTY}={own}", *(["-o", f"{KEPT}={own}"] if kept else [])]
    zfs.call("zfs", "snapshot", *marks, f"{name}@{text}")
    return str(text)


def _carry_out(wish: plan.Wish) -> Outcome:
    outcome = Outcome(wish)
    lock = os.path.join(LOCKS, f"snapshots-{wish.path.replace('/', '%')}.lock")
    try:
        with held(lock, PATIENCE):
            _run(outcome)
    except TimeoutError:
        outcome.problems.append(f"another run has been at it for {PATIENCE} s. Try again later")
    except (zfs.ZfsError, OSError) as error:
        outcome.problems.append(str(error))
    return outcome


def _run(outcome: Outcome) -> None:
    wish, now = outcome.wish, int(time.time())
    own, there = zfs.dataset(wish.path).guid, zfs.snapshots(wish.path, PROPERTY)
    ours, outcome.foreign = _sorted(there, own)
    outcome.before = sorted(each.text for each in ours)
    if plan.is_due([each.time for each in ours], wish.every, now):
        # A pool that is full takes none, and needs retention most.
        try:
            outcome.made.append(make(wish.path, now))
            there = zfs.snapshots(wish.path, PROPERTY)
            ours, _ = _sorted(there, own)
        except zfs.ZfsError as error:
            outcome.problems.append(str(error))
    found = plan.retention(ours, wish.keep, now, {each.guid for each in there if each.held})
    outcome.held = sorted(each.text for each in found.held)
    outcome.ahead = sorted(each.text for each in found.ahead)
    for each in found.drop:
        # One by one: what another dataset was cloned from stays, and the others need not.
        try:
            zfs.call("zfs", "destroy", f"{wish.path}@{each.text}")
            outcome.deleted.append(each.text)
        except zfs.ZfsError as error:
            outcome.problems.append(str(error))


def _sorted(there: Sequence[zfs.Snapshot], own: str) -> tuple[list[plan.Snapshot], list[str]]:
    """Return the snapshots that we made of the dataset with this guid, and the names of those that
    only look alike."""
    ours, foreign = [], []
    for each in there:
        entry = plan.entry(each.text)
        if not entry or entry.name != NAME or entry.draft:
            continue
        if each.mark == own and entry.time is not None:
            ours.append(plan.Snapshot(each.text, entry.time, each.guid))
        else:
            foreign.append(each.text)
    return ours, foreign
