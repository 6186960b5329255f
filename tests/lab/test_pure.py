# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The parts of the lab that need no engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import apt, cli, disks, inventory, label, network, progress, run, ssh, venv
from lab.errors import LabError

HOST = inventory.Host(
    name="nas1",
    container="nas-lab-1234-demo-nas1",
    id="0123",
    ssh_host="172.18.0.11",
    ssh_port=22,
    ssh_user="root",
    ssh_key="/a place/id_ed25519",
    disks=["/dev/loop0", "/dev/loop1"],
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a place"
    monkeypatch.setenv("NAS_LAB_HOME", str(folder))
    return folder


@pytest.mark.parametrize("name", ["demo", "a", "nas-2", "x" * 30])
def test_lab_names_that_are_taken(name: str) -> None:
    assert label.checked(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "Demo", "1st", "-a", "a-", "a b", "a/b", "..", "ä", "x" * 31, "demo\n"],
)
def test_lab_names_that_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="demo"):
        label.checked(name)


@pytest.mark.parametrize("name", ["image", "cache", "locks"])
def test_lab_names_that_the_lab_needs_itself(name: str) -> None:
    with pytest.raises(LabError, match="taken"):
        label.checked(name)


def test_two_checkouts_never_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_LAB_HOME", "/one/.lab")
    one = label.prefix("demo")
    monkeypatch.setenv("NAS_LAB_HOME", "/two/.lab")
    assert one != label.prefix("demo")


@pytest.mark.parametrize(("text", "size"), [("128M", 128 << 20), ("4G", 4 << 30), ("1t", 1 << 40)])
def test_disk_sizes(text: str, size: int) -> None:
    assert disks.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "4", "0G", "-4G", "4.5G", "4 G", "4K", "64M", "²G"])
def test_disk_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(LabError, match=r"8G|128M"):
        disks.parse_size(text)


def test_loops_are_read_from_the_kernel(tmp_path: Path) -> None:
    files = {
        "loop0": "/home/x/.lab/demo/disks/nas1-disk1.img",
        "loop3": "/home/x/.lab/d.img (deleted)",
    }
    for device, file in files.items():
        (tmp_path / device / "loop").mkdir(parents=True)
        (tmp_path / device / "loop/backing_file").write_text(f"{file}\n")
    (tmp_path / "loop7").mkdir()  # without a file behind it
    loops = disks.attached(tmp_path)
    assert loops == [
        disks.Loop("/dev/loop0", "/home/x/.lab/demo/disks/nas1-disk1.img"),
        disks.Loop("/dev/loop3", "/home/x/.lab/d.img", deleted=True),
    ]
    assert disks.below(Path("/home/x/.lab/demo"), loops) == loops[:1]
    assert disks.below(Path("/home/x/.la"), loops) == []


@pytest.mark.parametrize(
    ("subnet", "number", "address"),
    [("172.18.0.0/16", 1, "172.18.0.11"), ("10.9.8.0/24", 200, "10.9.8.210")],
)
def test_addresses(subnet: str, number: int, address: str) -> None:
    assert network.address(subnet, number) == address


@pytest.mark.parametrize(("subnet", "number"), [("172.18.0.0/16", 201), ("10.9.8.0/28", 5)])
def test_addresses_that_do_not_exist(subnet: str, number: int) -> None:
    with pytest.raises(LabError, match="fewer"):
        network.address(subnet, number)


def test_known_hosts_replaces_the_keys_of_an_address_and_keeps_the_others() -> None:
    old = ssh.known_hosts(
        "", {"10.0.0.1": "ssh-ed25519 OLD root@a\n", "10.0.0.11": "ssh-rsa B b\n"}
    )
    new = ssh.known_hosts(old, {"10.0.0.1": "ssh-ed25519 NEW root@a\nssh-rsa NEW2 root@a\n"})
    assert new == (
        "10.0.0.11,[10.0.0.11]:* ssh-rsa B\n"
        "10.0.0.1,[10.0.0.1]:* ssh-ed25519 NEW\n"
        "10.0.0.1,[10.0.0.1]:* ssh-rsa NEW2\n"
    )


def test_the_inventory_is_yaml_that_checks_host_keys(home: Path) -> None:
    hosts = yaml.safe_load(inventory.ansible("demo", "12", [HOST]))["nas"]["hosts"]
    arguments = hosts["nas1"].pop("ansible_ssh_common_args")
    assert hosts == {
        "nas1": {
            "ansible_host": "172.18.0.11",
            "ansible_port": 22,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": "/a place/id_ed25519",
        }
    }
    assert "StrictHostKeyChecking=yes" in arguments
    assert f"'UserKnownHostsFile=\"{home}/demo/known_hosts\"'" in arguments


def test_lab_json_comes_back_as_it_was_written(home: Path) -> None:
    assert inventory.read("demo") == []
    inventory.write("demo", "12", [HOST])
    assert inventory.read("demo") == [HOST]
    (home / "demo/lab.json").write_text('{"hosts": [{"name"')
    assert inventory.read("demo") == []


@pytest.mark.parametrize("target", [".", "hosts", "hosts.ini"])
def test_an_inventory_has_a_name_that_ansible_reads(target: str) -> None:
    with pytest.raises(LabError, match=r"hosts\.yml"):
        inventory.write_ansible(Path(target), "demo", "12", [HOST])


@pytest.mark.parametrize(
    ("release", "is_family"),
    [
        ({"ID": "debian"}, True),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, True),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, True),
        ({"ID": "fedora"}, False),
        ({}, False),
    ],
)
def test_where_apt_is_used(release: dict[str, str], is_family: bool) -> None:
    assert apt.is_debian_family(release) is is_family


def test_timings_survive_a_file_that_was_cut_short(home: Path) -> None:
    progress.record("one", 1.0)
    (home / "timings.json").write_text('[{"step": "on')
    progress.record("two", 2.0)
    progress.record("a look-up", 0.001)
    steps: list[dict[str, Any]] = json.loads((home / "timings.json").read_text())
    assert [(step["step"], step["seconds"]) for step in steps] == [("two", 2.0)]


def test_a_failed_command_tells_itself_its_last_words_and_the_remedy() -> None:
    with pytest.raises(LabError) as caught:
        run.run(["sh", "-c", "echo no such thing >&2; exit 3"], remedy="Make one.")
    assert "exit code 3" in str(caught.value)
    assert "no such thing" in str(caught.value)
    assert str(caught.value).endswith("Make one.")
    with pytest.raises(LabError, match="'no-such-command' is not installed"):
        run.run(["no-such-command"])
    with pytest.raises(LabError, match="no end after"):
        run.run(["sleep", "5"], timeout=0.1)


def test_the_environment_is_made_anew_only_for_another_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("one")
    first = venv.fingerprint([lock])
    assert venv.fingerprint([lock]) == first
    lock.write_text("two")
    assert venv.fingerprint([lock]) != first


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["up", "--name", "A B"], "cannot name a lab"),
        (["up", "--nas", "0"], "0 NAS asked for"),
        (["up", "--disks", "0"], "0 disks asked for"),
        (["up", "--disk-size", "small"], "not a disk size"),
        (["down", "--name", "../x"], "cannot name a lab"),
        (["timed", "nothing"], "no command to time"),
        (["demo-report", "--credentials", "."], "`make demo` makes one"),
    ],
)
def test_commands_say_what_is_wrong_and_what_to_do(
    argv: list[str], text: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 1
    assert text in capsys.readouterr().err


def test_timed_passes_the_failure_on(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["timed", "works", "--", "sh", "-c", "echo seen; sleep 0.1"]) == 0
    assert cli.main(["timed", "fails", "--", "false"]) == 1
    out, err = capfd.readouterr()
    assert "seen" in out
    assert "fails failed (exit code 1)" in err
    steps = json.loads((home / "timings.json").read_text())
    assert [step["step"] for step in steps] == ["works"]
