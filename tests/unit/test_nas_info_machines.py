# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What nas_info says of real machines: of what machines/capture.sh printed on them.

Cores of two kinds cannot be emulated, nor can a disk that fails: those are in test_nas_info.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.nas.assistant.plugins.filter import preflight
from ansible_collections.nas.assistant.plugins.module_utils import (
    _block as block,
    _cpu as cpu,
    _drives as drives,
    _memory as memory,
    _nics as nics,
    _system as system,
)

CAPTURES = Path(__file__).parent / "machines"
MIB = 1 << 20

# Of version 2, on Debian 12.
ALL_2 = ("cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma")


@dataclass(frozen=True)
class Machine:
    """What is expected of one. ``given``: MiB. ``drives``: name, kind, MiB, health, and what the
    stable name ends with; ``nics``: name, driver, speed, most, duplex, way out."""

    name: str
    architecture: str
    model: str
    siblings: Sequence[Sequence[int]]
    features: Sequence[str]
    crypto: Sequence[str]
    given: int
    version: int
    controllers: Sequence[str]
    drives: Sequence[tuple[str, str, int, str, str]]
    nics: Sequence[tuple[str, str, int, int, str, bool]]
    virtualisation: str
    ports: Sequence[int]
    bits: int = 64
    swap: Sequence[tuple[str, str, int]] = field(default=())
    unfit: Sequence[str] = ()
    warned: Sequence[str] = ("clock",)
    engine: str = ""


MACHINES = (
    Machine(
        name="x86_64-amx",
        architecture="x86_64",
        model="Intel(R) Xeon(R) Processor",
        siblings=((0,), (1,)),
        features=(
            *("sse4.2", "f16c", "fma", "avx2", "avx-vnni", "avx512", "avx512-vnni"),
            *("avx512-bf16", "amx", "amx-int8"),
        ),
        crypto=("aes", "sha256", "vaes"),
        given=24576,
        version=1,
        controllers=(
            *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory"),
            *("net_cls", "net_prio", "perf_event", "pids"),
        ),
        drives=[("vda", "virtual", 262144, "", "")],
        nics=[("eth0", "virtio_net", 0, 0, "", True)],
        # It has a file that systemd takes for Docker's.
        virtualisation="docker",
        ports=(),
        engine="28.2.2",
    ),
    Machine(
        name="x86_64-max",
        architecture="x86_64",
        model="QEMU TCG CPU version 2.5+",
        siblings=((0,), (1,)),
        features=("sse4.2", "f16c", "fma", "avx2"),
        crypto=("aes", "vaes"),
        given=4096,
        version=2,
        controllers=ALL_2,
        drives=[(f"vd{letter}", "virtual", 8192, "", "") for letter in "abc"],
        nics=[("enp0s2", "virtio_net", 0, 0, "", True)],
        virtualisation="qemu",
        ports=(80, 80, 443, 443, 2222, 2222, 35569),
        # Its Nginx; it was captured without root, whom ss tells of programs.
        unfit=["port 443"],
        warned=["clock", "memory"],
        engine="20.10.24+dfsg1",
    ),
    Machine(
        name="x86_64-nehalem",
        architecture="x86_64",
        model="Intel Core i7 9xx (Nehalem Class Core i7)",
        siblings=((0, 1), (2, 3)),
        features=("sse4.2",),
        crypto=(),
        given=768,
        version=1,
        controllers=("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"),
        # The DVD drive and zram0 are no disks. Behind virtio-scsi, its model gives a disk away.
        drives=[
            ("sda", "virtual", 64, "", "scsi-0QEMU_QEMU_HARDDISK_DISK6"),
            ("sdb", "usb", 64, "", "usb-QEMU_QEMU_HARDDISK_DISK5-0:0"),
            ("sdc", "hdd", 4096, "good", "ata-EXAMPLE_HDD_DISK1"),
            ("sdd", "usb", 128, "", "usb-QEMU_QEMU_HARDDISK_DISK4-0:0"),
            ("sde", "virtual", 1024, "", "ata-QEMU_HARDDISK_DISK2"),
            ("mmcblk0", "mmc", 256, "", "mmc-QEMU__0xdeadbeef"),
            ("vda", "virtual", 256, "", ""),
            ("nvme0n1", "nvme", 512, "good", "nvme-QEMU_NVMe_Ctrl_DISK3"),
        ],
        # The first is a part of the bridge that the way out leads through; bridge and VLAN are
        # none. One is switched off.
        nics=[
            ("enp0s10", "virtio_net", 2500, 0, "full", True),
            ("enp0s6", "e1000e", 1000, 1000, "full", False),
            ("enp0s7", "8139cp", 0, 100, "", False),
            ("enp0s8", "e1000", 1000, 1000, "full", False),
            ("enp0s9", "vmxnet3", 1000, 10000, "full", False),
            ("usb0", "cdc_subset", 0, 0, "", False),
        ],
        virtualisation="qemu",
        ports=(80,),
        unfit=["memory"],
        warned=["clock", "instructions"],
        swap=[("/dev/zram0", "zram", 100), ("/dev/vda1", "partition", -2)],
    ),
    Machine(
        name="aarch64-max",
        architecture="aarch64",
        model="linux,dummy-virt",
        siblings=((0,), (1,), (2,), (3,)),
        features=("neon", "dotprod", "i8mm", "bf16", "sve", "sve2"),
        crypto=("aes", "sha256", "sha512"),
        given=1024,
        version=2,
        controllers=ALL_2,
        drives=[
            ("sda", "virtual", 1024, "", "ata-QEMU_HARDDISK_DISK3"),
            ("sdb", "usb", 128, "", "usb-QEMU_QEMU_HARDDISK_DISK2-0:0"),
            ("vda", "virtual", 256, "", ""),
            ("nvme0n1", "nvme", 512, "good", "nvme-QEMU_NVMe_Ctrl_DISK1"),
        ],
        nics=[
            ("enp0s4", "virtio_net", 2500, 0, "full", True),
            ("enp0s5", "e1000e", 1000, 1000, "full", False),
        ],
        virtualisation="qemu",
        ports=(80,),
        unfit=["memory"],
        swap=[("/dev/zram0", "zram", 100), ("/dev/vda1", "partition", -2)],
    ),
    *(
        Machine(
            name=f"aarch64-{core}",
            architecture="aarch64",
            model="linux,dummy-virt",
            siblings=((0,), (1,)),
            features=features,
            crypto=("aes", "sha256"),
            given=512,
            version=2,
            controllers=ALL_2,
            drives=[("sda", "virtual", 64, "", "scsi-0QEMU_QEMU_HARDDISK_DISK1")],
            nics=[("eth0", "virtio_net", 0, 0, "", True)],
            virtualisation="qemu",
            ports=(80,),
            unfit=["memory"],
            warned=["clock"] if "dotprod" in features else ["clock", "instructions"],
        )
        for core, features in (("cortex-a72", ("neon",)), ("neoverse-n1", ("neon", "dotprod")))
    ),
    Machine(
        name="aarch64-raspberry-pi-3b",
        architecture="aarch64",
        model="Raspberry Pi 3 Model B",
        siblings=((0,), (1,), (2,), (3,)),
        features=("neon",),
        crypto=("aes", "sha256"),
        given=960,  # of 1024; the others are the display's
        version=2,
        # Off, as the firmware has it.
        controllers=[each for each in ALL_2 if each != "memory"],
        drives=[
            ("sda", "usb", 128, "", "usb-QEMU_QEMU_HARDDISK_DISK1-0:0"),
            ("mmcblk0", "mmc", 512, "", "mmc-QEMU__0xdeadbeef"),
        ],
        nics=[("usb0", "cdc_subset", 0, 0, "", True)],
        virtualisation="",
        ports=(80,),
        unfit=["memory", "memory limits"],
        warned=["clock", "instructions"],
    ),
    *(
        Machine(
            name=f"{architecture}-{core}",
            architecture=architecture,
            bits=32,
            model=model,
            siblings=((0,), (1,)),
            features=(),
            crypto=crypto,
            given=1000,
            version=2,
            controllers=controllers,
            drives=[("sda", "virtual", 64, "", "scsi-0QEMU_QEMU_HARDDISK_DISK1")],
            nics=[("enp0s2", "virtio_net", 0, 0, "", True)],
            virtualisation="qemu",
            ports=(80,),
            unfit=["memory", "processor"],
        )
        for architecture, core, model, crypto, controllers in (
            (
                *("armv7l", "cortex-a15", "ARMv7 Processor rev 0 (v7l)", ()),
                [each for each in ALL_2 if each != "hugetlb"],
            ),
            ("armv8l", "cortex-a72", "ARMv8 Processor rev 3 (v8l)", ("sha256",), ALL_2),
        )
    ),
)

# What the kernel calls an ability, by what it is called here; written once more, so that a slip
# in the one shows by the other.
ABILITIES = {
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
    "aes": "aes",
    "sha_ni": "sha256",
    "sha2": "sha256",
    "vaes": "vaes",
    "sha512": "sha512",
}
# QEMU has it, but the kernel of Debian 12 is built without.
UNSEEN = {"sme"}


def unpacked(name: str, root: Path) -> dict[str, str]:
    """Make a folder that looks like the machine's; return what its programs print, by their
    words."""
    content: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (CAPTURES / f"{name}.txt").read_text(encoding="utf-8").split("\n"):
        if not line or line.startswith("\t"):
            lines.append(line[1:])
        elif not line.startswith("#"):
            lines = content.setdefault(line, [])
    programs = {}
    for head, lines in content.items():
        text = "\n".join(lines).strip("\n")
        if head.startswith("$ "):
            programs[head[2:]] = text
        else:
            _make(root, head, text)
    return programs


def _make(root: Path, head: str, text: str) -> None:
    head, arrow, target = head.partition(" -> ")
    head, _, line = head.partition(" =")
    path = root / head.removesuffix(":")
    if head.endswith("/"):
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrow:
        # A device is asked for by its name in /dev, wherever the tree is.
        by_id = head.startswith("dev/disk/")
        path.symlink_to(f"/dev/{target.rpartition('/')[2]}" if by_id else target)
    else:
        path.write_text((line.strip() or text).replace("␀", "\0") + "\n", encoding="utf-8")


@pytest.fixture(params=MACHINES, ids=lambda machine: machine.name)
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    """Each of them, in the test's folder and in its programs' place."""
    found: Machine = request.param
    programs = unpacked(found.name, tmp_path)

    def answer(argv: Sequence[str], timeout: float | None = None) -> str:
        # One that was not captured is an error, and one that the machine lacks says nothing.
        return programs[" ".join(argv)]

    for module in (drives, nics, system):
        monkeypatch.setattr(module, "answer", answer)
    monkeypatch.setattr(block, "BY_ID", str(tmp_path / "dev/disk/by-id"))
    monkeypatch.setattr(cpu, "platform", SimpleNamespace(machine=lambda: programs["uname -m"]))
    size = found.bits // 8
    monkeypatch.setattr(cpu, "struct", SimpleNamespace(calcsize=lambda _: size))
    return found


def test_every_capture_is_in_the_table() -> None:
    assert {each.name for each in MACHINES} == {path.stem for path in CAPTURES.glob("*.txt")}


def test_the_processor(machine: Machine, tmp_path: Path) -> None:
    found = cpu.read(str(tmp_path))
    assert (found.architecture, found.model) == (machine.architecture, machine.model)
    assert found.siblings == machine.siblings
    assert (found.count, found.cores) == (sum(map(len, machine.siblings)), len(machine.siblings))
    assert (found.features, found.crypto) == (machine.features, machine.crypto)
    # Cores of one kind, and no guest chooses its frequency.
    assert (found.efficient, found.governor) == ((), "")


def test_memory_and_swap(machine: Machine, tmp_path: Path) -> None:
    found = memory.read(str(tmp_path))
    # The kernel has its part of it.
    assert 0.9 * machine.given * MIB < found.total < machine.given * MIB
    assert 0 < found.available < found.total
    assert [(each.path, each.kind, each.priority) for each in found.swap] == list(machine.swap)
    assert all(each.size > 0 and each.used == 0 for each in found.swap)


def test_control_groups(machine: Machine, tmp_path: Path) -> None:
    found = memory.cgroup(str(tmp_path))
    assert (found.version, found.controllers) == (machine.version, tuple(machine.controllers))


def test_disks(machine: Machine) -> None:
    found = [
        (each.name, each.kind, each.size // MIB, each.health, each.stable.rpartition("/")[2])
        for each in drives.read()
    ]
    assert found == list(machine.drives)


def test_network_cards(machine: Machine, tmp_path: Path) -> None:
    found = [
        (each.name, each.driver, each.speed, each.most, each.duplex, each.way_out)
        for each in nics.read(str(tmp_path))
    ]
    assert found == list(machine.nics)


def test_the_system(machine: Machine, tmp_path: Path) -> None:
    root = str(tmp_path)
    assert system.virtualisation() == machine.virtualisation
    assert [each.port for each in system.listeners()] == list(machine.ports)
    assert system.engine() == machine.engine
    # A screen that QEMU draws is nothing to compute on.
    assert system.accelerators(root) == []
    assert (system.vendor(root), system.tpm(root), system.clock_is_set()) == ("", "", False)


def test_what_preflight_says_of_it(machine: Machine, tmp_path: Path) -> None:
    root = str(tmp_path)
    found = {
        "cpu": asdict(cpu.read(root)),
        "memory": asdict(memory.read(root)),
        "cgroup": asdict(memory.cgroup(root)),
        "drives": [asdict(each) for each in drives.read()],
        # How much is free was not captured: as on a disk that is large enough.
        "rooms": [asdict(drives.Room("/", "/dev/sda1", "ext4", 1 << 38, 1 << 37, False, ("/",)))],
        "nics": [asdict(each) for each in nics.read(root)],
        "accelerators": [asdict(each) for each in system.accelerators(root)],
        "listeners": [asdict(each) for each in system.listeners()],
        "vendor": system.vendor(root),
        "virtualisation": system.virtualisation(),
        "tpm": system.tpm(root),
        "clock_is_set": system.clock_is_set(),
    }
    debian = {"distribution": "Debian", "distribution_major_version": "12"}
    findings = preflight.preflight_findings(found, debian, {}, [443])
    for verdict, expected in (("unfit", machine.unfit), ("warning", machine.warned)):
        said = {each["check"]: each for each in findings if each["verdict"] == verdict}
        assert sorted(said) == sorted(expected)
        for each in said.values():
            assert all(each[key] for key in ("value", "limit", "reason", "remedy")), each
    expected = "unfit" if machine.unfit else "fit with warnings"
    assert preflight.preflight_verdict(findings) == expected
    if machine.bits == 32:
        (processor,) = [each for each in findings if each["check"] == "processor"]
        assert processor["value"] == f"{machine.architecture}, {machine.model}"
        assert processor["limit"] == "x86_64 or aarch64 (ARMv8)"
        assert processor["remedy"].endswith("on a Raspberry Pi 3 or later, the 64-bit system")


def test_what_only_some_of_them_show(tmp_path: Path) -> None:
    programs = unpacked("x86_64-nehalem", tmp_path)
    mounts = drives.parse_mounts((tmp_path / "proc/self/mounts").read_text(encoding="utf-8"))
    assert mounts["/srv/my files"] == ("/dev/vda2", "ext4", True)
    found = {each.name: each for each in drives.parse_lsblk(programs[" ".join(drives.LSBLK)])}
    assert [name for name, each in found.items() if each.read_only] == ["sdb"]
    assert found["sdc"].model == "EXAMPLE HDD"
    asked = "smartctl --json --nocheck=standby,3 --health --attributes --log=devstat /dev/"
    degrees = [drives.parse_smart(programs[asked + name])[1] for name in ("sdc", "nvme0n1", "sda")]
    assert degrees == [31, 50, 0]


@pytest.mark.parametrize(("flag", "name"), ABILITIES.items())
def test_every_ability_is_known(tmp_path: Path, flag: str, name: str) -> None:
    for folder, content in (("proc", f"flags : {flag} x\nFeatures : x {flag}\n"), ("sys", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cpuinfo").write_text(content)
    found = cpu.read(str(tmp_path))
    assert found.features + found.crypto == (name,)


def test_every_ability_is_in_the_table_and_on_a_machine() -> None:
    assert {**cpu._ENGINE, **cpu._CRYPTO} == ABILITIES
    shown = {name for each in MACHINES for name in (*each.features, *each.crypto)}
    assert shown == set(ABILITIES.values()) - UNSEEN


@pytest.mark.parametrize(("size", "bits"), [(4, 32), (8, 64)])
def test_bits_are_those_of_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, bits: int
) -> None:
    """As of a 32-bit system on a 64-bit kernel, which an old Raspberry Pi OS has."""
    unpacked("aarch64-raspberry-pi-3b", tmp_path)
    monkeypatch.setattr(cpu, "struct", SimpleNamespace(calcsize=lambda _: size))
    assert cpu.read(str(tmp_path)).bits == bits
