# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The queue of a real device, which the kernel changes, refuses, and gets back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.nas.assistant.plugins.modules import sysfs_set

Call = Callable[..., dict[str, Any]]


def test_set_refused_and_put_back(
    call: Call, folder: Path, make_disks: Callable[..., list[str]]
) -> None:
    (disk,) = make_disks(1)
    queue = Path("/sys/block", Path(disk).name, "queue")
    before = {name: (queue / name).read_text() for name in ("scheduler", "read_ahead_kb")}
    offered = before["scheduler"].replace("[", "").replace("]", "").split()
    other = next(each for each in offered if f"[{each}]" not in before["scheduler"])
    file = folder / "rules"
    wish = {
        "path": str(file),
        "content": "# rules",
        "values": {f"{queue}/scheduler": other, f"{queue}/read_ahead_k*": 512},
    }
    assert call(sysfs_set.main, check=True, **wish)["changed"]
    assert not file.exists()
    assert call(sysfs_set.main, **wish)["refused"] == []
    assert f"[{other}]" in (queue / "scheduler").read_text()
    assert (queue / "read_ahead_kb").read_text() == "512\n"
    assert not call(sysfs_set.main, **wish)["changed"]
    # One that this kernel does not have is said, and the rest is done.
    said = call(sysfs_set.main, **{**wish, "values": {f"{queue}/scheduler": "cfq"}})
    assert (
        f"{queue}/scheduler = cfq: the kernel refuses it (Invalid argument; there are"
        in (said["refused"][0])
    )
    assert (queue / "read_ahead_kb").read_text() == before["read_ahead_kb"]
    assert call(sysfs_set.main, path=str(file), state="absent")["changed"]
    assert {name: (queue / name).read_text() for name in before} == before
    assert not file.exists()
    assert not call(sysfs_set.main, path=str(file), state="absent")["changed"]
