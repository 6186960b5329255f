# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Where the lab keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def home() -> Path:
    """The folder of this checkout's labs: .lab, or what NAS_LAB_HOME says."""
    return Path(os.environ.get("NAS_LAB_HOME") or REPOSITORY / ".lab").resolve()


def lab(name: str) -> Path:
    """The folder of one lab: key, known hosts, disks, lab.json."""
    return home() / name
