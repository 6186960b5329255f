# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Parameters, disks' queues and swap on a kernel of its own, across a reboot, and back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from site_lab import ROOT, Lab, blank, reboot

NAME = f"kernel{os.getpid()}"
PATIENCE = 600  # seconds
FILE = "/etc/sysctl.d/99-zy-nas-assistant-kernel.conf"
LRU = "/sys/kernel/mm/lru_gen"
SWAP = "/var/lib/nas-assistant/swap/file"
# The owner's, in a file that is read before ours, and in one that is read after it.
OWN = "vm.dirty_bytes = 268435456\nfs.inotify.max_user_instances = 4096\nvm.swappiness = 70\n"
LATE = "vm.vfs_cache_pressure = 90\n"
# What a run may change: parameters, queues, swap, what is enabled.
LOOK = """
sysctl -a 2>/dev/null |
  grep -E '^(vm[.]|net[.]core[.]|net[.]ipv4[.]tcp_|net[.]netfilter|fs[.]inotify)' |
  grep -vE 'tcp_mem|user_reserve|tcp_fastopen_key|conntrack_count|(available|allowed)_congestion'
for disk in $(readlink -f /dev/disk/by-id/*_turns /dev/disk/by-id/*_still /dev/vda); do
  cd /sys/block/${disk#/dev/}/queue && grep -o '[[].*[]]' scheduler && cat read_ahead_kb
done
cat /proc/swaps /sys/kernel/mm/lru_gen/enabled /sys/kernel/mm/lru_gen/min_ttl_ms
ls /etc/systemd/system /etc/sysctl.d /etc/modules-load.d /etc/udev/rules.d /etc/tmpfiles.d |
  grep -v '[.]wants$'
"""


@pytest.fixture(scope="module", params=["12", "13"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A blank NAS of each Debian: their kernels are three years apart."""
    with blank(NAME, "--scsi", "--debian", request.param, kind="vm") as lab:
        yield lab


@pytest.fixture(scope="module")
def before(lab: Lab) -> str:
    """All that a run may change, as it is on a blank NAS whose owner has tuned it a little."""
    (host,) = lab.hosts
    lab.on(host, f"printf '{OWN}' >/etc/sysctl.d/10-own.conf")
    lab.on(host, f"printf '{LATE}' >/etc/sysctl.d/99-zzz-own.conf")
    # The module is there, as on a NAS with a firewall.
    lab.on(host, "modprobe nf_conntrack; systemctl restart systemd-sysctl")
    return lab.on(host, LOOK)


def set_variables(lab: Lab, **variables: object) -> None:
    folder = lab.inventory / "host_vars"
    folder.mkdir(exist_ok=True)
    (folder / "nas1.yml").write_text(yaml.safe_dump(variables), encoding="utf-8")


def kernel(lab: Lab, *arguments: str, **variables: object) -> str:
    set_variables(lab, **variables)
    return " ".join(lab.site(*arguments, playbook="kernel").split())


def refused(lab: Lab, variables: dict[str, object], playbook: str = "kernel") -> str:
    set_variables(lab, **variables)
    done = subprocess.run(
        lab.command(playbook=playbook), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0, done.stdout
    return " ".join(done.stdout.split())


def restart(lab: Lab) -> None:
    reboot(lab, PATIENCE)
    lab.on(lab.hosts[0], "systemctl is-system-running --wait || true")


def in_force(lab: Lab) -> None:
    """All that the file says, as the kernel has it, and what goes with it."""
    (host,) = lab.hosts
    lines = lab.on(host, f"grep '^-' {FILE}").splitlines()
    wanted = dict(line.removeprefix("-").split(" = ") for line in lines)
    assert len(wanted) > 12
    found = lab.on(host, f"sysctl {' '.join(wanted)}").splitlines()
    assert {
        name: " ".join(value.split()) for name, value in (line.split(" = ") for line in found)
    } == wanted
    assert wanted["net.ipv4.tcp_congestion_control"] == "bbr"
    assert wanted["net.core.rmem_max"] == wanted["net.core.wmem_max"] == "16777216"
    # The owner has a higher limit, and a file that is read later.
    assert lab.on(host, "sysctl -n fs.inotify.max_user_instances") == "4096"
    assert lab.on(host, "sysctl -n vm.vfs_cache_pressure") == "90"
    queues = "for disk in $(readlink -f /dev/disk/by-id/*_turns /dev/disk/by-id/*_still); do"
    queues += " cd /sys/block/${disk#/dev/}/queue; cat scheduler read_ahead_kb; done"
    turns, ahead, still, as_it_was = lab.on(host, queues).splitlines()
    assert "[bfq]" in turns
    assert "[mq-deadline]" in still
    assert (ahead, as_it_was) == ("2048", "128")
    kept = lab.on(host, f"cat {LRU}/enabled {LRU}/min_ttl_ms").split()
    assert (int(kept[0], 16) > 0, kept[1]) == (True, "1000")
    assert lab.on(host, "systemctl list-units --failed --plain --no-legend") == ""


def swaps(lab: Lab) -> list[list[str]]:
    (host,) = lab.hosts
    return [line.split() for line in lab.on(host, "cat /proc/swaps").splitlines()[1:]]


ZRAM: dict[str, object] = {"kernel_swap": {"kind": "zram", "size": "512M"}}


def test_all_is_in_force_at_once(lab: Lab, before: str) -> None:
    (host,) = lab.hosts
    assert "changed=0" not in kernel(lab, "--check", **ZRAM)
    assert lab.on(host, LOOK) == before
    said = kernel(lab, **ZRAM)
    assert "vm.vfs_cache_pressure: left to /etc/sysctl.d/99-zzz-own.conf, which is" in said
    in_force(lab)
    assert lab.on(host, "sysctl -n vm.swappiness") == "100"
    (swap,) = swaps(lab)
    assert swap[0].startswith("/dev/zram")
    assert (int(swap[2]) + 4, swap[4]) == (512 << 10, "100")
    assert "changed=0" in kernel(lab, **ZRAM)


def test_zram_that_somebody_switched_off_comes_back(lab: Lab) -> None:
    (host,) = lab.hosts
    lab.on(host, "swapoff /dev/zram0")
    assert swaps(lab) == []
    assert "changed=0" not in kernel(lab, "--check", **ZRAM)
    assert swaps(lab) == []
    kernel(lab, **ZRAM)
    (swap,) = swaps(lab)
    assert swap[0].startswith("/dev/zram")
    # The one of before holds no memory any more.
    assert len(lab.on(host, "zramctl --noheadings").splitlines()) == 1
    assert "changed=0" in kernel(lab, **ZRAM)
    assert lab.on(host, "systemctl list-units --failed --plain --no-legend") == ""


def test_and_after_a_reboot(lab: Lab) -> None:
    restart(lab)
    in_force(lab)
    # What comes in over the network from now on is sent by them.
    assert "qdisc fq " in lab.on(lab.hosts[0], "tc qdisc show")
    assert " bbr " in lab.on(lab.hosts[0], "ss -Htin state established sport = :22")
    (swap,) = swaps(lab)
    assert swap[0].startswith("/dev/zram")
    assert "changed=0" in kernel(lab, **ZRAM)


def test_swap_moves_to_a_file_grows_and_goes(lab: Lab) -> None:
    (host,) = lab.hosts
    wish = {"kind": "file", "size": "256M", "path": SWAP}
    kernel(lab, kernel_swap=wish)
    (swap,) = swaps(lab)
    assert swap[0] == SWAP
    assert lab.on(host, "zramctl --noheadings") == ""
    assert lab.on(host, "sysctl -n vm.swappiness") == "60"
    assert "changed=0" in kernel(lab, kernel_swap=wish)
    kernel(lab, kernel_swap={**wish, "size": "384M"})
    assert [(row[0], int(row[2]) + 4) for row in swaps(lab)] == [(SWAP, 384 << 10)]
    moved = {**wish, "path": "/var/lib/other/swap"}
    kernel(lab, kernel_swap=moved)
    assert [row[0] for row in swaps(lab)] == ["/var/lib/other/swap"]
    assert lab.on(host, f"ls {SWAP} 2>&1 || true").endswith("No such file or directory")
    restart(lab)
    assert [row[0] for row in swaps(lab)] == ["/var/lib/other/swap"]
    kernel(lab)
    assert swaps(lab) == []
    # The owner's own, since what swap there is from now on is the owner's too.
    assert lab.on(host, "sysctl -n vm.swappiness") == "70"
    assert lab.on(host, "ls /var/lib/other 2>&1 || true").endswith("No such file or directory")


def test_what_is_somebody_elses_stays(lab: Lab) -> None:
    (host,) = lab.hosts
    lab.on(host, "fallocate -l 64M /own && chmod 600 /own && mkswap /own && swapon /own")
    try:
        said = refused(lab, {"kernel_swap": {"kind": "file", "size": "128M", "path": "/own"}})
        assert "path=/own: it is there, and not made by this module" in said
        kernel(lab, kernel_state="absent")
        assert [row[0] for row in swaps(lab)] == ["/own"]
    finally:
        lab.on(host, "swapoff /own; rm /own")
    lab.on(host, "modprobe zram; d=$(zramctl --find --size 64M); mkswap $d; swapon $d")
    try:
        assert "something else swaps to /dev/zram0 already" in refused(lab, ZRAM)
    finally:
        lab.on(host, "swapoff /dev/zram0; zramctl --reset /dev/zram0")


def test_a_governor_that_there_is_not_is_said(lab: Lab) -> None:
    said = kernel(lab, kernel_governor="schedutil", kernel_io={"hdd": "kyber"})
    assert "scaling_governor: this machine has none" in said


def test_reading_ahead_of_what_does_not_turn(lab: Lab) -> None:
    (host,) = lab.hosts
    queue = "/sys/block/$(basename $(readlink -f /dev/disk/by-id/*_still))/queue/read_ahead_kb"
    kernel(lab, kernel_io={"ssd_read_ahead_kib": 512})
    assert lab.on(host, f"cat {queue}") == "512"
    # As udev has it, when the disk is plugged in.
    lab.on(host, f"echo 64 > {queue}; udevadm trigger --settle --action=change")
    assert lab.on(host, f"cat {queue}") == "512"
    assert "changed=0" not in kernel(lab, "--check", kernel_state="absent")
    assert lab.on(host, f"cat {queue}") == "512"
    kernel(lab, kernel_io={"managed": False}, kernel_working_set_ms=0)
    assert lab.on(host, f"cat {queue} {LRU}/min_ttl_ms").split() == ["128", "0"]
    assert "[bfq]" not in lab.on(host, "cat /sys/block/sd*/queue/scheduler")
    kernel(lab)
    assert lab.on(host, f"cat {queue} {LRU}/min_ttl_ms").split() == ["128", "1000"]


def test_bytes_take_the_place_of_shares(lab: Lab) -> None:
    (host,) = lab.hosts
    wish: dict[str, object] = {"kernel_sysctl": {"vm.dirty_bytes": 134217728}}
    kernel(lab, **wish)
    assert lab.on(host, "sysctl -n vm.dirty_bytes vm.dirty_ratio").split() == ["134217728", "0"]
    assert "changed=0" in kernel(lab, **wish)
    both: dict[str, object] = {"kernel_sysctl": {"vm.dirty_bytes": 134217728, "vm.dirty_ratio": 5}}
    assert "the kernel keeps one. Leave the other out" in refused(lab, both)


def test_all_goes_back_and_stays_so(lab: Lab, before: str) -> None:
    (host,) = lab.hosts
    kernel(lab, kernel_overcommit=True, **ZRAM)
    assert lab.on(host, "sysctl -n vm.overcommit_memory") == "1"
    kernel(lab, kernel_state="absent", **ZRAM)
    assert lab.on(host, LOOK) == before
    assert "changed=0" in kernel(lab, kernel_state="absent", **ZRAM)
    restart(lab)
    lab.on(host, "modprobe nf_conntrack; systemctl restart systemd-sysctl")
    assert lab.on(host, LOOK) == before


def test_caches_are_dropped_on_purpose_only(lab: Lab) -> None:
    (host,) = lab.hosts
    cached = "awk '/^Cached:/ {print $2}' /proc/meminfo"
    lab.on(host, "cat /usr/bin/* >/dev/null")
    assert "kernel_drop_caches=False: what memory" in refused(lab, {}, "drop_caches")
    remembered = int(lab.on(host, cached))
    said = " ".join(lab.site("-e", "kernel_drop_caches=true", playbook="drop_caches").split())
    assert "are slow until they are read again" in said
    assert int(lab.on(host, cached)) < remembered / 2
