# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Values below /sys: choices, the file that remembers, and a kernel that refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.nas.assistant.plugins.modules import sysfs_set
from ansible_collections.nas.assistant.plugins.modules.sysfs_set import (
    SysfsError,
    at_present,
    expand,
    lasting,
    parse_before,
    read,
    render,
    same,
    selected,
    write,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none [mq-deadline] kyber bfq \n", "mq-deadline"),
        ("[none]\n", "none"),
        ("128\n", "128"),
        ("schedutil\n", "schedutil"),
        ("\n", ""),
    ],
)
def test_selected(text: str, value: str) -> None:
    assert selected(text) == value


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ("bfq", "bfq", True),
        ("bfq", "none", False),
        (None, "y", False),
        ("y", "y", True),
        ("0x0007", "y", True),
        ("0x0001", "y", True),
        ("0x0000", "y", False),
        ("0x0007", "0x0001", False),
        ("7", "y", False),
    ],
)
def test_same(found: str | None, wanted: str, expected: bool) -> None:
    assert same(found, wanted) is expected


def test_the_file_remembers_what_was_before() -> None:
    before = {"/sys/b": "128", "/sys/a": "none"}
    text = render("# rules\nKERNEL\n\n", before)
    assert text == "# rules\nKERNEL\n# before: /sys/a = none\n# before: /sys/b = 128\n"
    assert parse_before(text) == before
    assert parse_before("") == {}


@pytest.mark.parametrize("path", ["/etc/passwd", "/sys/../etc/passwd", "/sysx/a", "sys/a"])
def test_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(SysfsError, match="is no path below /sys/"):
        expand({path: 1})


def test_patterns() -> None:
    found, missing = expand({"/sys/class/net/l[o]/mtu": 65536, "/sys/no/such*/file": "x"})
    assert found == {"/sys/class/net/lo/mtu": "65536"}
    assert missing == ["/sys/no/such*/file: this machine has none"]


def test_what_is_no_longer_named_is_known_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"/sys/a": "128", "/sys/b": "none"}
    file = tmp_path / "rules"

    def run(**wanted: str) -> None:
        paths = {f"/sys/{name}": value for name, value in wanted.items()}
        params = {"path": str(file), "content": "x", "values": paths, "state": "present"}
        sysfs_set.run(SimpleNamespace(params=params, check_mode=False))

    def set_it(path: str, value: str) -> str:
        values[path] = value
        return ""

    def cut_off(path: str, value: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sysfs_set, "read", values.get)
    monkeypatch.setattr(sysfs_set, "expand", lambda wanted: (dict(wanted), []))
    monkeypatch.setattr(sysfs_set, "write", set_it)
    run(a="2048", b="bfq")
    monkeypatch.setattr(sysfs_set, "write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(b="bfq")
    monkeypatch.setattr(sysfs_set, "write", set_it)
    run(b="bfq")
    assert values == {"/sys/a": "128", "/sys/b": "bfq"}
    assert parse_before(file.read_text()) == {"/sys/b": "none"}


@pytest.mark.parametrize("wanted", [{}, {"/sys/b": "bfq"}])
def test_what_is_not_taken_back_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str]
) -> None:
    """What is read at boot does not have it any more."""
    values = {"/sys/a": "128", "/sys/b": "none"}
    file, taken = tmp_path / "rules", True

    def run(wanted: dict[str, str], check_mode: bool = False) -> dict[str, object]:
        params = {"path": str(file), "content": str(wanted), "values": wanted}
        params["state"] = "present" if wanted else "absent"
        return dict(sysfs_set.run(SimpleNamespace(params=params, check_mode=check_mode)))

    def set_it(path: str, value: str) -> str:
        values.update({path: value} if taken or path != "/sys/a" else {})
        return "" if values[path] == value else f"{path} = {value}: the kernel refuses it"

    monkeypatch.setattr(sysfs_set, "read", values.get)
    monkeypatch.setattr(sysfs_set, "expand", lambda wanted: (dict(wanted), []))
    monkeypatch.setattr(sysfs_set, "write", set_it)
    run({"/sys/a": "2048", "/sys/b": "bfq"})
    taken = False
    assert run(wanted)["refused"] == ["/sys/a = 128: the kernel refuses it"]
    assert "2048" not in file.read_text()
    again = run(wanted)
    assert (again["changed"], again["refused"]) == (False, ["/sys/a = 128: the kernel refuses it"])
    taken = True
    run(wanted)
    assert values["/sys/a"] == "128"
    assert "/sys/a" not in (file.read_text() if wanted else "")
    assert file.exists() == bool(wanted)


def test_a_disk_is_named_so_that_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "sdx"
    disk.touch()
    names = tmp_path / "by-id"
    names.mkdir()
    (names / "ata-EXAMPLE").symlink_to(disk)
    monkeypatch.setattr(sysfs_set, "BY_ID", str(names))
    monkeypatch.setattr(sysfs_set, "stable_name", lambda device: f"{names}/ata-EXAMPLE")
    name = lasting("/sys/block/sdb/queue/scheduler")
    assert name == f"{names}/ata-EXAMPLE queue/scheduler"
    assert at_present(name) == "/sys/block/sdx/queue/scheduler"
    disk.unlink()
    assert at_present(name) == ""
    cpu = "/sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
    assert at_present(lasting(cpu)) == cpu


def test_a_kernel_that_refuses(tmp_path: Path) -> None:
    assert read(str(tmp_path / "none")) is None
    value = tmp_path / "value"
    value.write_text("1\n")
    assert write(str(value), "2") == ""
    assert "the kernel refuses it" in write(str(tmp_path / "none"), "2")
