# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Labs of their own for the long tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from site_lab import Lab, make_inventory, read_lab, run_lab


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Return a function that makes a blank lab, a virtual machine where a CPU is named.

    It is removed at the end of the test.
    """
    made: list[str] = []

    def make(nas: int = 1, debian: str = "12", cpu: str = "") -> Lab:
        name = f"full{os.getpid()}x{len(made)}"
        made.append(name)
        inventory = make_inventory(tmp_path / name)
        kind = ("vm", "--cpu", cpu) if cpu else ("up", "--nas", str(nas))
        run_lab(*kind, "--name", name, "--debian", debian, "--inventory", str(inventory))
        return read_lab(name, inventory.parent)

    yield make
    for name in made:
        run_lab("down", "--name", name)
