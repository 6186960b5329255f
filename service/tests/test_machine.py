# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""CPU, control groups and memory, from small trees of files as the kernel shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_assistant.cgroup import Limits, available_memory, read_limits, usable_threads
from nas_assistant.cpu import missing_for_wheel
from nas_assistant.gguf import read_head
from nas_assistant.memory import MIB, gateway_need, memory_need
from nas_assistant.settings import Settings

from .conftest import HYBRID, gguf_file, minimal_config, settled

GIB = 1 << 30
MEMINFO = {"proc/meminfo": "MemTotal: 8388608 kB\n"}

V2_CONTAINER = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": "1073741824\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
}
V2_UNLIMITED = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": "max\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
}
V2_NESTED = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/memory.max": "536870912\n",
    "sys/fs/cgroup/a/b/memory.max": "1073741824\n",
}
# In a container of version 1 the path is the host's, which is not there.
V1_CONTAINER = {
    "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "943718400\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
V1_UNLIMITED = {
    "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


def make_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, Limits(None, None)),
        (V2_CONTAINER, Limits(GIB, 1.5)),
        (V2_UNLIMITED, Limits(None, None)),
        (V2_NESTED, Limits(GIB // 2, None)),
        (V1_CONTAINER, Limits(943718400, 0.5)),
        (V1_UNLIMITED, Limits(None, None)),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "junk"}, Limits(None, None)),
    ],
)
def test_limits(tmp_path: Path, files: dict[str, str], limits: Limits) -> None:
    assert read_limits(make_tree(tmp_path, files)) == limits


def test_available_memory(tmp_path: Path) -> None:
    limited = make_tree(tmp_path / "a", MEMINFO | V2_CONTAINER)
    assert available_memory(limited) == (GIB, "the container's memory limit")
    free = make_tree(tmp_path / "b", MEMINFO | V2_UNLIMITED)
    assert available_memory(free) == (8 * GIB, "the machine's memory")


@pytest.mark.parametrize(
    ("files", "cpus", "threads"),
    [({}, 4, 4), ({}, 64, 8), (V2_CONTAINER, 4, 1), (V1_CONTAINER, 4, 1), ({}, 1, 1)],
)
def test_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: int, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)))
    assert usable_threads(make_tree(tmp_path, files)) == threads


HASWELL = "processor : 0\nflags\t\t: fpu sse4_2 avx avx2 bmi2 f16c fma\n"
CELERON_J4125 = "processor : 0\nflags\t\t: fpu sse4_1 sse4_2 aes sha_ni\n"


@pytest.mark.parametrize(
    ("text", "machine", "missing"),
    [
        (HASWELL, "x86_64", ()),
        (CELERON_J4125, "x86_64", ("avx", "avx2", "bmi2", "f16c", "fma")),
        (HASWELL.replace(" fma", ""), "x86_64", ("fma",)),
        ("processor : 0\n", "x86_64", ()),
        ("Features : fp asimd\n", "aarch64", ()),
    ],
)
def test_cpu(tmp_path: Path, text: str, machine: str, missing: tuple[str, ...]) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text, encoding="ascii")
    assert missing_for_wheel(path, machine) == missing


def test_memory_arithmetic(tmp_path: Path, write_config: Callable[[str], Path]) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_file())
    settings = settled(Settings.load(write_config(minimal_config()), {}))
    need = memory_need(read_head(path), 10 * MIB, settings.models["default"], settings)
    # One layer, two KV heads of 16 values for keys and as many for values, two bytes each.
    assert need.kv_cache == 2 * (16 + 16) * 2 * 2048 * 4
    assert need.weights == 10 * MIB
    assert need.prompt_cache == 128 * MIB
    assert need.requests == (2048 * 16 + 65536) * 4 * 80
    assert need.total == sum(getattr(need, field.name) for field in dataclasses.fields(need))
    assert str(need).startswith("weights 10 + KV cache 1 + prompt cache 128 + requests 30 + ")
    assert str(need).endswith(" MiB")
    # Bodies that are read and held are in it: 48 + 16 + 8 for each of two workers.
    assert need.gateway == (2 * 72 + 64) * MIB
    path.write_bytes(gguf_file(pooling=1))
    texts = memory_need(read_head(path), 10 * MIB, settings.models["default"], settings)
    assert texts.requests - need.requests == 2 * 26 * MIB
    upstreams = minimal_config(mode="hybrid", queue=5) + HYBRID
    for mode in ("hybrid", "local"):
        config = write_config(upstreams.replace("hybrid", mode))
        held = gateway_need(Settings.load(config, {})) - need.gateway
        # Two workers: three times what they hold, and 1 MiB instead of 192 KiB is read.
        assert held == (2 * (32 + 26) * MIB if mode == "hybrid" else 0)
