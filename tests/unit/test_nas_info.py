# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is read of the kernel's files and of programs, on machines of both architectures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import (
    _bandwidth as bandwidth,
    _cpu as cpu,
    _drives as drives,
    _memory as memory,
    _nics as nics,
    _system as system,
)
from ansible_collections.nas.assistant.plugins.modules import nas_info

CELERON = """\
processor\t: 0
model name\t: Intel(R) Celeron(R)  J4125 CPU @ 2.00GHz
flags\t\t: fpu sse4_2 aes rdrand sha_ni

processor\t: 1
model name\t: Intel(R) Celeron(R)  J4125 CPU @ 2.00GHz
flags\t\t: fpu sse4_2 aes rdrand sha_ni
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 1
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
MEMINFO = "MemTotal:        3884184 kB\nMemFree:   108 kB\nMemAvailable:    3200000 kB\n"


def tree(root: Path, files: Mapping[str, str]) -> str:
    """Make a folder that looks like the kernel's."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3\n", (0, 1, 2, 3)), ("0,2-3", (0, 2, 3)), ("5", (5,)), ("\n", ()), ("", ())],
)
def test_lists_of_cpus(text: str, expected: tuple[int, ...]) -> None:
    assert cpu.parse_list(text) == expected


def test_a_celeron(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": CELERON, "sys/devices/system/cpu/online": "0-1"}
    found = cpu.read(tree(tmp_path, files))
    assert found.model == "Intel(R) Celeron(R) J4125 CPU @ 2.00GHz"
    assert (found.count, found.cores, found.efficient) == (2, 2, ())
    assert found.features == ("sse4.2",)
    assert found.crypto == ("aes", "sha256")


def test_cores_of_two_kinds_on_arm(tmp_path: Path) -> None:
    place = "sys/devices/system/cpu"
    files = {
        "proc/cpuinfo": ARM,
        "proc/device-tree/model": "Radxa ROCK 5B\0",
        f"{place}/online": "0-1",
        f"{place}/cpu0/cpu_capacity": "414",
        f"{place}/cpu1/cpu_capacity": "1024",
        f"{place}/cpu0/cpufreq/scaling_governor": "ondemand\n",
    }
    found = cpu.read(tree(tmp_path, files))
    assert (found.model, found.efficient) == ("Radxa ROCK 5B", (0,))
    # What one of them lacks, a program cannot rely on.
    assert found.features == ("neon",)
    assert found.governor == "ondemand"


def test_threads_of_one_core_and_intels_atoms(tmp_path: Path) -> None:
    place = "sys/devices/system/cpu"
    files = {
        "proc/cpuinfo": "flags : avx2 fma avx_vnni\n",
        f"{place}/online": "0-3",
        **{f"{place}/cpu{each}/topology/thread_siblings_list": "0-1" for each in (0, 1)},
        **{f"{place}/cpu{each}/topology/thread_siblings_list": str(each) for each in (2, 3)},
        "sys/devices/cpu_atom/cpus": "2-3\n",
    }
    found = cpu.read(tree(tmp_path, files))
    assert (found.count, found.cores, found.efficient) == (4, 3, (2, 3))
    assert found.siblings == ((0, 1), (2,), (3,))
    assert found.features == ("fma", "avx2", "avx-vnni")


@pytest.mark.parametrize(
    ("atom", "lowpower", "efficient"),
    [
        ("2-5\n", "", (2, 3, 4, 5)),
        ("2-5\n", "6-7\n", (2, 3, 4, 5, 6, 7)),
        ("", "6-7\n", (6, 7)),
        # Switched off, or not this container's.
        ("2-5,8-9\n", "10\n", (2, 3, 4, 5)),
        ("8-9\n", "", ()),
    ],
)
def test_intels_slow_cores(
    tmp_path: Path, atom: str, lowpower: str, efficient: tuple[int, ...]
) -> None:
    files = {"proc/cpuinfo": CELERON, "sys/devices/system/cpu/online": "0-7"}
    files |= {"sys/devices/cpu_atom/cpus": atom, "sys/devices/cpu_lowpower/cpus": lowpower}
    assert cpu.read(tree(tmp_path, files)).efficient == efficient


def test_cores_that_only_run_a_little_faster_are_of_one_kind() -> None:
    assert cpu.slower({0: 1024, 1: 1024, 2: 990}) == ()
    assert cpu.slower({}) == ()


def test_memory(tmp_path: Path) -> None:
    swaps = (
        "Filename\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0 partition\t1048572\t\t1024\t\t100\n"
        "/swap\\040file file\t2097148\t\t0\t\t-2\n"
    )
    found = memory.read(tree(tmp_path, {"proc/meminfo": MEMINFO, "proc/swaps": swaps}))
    assert (found.total, found.available) == (3884184 << 10, 3200000 << 10)
    assert [(each.path, each.kind, each.priority) for each in found.swap] == [
        ("/dev/zram0", "zram", 100),
        ("/swap file", "file", -2),
    ]
    with pytest.raises(ValueError, match="MemAvailable"):
        memory.parse_meminfo("MemTotal: 1 kB\n")


@pytest.mark.parametrize(
    ("files", "version", "on"),
    [
        ({"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"}, 2, True),
        # Raspberry Pi OS, whose firmware switches it off.
        ({"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"}, 2, False),
        (
            {
                "proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
                "cpu\t1\t8\t1\nmemory\t4\t80\t1\n",
                "sys/fs/cgroup/memory/tasks": "",
                "sys/fs/cgroup/cpu/tasks": "",
            },
            1,
            True,
        ),
        (
            {
                "proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
                "cpu\t1\t8\t1\nmemory\t0\t80\t0\n",
                "sys/fs/cgroup/cpu/tasks": "",
            },
            1,
            False,
        ),
        ({}, 0, False),
    ],
)
def test_cgroups(tmp_path: Path, files: dict[str, str], version: int, on: bool) -> None:
    found = memory.cgroup(tree(tmp_path, files))
    assert (found.version, "memory" in found.controllers) == (version, on)


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ({"name": "nvme0n1", "tran": "nvme", "rota": False}, "nvme"),
        ({"name": "sda", "tran": "sata", "rota": True}, "hdd"),
        ({"name": "sda", "tran": "sata", "rota": False}, "ssd"),
        ({"name": "sdb", "tran": "usb", "rota": True}, "usb"),
        ({"name": "mmcblk0", "tran": None, "rota": False}, "mmc"),
        ({"name": "vda", "tran": None, "rota": True}, "virtual"),
        ({"name": "sda", "tran": None, "rota": True, "model": "QEMU HARDDISK"}, "virtual"),
        ({"name": "sdb", "tran": "usb", "rota": True, "model": "QEMU HARDDISK"}, "usb"),
    ],
)
def test_kinds_of_disks(device: dict[str, Any], kind: str) -> None:
    assert drives.kind(device) == kind


def test_what_is_no_disk_is_left_out() -> None:
    rows = [
        {"name": "sda", "type": "disk", "size": 4000787030016, "rota": True, "tran": "sata"},
        {"name": "sdc", "type": "disk", "size": 0, "rota": True, "tran": "usb"},
        {"name": "zram0", "type": "disk", "size": 1 << 30, "rota": False, "tran": None},
        {"name": "loop0", "type": "loop", "size": 1 << 30, "rota": False, "tran": None},
        {"name": "mmcblk0boot0", "type": "disk", "size": 4 << 20, "rota": False, "tran": None},
        {"name": "mtdblock0", "type": "disk", "size": 1 << 20, "rota": False, "tran": None},
        {"name": "sr0", "type": "rom", "size": 1 << 30, "rota": True, "tran": "sata"},
    ]
    rows[0] |= {"model": "WDC WD40EFRX  ", "rm": False, "ro": False, "fstype": None}
    (found,) = drives.parse_lsblk(json.dumps({"blockdevices": rows}))
    assert (found.name, found.model, found.size) == ("sda", "WDC WD40EFRX", 4000787030016)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"smart_status": {"passed": True}, "temperature": {"current": 34}}, ("good", 34)),
        ({"smart_status": {"passed": False}}, ("failing", 0)),
        ({"nvme_smart_health_information_log": {"critical_warning": 4}}, ("failing", 0)),
        # smartctl calls it failed, and it is only too hot.
        (
            {
                "smart_status": {"passed": False},
                "nvme_smart_health_information_log": {"critical_warning": 2},
            },
            ("hot", 0),
        ),
        (
            {
                "smart_status": {"passed": True},
                "nvme_smart_health_information_log": {"percentage_used": 97},
            },
            ("worn", 0),
        ),
        (
            {
                "smart_status": {"passed": True},
                "ata_device_statistics": {
                    "pages": [
                        {"number": 1, "table": [{"name": "Power-on Hours", "value": 9000}]},
                        {
                            "number": 7,
                            "table": [{"name": "Percentage Used Endurance Indicator", "value": 91}],
                        },
                    ]
                },
            },
            ("worn", 0),
        ),
        (
            {
                "smart_status": {"passed": True},
                "ata_smart_attributes": {
                    "table": [
                        {"id": 5, "raw": {"value": 8}},
                        {"id": 197, "raw": {"value": 16}},
                        {"id": 198, "raw": {"value": 0}},
                    ]
                },
            },
            ("unreadable", 0),
        ),
        # It is behind a bridge that does not pass the question on; it sleeps.
        ({"smartctl": {"exit_status": 2}}, ("", 0)),
        ({"smartctl": {"exit_status": 3}}, ("asleep", 0)),
    ],
)
def test_health(answer: dict[str, Any], expected: tuple[str, int]) -> None:
    assert drives.parse_smart(json.dumps(answer)) == expected


def test_no_health_without_an_answer() -> None:
    assert drives.parse_smart("") == ("", 0)


def test_filesystems(tmp_path: Path) -> None:
    text = (
        "/dev/sda1 / ext4 rw,relatime 0 0\n"
        "/dev/sdb1 /srv/my\\040größe btrfs ro,noatime 0 0\n"
        "overlay / overlay rw 0 0\n"
        "/dev/sdc1 /srv/failed ext4 rw,relatime,emergency_ro,errors=remount-ro 0 0\n"
    )
    assert drives.parse_mounts(text) == {
        "/": ("overlay", "overlay", False),
        "/srv/my größe": ("/dev/sdb1", "btrfs", True),
        # As newer kernels say it after an error.
        "/srv/failed": ("/dev/sdc1", "ext4", True),
    }
    # Of what is not there yet, the one that it will lie in; the same once.
    found = drives.rooms(["/proc", str(tmp_path / "a/b"), str(tmp_path)])
    assert found[0].mount == "/proc"
    assert len(found) == 2
    assert found[1].paths == (str(tmp_path / "a/b"), str(tmp_path))
    assert 0 < found[1].free <= found[1].size


def test_the_fastest_mode_of_a_link() -> None:
    text = (
        "Settings for eth0:\n"
        "\tSupported ports: [ TP ]\n"
        "\tSupported link modes:   10baseT/Half 10baseT/Full\n"
        "\t                        1000baseT/Full\n"
        "\t                        2500baseT/Full\n"
        "\tSupported pause frame use: Symmetric Receive-only\n"
        "\tAdvertised link modes:  10000baseT/Full\n"
        "\tSpeed: 1000Mb/s\n"
    )
    assert nics.parse_ethtool(text) == 2500
    assert nics.parse_ethtool("Settings for eth0:\n\tLink detected: yes\n") == 0


def test_interfaces(tmp_path: Path) -> None:
    route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    route += "br0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    route += "eth1\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    files = {"proc/net/route": route, "sys/class/net/lo/carrier": "1"}
    for name, speed, carrier in (("eth0", "1000", "1"), ("eth1", "-1", "0")):
        files |= {
            f"sys/class/net/{name}/device/uevent": "",
            f"sys/class/net/{name}/speed": speed,
            f"sys/class/net/{name}/duplex": "full",
            f"sys/class/net/{name}/carrier": carrier,
        }
    root = tree(tmp_path, files)
    # A VLAN on it, and the end of a container's pair that stays with the machine.
    files = {f"sys/class/net/{name}/iflink": "2" for name in ("eth0.10", "veth1")}
    files |= {f"sys/class/net/{name}/ifindex": "7" for name in ("eth0.10", "veth1")}
    tree(tmp_path, {**files, "sys/class/net/eth0.10/lower_eth0": ""})
    # A part of a bond, that of a bridge, through which the way out leads.
    for part, whole in (("eth0", "bond0"), ("bond0", "br0")):
        (tmp_path / "sys/class/net" / part).mkdir(exist_ok=True)
        (tmp_path / "sys/class/net" / part / "master").symlink_to(f"../{whole}")
    (tmp_path / "sys/class/net/bonding_masters").write_text("bond0\n")
    (tmp_path / "sys/class/net/eth1/phy80211").mkdir()
    first, second = nics.read(root)
    assert (first.wireless, second.wireless) == (False, True)
    assert (first.name, first.speed, first.duplex, first.up) == ("eth0", 1000, "full", True)
    assert first.way_out
    assert (second.speed, second.up, second.way_out) == (0, False, False)


def test_default_routes_of_ipv6() -> None:
    nobody = "0" * 32
    text = (
        f"{nobody} 00 {nobody} 00 fe80{'0' * 28} 00000400 1 0 00000003     eth0\n"
        f"{nobody} 00 {nobody} 00 {nobody} ffffffff 1 0 00200200       lo\n"
        f"fd{'0' * 30} 40 {nobody} 00 {nobody} 00000100 1 0 00000001     eth1\n"
    )
    assert nics.parse_routes6(text) == {"eth0"}


def test_who_listens() -> None:
    text = (
        'LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=9,fd=6),("nginx",pid=8,fd=6))\n'
        "LISTEN 0 128 [::]:22 [::]:*\n"
        "LISTEN 0 128 [fe80::1]%eth0:8022 [::]:*\n"
        'LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=5,fd=14))\n'
    )
    assert [(each.port, each.address, each.program) for each in system.parse_listeners(text)] == [
        (22, "::", ""),
        (53, "127.0.0.53", "systemd-resolve"),
        (80, "0.0.0.0", "nginx"),
        (8022, "fe80::1", ""),
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sys/module/ugacl_vfs/version", "UGOS"),
        ("usr/trim/bin/trim", "fnOS"),
        ("etc/openmediavault/config.xml", "OpenMediaVault"),
        ("etc/synoinfo.conf", "Synology DSM"),
        ("etc/debian_version", ""),
    ],
)
def test_vendors(tmp_path: Path, path: str, name: str) -> None:
    assert system.vendor(tree(tmp_path, {path: ""})) == name


def test_accelerators(tmp_path: Path) -> None:
    pci = "sys/bus/pci/devices/0000:00"
    files = {
        f"{pci}:02.0/class": "0x030000",
        f"{pci}:02.0/vendor": "0x8086",
        f"{pci}:02.0/device": "0x46d1",
        f"{pci}:02.0/drm/renderD128/dev": "226:128",
        # A server's screen for its keeper, which computes nothing.
        f"{pci}:03.0/class": "0x030000",
        f"{pci}:03.0/vendor": "0x1a03",
        f"{pci}:0b.0/class": "0x120000",
        f"{pci}:0b.0/vendor": "0x8086",
        f"{pci}:0b.0/device": "0x7d1d",
        f"{pci}:0b.1/class": "0x118000",
        f"{pci}:0b.1/vendor": "0x1022",
        f"{pci}:0b.1/device": "0x1502",
        f"{pci}:0c.0/class": "0x0880ff",
        f"{pci}:0c.0/vendor": "0x1ac1",
        f"{pci}:0c.0/device": "0x089a",
        "dev/apex_0": "",
        "sys/bus/usb/devices/2-1/idVendor": "18d1",
        "sys/bus/usb/devices/2-1/idProduct": "9302",
        "sys/bus/usb/devices/2-1/busnum": "2",
        "sys/bus/usb/devices/2-1/devnum": "3",
        "sys/class/tpm/tpm0/tpm_version_major": "2\n",
    }
    root = tree(tmp_path, files)
    assert [(each.kind, each.name, each.device) for each in system.accelerators(root)] == [
        ("gpu", "Intel 0x46d1", "/dev/dri/renderD128"),
        ("npu", "Intel 0x7d1d", ""),
        ("npu", "AMD 0x1502", ""),
        ("coral", "Coral Edge TPU", "/dev/apex_0"),
        ("coral", "Coral Edge TPU", "/dev/bus/usb/002/003"),
    ]
    assert system.tpm(root) == "2"
    assert system.tpm(str(tmp_path / "proc")) == ""


def test_the_version_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Docker version 20.10.24+dfsg1, build 297e128\n"
    monkeypatch.setattr(system, "answer", lambda _: said)
    assert system.engine() == "20.10.24+dfsg1"
    said = ""
    assert system.engine() == ""


def test_a_disk_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(argv: list[str], timeout: float | None = None) -> str:
        if timeout:
            raise subprocess.TimeoutExpired(argv, timeout)
        row = {"name": "sda", "type": "disk", "size": 1, "rota": True, "tran": "sata"}
        return json.dumps({"blockdevices": [row]})

    monkeypatch.setattr(drives, "answer", answer)
    assert [each.health for each in drives.read()] == ["silent"]


def test_nothing_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a program that is missing, nothing is known, and the rest is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (drives.read(), system.listeners(), system.virtualisation()) == ([], [], "")
    assert not system.clock_is_set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"data-root": "/srv/dev-disk-by-uuid-1/docker", "live-restore": true}', "/srv/dev-disk"),
        ('{"live-restore": true}', "/var/lib/docker"),
        ("", "/var/lib/docker"),
        # What Docker would not start with.
        ("{", "/var/lib/docker"),
        ("[]", "/var/lib/docker"),
        ('{"data-root": 1}', "/var/lib/docker"),
        ('{"data-root": "docker"}', "/var/lib/docker"),
    ],
)
def test_where_docker_has_its_data(tmp_path: Path, text: str, found: str) -> None:
    assert system.docker_root(str(tmp_path)) == "/var/lib/docker"
    root = system.docker_root(tree(tmp_path, {"etc/docker/daemon.json": text}))
    assert root.startswith(found)


def test_dockers_own_place_is_looked_at_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.setattr(system, "docker_root", lambda: "/srv/docker")
    asked: list[list[str]] = []

    def rooms(paths: list[str]) -> list[object]:
        asked.append(paths)
        return []

    monkeypatch.setattr(nas_info.drives, "rooms", rooms)
    for more in ({"docker_root": True}, {}):
        call(nas_info.main, paths=["/"], gather=["rooms"], **more)
    assert asked == [["/", "/srv/docker"], ["/"]]


def test_bandwidth() -> None:
    # More than there are would wait for each other for ever. No memory is faster, nor any so slow.
    assert 1e8 < bandwidth.measure(range(64), 1 << 28) < 1e13
    assert bandwidth.measure([], 1 << 28) == 0


@pytest.mark.parametrize(
    ("cpus", "threads", "measured"),
    [
        ("", 0, [2, 4, 6]),
        ("auto", 0, [2, 4, 6]),
        ("3", 0, [3]),
        ("0-1,6", 0, [0, 6]),
        ("9", 0, []),
        ("a", 0, [2, 4, 6]),
        # Fewer threads than cores, and more.
        ("auto", 1, [2]),
        ("0-5", 2, [0, 2]),
        ("auto", 9, [2, 4, 6]),
        ("auto", -1, [2, 4, 6]),
    ],
)
def test_bandwidth_is_that_of_the_assistants_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpus: str, threads: int, measured: list[int]
) -> None:
    place = "sys/devices/system/cpu"
    files = {"proc/cpuinfo": CELERON, f"{place}/online": "0-7"}
    for each in range(8):
        pair = f"{each // 2 * 2}-{each // 2 * 2 + 1}"
        files[f"{place}/cpu{each}/topology/thread_siblings_list"] = pair
    found = cpu.read(tree(tmp_path, files))
    monkeypatch.setattr(cpu, "read", lambda: found)
    asked: list[list[int]] = []

    def measure(those: list[int], _: int) -> int:
        asked.append(those)
        return 1

    monkeypatch.setattr(bandwidth, "measure", measure)
    nas_info.speed(cpus, threads)
    assert asked == [measured]


def ended(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stuck(*_: object) -> None:
    time.sleep(60)


@pytest.mark.parametrize("reader", [ended, stuck])
def test_bandwidth_where_a_process_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, reader: Callable[..., None]
) -> None:
    """As the kernel ends one where memory runs out. The others wait for it."""
    measured, first = bandwidth._read, min(os.sched_getaffinity(0))

    def read(cpu: int, *more: Any) -> None:
        (reader if cpu == first else measured)(cpu, *more)

    monkeypatch.setattr(bandwidth, "_read", read)
    monkeypatch.setattr(bandwidth, "_PATIENCE", 1)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"a process|take too long"):
        bandwidth.measure(range(64), 1 << 24)
    assert time.monotonic() - began < 20
    assert nas_info.speed() == 0
