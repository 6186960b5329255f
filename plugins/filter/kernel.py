# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Which queue each disk of a NAS should have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# As the rule of udev says it too; disks of a virtual machine are its host's to order.
_TURNING_OR_NOT = re.compile(r"sd[a-z]+|mmcblk\d+")
_NVME = re.compile(r"nvme\d+n\d+")


def kernel_queues(
    devices: Mapping[str, Mapping[str, Any]], wish: Mapping[str, Any]
) -> dict[str, str]:
    """Return the values below ``/sys`` that disks should have.

    :param devices: ``ansible_facts.devices``.
    :param wish: ``hdd``, ``ssd`` and ``nvme``, each a scheduler, and ``hdd_read_ahead_kib``.
    """
    found = {}
    for name, device in sorted(devices.items()):
        queue = f"/sys/block/{name}/queue"
        if _NVME.fullmatch(name):
            found[f"{queue}/scheduler"] = str(wish["nvme"])
        elif _TURNING_OR_NOT.fullmatch(name):
            turns = str(device.get("rotational")) == "1"
            found[f"{queue}/scheduler"] = str(wish["hdd" if turns else "ssd"])
            if turns:
                found[f"{queue}/read_ahead_kb"] = str(wish["hdd_read_ahead_kib"])
    return found


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"kernel_queues": kernel_queues}
