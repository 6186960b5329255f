# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What it takes to turn the ZFS pool that is there into the one that is wanted. Reads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.nas.assistant.plugins.module_utils._zfs import Leaf, Pool, ZfsError

# Fewest devices of each profile.
FEWEST = {"single": 1, "mirror": 2, "raidz1": 3, "raidz2": 4, "raidz3": 5}


@dataclass(frozen=True)
class Wish:
    """A pool as the inventory has it.

    :param devices: as the inventory names them; none where they are left as they are.
    :param gone: those among them that are not there.
    :param holders: of each device that is in the pool, the name that the pool has for it.
    """

    name: str
    guid: str = ""
    devices: tuple[str, ...] = ()
    gone: frozenset[str] = frozenset()
    holders: Mapping[str, str] = field(default_factory=dict)
    profile: str = ""
    format: bool = False


@dataclass(frozen=True)
class Plan:
    """Steps, in the order of the fields.

    :param create: what follows the pool's name for ``zpool create``; so ``add``.
    :param replace: pairs of what the pool calls a device, and the one for its place.
    :param attach: as ``replace``, for a mirror of what was one disk.
    :param overwritten: devices that must be blank.
    """

    create: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()
    attach: tuple[tuple[str, str], ...] = ()
    add: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()


def found(wish: Wish, present: Pool | None, importable: Sequence[Pool]) -> Pool | None:
    """Return the pool that the wish means, in use or not; nothing where it is to be made.

    :raises ZfsError: the one that it names is another one, or there are several.
    """
    if present:
        if wish.guid not in ("", present.guid):
            raise ZfsError(
                f"{wish.name}: the pool of this name has the uuid {present.guid}, not "
                f"{wish.guid}. Mend uuid, or leave it out"
            )
        return present
    named = [each for each in importable if each.name == wish.name]
    if wish.guid:
        named = [each for each in importable if each.guid == wish.guid]
    if len(named) > 1:
        raise ZfsError(
            f"{wish.name}: several pools on the disks have this name, with the uuids "
            f"{', '.join(each.guid for each in named)}. Give the uuid of the one that is meant"
        )
    if named and named[0].name != wish.name:
        raise ZfsError(
            f"{wish.name}: the pool with uuid={wish.guid} is called {named[0].name}. Name it so"
        )
    if not named and (wish.guid or not wish.devices):
        known = ", ".join(f"{each.name} ({each.guid})" for each in importable) or "none"
        raise ZfsError(
            f"{wish.name}: no such pool is in use, and of others the disks have {known}. Give "
            "devices and format: true to have a new one made"
        )
    return named[0] if named else None


def plan(wish: Wish, pool: Pool | None) -> Plan:
    """Return the steps.

    :raises ZfsError: it cannot be, or needs a flag that is not given; says which.
    """
    if pool is None:
        steps = _new(wish)
    elif wish.devices:
        steps = _changed(wish, pool)
    else:
        steps = Plan()
    if steps.overwritten and not wish.format:
        raise ZfsError(
            f"{wish.name}: {', '.join(steps.overwritten)} would be overwritten. If that is what "
            "you want, set format: true; it is refused all the same if anything is on it"
        )
    return steps


def _new(wish: Wish) -> Plan:
    if wish.gone:
        raise ZfsError(f"{wish.name}: {', '.join(sorted(wish.gone))} is not there")
    profile = wish.profile or ("mirror" if len(wish.devices) > 1 else "single")
    return Plan(create=_groups(wish, profile, wish.devices, 0), overwritten=wish.devices)


def _changed(wish: Wish, pool: Pool) -> Plan:
    leaves = pool.leaves
    named = {wish.holders[device] for device in wish.devices if device in wish.holders}
    new = [each for each in wish.devices if each not in wish.holders and each not in wish.gone]
    idle = [leaf for leaf in leaves if leaf.name not in named and not leaf.replaced]
    # What is gone and named still is waited for, as a device that is only slow to come.
    awaited = len([each for each in wish.gone if each not in wish.holders])
    failed = [leaf for leaf in idle if leaf.failed]
    if awaited > len(failed):
        raise ZfsError(f"{wish.name}: {', '.join(sorted(wish.gone))} is not there")
    failed = failed[awaited:]
    replace = [(leaf.name, device) for leaf, device in zip(failed, new, strict=False)]
    new, left = new[len(replace) :], failed[len(replace) :]
    whole = [leaf for leaf in idle if not leaf.failed]
    swapped = [(leaf.name, device) for leaf, device in zip(whole, new, strict=False)]
    new, left = new[len(swapped) :], [*left, *whole[len(swapped) :]]
    if left:
        raise ZfsError(
            f"{wish.name}: {', '.join(_called(leaf) for leaf in left)} belongs to it and is not "
            f"among devices={', '.join(wish.devices)}. Name it, or a blank one in its place: ZFS "
            "gives up no device by itself"
        )
    replace += swapped
    overwritten = tuple(device for _, device in replace) + tuple(new)
    if not new:
        return Plan(replace=tuple(replace), overwritten=overwritten)
    kind, width = pool.groups[0].kind, len(pool.groups[0].leaves)
    present = "single" if kind == "disk" else kind
    if present == "single" and wish.profile in ("", "mirror"):
        # Each disk gets a second one.
        if len(new) != len(pool.groups):
            raise ZfsError(
                f"{wish.name}: {len(pool.groups)} disks become mirrors with as many more, and "
                f"devices names {len(new)} more. Name as many, or set profile: single"
            )
        pairs = zip((group.leaves[0].name for group in pool.groups), new, strict=True)
        return Plan(replace=tuple(replace), attach=tuple(pairs), overwritten=overwritten)
    if wish.profile not in ("", present):
        raise ZfsError(
            f"{wish.name}: profile={wish.profile}, and it is a pool of {present}, which ZFS cannot "
            "turn into that. Leave profile out"
        )
    return Plan(
        replace=tuple(replace), add=_groups(wish, present, new, width), overwritten=overwritten
    )


def _groups(wish: Wish, profile: str, devices: Sequence[str], width: int) -> tuple[str, ...]:
    """Return devices as the command wants them: in groups with a word before each.

    :param width: devices of a group; 0: of a new pool.
    """
    if profile not in FEWEST:
        raise ZfsError(f"{wish.name}: profile={profile!r} is none of {', '.join(FEWEST)}")
    if len(devices) < FEWEST[profile] and not width:
        raise ZfsError(
            f"{wish.name}: profile={profile} wants {FEWEST[profile]} devices, and it has "
            f"{len(devices)}"
        )
    if profile == "single":
        return tuple(devices)
    if not width:
        # Of four disks two mirrors, as everybody wants; of three, one with three copies.
        width = 2 if profile == "mirror" and len(devices) % 2 == 0 else len(devices)
        if profile == "mirror" and width > 3:
            raise ZfsError(
                f"{wish.name}: {len(devices)} devices make no pairs. Name one more or one less"
            )
    if len(devices) % width:
        raise ZfsError(
            f"{wish.name}: it grows by {width} devices at a time, and devices names {len(devices)} "
            "more"
        )
    words: list[str] = []
    for start in range(0, len(devices), width):
        words += [profile, *devices[start : start + width]]
    return tuple(words)


def _called(leaf: Leaf) -> str:
    return f"{leaf.name} (was {leaf.was})" if leaf.was else leaf.name
