#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: container_limits
short_description: Reads from inside a container what the kernel holds it to, and compares
version_added: 0.1.0
description:
  - Docker says what it was asked for, also where the kernel ignores it, as Raspberry Pi OS does
    with memory. Here the container itself reads its control group and its first process, by the
    image's command C(limits).
  - Fails where something that was asked for is not in force. An image that has no such command is
    warned of.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.looks_only]
options:
  container:
    description: Name of the container, which runs.
    type: str
    required: true
  limits:
    description: What was asked for, as the filter C(nas.assistant.assistant_limits) gives it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Read the limits back from inside
  nas.assistant.container_limits:
    container: nas-assistant
    limits: "{{ __assistant_limits }}"
"""

RETURN = r"""
found:
  description: What is in force, as the image's command C(limits) says it.
  type: dict
  returned: success, unless the image cannot say it, or in check mode the container does not run
"""

import json
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    run as docker,
)

COMMAND = ["/opt/venv/bin/python", "-m", "nas_assistant", "limits"]
PATIENCE = 60  # seconds; a busy NAS starts Python in some
PAGE = 4096


def differences(wish: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each limit that is not in force."""
    expected = {
        "memory": int(wish["memory"]),
        "swap": int(wish["memory_swap"]) - int(wish["memory"]),
        "cpus": float(wish["cpus"]) or None,
        "cpuset": wish["cpuset_cpus"],
        "pids": int(wish["pids"]),
        "oom_score_adj": int(wish["oom_score_adj"]),
        "io_priority": int(wish["io_priority"]),
    }
    if int(wish["memory_reservation"]):
        expected["memory_reservation"] = int(wish["memory_reservation"])
    # Under version 2, each runtime has a formula of its own.
    if found["version"] == 1 and int(wish["cpu_shares"]):
        expected["cpu_weight"] = int(wish["cpu_shares"])
    odd = [
        f"{name}: asked for was {value}, in force is {found[name]}"
        for name, value in expected.items()
        if not _same(name, value, found[name])
    ]
    for entry in wish["ulimits"]:
        name, soft, _ = entry.split(":")
        if name in found["ulimits"] and found["ulimits"][name] != (
            int(soft) if soft != "-1" else None
        ):
            odd.append(
                f"ulimits.{name}: asked for was {soft}, in force is {found['ulimits'][name]}"
            )
    if int(wish["blkio_weight"]) and found["io_weight"] is None:
        odd.append(f"blkio_weight: asked for was {wish['blkio_weight']}, this kernel has none")
    return odd


def _same(name: str, asked: Any, found: Any) -> bool:
    if isinstance(asked, float):
        return found is not None and abs(asked - float(found)) < 0.011
    # None at all is asked for as one page; some kernels round that down, some count no swap.
    return bool(asked == found or (name == "swap" and asked == PAGE and not found))


def read(container: str) -> dict[str, Any]:
    """Have the container read its limits.

    :raises DockerError: it does not run, or its image cannot do it.
    """
    said = docker(["docker", "exec", container, *COMMAND], timeout=PATIENCE)
    return dict(json.loads(said))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "limits": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    container = module.params["container"]
    try:
        found = read(container)
    except DockerError as error:
        if module.check_mode:  # it would be made
            module.exit_json(changed=False)
        if "invalid choice" in str(error) or "No module named" in str(error):
            module.warn(f"{container}: its image cannot say what the kernel holds it to")
            module.exit_json(changed=False)
        module.fail_json(msg=str(error))
    odd = [] if module.check_mode else differences(module.params["limits"], found)
    if odd:
        module.fail_json(
            msg=f"{container} runs without what was asked for: {'; '.join(odd)}. Its kernel does "
            "not have it (see `docker info`), or something changed it by hand: `docker restart "
            f"{container}`, and run this again",
            found=found,
        )
    module.exit_json(changed=False, found=found)


if __name__ == "__main__":
    main()
