# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Installs what the controller lacks: on Debian and Ubuntu as root, elsewhere it says what."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

from lab import lock
from lab.errors import LabError
from lab.progress import step
from lab.run import run


def is_debian_family(release: Mapping[str, str]) -> bool:
    """Whether an os-release file describes Debian, Ubuntu or what is built on them."""
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return bool({"debian", "ubuntu"} & set(names))


def install(packages: Sequence[str], *, why: str, why_not: str = "") -> None:
    """Install Debian packages.

    :param why: what they are for, for the error.
    :param why_not: more to tell where this machine is not Debian.
    """
    command = f"apt-get install {' '.join(packages)}"
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    if not is_debian_family(release):
        name = release.get("PRETTY_NAME", platform.system())
        remedy = why_not or f"Install what Debian calls {' '.join(packages)} and run it again."
        raise LabError(f"{why}, and this machine runs {name}, not Debian or Ubuntu. {remedy}")
    if os.geteuid() != 0:
        raise LabError(f"{why}, and you are not root. Run as root: {command}")
    with lock.held("apt"), step(f"apt-get install {' '.join(packages)}"):
        # A machine that has just started may be updating itself.
        get = ["apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=300"]
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        remedy = "Repair apt (apt-get update shows what is wrong) and run it again."
        # The old package list may do, and then an update of a broken mirror need not succeed.
        first = run([*get, "install", "--no-install-recommends", *packages], check=False, env=quiet)
        if first.returncode != 0:
            run([*get, "update"], env=quiet, remedy=remedy)
            run([*get, "install", "--no-install-recommends", *packages], env=quiet, remedy=remedy)
