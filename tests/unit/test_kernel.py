# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The role kernel's parts: parameters, disks' queues, modules, swap."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nas.assistant.plugins.filter import kernel
from ansible_collections.nas.assistant.plugins.filter.kernel import kernel_queues
from ansible_collections.nas.assistant.plugins.module_utils._swap import (
    HEAD,
    ZRAM_UNIT,
    Swap,
    ours,
    parse,
)
from ansible_collections.nas.assistant.plugins.modules import kernel_modules, swap
from ansible_collections.nas.assistant.plugins.modules.kernel_modules import in_kernel
from ansible_collections.nas.assistant.plugins.modules.swap import wish_of
from expressions import ROLES, load, templar, trusted

WISH = {
    "hdd": "bfq",
    "ssd": "mq-deadline",
    "nvme": "none",
    "hdd_read_ahead_kib": 2048,
    "ssd_read_ahead_kib": 0,
    "nvme_read_ahead_kib": 512,
}
GOVERNOR = "/etc/systemd/system/nas-assistant-governor.service"
NOTE = "/etc/default/nas-assistant-memory-controller"
CFG = "/etc/default/grub.d/zz-nas-assistant.cfg"
TURNS, STILL = {"rotational": "1"}, {"rotational": "0"}


@pytest.mark.parametrize(
    ("name", "device", "values"),
    [
        ("sda", TURNS, {"scheduler": "bfq", "read_ahead_kb": "2048"}),
        ("sdaa", STILL, {"scheduler": "mq-deadline"}),
        ("mmcblk0", STILL, {"scheduler": "mq-deadline"}),
        ("nvme0n1", STILL, {"scheduler": "none", "read_ahead_kb": "512"}),
        # Its host orders it; and no disks at all.
        ("vda", TURNS, {}),
        ("sda", {**TURNS, "model": "QEMU HARDDISK"}, {}),
        ("sda", {**TURNS, "model": "Virtual disk"}, {}),
        ("loop0", TURNS, {}),
        ("sr0", TURNS, {}),
        ("mmcblk0boot0", STILL, {}),
        ("md0", STILL, {}),
    ],
)
def test_queues(name: str, device: dict[str, Any], values: dict[str, str]) -> None:
    wanted = {f"/sys/block/{name}/queue/{key}": value for key, value in values.items()}
    assert kernel_queues({name: device}, WISH) == wanted


PARAMETERS = [
    ({}, 19),
    # One is left as the NAS has it, one is another, one is another one's partner, one is new.
    (
        {
            "kernel_sysctl": {
                "vm.swappiness": None,
                "net.core.somaxconn": 8192,
                "vm.dirty_bytes": 1 << 28,
                "net.ipv4.tcp_ecn": 1,
            }
        },
        19,
    ),
    ({"kernel_overcommit": "true"}, 20),
    ({"proxy_pool": ["nas1", "nas2"]}, 22),
]


@pytest.mark.parametrize(("given", "count"), PARAMETERS)
def test_parameters_are_as_many_as_preflight_says(given: dict[str, Any], count: int) -> None:
    facts = {"ansible_facts": {"memtotal_mb": 8000}}
    role = templar("kernel", [kernel.FilterModule()], **facts, **given)
    found = role.template(trusted("{{ __kernel_sysctl }}"))
    assert len(found) == count
    assert all(value is not None for value in found.values())
    assert found["vm.min_free_kbytes"] == 81920
    owner = given.get("kernel_sysctl", {})
    assert {name: found.get(name) for name in owner} == owner
    assert not {"vm.dirty_bytes", "vm.dirty_ratio"} <= set(found)
    # As text, which preflight reads of the role beside it.
    of = {"kernel": yaml.safe_load((ROLES / "kernel/vars/main.yml").read_text())}
    told = templar("preflight", [kernel.FilterModule()], __preflight_of=of, **given)
    assert told.template(trusted("{{ __preflight_wanted.kernel.parameters }}")) == count


@pytest.mark.parametrize(
    ("swap", "given", "value", "minimum"),
    [
        # The NAS's own swap may be zram, with a higher one.
        ({}, {}, 60, True),
        ({"kind": "keep"}, {}, 60, True),
        ({"kind": "file"}, {}, 60, False),
        ({"kind": "zram"}, {}, 100, False),
        ({}, {"vm.swappiness": 10}, 10, False),
    ],
)
def test_swappiness(swap: dict[str, str], given: dict[str, int], value: int, minimum: bool) -> None:
    facts = {"ansible_facts": {"memtotal_mb": 8000}}
    role = templar(
        "kernel", [kernel.FilterModule()], kernel_swap=swap, kernel_sysctl=given, **facts
    )
    assert role.template(trusted("{{ __kernel_sysctl }}"))["vm.swappiness"] == value
    minimums = role.template(trusted("{{ __kernel_minimums }}"))
    assert ("vm.swappiness" in minimums) is minimum
    assert "net.core.somaxconn" in minimums


CONNTRACK = "net.netfilter.nf_conntrack_max: this kernel has no such parameter"
QDISC = "net.core.default_qdisc: this kernel has no such parameter"


@pytest.mark.parametrize(
    ("check", "loaded", "said"),
    [
        (True, ["nf_conntrack", "tcp_bbr"], [QDISC]),
        (True, ["tcp_bbr"], [CONNTRACK, QDISC]),
        (False, ["nf_conntrack"], [CONNTRACK, QDISC]),
    ],
)
def test_check_mode_misses_nothing_that_a_module_brings(
    check: bool, loaded: list[str], said: list[str]
) -> None:
    (task,) = named("sysctl.yml", "Say what this kernel does not take")
    role = templar(
        "kernel",
        [],
        ansible_check_mode=check,
        __kernel_modules_set={"loaded": loaded},
        __kernel_set={"refused": [CONNTRACK, QDISC]},
    )
    assert role.evaluate_conditional(task["when"])
    message = role.template(task["ansible.builtin.debug"]["msg"])
    assert message == f"nas1: {'; '.join(said)}"


@pytest.mark.parametrize(
    ("wanted", "before", "looked"),
    [
        ("", "", False),
        ("", "# Ansible managed\nw- /sys/kernel/mm/lru_gen/enabled - - - - y\n", False),
        ("schedutil", "", True),
        # No longer wanted: the file of before has it, at the first place of the diff.
        (
            "",
            "w- /sys/devices/system/cpu/cpufreq/policy*/scaling_governor - - - - powersave\n",
            True,
        ),
    ],
)
def test_the_governors_unit_costs_only_those_who_have_one(
    wanted: str, before: str, looked: bool
) -> None:
    (task,) = named("sysfs.yml", "Set the governor at boot once its driver is there")
    diff = [{"before_header": "file", "before": before, "after": ""}]
    role = templar(
        "kernel",
        [kernel.FilterModule()],
        kernel_governor=wanted,
        __kernel_values_set={"diff": diff},
        __kernel_governor_file={"dest": "the unit"},
    )
    assert role.evaluate_conditional(task["when"]) is looked
    found = role.template(task["nas.assistant.config_set"])
    (unit,) = found["units"]
    there = {"dest": "the unit"} if wanted else {"dest": GOVERNOR, "state": "absent"}
    assert found["files"] == [there]
    assert unit == {
        "name": "nas-assistant-governor.service",
        "action": "restart",
        "state": "on" if wanted else "off",
    }


def test_the_governors_unit_waits_for_udev() -> None:
    """It sets what the file of systemd-tmpfiles has, and nothing where that has no governor."""
    role = templar("kernel", [], ansible_managed="of a test", kernel_governor="schedutil")
    templates = ROLES / "kernel/templates"
    unit = role.template(trusted((templates / f"{GOVERNOR[1:]}.j2").read_text()))
    file = "/etc/tmpfiles.d/nas-assistant-kernel.conf"
    commands = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("Exec")]
    assert commands == [
        f"/usr/bin/grep -q scaling_governor {file}",
        "-/usr/bin/udevadm settle --timeout=60",
        f"/usr/bin/systemd-tmpfiles --create {file}",
    ]
    # After what sets another one at boot: Raspberry Pi OS, Armbian, OpenMediaVault.
    after = " ".join(line for line in unit.splitlines() if line.startswith("After="))
    others = ("raspi-config", "cpufrequtils", "loadcpufreq", "armbian-hardware-optimize", "tuned")
    for each in others:
        assert f"{each}.service" in after
    content = role.template(trusted((templates / f"{file[1:]}.j2").read_text()))
    place = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    assert f"w- {place} - - - - schedutil" in content.splitlines()


def named(file: str, *names: str) -> list[dict[str, Any]]:
    """Tasks of a file, those of blocks too."""
    tasks = list(in_order(load(ROLES / "kernel/tasks" / file)))
    return [task for name in names for task in tasks if task["name"] == name]


def in_order(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        yield from in_order(task["block"]) if "block" in task else [task]


PI = "/boot/firmware/cmdline.txt"
WORD = " cgroup_enable=memory"


STAT = {"exists": True, "uid": 0, "gid": 0, "mode": "0755"}
COPY = f"{PI}.nas-assistant"


def given_text(text: str) -> dict[str, str]:
    """What ansible.builtin.slurp says of a file."""
    return {"content": base64.b64encode(text.encode()).decode()}


def files_of(task: dict[str, Any], role: Any) -> list[dict[str, Any]]:
    """What a task hands to config_set, which has it on the disk before the next one."""
    given = role.template(task["nas.assistant.config_set"])
    assert given["apply"] == [{"command": ["sync", "--file-system", PI]}]
    return list(given["files"])


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("root=/dev/sda2 rootwait\n", True),
        ("root=/dev/sda2", True),
        # Edited on Windows.
        ("root=/dev/sda2 rootwait\r\n", True),
        ("root=/dev/sda2 cgroup_enable=memoryless\n", True),
        # Another line than the first is not read.
        (f"root=/dev/sda2\n{WORD}\n", True),
        # The owner's, at each place.
        (f"root=/dev/sda2{WORD} rootwait\n", False),
        ("cgroup_enable=memory root=/dev/sda2\n", False),
        ("cgroup_enable=cpuset cgroup_enable=memory cgroup_memory=1\n", False),
    ],
)
def test_only_our_word_is_taken_off_the_raspberry_pis_command_line(text: str, noted: bool) -> None:
    """What is noted before the word is written is what goes again, to the letter."""
    note, on = named(
        "memory_controller.yml",
        "Note what is changed, so that it can be taken back",
        "Write it on the Raspberry Pi's command line",
    )
    (off,) = named(
        "memory_controller_absent.yml", "Take our word off the Raspberry Pi's command line"
    )
    there = {"__kernel_boot": PI, "__kernel_boot_stat": STAT}
    role = templar("kernel", [], __kernel_boot_text=given_text(text), **there)
    assert role.evaluate_conditional(note["when"]) is noted
    assert role.evaluate_conditional(on["when"]) is noted
    written = role.template(note["ansible.builtin.copy"]["content"])
    assert written.splitlines()[1:] == [PI]
    kept, changed = files_of(on, role)
    # What was there is beside it first, by a name that vfat takes; owner and mode are the mount's.
    assert (kept["dest"], kept["content"], kept["mode"]) == (COPY, text, "0755")
    assert not set(kept["dest"]) & set('"*:<>?|')
    assert (changed["dest"], changed["mode"]) == (PI, "0755")
    end = len(text.split("\n")[0].rstrip("\r"))
    if noted:
        assert changed["content"] == text[:end] + WORD + text[end:]
    left = {
        "__kernel_left_paths": [NOTE],
        "__kernel_boot_noted": given_text(written),
        "__kernel_boot_there": {"stat": STAT},
        "__kernel_boot_stat": STAT,
    }
    role = templar("kernel", [], __kernel_boot_text=given_text(changed["content"]), **left)
    assert role.evaluate_conditional(off["when"])
    back, gone = files_of(off, role)
    assert back["dest"] == PI
    assert gone == {"dest": COPY, "state": "absent"}
    if noted:
        assert back["content"] == text


def test_no_task_that_writes_below_boot_asks_ansible_for_a_backup() -> None:
    """Its name has colons, which vfat does not take: the task fails, and nothing is written."""
    writers = 0
    for path in ROLES.glob("*/tasks/*.yml"):
        for task in in_order(load(path)):
            words = str(task)
            if "/boot" in words or "__kernel_boot" in words or "cmdline" in words:
                writers += "config_set" in words
                assert "backup" not in words, (path, task["name"])
    assert writers >= 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("quiet", "quiet"),
        ("quiet cgroup_disable=memory splash", "quiet  splash"),
        ("cgroup_disable=memory", ""),
        ("cgroup_disable=memory,pressure quiet", "cgroup_disable=pressure quiet"),
        ("quiet cgroup_disable=cpu,memory", "quiet cgroup_disable=cpu"),
        ("cgroup_disable=cpu,memory,io quiet", "cgroup_disable=cpu,io quiet"),
        ("cgroup_disable=cpu cgroup_disable=memory", "cgroup_disable=cpu "),
        # Another one's name, and a list without it.
        ("cgroup_disable=memory_hugetlb", "cgroup_disable=memory_hugetlb"),
        ("cgroup_disable=cpu,io", "cgroup_disable=cpu,io"),
    ],
)
def test_the_word_goes_off_grubs_command_line(before: str, after: str) -> None:
    role = templar("kernel", [], ansible_managed="of a test")
    template = ROLES / "kernel/templates" / f"{CFG[1:]}.j2"
    script = role.template(trusted(template.read_text()))
    names = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")
    said = "".join(f'printf "%s\\n" "${name}"\n' for name in names)
    done = subprocess.run(
        ["sh", "-ec", f"{script}\n{said}"],
        env={"PATH": "/usr/bin:/bin", **dict.fromkeys(names, before)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{after}\n{after}\n"


@pytest.mark.parametrize(
    ("left", "run"),
    [
        # Of a version that kept no note: it is written first.
        ([CFG], ["Note it where", "Take no words off", "Write GRUB's menu", "Forget what"]),
        ([CFG, NOTE], ["Read what", "Take no words off", "Write GRUB's menu", "Forget what"]),
        # A run was cut off between the file and the menu.
        ([NOTE], ["Read what", "Take no words off", "Write GRUB's menu", "Forget what"]),
        ([GOVERNOR], []),
        ([], []),
    ],
)
def test_grubs_menu_is_written_before_the_note_goes(left: list[str], run: list[str]) -> None:
    grub = base64.b64encode(b"# a word\n/etc/default/grub\n").decode()
    (whole,) = named("absent.yml", "Leave the kernel's command line to its owner")
    given = {
        "__kernel_left": {"files": [{"path": path} for path in left]},
        "__kernel_left_paths": left,
        "__kernel_boot_noted": {"content": grub},
        "__kernel_boot_there": {"skipped": True},
    }
    role = templar("kernel", [], **given)

    def those(tasks: list[dict[str, Any]]) -> Iterator[str]:
        for task in tasks:
            if "when" not in task or role.evaluate_conditional(task["when"]):
                yield from those(task["block"]) if "block" in task else [task["name"]]

    found = []
    if role.evaluate_conditional(whole["when"]):
        found = list(those(load(ROLES / "kernel/tasks/memory_controller_absent.yml")))
    assert len(found) == len(run)
    assert all(name.startswith(start) for name, start in zip(found, run, strict=True))


def test_what_is_changed_is_noted_before() -> None:
    tasks = load(ROLES / "kernel/tasks/memory_controller.yml")
    names = [task["name"] for task in in_order(tasks)]
    noted = names.index("Note what is changed, so that it can be taken back")
    assert noted < names.index("Write it on the Raspberry Pi's command line")
    assert noted < names.index("Take it off GRUB's command line")


def test_modules_in_the_kernel() -> None:
    text = "tcp_bbr 20480 0 - Live 0x0000000000000000\nsch_fq 24576 2 - Live 0x0\n"
    assert in_kernel(text) == {"tcp_bbr", "sch_fq"}


@pytest.mark.parametrize("swap", [Swap("", 1 << 30), Swap("/srv/swap/file", 0)])
def test_a_unit_says_what_it_is_for(swap: Swap) -> None:
    assert parse(swap.text()) == swap


def test_units_of_others_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "their.swap").write_text("[Swap]\nWhat=/swapfile\n")
    (tmp_path / "linked.swap").symlink_to(tmp_path / "their.swap")
    (tmp_path / "nas-zram.service").write_text(Swap("", 4096).text())
    (tmp_path / "srv-file.swap").write_text(Swap("/srv/file", 0).text())
    (tmp_path / "folder.swap").mkdir()
    (tmp_path / "other.service").write_text(HEAD)
    assert ours(str(tmp_path)) == {
        "nas-zram.service": Swap("", 4096),
        "srv-file.swap": Swap("/srv/file", 0),
    }


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"kind": "file", "path": "/srv/x", "size": "much"}, "size='much' is no size"),
        ({"kind": "file", "path": "/srv/x", "size": "none"}, "size=none: swap of less than 1M"),
        ({"kind": "file", "path": "/srv/a b", "size": "1G"}, "path=/srv/a b is no path"),
        ({"kind": "file", "path": "/srv/../x", "size": "1G"}, "path=/srv/../x is no path"),
        ({"kind": "file", "path": "srv", "size": "1G"}, "path=srv is no path"),
    ],
)
def test_what_is_refused(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        wish_of(params)


RUNS = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}
RUNS |= {"InactiveExitTimestamp": ""}


@pytest.mark.parametrize(
    ("kind", "used", "state", "changed"),
    [
        ("zram", {"/dev/zram0": 1}, "active", False),
        # `swapoff /dev/zram0`: its unit is active still. One that is not is started anyway.
        ("zram", {}, "active", True),
        ("zram", {"/own": 1}, "active", True),
        ("zram", {}, "inactive", True),
        # Of a file, systemd knows it.
        ("file", {}, "active", False),
    ],
)
def test_zram_that_somebody_switched_off_comes_back(
    monkeypatch: pytest.MonkeyPatch, kind: str, used: dict[str, int], state: str, changed: bool
) -> None:
    path = "/srv/file" if kind == "file" else ""
    name = "srv-file.swap" if path else ZRAM_UNIT
    monkeypatch.setattr(swap.swap, "unit", lambda _: name)
    monkeypatch.setattr(swap.swap, "ours", lambda: {name: Swap(path, 1 << 30)})
    monkeypatch.setattr(swap.swap, "in_use", lambda: used)
    monkeypatch.setattr(swap.swap, "size_of", lambda _: 1 << 30)
    monkeypatch.setattr(swap.swap, "is_written", lambda *_: True)
    monkeypatch.setattr(swap, "refuse", lambda *_: None)
    monkeypatch.setattr(swap, "show", lambda units: {units[0]: {**RUNS, "ActiveState": state}})
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(swap, "_change", lambda *given: done.append(given))
    found = swap.bring({"kind": kind, "size": "1G", "path": path or None}, False)
    assert (found["changed"], bool(done)) == (changed, changed)
    # What systemd believes to be active is set up anew.
    assert [given[-1] for given in done] == [True] * (changed and state == "active") + [False] * (
        changed and state != "active"
    )


@pytest.mark.parametrize(
    ("folders", "replaced"),
    [
        ([], False),
        ([os.uname().release], False),
        (["9.9.9-next"], True),
        (["9.9.9-next", os.uname().release], False),
    ],
)
def test_a_kernel_that_was_upgraded_has_no_modules_left(
    tmp_path: Path, folders: list[str], replaced: bool
) -> None:
    for name in folders:
        (tmp_path / "modules" / name / "kernel").mkdir(parents=True)
    listing = tmp_path / "proc"
    assert not kernel_modules.is_replaced(str(tmp_path / "modules"), str(listing))
    listing.touch()
    assert kernel_modules.is_replaced(str(tmp_path / "modules"), str(listing)) is replaced


def test_then_the_list_of_modules_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what is loaded joins it; what it lists and is not wanted goes."""
    file = tmp_path / "ours.conf"
    file.write_text(f"{kernel_modules.HEAD}nf_conntrack\nold\n")
    monkeypatch.setattr(kernel_modules, "is_replaced", lambda: True)
    monkeypatch.setattr(kernel_modules.sysfs, "text", lambda _: "tcp_bbr 20480 0 - Live 0x0")
    names = ["nf_conntrack", "tcp_bbr", "sch_fq"]
    for changed in (True, False):
        found = kernel_modules.bring(str(file), names, False)
        assert (found["changed"], found["loaded"], found["missing"]) == (changed, [], [])
        assert found["reboot"]
        assert file.read_text() == f"{kernel_modules.HEAD}nf_conntrack\ntcp_bbr\n"
    # Nothing is wanted any more: that needs no look.
    assert kernel_modules.bring(str(file), [], False)["reboot"] is False
    assert not file.exists()


def test_what_is_wanted() -> None:
    assert wish_of({"kind": "keep"}) is None
    assert wish_of({"kind": "zram", "size": "2G", "path": "/srv/x"}) == Swap("", 2 << 30)
    # Whole pages.
    assert wish_of({"kind": "file", "size": "1025K", "path": "/srv/x"}) == Swap("/srv/x", 1 << 20)
