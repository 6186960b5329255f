# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Labs of their own for the long tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from site_lab import ROOT, Lab


def lab(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lab", *arguments], cwd=ROOT, check=True)


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Return a function that makes a blank lab; it is removed at the end of the test."""
    made: list[str] = []

    def make(nas: int = 1, debian: str = "12") -> Lab:
        name = f"full{os.getpid()}x{len(made)}"
        made.append(name)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "group_vars").symlink_to(ROOT / "inventories/lab/group_vars")
        inventory = folder / "hosts.yml"
        sizes = ("--nas", str(nas), "--debian", debian)
        lab("up", "--name", name, *sizes, "--inventory", str(inventory))
        hosts = json.loads((ROOT / ".lab" / name / "lab.json").read_text())["hosts"]
        return Lab(name, folder, hosts)

    yield make
    for name in made:
        lab("down", "--name", name)
