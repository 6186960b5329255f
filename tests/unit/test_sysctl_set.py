# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Kernel parameters: names, values, the file, and a kernel that refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.modules.sysctl_set import (
    NAME,
    normal,
    parse_before,
    proc_path,
    read,
    render,
    write,
)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vm.swappiness", "/proc/sys/vm/swappiness"),
        ("net.ipv4.conf.all.rp_filter", "/proc/sys/net/ipv4/conf/all/rp_filter"),
        ("net/ipv4/conf/eth0.5/rp_filter", "/proc/sys/net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_proc_path(name: str, path: str) -> None:
    assert NAME.fullmatch(name)
    assert proc_path(name) == path


@pytest.mark.parametrize("name", ["", "vm", "vm..x", "../etc/passwd", "vm.x=1", "vm.x\n"])
def test_odd_names(name: str) -> None:
    assert not NAME.fullmatch(name) or ".." in name


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (True, "1"), ("4096\t131072  16777216\n", "4096 131072 16777216"), ("fq", "fq")],
)
def test_normal(value: object, text: str) -> None:
    assert normal(value) == text


def test_the_file_remembers_what_was_before() -> None:
    text = render({"b.x": "1 2", "a.y": "0"}, {"b.x": "3 4"})
    assert text.splitlines()[1:] == ["-a.y = 0", "-b.x = 1 2", "# before: b.x = 3 4"]
    assert parse_before(text) == {"b.x": "3 4"}


def test_a_kernel_that_lacks_or_refuses(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/good").write_text("1\t2\n")
    kernel = read(["vm.good", "vm.none"], str(tmp_path))
    assert kernel.values == {"vm.good": "1 2"}
    assert kernel.refused == {"vm.none": "vm.none: this kernel has no such parameter"}
    assert write("vm.good", "3 4", str(tmp_path)) == ""
    assert "refuses" in write("vm", "3", str(tmp_path))
