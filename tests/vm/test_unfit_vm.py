# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A machine that is unfit, in each way that a virtual one can be: the site leaves it as it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from site_lab import Lab, blank, said

NAME = f"unfit{os.getpid()}"
OFF = "cgroup_disable=memory"
PI = "/boot/firmware/cmdline.txt"
NOTE = "/etc/default/nas-assistant-memory-controller"
# All of it that the site could have changed; what a look leaves behind is in memory alone.
STATE = "find /etc /usr/local /var/lib /opt -xdev -newer /root/began ! -path '*/systemd/timers/*'"

Playbook = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with blank(NAME, "--memory", "2048", "--append", OFF, kind="vm") as lab:
        yield lab


def test_the_site_changes_nothing(playbook: Playbook, on: Callable[[str], str]) -> None:
    on("touch /root/began; sleep 1")
    refused = said(playbook("site"))
    assert "is unfit, and nothing was changed: memory: 1." in refused
    assert "wanted 4 GB; a model and the NAS together do not fit: add memory" in refused
    assert "the kernel's memory controller is off" in refused
    assert "-e kernel_memory_controller=true" in refused
    assert "changed=0" in refused
    assert on(STATE) == ""


def test_a_full_disk_and_a_read_only_one(playbook: Playbook, on: Callable[[str], str]) -> None:
    # Not a byte is left, for root neither: a look finds a place for itself.
    on("dd if=/dev/zero of=/root/full bs=1M status=none || true; sync")
    assert on("df --output=avail -B1 / | tail -n 1") == "0"
    try:
        full = said(playbook("site"))
    finally:
        on("rm /root/full")
    assert "room in /: 0.0 of" in full
    assert "what is installed there does not fit: make room" in full
    assert "changed=0" in full

    # As the kernel does it at an error on the disk: no matter who has files open.
    on("echo u > /proc/sysrq-trigger; until touch /root/x 2>&1 | grep Read-only; do sleep 1; done")
    try:
        fixed = said(playbook("site"))
    finally:
        on("mount -o remount,rw /")
    assert "room in /: read-only ext4, wanted writable" in fixed
    assert "mount -o remount,rw /" in fixed
    assert "changed=0" in fixed


def test_the_memory_controller_is_asked_for_where_it_boots_from(
    playbook: Playbook, on: Callable[[str], str]
) -> None:
    """This machine's boot loader is QEMU, which reads none of the files: the reboot does not help,
    and that is said."""
    assert "kernel_memory_controller=False" in said(playbook("memory_controller"))
    yes = {"kernel_memory_controller": True}
    assert "has none of /boot/firmware/cmdline.txt" in said(playbook("memory_controller", **yes))

    # As on a Raspberry Pi, on a filesystem that takes few names, and no owners.
    on("apt-get -qq -o DPkg::Lock::Timeout=300 update")
    on("apt-get -qq install --no-install-recommends dosfstools > /dev/null")
    on("truncate -s 16M /root/boot.img && mkfs.vfat /root/boot.img && mkdir /boot/firmware")
    on("echo '/root/boot.img /boot/firmware vfat loop 0 0' >> /etc/fstab && mount /boot/firmware")
    on(f"echo 'console=tty1 root=/dev/vda rootwait' > {PI}")
    boot = on("cat /proc/sys/kernel/random/boot_id")
    assert "was rebooted, and its memory controller is off still" in said(
        playbook("memory_controller", **yes)
    )
    assert on(f"cat {PI}") == "console=tty1 root=/dev/vda rootwait cgroup_enable=memory"
    assert on("cat /proc/sys/kernel/random/boot_id") != boot
    assert on("stat -f -c %T /boot/firmware") == "msdos"
    assert on(f"cat {PI}.nas-assistant") == "console=tty1 root=/dev/vda rootwait"

    assert PI in on(f"cat {NOTE}")
    undone = playbook("kernel", kernel_state="absent")
    assert undone.returncode == 0, undone.stdout
    assert on(f"cat {PI}") == "console=tty1 root=/dev/vda rootwait"
    assert on("ls -A /boot/firmware") == "cmdline.txt"
    on(f"test ! -e {NOTE} && umount /boot/firmware && rm -r /boot/firmware /root/boot.img")
    on("sed -i '/boot.img/d' /etc/fstab")


def test_grubs_command_line(playbook: Playbook, on: Callable[[str], str]) -> None:
    on("apt-get -qq -o DPkg::Lock::Timeout=300 update")
    on("apt-get -qq install --no-install-recommends grub2-common grub-pc-bin > /dev/null")
    on(f"echo 'GRUB_CMDLINE_LINUX_DEFAULT=\"quiet {OFF}\"' > /etc/default/grub")
    on("mkdir -p /boot/grub && update-grub")
    assert OFF in on("cat /boot/grub/grub.cfg")
    assert "/etc/default/grub is not what its kernel is started with" in said(
        playbook("memory_controller", kernel_memory_controller=True)
    )
    menu = on("cat /boot/grub/grub.cfg")
    assert OFF not in menu
    assert " quiet" in menu
    assert "/etc/default/grub" in on(f"cat {NOTE}")

    undone = playbook("kernel", kernel_state="absent")
    assert undone.returncode == 0, undone.stdout
    assert OFF in on("cat /boot/grub/grub.cfg")
    on(f"test ! -e {NOTE}")
