# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a rollout must not do, since it could not be taken back."""

from __future__ import annotations

import configparser
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def rollout_replaced(config: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the files of models that are to be others by the same name.

    :param config: the service's configuration as it is on the NAS; empty where there is none.
    :param models: ``assistant_models`` as they are to be.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(config)
    except configparser.Error:  # nothing runs with it
        return []
    sections = [parser[name] for name in parser.sections() if name.startswith("model:")]
    there = {section.get("file", ""): section.get("sha256", "").lower() for section in sections}
    wanted = {str(model.get("file", "")): str(model.get("sha256", "")) for model in models.values()}
    return sorted(
        file
        for file, digest in wanted.items()
        if file and there.get(file, digest.lower()) != digest.lower()
    )


def rollout_alone(
    hosts: Sequence[str], batches: Sequence[Any], fleet: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return the NAS that answer now, and whose pool would be left without an answer while they are
    drained; for each, why none of the others can.

    A member that is not among ``hosts`` was left out of the run, and counts as one that answers:
    nobody looked at it.

    :param hosts: those that the rollout changes, in its order.
    :param batches: ``rollout_batches``.
    :param fleet: by name, for each of them: ``pool``, its ``proxy_pool``; whether it ``answers``
        questions of the pool now; ``why`` not; and ``out``, why it will not do so after its change
        either, empty where it will.
    """
    alone, changed = {}, set[str]()
    for batch in _batches(hosts, batches):
        for name in batch:
            others = [other for other in fleet[name]["pool"] if other != name]
            if not fleet[name]["answers"] or not others:
                continue
            why = {other: _why_not(other, batch, changed, fleet) for other in others}
            if all(why.values()):
                alone[name] = "; ".join(f"{other} {reason}" for other, reason in why.items())
        changed |= set(batch)
    return alone


def _why_not(
    name: str, batch: Sequence[str], changed: set[str], fleet: Mapping[str, Mapping[str, Any]]
) -> str:
    """Why a NAS does not answer while a batch is drained that comes after those changed already."""
    if name in batch:
        return "is of the same batch"
    if name not in fleet or fleet[name]["answers"]:
        return ""
    return str(fleet[name]["out"]) or ("" if name in changed else str(fleet[name]["why"]))


def _batches(hosts: Sequence[str], sizes: Sequence[Any]) -> Iterator[list[str]]:
    """What Ansible makes of a play's ``serial`` (PlaybookExecutor._get_serialized_batches)."""
    left, number = list(hosts), 0
    while left:
        size = str(sizes[min(number, len(sizes) - 1)])
        count = int(int(size[:-1]) / 100 * len(hosts)) if size.endswith("%") else int(size)
        count = count or 1
        yield left[:count]
        left, number = left[count:], number + 1


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"rollout_alone": rollout_alone, "rollout_replaced": rollout_replaced}
