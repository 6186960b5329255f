# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Weights under cgroups v2: what becomes of Docker's there, and those of a slice of systemd's.

Docker's weight at disks is forgotten there: runc writes it and does not tell systemd, which makes
it the usual one at its next reload. What a slice has, stays.
"""

from __future__ import annotations

import glob
import math
import re

from ansible_collections.nas.assistant.plugins.module_utils._sysfs import text

GROUPS = "/sys/fs/cgroup"
SCHEDULERS = "/sys/block/*/queue/scheduler"
# BFQ's first, which is the one that counts where both are.
FILES = ("io.bfq.weight", "io.weight")


def cpu_weights(shares: int) -> tuple[int, int]:
    """Return the weights that runtimes make of CPU shares (2 to 262144).

    First as before, in a straight line; then as runc does it from 1.3.2 and crun from 1.23 on, so
    that 1024 stays what all have (https://github.com/opencontainers/runc/pull/4785).
    """
    line = 1 + (shares - 2) * 9999 // 262142
    power = math.log2(shares)
    curve = 10 ** ((power * power + 125 * power) / 612 - 7 / 34)
    return line, math.ceil(round(curve, 6))


def io_weight(asked: int) -> int:
    """Return systemd's ``IOWeight`` (1 to 10000) of which BFQ gets the weight (1 to 1000) that was
    asked for: the same up to the usual 100, and stretched beyond (systemd.resource-control).
    """
    return asked if asked <= 100 else 100 + (asked - 100) * 11


def folder_of(name: str) -> str:
    """Return where a slice is below the control groups: each dash in its name is a step down."""
    words = name.removesuffix(".slice").split("-")
    return "/".join(f"{'-'.join(words[: end + 1])}.slice" for end in range(len(words)))


def weight_of(name: str, groups: str = GROUPS) -> tuple[str, int | None]:
    """Return the file that has a slice's weight at disks, and the weight; none if there is none."""
    for file in FILES:
        found = re.search(r"\d+", text(groups, folder_of(name), file))
        if found:
            return file, int(found[0])
    return "", None


def heeded(groups: str = GROUPS, schedulers: str = SCHEDULERS) -> bool:
    """Whether any disk of the machine heeds weights: by BFQ, or by the controller ``io.cost``."""
    disks = (text(path) for path in glob.glob(schedulers))
    return "enable=1" in text(groups, "io.cost.qos") or any("[bfq]" in each for each in disks)
