# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The network role's script, on an interface in a network of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "roles/network/files/interface.sh"
# As a user without rights could make it too; /sys is that of the new network.
ALONE = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-euc"]
BEGIN = """
mount -t sysfs none /sys
ip link add nic0 type veth peer name far
ip link set far mtu 1400 up
ip link set nic0 mtu 1400 up
ip address add 192.0.2.10/24 dev nic0
ip -6 address add 2001:db8::10/64 dev nic0 nodad
ip route add default via 192.0.2.1
echo 2 > /proc/sys/net/ipv6/conf/nic0/use_tempaddr
"""
WRECK = """
ip link set nic0 mtu 1500
ip address flush dev nic0
echo 0 > /proc/sys/net/ipv6/conf/nic0/use_tempaddr
echo 1 > /proc/sys/net/ipv6/conf/nic0/disable_ipv6
"""
LINES = (
    "'address 192.0.2.10/24' 'address 2001:db8::10/64' 'gateway 192.0.2.1' "
    "'disable_ipv6 0' 'mtu 1400' 'use_tempaddr 2'"
)
WHOLE = """\
address 192.0.2.10/24
address 2001:db8::10/64
disable_ipv6 0
gateway 192.0.2.1
mtu 1400
use_tempaddr 2
"""


def alone(folder: Path, *steps: str) -> str:
    """Run steps in a fresh network with nic0; ``@`` stands for the script. Return their output."""
    text = BEGIN + "\n".join(steps)
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody make a network namespace")
    done = subprocess.run(
        [*ALONE, text.replace("@", f"sh {SCRIPT}")],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "NAS_NETWORK_NOTES": str(folder / "notes"),
            "NAS_NETWORK_FIRST": str(folder / "first"),
            "NAS_NETWORK_PATIENCE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_in_force_is_shown_as_far_as_asked(tmp_path: Path) -> None:
    assert alone(tmp_path, f"@ show nic0 {LINES}") == WHOLE
    assert alone(tmp_path, "@ show nic0 'mtu 1400' 'address 192.0.2.77/24'") == "mtu 1400\n"
    gone = "echo 1 > /proc/sys/net/ipv6/conf/nic0/disable_ipv6"
    assert alone(tmp_path, gone, "@ show nic0 'ipv6 none'") == "ipv6 none\n"


def test_a_change_is_taken_back(tmp_path: Path) -> None:
    known = "while ip -6 address show dev nic0 tentative | grep -q .; do sleep 0.1; done"
    steps = ("@ keep nic0", WRECK, "@ turn_back nic0", "@ put_back nic0", known)
    assert alone(tmp_path, *steps, f"@ show nic0 {LINES}") == WHOLE
    tried = "192.0.2.77/24 2001:db8::10/64"
    kept = ("@ keep nic0", "ip address add 192.0.2.77/24 dev nic0", f"@ put_back nic0 {tried}")
    assert alone(tmp_path, *kept, f"@ show nic0 {LINES} 'address 192.0.2.77/24'") == WHOLE
    # What the manager gave again is left as it is.
    assert alone(tmp_path, "@ keep nic0", "@ put_back nic0", f"@ show nic0 {LINES}") == WHOLE


def test_a_broadcast_address_comes_back_too(tmp_path: Path) -> None:
    """Where the manager does not give the address again in time."""
    kept = "ip address add 192.0.2.20/24 brd + dev nic0; @ keep nic0"
    look = "ip -o -4 address show dev nic0 | awk '{ print $4, $5, $6 }' | sort"
    assert alone(tmp_path, kept, WRECK, "@ turn_back nic0", "@ put_back nic0", look) == (
        "192.0.2.10/24 scope global\n192.0.2.20/24 brd 192.0.2.255\n"
    )


def test_an_interface_given_back_has_what_it_had_at_first(tmp_path: Path) -> None:
    switches = "'disable_ipv6 0' 'mtu 1400' 'use_tempaddr 2'"
    shown = "disable_ipv6 0\nmtu 1400\nuse_tempaddr 2\n"
    steps = ("@ keep nic0", WRECK, "@ keep nic0", "@ give_back nic0", f"@ show nic0 {switches}")
    assert alone(tmp_path, *steps) == shown
    assert list((tmp_path / "first").iterdir()) == []


def test_giving_back_that_fails_keeps_the_first_state(tmp_path: Path) -> None:
    steps = ("@ keep nic0", WRECK, "@ keep nic0", "@ give_back nic0", "@ turn_back nic0")
    assert alone(tmp_path, *steps, "@ show nic0 'mtu 1500'") == "mtu 1500\n"
    assert "mtu 1400" in (tmp_path / "first/nic0").read_text()


def test_nothing_is_done_without_a_note(tmp_path: Path) -> None:
    verbs = ("@ give_back nic0", "@ turn_back nic0", "@ put_back nic0")
    assert alone(tmp_path, *verbs, f"@ show nic0 {LINES}") == WHOLE
