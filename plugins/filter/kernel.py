# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Which parameters the kernel should have, and which queue each disk of a NAS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.nas.assistant.plugins.module_utils._drives import PLAYED

# As the rule of udev says it too.
_TURNING_OR_NOT = re.compile(r"sd[a-z]+|mmcblk\d+")
_NVME = re.compile(r"nvme\d+n\d+")


def kernel_parameters(
    own: Iterable[Mapping[str, Any]], given: Mapping[str, Any], partners: Mapping[str, str]
) -> dict[str, Any]:
    """Return the parameters to set: the role's own, and the inventory's laid over them.

    One that the inventory gives no value is left out. Of two that exclude each other, the role's
    own goes.

    :param own: the role's own, in parts.
    :param given: the inventory's.
    :param partners: parameters of the inventory by which one of the role's own has no meaning, and
        that one.
    """
    excluded = {partner for name, partner in partners.items() if name in given}
    found = {name: value for part in own for name, value in part.items() if name not in excluded}
    found.update(given.items())
    return {name: value for name, value in found.items() if value is not None}


def kernel_queues(
    devices: Mapping[str, Mapping[str, Any]], wish: Mapping[str, Any]
) -> dict[str, str]:
    """Return the values below ``/sys`` that disks should have.

    Disks of a virtual machine have none: they are its host's to order.

    :param devices: ``ansible_facts.devices``.
    :param wish: ``hdd``, ``ssd`` and ``nvme``, each a scheduler, and how much is read ahead of
        them, as ``hdd_read_ahead_kib`` and so on; 0 leaves it.
    """
    found = {}
    for name, device in sorted(devices.items()):
        queue = f"/sys/block/{name}/queue"
        if PLAYED.match(str(device.get("model") or "")):
            continue
        if _NVME.fullmatch(name):
            kind = "nvme"
        elif _TURNING_OR_NOT.fullmatch(name):
            kind = "hdd" if str(device.get("rotational")) == "1" else "ssd"
        else:
            continue
        found[f"{queue}/scheduler"] = str(wish[kind])
        if ahead := int(wish[f"{kind}_read_ahead_kib"]):
            found[f"{queue}/read_ahead_kb"] = str(ahead)
    return found


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"kernel_parameters": kernel_parameters, "kernel_queues": kernel_queues}
