#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_restore
short_description: Bring back files, a volume, or all of a NAS from a copy
version_added: 0.1.0
description:
  - Restores from a copy that the role C(backup) keeps, into a place beside the present state, and
    compares each file with the manifest that was taken with it. Only then is anything replaced.
  - A volume of Btrfs becomes one more of its snapshots. M(nas.assistant.btrfs_rollback) puts it in
    place, and keeps what was there. What its source excludes, so that no copy has it, comes along
    from the present volume. Files of a folder, or of a dataset of ZFS, are put in place at
    once; those that they replace are moved to a folder in it. A folder that lies in such a volume
    is left for a second call (RV(later)), since the volume would take its place.
author:
  - The nas.assistant contributors
options:
  copy:
    description: Name of the copy.
    type: str
    required: true
  point:
    description: Beginning of the id of a restore point, or V(newest).
    type: str
    default: newest
  sources:
    description: Volumes as C(POOL/NAME), and folders. All that the point holds, unless given.
    type: list
    elements: str
    default: []
  path:
    description: One file or folder below the one source that is named.
    type: str
    default: ""
  to:
    description: A folder to put it in, in place of where it was.
    type: path
    default: ""
  settings:
    description: File that the role left on the NAS.
    type: path
    default: /etc/nas-assistant/backup.json
attributes:
  check_mode:
    description: Looks for the point and for what it holds, and restores nothing.
    support: full
  diff_mode:
    description: Shows what would be restored.
    support: full
"""

EXAMPLES = r"""
- name: Bring back a letter from the disk that is connected once a week
  nas.assistant.backup_restore:
    copy: usb
    sources: [tank/documents]
    path: letters/to-the-landlord.odt
"""

RETURN = r"""
whole:
  description:
    - Whether all that the point holds of this NAS was brought back, but for RV(later), and the
      point lacks nothing. Once all is in place, C(nas-backup accept COPY) on the NAS has its next
      run go on from there.
  type: bool
  returned: success
later:
  description: Folders in volumes that were restored; to be brought back from the same point once
    those are in place.
  type: list
  elements: str
  returned: success
point:
  description: Id of the restore point.
  type: str
  returned: success
time:
  description: When it was made, in seconds since the epoch.
  type: int
  returned: success
restored:
  description: What was brought back.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The source.
      type: str
    snapshot:
      description: Of a volume, the snapshot that it can be rolled back to.
      type: str
    changed:
      description: Number of files that differed, or that the snapshot holds.
      type: int
    kept:
      description: Folder with what was replaced; empty where nothing was.
      type: str
"""

import os
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _backup as backup,
    _backup_plan as plan,
    _private as private,
    _restore as restore,
)
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import BtrfsError
from ansible_collections.nas.assistant.plugins.module_utils._lock import held
from ansible_collections.nas.assistant.plugins.module_utils._restic import (
    BackupError,
    Point,
    Repository,
)

PATIENCE = 5  # seconds that a restore waits for another one


def picked(params: dict[str, Any], there: list[restore.Held]) -> list[restore.Held]:
    """Return the sources that are meant.

    :raises BackupError: a name is none of them, or the options do not go together.
    """
    names = {each.name: each for each in there}
    wanted = params["sources"] or list(names)
    for name in wanted:
        if name not in names:
            raise BackupError(
                "failed", f"sources: {name} is not in this point, which holds {', '.join(names)}"
            )
    if (params["path"] or params["to"]) and len(params["sources"]) != 1:
        raise BackupError("failed", "path and to go with one source: name it in sources")
    if {".", ".."} & set(params["path"].split("/")) or params["path"].startswith("/"):
        raise BackupError("failed", f"path={params['path']!r}: give it from the source on")
    return [names[name] for name in wanted]


class Restore:
    """One run over the sources that are meant."""

    def __init__(self, settings: plan.Settings, params: dict[str, Any], check: bool) -> None:
        self.settings, self.params, self.check = settings, params, check
        self.here = {each.name: each for each in settings.sources}
        #: Whether all that the point holds of this NAS was brought back, and it lacks nothing.
        self.is_whole = False
        #: Names of what must wait until volumes are in place.
        self.later: list[str] = []
        #: What its owner should know, as sentences.
        self.warnings: list[str] = []

    def run(self, repository: Repository, point: Point) -> list[restore.Restored]:
        """Bring all of them back."""
        there = restore.held(repository, point)
        wanted = picked(self.params, there)
        for each in wanted:
            if each.name not in self.here and not self.params["to"]:
                raise BackupError(
                    "failed",
                    f"sources: {each.name} is in the point, and is none of this NAS's "
                    "(backup_sources); give the folder to put it in with to",
                )
        for each in wanted if not self.params["path"] else ():
            target = self.params["to"] or self.here[each.name].path
            self.warnings += filter(None, [restore.shortage(each, target)])
        if not self.params["sources"]:
            self.warnings += self._lacking(point, {each.name for each in there})
        if self.check:
            return [restore.Restored(each.name, changed=each.files) for each in wanted]
        done: list[restore.Restored] = []
        self.later = [each.name for each in wanted if self._is_covered(each, wanted)]
        # Volumes first: those are put in place by a later step, and folders at once.
        for each in sorted(wanted, key=lambda each: not each.settled):
            if each.name in self.later:
                continue
            try:
                done.append(self.one(repository, point, each))
            except (BackupError, BtrfsError, OSError, ValueError) as error:
                names = [f"{each.name} ({each.snapshot or each.kept or 'files'})" for each in done]
                if not names:
                    raise
                raise BackupError("failed", f"{error} Before that: {', '.join(names)}") from None
        missing = set(self.here) - {each.name for each in wanted}
        is_all = not missing & {each.name for each in there}
        is_part = bool(self.params["path"] or self.params["to"])
        self.is_whole = is_all and not is_part and plan.is_complete(point)
        return done

    def _lacking(self, point: Point, there: set[str]) -> list[str]:
        """Return what is not brought back since the point does not have it, as sentences."""
        lacks = ", ".join(name for name in self.here if name not in there)
        if plan.is_complete(point):
            return [f"{lacks}: is in backup_sources, and not in {point.short}"] if lacks else []
        copy = self.params["copy"]
        return [
            f"{point.short} is incomplete: it lacks {f'all of {lacks}' if lacks else 'something'}. "
            f"See which other points have it (nas-backup points {copy}), and restore it from there "
            f"(point, sources). Until you then run nas-backup accept {copy} on "
            f"{self.settings.host}, no copy is made that would take the place of those"
        ]

    def _as_snapshot(self, held: restore.Held) -> bool:
        """Whether something comes back as a snapshot, to which a volume is rolled back."""
        source = self.here.get(held.name)
        return bool(source and source.folder) and not self.params["path"] and not self.params["to"]

    def _is_covered(self, held: restore.Held, wanted: list[restore.Held]) -> bool:
        """Whether something lies in a volume that comes back as a whole, and would be hidden by
        it."""
        if self._as_snapshot(held) or self.params["to"]:
            return False
        place = os.path.realpath(self.here[held.name].path)
        volumes = [self.here[each.name] for each in wanted if self._as_snapshot(each)]
        tops = [top for each in volumes for top in (each.path, each.mounted) if top]
        return any(f"{place}/".startswith(f"{os.path.realpath(top)}/") for top in tops)

    def one(self, repository: Repository, point: Point, held: restore.Held) -> restore.Restored:
        """Bring one of them back."""
        path, to = self.params["path"].rstrip("/"), self.params["to"]
        source = self.here.get(held.name)
        if source and self._as_snapshot(held):
            return restore.volume(self.settings, repository, point, source, held)
        target = to or (source.path if source else "")
        return restore.folder(self.settings, repository, point, held, target, path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "copy": {"type": "str", "required": True},
            "point": {"type": "str", "default": "newest"},
            "sources": {"type": "list", "elements": "str", "default": []},
            "path": {"type": "str", "default": ""},
            "to": {"type": "path", "default": ""},
            "settings": {"type": "path", "default": "/etc/nas-assistant/backup.json"},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    if params["to"] and not os.path.isabs(params["to"]):
        module.fail_json(msg=f"to={params['to']!r}: give the whole path of a folder")
    try:
        settings = plan.Settings.read(params["settings"])
        copy = settings.copy(params["copy"])
        private.enter()
        with (
            backup.alone(copy),
            held(os.path.join(backup.RUN, "restore.lock"), PATIENCE),
            backup.opened(settings, copy, write=False) as repository,
        ):
            points = repository.points(settings.host)
            point = plan.chosen(points, params["point"], backup.now())
            if params["point"] == "newest" and (said := plan.ahead(points, backup.now())):
                module.warn(said)
            if not module.check_mode:
                restore.unlock(repository)
            work = Restore(settings, params, module.check_mode)
            try:
                done = work.run(repository, point)
            finally:
                for text in work.warnings:
                    module.warn(text)
    except TimeoutError:
        module.fail_json(msg="busy: another restore is at work")
    except (BackupError, BtrfsError, private.MountError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    names = "".join(f"{each.name}\n" for each in done)
    module.exit_json(
        changed=any(each.changed for each in done),
        point=point.id,
        time=point.time,
        restored=[asdict(each) for each in done],
        whole=work.is_whole,
        later=work.later,
        diff={"before": "", "after": f"from {point.short} of {copy.name}:\n{names}"},
    )


if __name__ == "__main__":
    main()
