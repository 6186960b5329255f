# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Reads the kernel's small files. One that is not there says nothing."""

from __future__ import annotations

import glob
import os


def text(*parts: str) -> str:
    """Return what a file says, without the blanks around it; empty where it cannot be read."""
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def target(*parts: str) -> str:
    """Return the name of what a link leads to, empty where there is no link."""
    path = os.path.join(*parts)
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else ""


def first(*parts: str) -> str:
    """Return the name of the first that fits a pattern, empty where none does."""
    found = sorted(glob.glob(os.path.join(*parts)))
    return os.path.basename(found[0]) if found else ""
