# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Names and labels: how `down` finds all that the lab made, also without its state files."""

from __future__ import annotations

import hashlib
import re

from lab import paths
from lab.errors import LabError

LAB = "nas-lab"  # on containers, networks and volumes: the lab's name; on images: IMAGE
HOME = "nas-lab.home"  # the .lab folder it belongs to, so that two checkouts leave each other alone
IMAGE = "image"

# Part of a host name, a container's name and a folder's.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}")
_TAKEN = (IMAGE, "bench", "cache", "locks", "models", "tests")


def checked(name: str) -> str:
    """Return a lab's name, or refuse it with the reason."""
    if not _NAME.fullmatch(name) or name.endswith("-"):
        raise LabError(
            f"{name!r} cannot name a lab: use 1 to 30 of a-z, 0-9 and '-', starting with a "
            f"letter and not "
            "ending in '-', for example demo."
        )
    if name in _TAKEN:
        raise LabError(
            f"{name!r} is taken by the lab itself: choose another name, for example demo."
        )
    return name


def prefix(name: str) -> str:
    """What the names of a lab's containers, network and volumes start with.

    Differs between checkouts.
    """
    return f"nas-lab-{hashlib.sha256(str(paths.home()).encode()).hexdigest()[:4]}-{name}"


def arguments(name: str) -> list[str]:
    """The docker options that label something as this lab's."""
    return ["--label", f"{LAB}={name}", "--label", f"{HOME}={paths.home()}"]


def filters(name: str) -> list[str]:
    """The docker options that list what is labelled as this lab's."""
    return ["--filter", f"label={LAB}={name}", "--filter", f"label={HOME}={paths.home()}"]
