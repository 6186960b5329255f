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
  - Where the kernel counts no swap, the container may use what the NAS has; that is warned of.
  - Under cgroups v2 a runtime makes weights of CPU shares by one of two formulas; that of either is
    taken.
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
  slice:
    description: The slice of systemd's that gives the container its weight among those that read
      disks, under cgroups v2. What it has is not seen from inside, and read from outside.
    type: str
    default: ""
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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    run as docker,
)
from ansible_collections.nas.assistant.plugins.module_utils._swap import in_use
from ansible_collections.nas.assistant.plugins.module_utils._weights import (
    cpu_weights,
    heeded,
    io_weight,
    weight_of,
)

COMMAND = ["/opt/venv/bin/python", "-m", "nas_assistant", "limits"]
PATIENCE = 60  # seconds; a busy NAS starts Python in some
PAGE = 4096
UNLIMITED = -1  # as the image's command says it of swap


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
    odd = [
        f"{name}: asked for was {value}, in force is {_spoken(name, found[name])}"
        for name, value in expected.items()
        if not _same(name, value, found[name])
    ]
    return [*odd, *_cpu_odd(wish, found), *_ulimits_odd(wish, found), *_io_odd(wish, found)]


def _cpu_odd(wish: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    shares, weight = int(wish["cpu_shares"]), found["cpu_weight"]
    if not shares or (found["version"] == 1 and weight == shares):
        return
    scaled = ""
    if found["version"] == 2:
        allowed = cpu_weights(shares)
        # Not each runtime rounds alike.
        if weight is not None and any(abs(weight - each) <= 1 for each in allowed):
            return
        scaled = f", which is a weight of {' or '.join(map(str, allowed))}"
    yield f"cpu_shares: asked for was {shares}{scaled}, in force is {weight}"


def _ulimits_odd(wish: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    # An image of before reads the soft ones only.
    in_force = (found["ulimits"], found.get("hard_ulimits", found["ulimits"]))
    for entry in wish["ulimits"]:
        name, *asked = entry.split(":")
        if any(name not in each for each in in_force):
            yield f"ulimits.{name}: asked for was {':'.join(asked)}, it cannot be read back"
            continue
        have = ["-1" if each[name] is None else str(each[name]) for each in in_force]
        if have != asked:
            yield f"ulimits.{name}: asked for was {':'.join(asked)}, in force is {':'.join(have)}"


def _io_odd(wish: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    asked, weight = int(wish["blkio_weight"]), found["io_weight"]
    if not asked:
        return
    if weight is None:
        yield f"blkio_weight: asked for was {asked}, this kernel has none"
        return
    # BFQ takes it as it is; the other file has 1 to 10000.
    expected = io_weight(asked) if found.get("io_weight_file") == "io.weight" else asked
    if weight != expected:
        scaled = "" if expected == asked else f", which is a weight of {expected}"
        yield f"blkio_weight: asked for was {asked}{scaled}, in force is {weight}"
    elif not found.get("io_weight_heeded", True):
        yield (
            f"blkio_weight: asked for was {asked}, no disk of this NAS heeds it, as one with the "
            "scheduler bfq does (kernel_io)"
        )


def _same(name: str, asked: Any, found: Any) -> bool:
    if isinstance(asked, float):
        return found is not None and abs(asked - float(found)) < 0.011
    # None at all is asked for as one page. Kernels with larger pages round that down; some count
    # no swap, which is warned of.
    return bool(asked == found or (name == "swap" and asked == PAGE and found in (0, None)))


def _spoken(name: str, found: Any) -> str:
    return "no limit" if name == "swap" and found == UNLIMITED else str(found)


def uncounted(wish: Mapping[str, Any], found: Mapping[str, Any], swap: Iterable[str]) -> str:
    """Return a sentence where the container may use swap that it was not given; empty else.

    :param swap: what the NAS swaps to.
    """
    places = ", ".join(swap)
    none = int(wish["memory_swap"]) - int(wish["memory"]) == PAGE
    if not none or found["swap"] is not None or not places:
        return ""
    return (
        f"swap: asked for was none, and this kernel counts no swap: the container may use the "
        f"NAS's ({places}). Debian's kernel counts it; under cgroups v1 with swapaccount=1 on its "
        "command line"
    )


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
            "slice": {"type": "str", "default": ""},
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
    if module.params["slice"]:
        file, weight = weight_of(module.params["slice"])
        found |= {"io_weight_file": file, "io_weight": weight, "io_weight_heeded": heeded()}
    odd = [] if module.check_mode else differences(module.params["limits"], found)
    if odd:
        module.fail_json(
            msg=f"{container} runs without what was asked for: {'; '.join(odd)}. Its kernel does "
            "not have it (see `docker info`), or something changed it by hand: `docker restart "
            f"{container}`, and run this again",
            found=found,
        )
    if warning := uncounted(module.params["limits"], found, in_use()):
        module.warn(f"{container}: {warning}")
    module.exit_json(changed=False, found=found)


if __name__ == "__main__":
    main()
