# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the processor is and can."""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.nas.assistant.plugins.module_utils import _sysfs as sysfs

# What the kernel calls the abilities that count, by what they are called here. Those of ARM's are
# listed beside those of Intel's: no name stands for two things.
_ENGINE = {
    "sse4_2": "sse4.2",
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "avx_vnni": "avx-vnni",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16",
    "amx_tile": "amx",
    "amx_int8": "amx-int8",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
# From so many cores on, one is the NAS's: a token is bound by memory, and three cores exhaust that
# of a small machine nearly as four do.
_SPARE = 4
# From so many fast cores on, the slow ones are the NAS's.
_FAST = 2
# Of CPUs, such as 0-2,5.
LIST = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")
_CRYPTO = {"aes": "aes", "sha_ni": "sha256", "sha2": "sha256", "vaes": "vaes", "sha512": "sha512"}


@dataclass(frozen=True)
class Cpu:
    """The processor.

    :param architecture: as ``uname -m`` has it, of the kernel.
    :param bits: of programs: 32 on a 64-bit kernel that runs a 32-bit system.
    :param count: CPUs of the kernel, threads of one core counted apart.
    :param efficient: those among them that are slower than the others, as of big.LITTLE.
    :param siblings: CPUs that share a core, by core; of those that are there.
    :param features: what speeds the engine up. ``crypto``: what speeds encryption up.
    :param governor: of the first CPU's frequency; empty where there is none, as in a guest.
    :param frequency_driver: of the same; what ``powersave`` means hangs on it.
    """

    architecture: str
    bits: int
    model: str
    count: int
    cores: int
    efficient: tuple[int, ...]
    siblings: tuple[tuple[int, ...], ...]
    features: tuple[str, ...]
    crypto: tuple[str, ...]
    governor: str
    frequency_driver: str = ""


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as ``0-2,5``."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def spoken(cpus: Iterable[int]) -> str:
    """Return a list as the kernel writes it, such as ``0-2,5``."""
    parts: list[list[int]] = []
    for each in sorted(set(cpus)):
        if parts and parts[-1][-1] == each - 1:
            parts[-1].append(each)
        else:
            parts.append([each])
    return ",".join(f"{part[0]}-{part[-1]}" if part[1:] else str(part[0]) for part in parts)


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Return the model's name, empty where the kernel has none as on ARM, and all flags of those
    that every CPU has."""
    model, flags = "", []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = model or " ".join(value.split())
        elif key.strip() in ("flags", "Features"):
            flags.append(frozenset(value.split()))
    return model, frozenset.intersection(*flags) if flags else frozenset()


def named(flags: frozenset[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is there of abilities, in their order."""
    return tuple(dict.fromkeys(name for flag, name in names.items() if flag in flags))


def slower(capacities: Mapping[int, int]) -> tuple[int, ...]:
    """Return the CPUs that have clearly less capacity than the best. Cores of one kind differ by a
    few percent, since some are let run faster."""
    most = max(capacities.values(), default=0)
    return tuple(sorted(cpu for cpu, value in capacities.items() if value < 0.8 * most))


def for_the_assistant(
    siblings: Sequence[Sequence[int]], efficient: Sequence[int]
) -> list[Sequence[int]]:
    """Return the cores that the assistant has by itself, each with its CPUs: the fast ones where
    there are some slow ones. Where all count, without the first if there are enough, since
    interrupts land there unless somebody moved them."""
    slow = set(efficient)
    fast = [core for core in siblings if not slow & set(core)]
    # A prompt is bound by arithmetic: of one fast core and four slow ones, these can more.
    cores = fast if len(fast) >= _FAST else list(siblings)
    # Where there are slow ones, those are the NAS's.
    spare = len(cores) >= _SPARE and len(cores) == len(siblings)
    return cores[1:] if spare else cores


def of_a_set(siblings: Sequence[Sequence[int]], text: str) -> list[Sequence[int]]:
    """Return the cores that a list of CPUs has a part in, each with its CPUs of the list."""
    wanted = set(parse_list(text))
    cores = [[each for each in core if each in wanted] for core in siblings]
    return [core for core in cores if core]


def read(root: str = "/") -> Cpu:
    """Look at the processor.

    :param root: the folder that holds ``proc`` and ``sys``.
    """
    with open(os.path.join(root, "proc/cpuinfo"), encoding="utf-8", errors="replace") as stream:
        model, flags = parse_cpuinfo(stream.read())
    folder = os.path.join(root, "sys/devices/system/cpu")
    online = parse_list(sysfs.text(folder, "online"))
    # A container of LXC is shown the siblings of its host's CPUs, also those that it does not have.
    shared = {
        tuple(
            cpu
            for cpu in parse_list(sysfs.text(folder, f"cpu{each}/topology/thread_siblings_list"))
            if cpu in online
        )
        for each in online
    }
    siblings = sorted(shared - {()})
    told = {each: sysfs.text(folder, f"cpu{each}/cpu_capacity") for each in online}
    capacities = {each: int(value) for each, value in told.items() if value}
    # Those of Arrow Lake's that draw the least are listed apart, from Linux 6.12 on.
    kinds = ("cpu_atom", "cpu_lowpower")
    listed = [parse_list(sysfs.text(root, "sys/devices", kind, "cpus")) for kind in kinds]
    atoms = tuple(sorted({cpu for cpus in listed for cpu in cpus} & set(online)))
    return Cpu(
        architecture=platform.machine(),
        bits=8 * struct.calcsize("P"),
        model=model or sysfs.text(root, "proc/device-tree/model").strip("\0"),
        count=len(online),
        cores=len(siblings) or len(online),
        efficient=atoms or slower(capacities),
        siblings=tuple(siblings) or tuple((each,) for each in online),
        features=named(flags, _ENGINE),
        crypto=named(flags, _CRYPTO),
        governor=sysfs.text(folder, "cpu0/cpufreq/scaling_governor"),
        frequency_driver=sysfs.text(folder, "cpu0/cpufreq/scaling_driver"),
    )
