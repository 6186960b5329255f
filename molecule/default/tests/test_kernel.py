# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Kernel parameters of the lab NAS, as far as a container has its own: those of its network."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from testinfra.host import Host

Playbook = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[[str, Sequence[dict[str, Any]]], list[str]]
PROBING = "net.ipv4.tcp_mtu_probing"
WINDOWS = "net.ipv4.tcp_wmem"
FILE = "/etc/sysctl.d/99-zy-nas-assistant-kernel.conf"
GOVERNOR = "/etc/systemd/system/nas-assistant-governor.service"
NOTE = "/etc/default/nas-assistant-memory-controller"
OURS = "/etc/default/grub.d/zz-nas-assistant.cfg"
KEPT = ".nas-assistant"
GRUB = "/usr/local/sbin/update-grub"


def worked(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout
    return " ".join(run.stdout.split())


def value(host: Host, name: str) -> str:
    return " ".join(host.check_output(f"sysctl -n {name}").split())


@pytest.fixture
def kernel(playbook: Playbook, host: Host) -> Iterator[Playbook]:
    """Return a function that runs the playbook, on a NAS that all was put back on; it is again at
    the end, and then as the site has it."""

    def run(*arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        return playbook("kernel", *arguments, **variables)

    worked(run(kernel_state="absent"))
    before = {name: value(host, name) for name in (PROBING, WINDOWS)}
    yield run
    worked(run(kernel_state="absent"))
    assert {name: value(host, name) for name in before} == before
    for path in (FILE, GOVERNOR, NOTE, "/etc/udev/rules.d/61-nas-assistant-io.rules"):
        assert not host.file(path).exists
    worked(run())


def test_set_read_back_and_mended(kernel: Playbook, host: Host) -> None:
    assert "changed=0" not in worked(kernel("--check"))
    assert not host.file(FILE).exists
    said = worked(kernel())
    assert value(host, PROBING) == "1"
    assert value(host, WINDOWS) == "4096 65536 16777216"
    assert value(host, "net.ipv4.tcp_congestion_control") == "bbr"
    # What a container does not have of its own is said to be refused.
    assert "net.core.default_qdisc: this kernel has no such parameter" in said
    assert "changed=0" in worked(kernel())
    host.check_output(f"sysctl -w {PROBING}=0")
    assert "changed=0" not in worked(kernel())
    assert value(host, PROBING) == "1"
    # One that is given up goes back to what it was.
    worked(kernel(kernel_sysctl={PROBING: None, WINDOWS: "4096 32768 8388608"}))
    assert value(host, PROBING) == "0"
    assert value(host, WINDOWS) == "4096 32768 8388608"


def test_a_memory_controller_that_is_on_is_left(host: Host, playbook: Playbook) -> None:
    booted = host.check_output("systemctl show --property=UserspaceTimestampMonotonic")
    done = playbook("memory_controller", kernel_memory_controller=True)
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert host.check_output("systemctl show --property=UserspaceTimestampMonotonic") == booted


def test_the_governors_unit_is_there_only_where_one_is_wanted(kernel: Playbook, host: Host) -> None:
    """No container has a governor, and none of its kernel's is changed."""
    assert "scaling_governor: this machine has none" in worked(kernel(kernel_governor="schedutil"))
    assert host.check_output("systemctl is-enabled nas-assistant-governor") == "enabled"
    assert host.check_output("systemctl is-active nas-assistant-governor") == "active"
    assert "changed=0" in worked(kernel(kernel_governor="schedutil"))
    worked(kernel())
    assert not host.file(GOVERNOR).exists
    assert host.run("systemctl is-active nas-assistant-governor").stdout.strip() == "inactive"
    assert "changed=0" in worked(kernel())
    # And it goes with all else, as the fixture looks.
    worked(kernel(kernel_governor="schedutil"))


def test_our_word_goes_off_the_raspberry_pis_command_line(kernel: Playbook, host: Host) -> None:
    boot = "/boot/firmware/cmdline.txt"
    text = "console=tty1 cgroup_enable=memory rootwait cgroup_enable=memory"
    host.check_output(f"mkdir -p /boot/firmware; echo '{text}' > {boot}; cp {boot} {boot}{KEPT}")
    try:
        # Without a note, it is the owner's.
        assert "changed=0" in worked(kernel(kernel_state="absent"))
        assert host.check_output(f"cat {boot}") == text
        host.check_output(f"printf '# of a test\n{boot}\n' > {NOTE}")
        worked(kernel("--check", kernel_state="absent"))
        assert host.check_output(f"cat {boot}") == text
        worked(kernel(kernel_state="absent"))
        assert host.check_output(f"cat {boot}") == text.removesuffix(" cgroup_enable=memory")
        assert host.check_output("ls -A /boot/firmware") == "cmdline.txt"
        assert not host.file(NOTE).exists
        assert "changed=0" in worked(kernel(kernel_state="absent"))
        # A note of what is there no more holds nobody up.
        host.check_output(f"rm -r /boot/firmware; echo {boot} > {NOTE}")
        worked(kernel(kernel_state="absent"))
        assert not host.file(NOTE).exists
    finally:
        host.check_output(f"rm -rf /boot/firmware {NOTE}")


def test_grubs_menu_is_written_also_after_a_run_that_was_cut_off(
    kernel: Playbook, host: Host
) -> None:
    """By a program in the place of GRUB's, which fails at first; the file is one of before the note
    was."""
    host.check_output(f"mkdir -p {OURS.rpartition('/')[0]}; touch {OURS}")
    host.check_output(f"printf '#!/bin/sh\ntest -e /run/works && touch /run/done\n' > {GRUB}")
    host.check_output(f"chmod 0755 {GRUB}")
    try:
        assert kernel(kernel_state="absent").returncode != 0
        assert not host.file(OURS).exists
        host.check_output("touch /run/works")
        worked(kernel(kernel_state="absent"))
        assert host.file("/run/done").exists
        assert not host.file(NOTE).exists
        assert "changed=0" in worked(kernel(kernel_state="absent"))
    finally:
        host.check_output(f"rm -f {OURS} {GRUB} {NOTE} /run/works /run/done")


def test_switches_are_taken_as_words_too(playbook: Playbook) -> None:
    """As ``-e NAME=false`` hands them over."""
    words = ("-e", "kernel_overcommit=false", "-e", "kernel_strict=false")
    done = playbook("kernel", *words)
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert "lets every program have what it asks for" not in done.stdout


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kernel_strict": True}, "this kernel has no such parameter. No parameter was changed"),
    ({"kernel_sysctl": {"vm.overcommit_memory": 1}}, "Set kernel_overcommit: true if"),
    ({"kernel_sysctl": {"vm/overcommit_memory": 1}}, "write names with dots"),
    ({"kernel_sysctl": {"vm.drop_caches": 3}}, "which is an action and no setting"),
    ({"kernel_sysctl": {"net.ipv4.ip_forward": 1}}, "forwarding is Docker's"),
    ({"kernel_swap": {"kind": "disk"}}, "disk"),
    ({"kernel_swap": {"size": "much"}}, "size=much is no size such as 2G"),
    ({"kernel_io": {"hdd": "cfq"}}, "schedulers are none, mq-deadline, kyber and bfq"),
    ({"kernel_io": {"ssd_read_ahead_kib": -1}}, "give what is read ahead in KiB"),
    ({"kernel_governor": "a b"}, "kernel_governor=a b is no governor's name"),
    ({"kernel_working_set_ms": "soon"}, "kernel_working_set_ms"),
]


def test_what_is_refused_before_anything_changes(refused: Refused) -> None:
    told = refused("kernel", [variables for variables, _ in REFUSED])
    for (_, reason), said in zip(REFUSED, told, strict=True):
        assert reason in said


def test_what_costs_something_is_said(kernel: Playbook) -> None:
    run = kernel(kernel_overcommit=True, kernel_swap={"kind": "file"})
    said = " ".join(run.stdout.split())
    assert "the kernel kills one of them" in said
    assert run.returncode != 0
    assert "kind: this NAS is a container, and swap is its host's" in said


def test_caches_are_not_dropped_by_accident(playbook: Playbook) -> None:
    run = playbook("drop_caches")
    assert run.returncode != 0
    assert "kernel_drop_caches=False: what memory remembers" in " ".join(run.stdout.split())
    assert "changed=0" in run.stdout
