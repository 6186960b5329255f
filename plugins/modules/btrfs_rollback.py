#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: btrfs_rollback
short_description: Bring a subvolume back to one of its snapshots
version_added: 0.1.0
description:
  - Stops what uses the subvolume, keeps its present state as one more snapshot, puts a writable
    copy of the chosen snapshot in its place, mounts that, and starts everything again. The quota
    stays; owner, mode and compression are those of the snapshot.
  - Nothing is lost, not even what is written while it works. To undo it, roll back to the snapshot
    that it kept; retention leaves that one alone until a rollback of the same subvolume a week or
    more later, or until its line in a file of C(/var/lib/nas-assistant-storage/holds) is removed.
  - Only snapshots that M(nas.assistant.btrfs_snapshot) made count.
  - No snapshot has the subvolumes that lie in the subvolume. Those that O(volumes) names stay as
    they are, in their places; with others in it, it is refused.
  - What is mounted beneath the subvolume's mount point, and what needs one of these mounts, stops
    and starts with it.
  - One that was cut off is finished by running it again. Where it left nothing but what it had
    stopped, O(state=resumed) starts that.
author:
  - The nas.assistant contributors
options:
  path:
    description: The subvolume, at its place below the mounted top level of its filesystem. Needed
      with O(state=rolled_back).
    type: path
  folder:
    description: The folder with its snapshots. Needed with O(state=rolled_back).
    type: path
  name:
    description: First part of its snapshots' names. The last part of O(path) unless given.
    type: str
    default: ""
  to:
    description: Name of the snapshot. V(newest) is the newest one that is not dated after now and
      that no rollback kept, so that the same again does not bring back what was to go.
    type: str
    default: newest
  mount_unit:
    description: Unit of systemd by which the subvolume is mounted beside O(path).
    type: str
    default: ""
  volumes:
    description: Paths of all subvolumes that have snapshots of their own, below the same top level.
    type: list
    elements: path
    default: []
  users:
    description: Units of systemd that use it. With V(docker.service), containers are stopped too.
    type: list
    elements: str
    default: []
  state:
    description: V(rolled_back) brings it back. V(resumed) starts what a run that was cut off left
      standing, of whatever subvolume; it refuses to where that one is not whole.
    type: str
    choices: [rolled_back, resumed]
    default: rolled_back
attributes:
  check_mode:
    description: Says which snapshot it would be, and refuses what would be refused.
    support: full
  diff_mode:
    description: Shows the snapshot.
    support: full
"""

EXAMPLES = r"""
- name: Have the documents as they were an hour ago
  nas.assistant.btrfs_rollback:
    path: /srv/tank/documents
    folder: /srv/tank/.snapshots
    to: documents.20261124T090000Z
    mount_unit: srv-documents.mount
    users: [smbd.service]
"""

RETURN = r"""
snapshot:
  description: Name of the snapshot that it was brought back to.
  type: str
  returned: with O(state=rolled_back)
kept:
  description: Name of the snapshot of what was there before.
  type: str
  returned: with O(state=rolled_back)
resumed:
  description: Units and containers that were started again.
  type: list
  elements: str
  returned: success
"""

import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _btrfs as btrfs,
    _snapshot_plan as plan,
    _snapshots as snapshots,
)
from ansible_collections.nas.assistant.plugins.module_utils._commands import run
from ansible_collections.nas.assistant.plugins.module_utils._files import replace
from ansible_collections.nas.assistant.plugins.module_utils._standstill import (
    DOCKER,
    Standstill,
    StandstillError,
    alone,
    demand,
    running,
)

WORK = "rollback"


def places(path: str) -> tuple[str, str]:
    """Return where a subvolume's new state is before it takes the place, and the old one after
    that."""
    above, last = os.path.split(path)
    return os.path.join(above, f".{last}.rollback"), os.path.join(above, f".{last}.before")


def demand_whole(standstill: Standstill, but: str = "") -> None:
    """Refuse to go on where a rollback was cut off in its midst.

    :param but: path of the subvolume that is worked on.
    :raises BtrfsError: another one is not whole; says what stands still.
    """
    for note in standstill.notes:  # each a mount unit, which may be missing, and a path
        path = note.partition(" ")[2]
        left = [each for each in places(path) if os.path.lexists(each)]
        if path != but and (left or not snapshots.is_subvolume(path)):
            still = f", and {', '.join(standstill.stopped)} stand still" * bool(standstill.stopped)
            raise btrfs.BtrfsError(
                f"{path}: a rollback of it was cut off ({left[0] if left else path} is "
                f"{'left of it' if left else 'not there'}){still}. Run that rollback again: it "
                "is finished then, and what stands still is started. If there is nothing to bring "
                f"back any more, remove {standstill.path}"
            )


def resume(check_mode: bool) -> list[str]:
    """Start what a rollback that was cut off left standing; return what runs again."""
    standstill = Standstill(WORK)
    demand_whole(standstill)
    resumed: list[str] = standstill.stopped
    if not check_mode and (resumed or standstill.notes):
        mount(standstill)
        resumed = standstill.end()
    return resumed


def mount(standstill: Standstill) -> None:
    """Mount again what was unmounted for it."""
    units = [unit for note in standstill.notes if (unit := note.partition(" ")[0])]
    if units:
        demand(["systemctl", "start", *units])


def stopped_with(unit: str) -> list[str]:
    """Return the units that run and that systemd stops with another one: those of what is mounted
    beneath a mount, and of what needs any of them."""
    found, left = dict[str, None](), [unit]
    while left:
        keys = [f"--property={key}" for key in ("RequiredBy", "BoundBy", "ConsistsOf")]
        said = run(["systemctl", "show", *keys, "--value", left.pop()]).stdout
        new = [name for name in running(said.split()) if name != unit and name not in found]
        found |= dict.fromkeys(new)
        left += new
    return list(found)


def demand_returning(units: list[str]) -> None:
    """Refuse to unmount what nobody would mount again.

    :raises BtrfsError: a mount was made by hand; names it.
    """
    for unit in [each for each in units if each.endswith(".mount")]:
        show = ["systemctl", "show", "--property=FragmentPath", "--value", unit]
        if not run(show).stdout.strip():
            raise btrfs.BtrfsError(
                f"{unit} is mounted beneath and was mounted by hand, so that nobody would mount it "
                "again. Unmount it, or name it in /etc/fstab, and run again"
            )


def told(error: BaseException) -> str:
    """Return what failed, and before it what failed first."""
    before = None if error.__suppress_context__ else error.__context__
    if isinstance(before, (btrfs.BtrfsError, StandstillError, OSError)):
        return f"{told(before)}. Then {error}"
    return str(error)


class Rollback:
    """One rollback of one subvolume."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.path: str = params["path"]
        self.folder: str = params["folder"]
        self.name: str = params["name"] or os.path.basename(self.path)
        self.unit: str = params["mount_unit"]
        self.users: list[str] = params["users"]
        # From the subvolume on.
        self.inner = [
            os.path.relpath(each, self.path)
            for each in params["volumes"]
            if each.startswith(f"{self.path}/")
        ]
        self.draft, self.old = places(self.path)

    def chosen(self, to: str) -> str:
        """Return the name of the snapshot that is meant.

        :raises BtrfsError: there is none of ours by that name; names those that there are.
        """
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            names = []
        ours: list[str] = []
        newest = ""
        for each in [found for name in names if (found := plan.entry(name))]:
            place = self.ours(each.text) if each.name == self.name and not each.draft else None
            if not place:
                continue
            ours.append(each.text)
            # Names sort by time. To what a rollback kept, one goes back by its name: the same
            # command twice would bring it back otherwise.
            if not place.kept and each.time is not None and each.time <= snapshots.now():
                newest = each.text
        if to == "newest" and newest:
            return newest
        if to not in ours:
            apart = ", which rollbacks kept or which are dated after now: name one"
            raise btrfs.BtrfsError(
                f"to={to}: {self.folder} has no such snapshot of {self.name}; there are "
                f"{', '.join(ours) or 'none'}{apart if to == 'newest' and ours else ''}"
            )
        return to

    def ours(self, text: str) -> snapshots.Place | None:
        """Return what is by a name, if it is a snapshot that btrfs_snapshot made."""
        place = snapshots.look(os.path.join(self.folder, text))
        whole = place and place.is_subvolume and place.read_only and place.marked
        return place if whole else None

    def finish(self) -> str:
        """Bring a rollback that was cut off to where this one can begin; return what it kept."""
        if not os.path.lexists(self.path) and snapshots.is_subvolume(self.draft):
            os.rename(self.draft, self.path)
        if snapshots.is_subvolume(self.draft):
            btrfs.call("btrfs", "subvolume", "delete", self.draft)
        if not snapshots.is_subvolume(self.old):
            return ""
        self.bring_inner()
        return self.keep()

    def check(self, text: str) -> None:
        """Refuse what would lose something.

        :param text: the snapshot's name.
        :raises BtrfsError: it is no subvolume, or others lie in it for which there is no place in
            the snapshot; or a rollback of another one was cut off.
        """
        demand_whole(Standstill(WORK), self.path)
        beneath = stopped_with(self.unit) if self.unit else []
        if DOCKER not in (*self.users, *beneath):
            # What containers have mounted goes with them, and can be looked at only then.
            demand_returning(beneath)
        if not os.path.lexists(self.path) and snapshots.is_subvolume(self.draft):
            return  # of a run that was cut off, which is finished
        place = snapshots.look(self.path)
        if not place or not place.is_subvolume:
            raise btrfs.BtrfsError(f"path={self.path} is no subvolume of a Btrfs")
        listed = btrfs.subvolumes(self.path)
        above = {each.id: f"{each.path}/" for each in listed}.get(place.id, "")
        inner = {each.path.removeprefix(above) for each in listed if each.parent == place.id}
        if inner - {*self.inner}:
            names = ", ".join(f"{above}{each}" for each in sorted(inner - {*self.inner})[:5])
            raise btrfs.BtrfsError(
                f"path={self.path}: other subvolumes lie in it ({names}), which no snapshot of it "
                "has. Name them among the pool's volumes, and they stay as they are; or move them "
                "away"
            )
        for each in self.inner:
            # Of a run that was cut off, it may lie in the old state still.
            if any(
                snapshots.is_subvolume(os.path.join(top, each)) for top in (self.path, self.old)
            ):
                self.demand_place(os.path.join(self.folder, text), each)

    def demand_place(self, top: str, inner: str) -> None:
        """Refuse where a subvolume that lies in this one would have no place in a snapshot.

        :raises BtrfsError: something else is there; names it.
        """
        parts = inner.split("/")
        for count in range(1, len(parts) + 1):
            place = os.path.join(top, *parts[:count])
            if not os.path.lexists(place):
                return
            last = count == len(parts)
            if os.path.islink(place) or not os.path.isdir(place) or (last and os.listdir(place)):
                raise btrfs.BtrfsError(
                    f"path={self.path}: the subvolume {inner} lies in it, and the snapshot has "
                    f"something else at its place ({place}). Move the subvolume away first"
                )

    def bring_inner(self) -> None:
        """Move the subvolumes that lie in the old state to the same places in the new one. What
        uses them goes on: an open file knows nothing of it, and neither does a mount."""
        for inner in self.inner:
            source, target = os.path.join(self.old, inner), os.path.join(self.path, inner)
            if not snapshots.is_subvolume(source):
                continue
            parts = inner.split("/")
            for count in range(1, len(parts)):
                part = os.path.join(*parts[:count])
                place = os.path.join(self.path, part)
                if not os.path.lexists(place):
                    status = os.stat(os.path.join(self.old, part))
                    os.mkdir(place, 0o700)
                    os.chown(place, status.st_uid, status.st_gid)
                    shutil.copystat(os.path.join(self.old, part), place)
            # In a copy, an empty folder is what is left of a subvolume.
            if os.path.lexists(target):
                os.rmdir(target)
            os.rename(source, target)

    def keep(self) -> str:
        """Make what was moved aside a snapshot as all others; return its name."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        text, number = "", snapshots.now()
        while not text or os.path.lexists(os.path.join(self.folder, text)):
            text, number = plan.snapshot_text(self.name, number), number + 1
        place = snapshots.look(self.old)
        if not place:
            raise btrfs.BtrfsError(f"{self.old} is gone")
        for attribute in (snapshots.KEPT, snapshots.ATTRIBUTE):
            os.setxattr(self.old, attribute, place.uuid.encode())
        # Held before it is there, since retention may look at any time.
        snapshots.take_over_holds()
        hold = os.path.join(plan.HOLDS, snapshots.hold_name("rollback", self.folder, self.name))
        held = snapshots.hold_text(hold, self.folder, place.uuid)
        replace(hold, held.encode(), 0, 0, 0o600)
        final = os.path.join(self.folder, text)
        # In this order: the kernel moves no subvolume that is read-only.
        os.rename(self.old, final)
        btrfs.call("btrfs", "property", "set", "-ts", final, "ro", "true")
        btrfs.call("btrfs", "filesystem", "sync", final)
        return text

    def swap(self, text: str) -> None:
        """Put a writable copy of a snapshot in the place of the subvolume, which is moved aside."""
        quotas = btrfs.quotas(self.path) or {}
        before = snapshots.look(self.path)
        limit = quotas.get(before.id if before else 0, {}).get("max_referenced", 0)
        btrfs.call("btrfs", "subvolume", "snapshot", os.path.join(self.folder, text), self.draft)
        if limit:
            btrfs.call("btrfs", "qgroup", "limit", str(limit), self.draft)
        os.rename(self.path, self.old)
        os.rename(self.draft, self.path)
        self.bring_inner()

    def run(self, text: str) -> tuple[str, list[str]]:
        """Roll back; return what was kept, and what runs again."""
        standstill, kept = Standstill(WORK), ""
        try:
            beneath = stopped_with(self.unit) if self.unit else []
            # Those go with the mount, and come again before what needs them.
            mounts = [each for each in beneath if each.endswith((".mount", ".target"))]
            others = [each for each in beneath if each not in mounts and each not in self.users]
            standstill.begin([*self.users, *others], [f"{self.unit} {self.path}"])
            if self.unit:
                # What containers had mounted went with them.
                mounts = running(mounts)
                demand_returning(mounts)
                standstill.notes += [f"{each} {self.path}" for each in mounts]
                standstill.save()
                demand(["systemctl", "stop", self.unit])
            self.finish()
            self.swap(text)
            kept = self.keep()
        finally:
            # Whatever happened: what is there is better than nothing.
            try:
                mount(standstill)
            finally:
                # What needs the mount does not start without it, and is remembered then.
                resumed = standstill.end(kept=kept)
        return kept, resumed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "folder": {"type": "path"},
            "name": {"type": "str", "default": ""},
            "to": {"type": "str", "default": "newest"},
            "mount_unit": {"type": "str", "default": ""},
            "volumes": {"type": "list", "elements": "path", "default": []},
            "users": {"type": "list", "elements": "str", "default": []},
            "state": {
                "type": "str",
                "choices": ["rolled_back", "resumed"],
                "default": "rolled_back",
            },
        },
        required_if=[("state", "rolled_back", ("path", "folder"))],
        supports_check_mode=True,
    )
    try:
        with alone(module.check_mode):
            if module.params["state"] == "resumed":
                resumed = resume(module.check_mode)
                module.exit_json(changed=bool(resumed), resumed=resumed)
            rollback = Rollback(module.params)
            text = rollback.chosen(module.params["to"])
            kept, resumed = "", list[str]()
            rollback.check(text)
            if not module.check_mode:
                kept, resumed = rollback.run(text)
        diff = {"before": f"{rollback.path}: as it is\n", "after": f"{rollback.path}: {text}\n"}
        module.exit_json(changed=True, snapshot=text, kept=kept, resumed=resumed, diff=diff)
    except (btrfs.BtrfsError, StandstillError, OSError, ValueError) as error:
        module.fail_json(msg=told(error))


if __name__ == "__main__":
    main()
