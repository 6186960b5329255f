# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Kernel parameters: names, values, the file, and a kernel that refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from ansible_collections.nas.assistant.plugins.modules import sysctl_set
from ansible_collections.nas.assistant.plugins.modules.sysctl_set import (
    NAME,
    PARTNER,
    Kernel,
    Refusal,
    Set,
    SysctlError,
    at_least,
    checked,
    left,
    normal,
    others,
    parse_file,
    plan,
    proc_path,
    read,
    returning,
    unloaded,
    write,
)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vm.swappiness", "/proc/sys/vm/swappiness"),
        ("net.ipv4.conf.all.rp_filter", "/proc/sys/net/ipv4/conf/all/rp_filter"),
        ("net/ipv4/conf/eth0.5/rp_filter", "/proc/sys/net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_proc_path(name: str, path: str) -> None:
    assert NAME.fullmatch(name)
    assert proc_path(name) == path


@pytest.mark.parametrize(
    "name", ["net.ipv4.conf.*.rp_filter", "", "vm", "vm..x", "../etc/passwd", "vm.x=1", "vm.x\n"]
)
def test_odd_names(name: str) -> None:
    assert not NAME.fullmatch(name) or ".." in name


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (True, "1"), ("4096\t131072  16777216\n", "4096 131072 16777216"), ("fq", "fq")],
)
def test_normal(value: object, text: str) -> None:
    assert normal(value) == text


def test_the_file_remembers_what_was_before() -> None:
    made = Set({"b.x": "1 2", "a.y": "0"}, {"b.x": "3 4"})
    assert made.render().splitlines()[1:] == ["-a.y = 0", "-b.x = 1 2", "# before: b.x = 3 4"]
    assert Set.parse(made.render()) == made
    assert Set.parse("") == Set({}, {})


@pytest.mark.parametrize(
    ("wanted", "base", "value"),
    [
        ("8", "9", "9"),
        ("10", "9", "10"),
        ("4096 131072 16", "4096 87380 6291456", "4096 131072 6291456"),
        ("1 2", "3", "1 2"),
        ("fq", "9", "fq"),
    ],
)
def test_at_least(wanted: str, base: str, value: str) -> None:
    assert at_least(wanted, base) == value


LIMIT, RATIO, BYTES = "fs.limit", "vm.dirty_ratio", "vm.dirty_bytes"
NOTHING = Set({}, {})


@pytest.mark.parametrize(
    ("wanted", "minimums", "old", "kernel", "values", "before"),
    [
        # The first run, and the second.
        ({"a.b": "1"}, [], NOTHING, {"a.b": "0"}, {"a.b": "1"}, {"a.b": "0"}),
        (
            {"a.b": "1"}, [], Set({"a.b": "1"}, {"a.b": "0"}), {"a.b": "1"},
            {"a.b": "1"}, {"a.b": "0"},
        ),
        # One that the kernel lacks is written, for a kernel that will not.
        ({"a.b": "1"}, [], NOTHING, {}, {"a.b": "1"}, {}),
        # A limit: raised, left, left again after somebody raised it beyond ours.
        ({LIMIT: "5"}, [LIMIT], NOTHING, {LIMIT: "3"}, {LIMIT: "5"}, {LIMIT: "3"}),
        ({LIMIT: "5"}, [LIMIT], NOTHING, {LIMIT: "7"}, {}, {}),
        ({LIMIT: "5"}, [LIMIT], Set({LIMIT: "5"}, {LIMIT: "3"}), {LIMIT: "7"}, {}, {}),
        # Ours was higher once, and that is no reason to keep it.
        (
            {LIMIT: "5"}, [LIMIT], Set({LIMIT: "7"}, {LIMIT: "3"}), {LIMIT: "7"},
            {LIMIT: "5"}, {LIMIT: "3"},
        ),
        # What the owner has in bytes is noted in bytes, and stays noted.
        ({RATIO: "10"}, [], NOTHING, {RATIO: "0", BYTES: "99"}, {RATIO: "10"}, {BYTES: "99"}),
        (
            {RATIO: "10"}, [], Set({RATIO: "10"}, {BYTES: "99"}), {RATIO: "10", BYTES: "0"},
            {RATIO: "10"}, {BYTES: "99"},
        ),
        # From a share to bytes: what was noted first counts.
        (
            {BYTES: "50"}, [], Set({RATIO: "10"}, {RATIO: "20"}), {RATIO: "10", BYTES: "0"},
            {BYTES: "50"}, {RATIO: "20"},
        ),
    ],
)  # fmt: skip
def test_plan(
    wanted: dict[str, str], minimums: list[str], old: Set, kernel: dict[str, str],
    values: dict[str, str], before: dict[str, str],
) -> None:  # fmt: skip
    planned = plan(wanted, minimums, old, kernel, {})
    assert planned == Set(values, before)
    assert Set.parse(planned.render()) == planned


def test_a_limit_that_an_earlier_file_has_is_not_lowered_at_boot() -> None:
    """The file came after ours was written: the kernel still has ours."""
    old, earlier = Set({LIMIT: "5"}, {LIMIT: "3"}), {"fs/limit": ("9", "/etc/sysctl.d/10-x.conf")}
    new = plan({LIMIT: "5"}, [LIMIT], old, {LIMIT: "5"}, earlier)
    assert new == NOTHING
    assert returning(old, new, {LIMIT: "5"}, earlier) == {LIMIT: "9"}


@pytest.mark.parametrize(
    ("kernel", "said", "set_to"),
    [
        ("128", "8192", "8192"),
        ("8192", "8192", None),
        ("9000", "8192", None),
        # Ours is more: it is in the file.
        ("128", "1024", None),
        # Each number by itself; what is none is nobody's to load.
        ("1 9 9", "5 8 99", "5 9 99"),
        ("1 9 9", "5000", None),
    ],
)
def test_a_limit_that_a_file_has_and_nobody_loaded_is_loaded(
    kernel: str, said: str, set_to: str | None
) -> None:
    wanted = {LIMIT: "4096" if " " not in kernel else "1 1 1"}
    earlier = {"fs/limit": (said, "/etc/sysctl.d/50-x.conf")}
    new = plan(wanted, [LIMIT], NOTHING, {LIMIT: kernel}, earlier)
    assert unloaded([LIMIT], new, {LIMIT: kernel}, earlier) == ({LIMIT: set_to} if set_to else {})
    assert unloaded([LIMIT], new, {}, earlier) == {}


def test_where_a_pair_has_changed_its_counting_one_the_file_is_heeded() -> None:
    """The owner has bytes since, in a file that is read before ours."""
    old = Set({RATIO: "10"}, {RATIO: "20"})
    elsewhere = {"vm/dirty_bytes": ("99", "/etc/sysctl.d/10-own.conf")}
    assert returning(old, NOTHING, {RATIO: "10", BYTES: "0"}, elsewhere) == {BYTES: "99"}


def test_what_goes_back() -> None:
    old = Set({"a.b": "1", RATIO: "10", LIMIT: "5"}, {"a.b": "0", BYTES: "99", LIMIT: "3"})
    kernel = dict(old.values)
    assert returning(old, NOTHING, kernel, {}) == {"a.b": "0", BYTES: "99", LIMIT: "3"}
    # Somebody has set it to something else since.
    assert returning(old, NOTHING, {**kernel, LIMIT: "7"}, {}) == {"a.b": "0", BYTES: "99"}
    assert returning(old, NOTHING, {**kernel, RATIO: "0"}, {}) == {"a.b": "0", LIMIT: "3"}
    kept = Set({RATIO: "10", "a.b": "2"}, {BYTES: "99", "a.b": "0"})
    assert returning(old, kept, kernel, {}) == {LIMIT: "3"}


def test_two_that_exclude_each_other() -> None:
    with pytest.raises(SysctlError, match=r"of vm\.dirty_ratio=5 and vm\.dirty_bytes=6 the"):
        checked({BYTES: 6, RATIO: 5})
    with pytest.raises(SysctlError, match=r"vm/swappiness is vm\.swappiness by another name"):
        checked({"vm.swappiness": 60, "vm/swappiness": 10})
    with pytest.raises(SysctlError, match="vm is no parameter's name"):
        checked({"vm": 1})


def test_a_file_of_somebody_else() -> None:
    text = "# x = 1\n; y = 1\n-vm.swappiness=60\nnet/ipv4/conf/eth0.5/rp_filter = 1\n\nnonsense\n"
    text += "net.ipv4.conf.eth0/5.rp_filter=0\n"
    assert parse_file(text) == {"vm/swappiness": "60", "net/ipv4/conf/eth0.5/rp_filter": "0"}


def test_what_is_read_later_decides(tmp_path: Path) -> None:
    first, second = tmp_path / "etc", tmp_path / "usr"
    for folder in (first, second):
        folder.mkdir()
    (first / "10-early.conf").write_text("vm.early = 1\n")
    (first / "50-ours.conf").write_text("vm.ours = 1\n")
    (second / "60-late.conf").write_text("vm.late = 2\n")
    # It takes the place of the other one by that name.
    (first / "60-late.conf").write_text("vm.late = 3\nvm.same = 1\nvm.dirty_bytes = 77\n")
    before, after = others("/etc/sysctl.d/50-ours.conf", [str(first), str(second)])
    assert set(before) == {"vm/early"}
    assert set(after) == {"vm/late", "vm/same", "vm/dirty_bytes"}
    wanted = {"vm.late": "1", "vm.same": "1", "vm.early": "5", "vm/late": "3", RATIO: "10"}
    # It says enough.
    assert "vm.late" not in left(wanted, ["vm.late"], after)
    assert left({"vm.late": "4"}, ["vm.late"], after)
    says = f"left to {first}/60-late.conf, which is read later and says"
    assert left(wanted, [], after) == {
        "vm.late": f"vm.late: {says} 3",
        RATIO: f"{RATIO}: {says} {BYTES} = 77",
    }


def test_a_kernel_that_lacks_or_refuses(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/good").write_text("1\t2\n")
    kernel = read(["vm.good", "vm.none"], str(tmp_path))
    assert kernel.values == {"vm.good": "1 2"}
    assert kernel.refused == {"vm.none": "vm.none: this kernel has no such parameter"}
    assert write("vm.good", "3 4", str(tmp_path)) is None
    refusal = write("vm", "3", str(tmp_path))
    assert refusal
    assert "the kernel refuses it (Is a directory)" in refusal.reason
    assert not refusal.invalid
    # A file of the kernel's that any program may write, its own.
    refusal = write("oom_score_adj", "banana", "/proc/self")
    assert refusal
    assert refusal.invalid


class FakeKernel(dict[str, str]):
    """Parameters; of ``broken`` ones it takes no other value, of ``most`` none above it. Words are
    no values. ``left`` writes, and the run is cut off."""

    def __init__(self, values: dict[str, str], broken: Sequence[str] = (), left: int = 99) -> None:
        super().__init__(values)
        self.broken, self.left = broken, left
        self.most: dict[str, int] = {}

    def write(self, name: str, value: str) -> Refusal | None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        if name in self.broken or not value.isdigit():
            return Refusal(f"{name} = {value}: the kernel refuses it", not value.isdigit())
        self[name] = str(min(int(value), self.most.get(name, int(value))))
        made = Refusal(f"{name} = {value}: the kernel made it {self[name]}")
        return None if self[name] == value else made

    def look(self, names: Sequence[str]) -> Kernel:
        refused = {name: f"{name}: this kernel has none" for name in names if name not in self}
        return Kernel({name: self[name] for name in names if name in self}, refused)

    def run(
        self,
        file: Path,
        values: dict[str, object],
        check_mode: bool = False,
        earlier: dict[str, tuple[str, str]] | None = None,
        **more: object,
    ) -> dict[str, object]:
        params = {"path": str(file), "values": values, "minimums": [], "strict": False}
        params |= {"state": "present" if values else "absent", **more}
        module = SimpleNamespace(params=params, check_mode=check_mode)
        with (
            mock.patch.object(sysctl_set, "write", self.write),
            mock.patch.object(sysctl_set, "read", self.look),
            mock.patch.object(sysctl_set, "others", return_value=(earlier or {}, {})),
        ):
            return dict(sysctl_set.run(module))


def test_what_was_refused_goes_back_too(tmp_path: Path) -> None:
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({"vm.swappiness": "10"})
    kernel.run(file, {"vm.swappiness": 60})
    kernel.broken = ["vm.swappiness"]
    assert kernel.run(file, {"vm.swappiness": 300})["refused"]
    assert kernel.run(file, {"vm.swappiness": 300})["changed"] is False
    kernel.broken = []
    kernel.run(file, {})
    assert (kernel, file.exists()) == ({"vm.swappiness": "10"}, False)


def test_a_change_that_was_cut_off_goes_back(tmp_path: Path) -> None:
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({"vm.a": "1", "vm.b": "1"})
    kernel.run(file, {"vm.a": 2, "vm.b": 2})
    kernel.left = 1
    with pytest.raises(KeyboardInterrupt):
        kernel.run(file, {"vm.a": 3, "vm.b": 3})
    assert kernel == {"vm.a": "3", "vm.b": "2"}
    kernel.left = 99
    again = kernel.run(file, {"vm.a": 3, "vm.b": 3})
    assert (kernel, again["changed"]) == ({"vm.a": "3", "vm.b": "3"}, True)
    assert "in force" not in file.read_text()
    kernel.left = 1
    with pytest.raises(KeyboardInterrupt):
        kernel.run(file, {"vm.a": 4, "vm.b": 4})
    kernel.left = 99
    kernel.run(file, {})
    assert kernel == {"vm.a": "1", "vm.b": "1"}


def test_what_the_kernel_made_of_a_value_is_ours(tmp_path: Path) -> None:
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({"vm.nr_hugepages": "0"})
    kernel.most["vm.nr_hugepages"] = 300
    done = kernel.run(file, {"vm.nr_hugepages": 512})
    assert done["changed_values"] == {"vm.nr_hugepages": ["0", "300"]}
    assert done["refused"] == ["vm.nr_hugepages = 512: the kernel made it 300"]
    again = kernel.run(file, {"vm.nr_hugepages": 512})
    assert (again["changed"], again["refused"]) == (False, done["refused"])
    kernel.run(file, {})
    assert (kernel, file.exists()) == ({"vm.nr_hugepages": "0"}, False)


@pytest.mark.parametrize("left", [{}, {"vm.other": 1}])
def test_what_is_not_taken_back_is_remembered(tmp_path: Path, left: dict[str, object]) -> None:
    """Also where the file has others still; until the kernel takes it."""
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({"vm.swappiness": "60", "vm.other": "0", RATIO: "20", BYTES: "0"})
    kernel.run(file, {"vm.swappiness": 10, RATIO: 5, **left})
    kernel.broken = ["vm.swappiness", RATIO]
    done = kernel.run(file, left)
    assert done["changed"]
    assert str(done["refused"]).count("the kernel refuses it") == 2
    assert parse_file(file.read_text()) == {name.replace(".", "/"): "1" for name in left}
    again = kernel.run(file, left)
    assert (again["changed"], again["refused"]) == (False, done["refused"])
    # Somebody else has set one of them meanwhile.
    kernel.broken = []
    kernel[RATIO] = "7"
    assert kernel.run(file, left)["changed"]
    assert (kernel["vm.swappiness"], kernel[RATIO]) == ("60", "7")
    assert "vm.swappiness" not in (file.read_text() if left else "")
    assert file.exists() == bool(left)


def test_one_that_the_kernel_has_no_more_is_nothing_to_put_back(tmp_path: Path) -> None:
    """Its module is gone, and comes with values of its own."""
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({"net.module": "1"})
    kernel.run(file, {"net.module": 2})
    del kernel["net.module"]
    assert kernel.run(file, {"net.module": 2})["refused"]
    done = kernel.run(file, {})
    assert (done["changed"], done["refused"], file.exists()) == (True, [], False)


@pytest.mark.parametrize("minimums", [[], ["net.module"]])
def test_what_the_kernel_lacked_at_first_has_no_value_of_before(
    tmp_path: Path, minimums: list[str]
) -> None:
    """The module was loaded at boot, and the file read: the kernel has ours."""
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({})
    assert kernel.run(file, {"net.module": 5}, minimums=minimums)["refused"]
    kernel["net.module"] = "5"
    for _ in range(2):
        again = kernel.run(file, {"net.module": 5}, minimums=minimums)
        assert (again["changed"], again["refused"]) == (False, [])
    assert "# before: " not in file.read_text()
    # Another value is ours, too.
    assert kernel.run(file, {"net.module": 6}, minimums=minimums)["changed"]
    assert kernel["net.module"] == "6"
    assert kernel.run(file, {"net.module": 6}, minimums=minimums)["changed"] is False
    done = kernel.run(file, {})
    assert "stays 6 until the next boot" in str(done["refused"])
    assert (kernel, file.exists()) == ({"net.module": "6"}, False)
    again = kernel.run(file, {})
    assert (again["changed"], again["refused"]) == (False, [])


@pytest.mark.parametrize("minimums", [[], ["net.module"]])
def test_then_another_file_says_what_it_is(tmp_path: Path, minimums: list[str]) -> None:
    file, earlier = tmp_path / "99-ours.conf", {"net/module": ("9", "/etc/sysctl.d/10-own.conf")}
    kernel = FakeKernel({})
    kernel.run(file, {"net.module": 5}, minimums=minimums)
    kernel["net.module"] = "5"
    kernel.run(file, {"net.module": 5}, earlier=earlier, minimums=minimums)
    assert kernel["net.module"] == ("9" if minimums else "5")
    done = kernel.run(file, {}, earlier=earlier)
    assert (kernel["net.module"], done["refused"], file.exists()) == ("9", [], False)


def test_a_modules_own_value_is_noted_once_it_is_there(tmp_path: Path) -> None:
    """It was loaded after the file was read, and has a value of its own."""
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({})
    kernel.run(file, {"net.module": 5})
    kernel["net.module"] = "1"
    kernel.run(file, {"net.module": 5})
    assert kernel["net.module"] == "5"
    kernel.run(file, {})
    assert (kernel["net.module"], file.exists()) == ("1", False)


def test_what_a_file_has_raised_is_in_force_and_not_in_ours(tmp_path: Path) -> None:
    file, earlier = tmp_path / "99-ours.conf", {"net/most": ("8192", "/etc/sysctl.d/50-x.conf")}
    kernel = FakeKernel({"net.most": "128"})
    wish: dict[str, object] = {"net.most": 4096}
    checked_only = kernel.run(file, wish, True, earlier=earlier, minimums=["net.most"])
    done = kernel.run(file, wish, earlier=earlier, minimums=["net.most"])
    assert done["changed_values"] == {"net.most": ["128", "8192"]}
    assert checked_only["refused"] == done["refused"] == []
    assert parse_file(file.read_text()) == {}
    assert kernel.run(file, wish, earlier=earlier, minimums=["net.most"])["changed"] is False
    kernel.run(file, {}, earlier=earlier)
    assert (kernel["net.most"], file.exists()) == ("8192", False)


def test_bytes_that_came_later_come_back(tmp_path: Path) -> None:
    """Also where the kernel does not take them at first."""
    file, earlier = tmp_path / "99-ours.conf", {"vm/dirty_bytes": ("99", "/etc/sysctl.d/1.conf")}
    kernel = FakeKernel({RATIO: "20", BYTES: "0"})
    kernel.run(file, {RATIO: 10})
    kernel.broken = [BYTES]
    assert kernel.run(file, {}, earlier=earlier)["refused"]
    assert file.exists()
    kernel.broken = []
    kernel.run(file, {}, earlier=earlier)
    assert (kernel[BYTES], file.exists()) == ("99", False)


def test_a_value_that_is_none_is_not_for_the_next_boot(tmp_path: Path) -> None:
    file = tmp_path / "99-ours.conf"
    kernel = FakeKernel({"vm.swappiness": "60", "vm.other": "0"})
    done = kernel.run(file, {"vm.swappiness": "banana", "vm.other": 1})
    assert done["refused"]
    assert parse_file(file.read_text()) == {"vm/other": "1"}
    for check_mode in (True, False):
        again = kernel.run(file, {"vm.swappiness": "banana", "vm.other": 1}, check_mode)
        assert (again["changed"], again["changed_values"]) == (False, {})
    # One that was set before goes back to what it was before that.
    kernel.run(file, {"vm.swappiness": 10, "vm.other": 1})
    kernel.run(file, {"vm.swappiness": "banana", "vm.other": 1})
    assert kernel["vm.swappiness"] == "10"
    kernel.run(file, {})
    assert (kernel["vm.swappiness"], kernel["vm.other"], file.exists()) == ("60", "0", False)


@pytest.mark.parametrize("text", ["", "# somebody's\n-vm.swappiness = 60\n"])
def test_strictly_all_goes_back(tmp_path: Path, text: str) -> None:
    """A kernel that makes another number of one: with that, nothing stays changed."""
    kernel = {"vm.dirty_bytes": "0", "vm.dirty_ratio": "20", "vm.swappiness": "60", "vm.odd": "1"}
    before = dict(kernel)

    def set_it(name: str, value: str) -> Refusal | None:
        if name == "vm.odd" and value != "1":
            kernel[name] = "4096"
            return Refusal("vm.odd = 5: the kernel made it 4096")
        if name in PARTNER:
            if value == "0":
                return Refusal(f"{name} = 0: the kernel refuses it")
            kernel[PARTNER[name]] = "0"
        kernel[name] = value
        return None

    def answer(names: Sequence[str]) -> Kernel:
        return Kernel({name: kernel[name] for name in names}, {})

    file = tmp_path / "99-ours.conf"
    if text:
        file.write_text(text)
    wish = {"vm.dirty_bytes": 4096, "vm.swappiness": 10, "vm.odd": 5}
    module = SimpleNamespace(
        params={
            "path": str(file),
            "values": wish,
            "minimums": [],
            "state": "present",
            "strict": True,
        },
        check_mode=False,
    )
    with (
        mock.patch.object(sysctl_set, "write", set_it),
        mock.patch.object(sysctl_set, "read", answer),
        mock.patch.object(sysctl_set, "others", return_value=({}, {})),
        pytest.raises(SysctlError, match=r"made it 4096. All is as it was before"),
    ):
        sysctl_set.run(module)
    assert kernel == before
    assert (file.read_text() if file.exists() else "") == text
