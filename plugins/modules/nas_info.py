#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors

from __future__ import annotations

DOCUMENTATION = r"""
---
module: nas_info
short_description: What a NAS is made of, as far as an assistant cares
version_added: 0.1.0
description:
  - Looks at processor, memory, control groups, disks with their health, filesystems, network links,
    accelerators, TPM, who listens, and the clock.
  - Needs no package. With C(smartctl), C(ethtool) and C(ss) on the NAS it says more. No disk
    that sleeps is woken.
  - M(ansible.builtin.setup) knows less of what counts here, such as whether the memory controller
    is on, which cores are slow, what a link could be, and how fast memory is read.
author:
  - The nas.assistant contributors
extends_documentation_fragment: [nas.assistant.looks_only]
options:
  paths:
    description: Folders, there or to be made, whose filesystems are of interest.
    type: list
    elements: path
    default: [/]
  docker_root:
    description: Whether the folder of Docker's data is of interest too, which is that of
      C(/etc/docker/daemon.json), or V(/var/lib/docker).
    type: bool
    default: false
  gather:
    description: What to look at, where not all of it is of interest. The others are left out of the
      answer.
    type: list
    elements: str
    choices: [cpu, memory, cgroup, drives, rooms, nics, accelerators, listeners, vendor, engine,
      virtualisation, tpm, clock_is_set]
  measure:
    description: Whether to measure how fast memory is read, which takes about a second and an
      eighth of the memory that is free, at most 64 MiB for each core that the assistant would have.
    type: bool
    default: false
  cpus:
    description: The CPUs to measure on, such as V(1-3), where they are not those that the assistant
      takes by itself. What is no such list counts as none.
    type: str
    default: ""
  threads:
    description: The threads that the engine will have, each on a core of its own; V(0) for as many
      as there are cores.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Look at the machine
  nas.assistant.nas_info:
    paths: [/, /var/lib/docker]
    measure: true
  register: machine
"""

RETURN = r"""
cpu:
  description:
    - C(architecture) and C(model); C(bits) of programs; C(count) of CPUs and C(cores), with
      C(siblings), the CPUs of each core; those that are C(efficient), and slower.
    - C(features) that speed a model up, such as V(avx2) or V(dotprod); C(crypto) that speeds
      encryption up; C(governor) of its frequency and the kernel's C(frequency_driver), empty where
      there is none.
  type: dict
  returned: success
memory:
  description: Bytes C(total) and C(available), and C(swap), each with C(path), C(kind)
    (V(partition), V(file), V(zram)), C(size), C(used), C(priority).
  type: dict
  returned: success
bandwidth:
  description: Bytes of memory that the cores of the assistant together read in a second; 0 unless
    asked for, and where it could not be measured (there was too much else to do, or the kernel
    ended a process that measured).
  type: int
  returned: success
cgroup:
  description: C(version) of the control groups, and the C(controllers) that are on.
  type: dict
  returned: success
drives:
  description: Disks, each with C(name), C(stable) (a name that lasts), C(kind), C(size) in bytes,
    C(model), C(read_only), C(health) (V(good), V(hot), V(worn), V(unreadable), V(failing),
    V(asleep) where it was not woken, V(silent) where it was asked and did not answer, or empty
    where it does not say), C(temperature).
  type: list
  elements: dict
  returned: success
rooms:
  description: Filesystems that O(paths) lie in, each with C(mount), C(source), C(type), C(size),
    C(free), C(read_only), the C(paths) that lie in it, and the C(disks) that it lies on.
  type: list
  elements: dict
  returned: success
nics:
  description: Network interfaces, each with C(name), C(driver), C(speed) and C(most) in Mbit/s (0
    where it does not say), C(duplex), C(up), C(way_out), C(wireless).
  type: list
  elements: dict
  returned: success
accelerators:
  description: What may run a model too, each with C(kind), C(name), C(device).
  type: list
  elements: dict
  returned: success
listeners:
  description: Programs that take connections, each with C(port), C(address), C(program).
  type: list
  elements: dict
  returned: success
vendor:
  description: The system of a NAS's vendor or of a project, such as V(OpenMediaVault); empty for a
    plain distribution.
  type: str
  returned: success
engine:
  description: Version of Docker; empty where there is none.
  type: str
  returned: success
virtualisation:
  description: What the machine is a part of, such as V(kvm); empty for metal.
  type: str
  returned: success
tpm:
  description: Version of the TPM, empty where there is none.
  type: str
  returned: success
clock_is_set:
  description: Whether the clock follows a time server.
  type: bool
  returned: success
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.nas.assistant.plugins.module_utils import (
    _bandwidth as bandwidth,
    _cpu as cpu,
    _drives as drives,
    _memory as memory,
    _nics as nics,
    _system as system,
)

PARTS = (
    *("cpu", "memory", "cgroup", "drives", "rooms", "nics", "accelerators", "listeners"),
    *("vendor", "engine", "virtualisation", "tpm", "clock_is_set"),
)


def look(
    paths: list[str], measure: bool, parts: Sequence[str], cpus: str = "", threads: int = 0
) -> dict[str, object]:
    """Return what the module says."""
    readers: dict[str, Callable[[], object]] = {
        "cpu": lambda: asdict(cpu.read()),
        "memory": lambda: asdict(memory.read()),
        "cgroup": lambda: asdict(memory.cgroup()),
        "drives": lambda: [asdict(each) for each in drives.read()],
        "rooms": lambda: [asdict(each) for each in drives.rooms(paths)],
        "nics": lambda: [asdict(each) for each in nics.read()],
        "accelerators": lambda: [asdict(each) for each in system.accelerators()],
        "listeners": lambda: [asdict(each) for each in system.listeners()],
        "vendor": system.vendor,
        "engine": system.engine,
        "virtualisation": system.virtualisation,
        "tpm": system.tpm,
        "clock_is_set": system.clock_is_set,
    }
    found = {part: readers[part]() for part in parts}
    return {**found, "bandwidth": speed(cpus, threads) if measure else 0}


def speed(cpus: str = "", threads: int = 0) -> int:
    """Return the bandwidth; 0 where it cannot be measured, as on a machine that is too busy.

    :param cpus: those of the assistant, as a list; those that it takes by itself unless given.
    :param threads: of the engine; 0 for one on each core.
    """
    found = cpu.read()
    cores = (
        cpu.of_a_set(found.siblings, cpus)
        if cpu.LIST.fullmatch(cpus)
        else cpu.for_the_assistant(found.siblings, found.efficient)
    )
    cores = cores[: max(threads, 0) or None]
    measured = 0
    with suppress(OSError, RuntimeError):
        measured = bandwidth.measure([core[0] for core in cores], memory.read().available)
    return measured


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": ["/"]},
            "docker_root": {"type": "bool", "default": False},
            "gather": {"type": "list", "elements": "str", "choices": list(PARTS)},
            "measure": {"type": "bool", "default": False},
            "cpus": {"type": "str", "default": ""},
            "threads": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    try:
        parts = module.params["gather"] or PARTS
        given = module.params
        paths = given["paths"] + ([system.docker_root()] if given["docker_root"] else [])
        measured = (given["cpus"], given["threads"])
        module.exit_json(**look(paths, given["measure"], parts, *measured))
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
