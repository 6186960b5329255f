# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What it takes to turn the Btrfs that is there into the pool that is wanted. Reads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.nas.assistant.plugins.module_utils._btrfs import (
    BtrfsError,
    Device,
    Filesystem,
)

# Fewest devices that hold what each profile promises. RAID5 and RAID6 are left out: Btrfs may lose
# data in them when power fails; see btrfs(5).
FEWEST = {
    "single": 1,
    "dup": 1,
    "raid0": 2,
    "raid1": 2,
    "raid1c3": 3,
    "raid1c4": 4,
    "raid10": 4,
}

# Those that survive the loss of a device, and those that do not.
MIRRORED = frozenset({"raid1", "raid1c3", "raid1c4", "raid10"})
UNMIRRORED = frozenset({"single", "dup", "raid0"})

WORTH = 16 << 20  # bytes: less is no reason to grow


@dataclass(frozen=True)
class Wish:
    """A pool as the inventory has it.

    :param devices: real paths; none where its devices are left as they are.
    :param gone: those among them that are not there, as a disk that failed.
    :param names: what the inventory calls each of them, by real path.
    :param sizes: bytes of those that are there, by real path.
    :param profiles: wanted for ``data`` and ``metadata``; an empty text: as it is, but for what was
        written without a mirror in a mirror; or the default of a new pool.
    """

    label: str
    uuid: str = ""
    devices: tuple[str, ...] = ()
    gone: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)
    format: bool = False
    remove: bool = False

    def named(self, devices: Sequence[str]) -> str:
        """The devices as the inventory calls them."""
        return ", ".join(self.names.get(path, path) for path in devices)


@dataclass(frozen=True)
class Plan:
    """Steps, in the order of the fields. Devices are real paths, ids those of Btrfs."""

    create: tuple[str, ...] = ()
    replace: tuple[tuple[int, str], ...] = ()
    add: tuple[str, ...] = ()
    #: Ids of devices that have more room than the filesystem takes.
    grow: tuple[int, ...] = ()
    convert: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    #: Ids of devices that are missing and that nothing replaces.
    missing: tuple[int, ...] = ()
    profiles: Mapping[str, str] = field(default_factory=dict)

    @property
    def overwritten(self) -> tuple[str, ...]:
        """Devices that must be blank."""
        return (*self.create, *(path for _, path in self.replace), *self.add)

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.overwritten or self.grow or self.convert or self.remove)


def find(wish: Wish, found: Sequence[Filesystem]) -> Filesystem | None:
    """Return the filesystem that the wish means, nothing where it is to be made.

    :raises BtrfsError: the one that it names is not there, its devices hold another, or another has
        its label.
    """
    if wish.uuid:
        for each in found:
            if each.uuid == wish.uuid:
                return each
        known = ", ".join(f"{each.uuid} ({each.label or 'no label'})" for each in found)
        raise BtrfsError(
            f"{wish.label}: no disk here has the Btrfs uuid={wish.uuid}; there are "
            f"{known or 'none'}. Leave uuid out to have a new one made"
        )
    holders = [each for each in found if {device.path for device in each.devices} & {*wish.devices}]
    for each in holders:
        if each.label != wish.label:
            held = [device.path for device in each.devices if device.path in wish.devices]
            raise BtrfsError(
                f"{wish.label}: {wish.named(held)} holds the Btrfs {each.label or each.uuid!r}. "
                f"To use it as it is, give uuid={each.uuid}; nothing here is formatted over it"
            )
    if len(holders) > 1:
        raise BtrfsError(
            f"{wish.label}: its devices hold several filesystems of this label, "
            f"{', '.join(each.uuid for each in holders)}; give the uuid of the one that is meant"
        )
    twin = next((each for each in found if each.label == wish.label), None)
    if not holders and twin:
        where = ", ".join(device.path for device in twin.devices if not device.missing)
        raise BtrfsError(
            f"{wish.label}: the Btrfs uuid={twin.uuid} on {where} has this label already. To use "
            "it, give that uuid too: devices are then what it stands on from now on. To have "
            "another, give that another name"
        )
    return holders[0] if holders else None


def plan(wish: Wish, filesystem: Filesystem | None, profiles: Mapping[str, Sequence[str]]) -> Plan:
    """Return the steps.

    :param profiles: those that data, metadata and system have now, more than one after a conversion
        that did not end or writes without a device.
    :raises BtrfsError: it cannot be, or needs a flag that is not given; says which.
    """
    if filesystem is None:
        return _new(wish)
    present = {device.path: device for device in filesystem.devices if not device.missing}
    missing = [device.id for device in filesystem.devices if device.missing]
    kept = Plan(missing=tuple(missing))
    steps = _devices(wish, present, missing) if wish.devices else kept
    count = len(filesystem.devices) + len(steps.add) - len(steps.remove)
    _check_profiles(wish, wish.profiles, count)
    # Not while a device is missing: a mirror would be given up for what its rest can hold.
    convert = {} if steps.missing else _conversions(wish, profiles, count)
    grow = [
        device.id
        for path, device in present.items()
        # As after a larger one took the place of a smaller.
        if path in wish.devices and wish.sizes.get(path, 0) - device.size >= WORTH
    ]
    found = Plan(
        replace=steps.replace,
        add=steps.add,
        grow=() if steps.missing else tuple(grow),
        convert=convert,
        remove=steps.remove,
        missing=steps.missing,
    )
    _need_flag(wish, found)
    return found


def unmirrored(wish: Wish, profiles: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return data and metadata, with their profiles, that a device which fails takes along although
    nobody asked for it."""
    return {
        kind: ", ".join(profiles[kind])
        for kind in ("data", "metadata")
        if not wish.profiles.get(kind) and profiles.get(kind) and {*profiles[kind]} <= UNMIRRORED
    }


def _conversions(
    wish: Wish, profiles: Mapping[str, Sequence[str]], count: int
) -> Mapping[str, str]:
    """Return the profiles that data and metadata are to be converted to."""
    found = {}
    for kind in ("data", "metadata"):
        now = profiles.get(kind, ())
        wanted = wish.profiles.get(kind) or _intended(now, count)
        # Btrfs converts its system's chunks with those of metadata, and never without.
        system = profiles.get("system", ()) if kind == "metadata" else ()
        if not wanted and len(now) == 1 and now[0] == _intended(system, count):
            wanted = now[0]
        halves = len(system) > 1 and wanted in MIRRORED & {*system}
        if wanted and now and ([*now] != [wanted] or halves):
            found[kind] = wanted
    return found


def _intended(now: Sequence[str], count: int) -> str:
    """Return the profile that all of a kind should have which has several: what is written while a
    device of a mirror is missing has no mirror. An empty text where it is not plain.

    :param count: of devices.
    """
    mirrored = [profile for profile in now if profile in MIRRORED]
    plain = len(now) > 1 and len(mirrored) == 1 and count >= FEWEST[mirrored[0]]
    return mirrored[0] if plain else ""


def _new(wish: Wish) -> Plan:
    if not wish.devices:
        raise BtrfsError(
            f"{wish.label}: give devices to make it on, or the uuid of one that is there"
        )
    if wish.gone:
        raise BtrfsError(f"{wish.label}: {wish.named(sorted(wish.gone))} is not there")
    several = len(wish.devices) > 1
    usual = {"data": "raid1" if several else "single", "metadata": "raid1" if several else "dup"}
    profiles = {kind: wish.profiles.get(kind) or profile for kind, profile in usual.items()}
    _check_profiles(wish, profiles, len(wish.devices))
    found = Plan(create=tuple(wish.devices), profiles=profiles)
    _need_flag(wish, found)
    return found


def _devices(wish: Wish, present: Mapping[str, Device], missing: Sequence[int]) -> Plan:
    if len(wish.gone) > len(missing):
        raise BtrfsError(f"{wish.label}: {wish.named(sorted(wish.gone))} is not there")
    new = [path for path in wish.devices if path not in present and path not in wish.gone]
    extra = [path for path in present if path not in wish.devices]
    # Who is gone and named still is waited for. The others first: until they are replaced, one more
    # failure loses data.
    awaited, empty = missing[: len(wish.gone)], missing[len(wish.gone) :]
    replace = [*zip(empty, new, strict=False)]
    new, lost = new[len(replace) :], (*awaited, *empty[len(replace) :])
    if len(lost) > len(wish.gone) and not wish.remove:
        raise BtrfsError(
            f"{wish.label}: it lacks a device, and devices={wish.named(wish.devices)} names none "
            "in its place. Name a blank one, or go on naming the one that is gone until you have it"
        )
    swapped = [(present[old].id, path) for old, path in zip(extra, new, strict=False)]
    new, extra = new[len(swapped) :], extra[len(swapped) :]
    if extra and not wish.remove:
        raise BtrfsError(
            f"{wish.label}: {', '.join(extra)} belongs to it and is not among devices="
            f"{wish.named(wish.devices)}. Name it, or set remove: true to have its data moved to "
            "the others"
        )
    return Plan(replace=(*replace, *swapped), add=tuple(new), remove=tuple(extra), missing=lost)


def _check_profiles(wish: Wish, profiles: Mapping[str, str], count: int) -> None:
    for kind, profile in profiles.items():
        if profile and profile not in FEWEST:
            raise BtrfsError(f"{wish.label}: {kind}={profile!r} is none of {', '.join(FEWEST)}")
        fewest = FEWEST.get(profile, 0)
        if count < fewest:
            raise BtrfsError(
                f"{wish.label}: {kind}={profile} wants {fewest} devices, and it has {count}"
            )


def _need_flag(wish: Wish, steps: Plan) -> None:
    if steps.overwritten and not wish.format:
        raise BtrfsError(
            f"{wish.label}: {wish.named(steps.overwritten)} would be overwritten. If that is what "
            "you want, set format: true; it is refused all the same if anything is on it"
        )
