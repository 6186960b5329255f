#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: container_release
short_description: Keeps a container as it is, with its files, and makes it so again
version_added: 0.1.0
description:
  - Before a change, keeps what a container is made of (image, settings, limits, networks) and the
    files that it is given. After one that went wrong, makes the same container again, of the image
    that it had.
  - What is kept stays until it is forgotten, so that a run which was cut off and is started again
    does not take the half-changed state for the good one.
author:
  - The nas.assistant contributors
options:
  container:
    description: Name of the container. Where there is none, that is what is kept.
    type: str
    required: true
  label:
    description: A label by which the container is known. One with it and another name is an error.
    type: str
    default: ""
  mounts:
    description: >-
      Folders of the NAS that the container must have, for O(state=kept). One that has others is an
      error, since what is in them is not kept.
    type: list
    elements: path
    default: []
  files:
    description: Files on the NAS that belong to it, for O(state=kept).
    type: list
    elements: path
    default: []
  units:
    description: >-
      Units of systemd that belong to it, for O(state=kept). The files that they read are kept too,
      and O(state=restored) starts those again that run with other ones.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the unit.
        type: str
        required: true
      reads:
        description: Files on the NAS that it reads when it starts, its own among them.
        type: list
        elements: path
        required: true
  notes:
    description: >-
      What is to be remembered with it, for O(state=kept). What is remembered already stays as it
      is, and what is not is added.
    type: dict
    default: {}
  folder:
    description: Where it is kept on the NAS, for root alone.
    type: path
    required: true
  state:
    description:
      - V(kept) keeps what is there now, unless something is kept already; that gets more O(notes).
      - V(restored) makes everything as it was kept, and keeps it further.
      - V(forgotten) deletes what was kept.
    type: str
    choices: [kept, restored, forgotten]
    required: true
attributes:
  check_mode:
    description: Says whether something would be kept, made again or deleted.
    support: full
  diff_mode:
    description: Shows no content, which may be secret.
    support: none
"""

EXAMPLES = r"""
- name: Keep what runs
  nas.assistant.container_release:
    container: nas-assistant
    files: [/etc/nas-assistant/config.ini]
    folder: /var/lib/nas-assistant-rollout
    state: kept

- name: Have it run again
  nas.assistant.container_release:
    container: nas-assistant
    folder: /var/lib/nas-assistant-rollout
    state: restored
"""

RETURN = r"""
image:
  description: Name of the image that is kept; empty where no container or nothing is kept.
  type: str
  returned: success
unfinished:
  description: Whether something was kept already, by a run that did not end.
  type: bool
  returned: O(state=kept)
since:
  description: When it was kept, in UTC.
  type: str
  returned: O(state=kept)
notes:
  description: What was remembered when it was kept.
  type: dict
  returned: O(state=kept)
done:
  description: What it took to restore it, in words.
  type: list
  elements: str
  returned: O(state=restored), not in check mode
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import _release as release
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import DockerError
from ansible_collections.nas.assistant.plugins.module_utils._systemd import SystemdError


def image(kept: release.Release | None) -> str:
    """Return the name of the image that is kept, empty where none is."""
    return str(kept["container"]["Config"]["Image"]) if kept and kept["container"] else ""


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what the module is asked for; return its answer."""
    folder, name = Path(params["folder"]), params["container"]
    kept = release.read(folder) if params["state"] != "forgotten" else None
    if params["state"] == "forgotten":
        there = (folder / release.KEPT).exists()
        if not check_mode:
            release.forget(folder)
        return {"changed": there, "image": ""}
    if params["state"] == "kept":
        unfinished = kept is not None
        kept = kept or {
            **release.take(
                name, params["files"], params["label"], params["mounts"], params["units"]
            ),
            "notes": {},
            "since": datetime.now(UTC).isoformat(sep=" ", timespec="minutes"),
        }
        notes = {**params["notes"], **kept["notes"]}
        changed = not unfinished or notes != kept["notes"]
        if changed and not check_mode:
            release.write(folder, {**kept, "notes": notes})
        told = {"image": image(kept), "unfinished": unfinished, "notes": notes}
        return {"changed": changed, "since": kept["since"], **told}
    if kept is None:
        raise release.ReleaseError(f"nothing is kept in {folder}, so nothing can be restored")
    if check_mode:
        paths = [each["path"] for each in kept["files"]]
        now = release.take(name, paths, units=kept["units"])
        return {"changed": kept != {**kept, **now}, "image": image(kept)}
    done = release.put_back(name, kept)
    if done and kept["container"]:
        # Under the id that it has now, so that it is left alone if somebody asks again.
        release.write(folder, {**kept, "container": release.inspect(name)})
    return {"changed": bool(done), "image": image(kept), "done": done}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "label": {"type": "str", "default": ""},
            "mounts": {"type": "list", "elements": "path", "default": []},
            "units": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "reads": {"type": "list", "elements": "path", "required": True},
                },
            },
            "notes": {"type": "dict", "default": {}},
            "folder": {"type": "path", "required": True},
            "state": {
                "type": "str",
                "choices": ["kept", "restored", "forgotten"],
                "required": True,
            },
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module.params, module.check_mode))
    except (DockerError, SystemdError, release.ReleaseError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
