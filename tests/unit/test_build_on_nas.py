# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""An image that the NAS builds: what it is sent, what it must have, whom it lets go first."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nas.assistant.plugins.module_utils import (
    _build_means as means,
    _build_steps as building,
)
from ansible_collections.nas.assistant.plugins.module_utils._build_context import (
    context_files,
    inputs_digest,
    pack,
    unpack,
)
from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import DockerError
from ansible_collections.nas.assistant.plugins.modules import image_build

ROOT = Path(__file__).parents[2]
Call = Callable[..., dict[str, Any]]
# Keeps what it has built in a folder, and what it was given beside it.
DOCKER = """#!/bin/sh
cd {state}
case "$1 $2" in
"version --format") echo 20.10.24 20.10.24 ;;
"info --format") echo {state} ;;
"image inspect")
    [ -e "$(echo "$3" | tr / _)" ] || {{ echo "Error: No such image: $3" >&2; exit 1; }}
    echo '[{{"Id": "sha256:0123456789abcdef", "Architecture": "arm64", "Size": 5}}]' ;;
"build --tag")
    echo "$@" > given
    for last; do
        case "$last" in id=*) cat "${{last#*src=}}" >> secrets ;; esac
    done
    ls -R "$last" > context
    if [ -e fails ]; then cat fails >&2; exit 1; fi
    touch "$(echo "$3" | tr / _)" ;;
*) exit 9 ;;
esac
"""


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """What an image is built of, as somebody has checked it out."""
    folder = tmp_path / "service"
    for name in ("Dockerfile", "start.sh", "src/app/one.py", "tests/test_one.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "start.sh").chmod(0o775)
    (folder / "src/app/one.py").chmod(0o660)
    (folder / ".dockerignore").write_text("tests\n")
    return folder


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a NAS's engine keeps."""
    state, programs = tmp_path / "docker", tmp_path / "bin"
    for folder in (state, programs):
        folder.mkdir()
    (programs / "docker").write_text(DOCKER.format(state=state))
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(image_build, "WORK", str(tmp_path / "run/build"))
    return state


@pytest.fixture
def sent(call: Call, service: Path, tmp_path: Path) -> dict[str, Any]:
    """What the controller says, which has no Docker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        given = {"context": str(service), "name": "mine", "build": False}
        wish = given | {"archive_dir": str(tmp_path / "cache")}
        planned = call(image_build.main, check=True, **wish)
        assert planned["changed"]
        assert not (tmp_path / "cache").exists()
        first = call(image_build.main, **wish)
        again = call(image_build.main, **wish)
    assert first["changed"]
    assert not again["changed"]
    assert first["image"] == again["image"] == planned["image"]
    return first


def test_what_is_sent_gives_the_same_image(service: Path, tmp_path: Path) -> None:
    pack(str(service), str(tmp_path / "cache/context.tar"))
    other = tmp_path / "other"
    unpack(str(tmp_path / "cache/context.tar"), str(other))
    assert context_files(str(other)) == [
        ".dockerignore",
        "Dockerfile",
        "src/app/one.py",
        "start.sh",
    ]
    assert inputs_digest(str(other), {}) == inputs_digest(str(service), {})
    assert {path.stat().st_mode & 0o777 for path in other.rglob("*.*")} == {0o644, 0o755}
    assert not (other / "tests").exists()
    # Whoever checked it out, and when, does not count.
    os.utime(service / "start.sh", (1, 1))
    pack(str(service), str(tmp_path / "cache/again.tar"))
    one, two = ((tmp_path / f"cache/{name}.tar").read_bytes() for name in ("context", "again"))
    assert one == two
    assert sorted(os.listdir(tmp_path / "cache")) == ["again.tar", "context.tar"]


def test_the_services_own_files_are_little_to_send(tmp_path: Path) -> None:
    pack(str(ROOT / "service"), str(tmp_path / "context.tar"))
    assert (tmp_path / "context.tar").stat().st_size < 4 << 20


@pytest.mark.parametrize("name", ["../outside", "/outside", "link"])
def test_nothing_is_unpacked_elsewhere(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.type = tarfile.SYMTYPE if name == "link" else tarfile.REGTYPE
        member.linkname = "/outside"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(ValueError, match="is no file of a build context"):
        unpack(str(tmp_path / "bad.tar"), str(tmp_path / "in/side"))
    assert sorted(os.listdir(tmp_path)) in (["bad.tar"], ["bad.tar", "in"])


def test_it_is_built_once_under_the_controllers_name(
    call: Call, engine: Path, sent: dict[str, Any], tmp_path: Path
) -> None:
    # What a run that was killed left.
    left = tmp_path / "run/build/secret-0"
    left.parent.mkdir(parents=True)
    left.write_text("old")
    wish = {"context": sent["archive"], "name": "mine", "secret_values": {"pip_index": "https://x"}}
    planned = call(image_build.main, check=True, **wish)
    assert (planned["changed"], planned["image"]) == (True, sent["image"])
    assert not (engine / "given").exists()
    built = call(image_build.main, **wish, gentle=True, room=1, memory=1)
    assert (built["changed"], built["image"]) == (True, sent["image"])
    assert (built["architecture"], built["archive"]) == ("arm64", "")
    assert "Dockerfile" in (engine / "context").read_text()
    assert (engine / "secrets").read_text().startswith("https://x")
    assert "https://x" not in (engine / "given").read_text()
    # Nothing of it is left.
    assert os.listdir(tmp_path / "run") == ["build.lock"]
    (engine / "given").unlink()
    assert not call(image_build.main, **wish)["changed"]
    assert not (engine / "given").exists()


def test_what_is_missing_is_said_before_anything_is_built(
    call: Call, engine: Path, sent: dict[str, Any], tmp_path: Path
) -> None:
    wish = {"context": sent["archive"], "name": "mine"}
    for much, words in (
        ({"room": 1 << 40}, rf"{engine} has "),
        ({"memory": 1 << 40}, "MiB of memory are available"),
    ):
        refused = call(image_build.main, **wish, **much)
        assert refused["failed"]
        assert words in refused["msg"]
        assert "have the image built elsewhere" in refused["msg"]
        assert not (engine / "given").exists()
        assert os.listdir(tmp_path / "run") == ["build.lock"]


FAILURES = [
    ("ninja: write: No space left on device", "no room left"),
    ('"/bin/sh -c compile" did not complete successfully: exit code: 137', "did not suffice"),
    ("c++: fatal error: Killed signal terminated program cc1plus", "did not suffice"),
    ("failed to do request: Head https://registry-1.docker.io/v2/: dial tcp: i/o timeout", "reach"),
    ("pull access denied for nas-lab-debian, repository does not exist", "or have it"),
    ("WARNING: fetching https://dl-cdn.alpinelinux.org/alpine: temporary error", "reach"),
    ("E: Failed to fetch http://mirror.example.com/: Could not connect to it", "reach"),
    ("ERROR: No matching distribution found for starlette", "reach"),
]


@pytest.mark.parametrize(("said", "words"), FAILURES)
def test_a_build_that_fails_says_what_to_do(
    call: Call, engine: Path, sent: dict[str, Any], tmp_path: Path, said: str, words: str
) -> None:
    (engine / "fails").write_text(said)
    failed = call(image_build.main, context=sent["archive"], name="mine")
    assert said in failed["msg"]
    assert words in failed["msg"].split(said)[1]
    assert os.listdir(tmp_path / "run") == ["build.lock"]


def test_what_nobody_knows_is_left_as_it_is() -> None:
    assert means.remedy("compile-engine.sh: line 3: syntax error") == ""


def test_memory_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, available, spare in ((8000, 4096, 3296), (2048, 1024, 768), (1024, 300, 256)):
        found = (total * means.MIB, available * means.MIB)
        monkeypatch.setattr(means, "memory_now", lambda found=found: found)
        assert means.spare() // means.MIB == spare
    with pytest.raises(DockerError, match="300 MiB of memory are available"):
        means.check(0, 301)


def process(root: Path, pid: int, parent: int, name: str, *groups: str) -> None:
    folder = root / f"proc/{pid}"
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0")
    (folder / "cgroup").write_text("".join(f"{line}\n" for line in groups))


def idle(pid: int) -> bool:
    """Whether a process reads disks only while nobody else does."""
    command = ["ionice", "-p", str(pid)]
    return "idle" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_build_steps_are_told_from_containers(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, "dockerd")
    process(tmp_path, 11, 10, "docker-proxy")
    process(tmp_path, 12, 10, "containerd")
    process(tmp_path, 13, 12, "runc")
    process(tmp_path, 14, 13, "assistant")
    process(tmp_path, 20, 10, "runc")
    process(tmp_path, 21, 20, "sh) (")
    process(tmp_path, 22, 21, "ninja")
    process(tmp_path, 23, 22, "cc1plus")
    (tmp_path / "proc/self").mkdir()
    assert building.steps(10, str(tmp_path)) == {21, 22, 23}
    assert building.steps(99, str(tmp_path)) == set()


@pytest.fixture
def step() -> Iterator[int]:
    """A process that does nothing, whose priority may be changed."""
    with subprocess.Popen(["sleep", "60"]) as running:
        yield running.pid
        running.kill()


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        (
            ["0::/system.slice/docker-x.scope"],
            {"system.slice/docker-x.scope/": ["cpu.weight", "memory.max"]},
            {"cpu.weight": "1", "memory.max": "4096"},
        ),
        (
            ["4:cpu,cpuacct:/docker/x", "3:memory:/docker/x", "1:name=systemd:/docker/x"],
            {
                "cpu,cpuacct/docker/x/": ["cpu.shares", "tasks"],
                "memory/docker/x/": ["memory.limit_in_bytes"],
            },
            {"cpu.shares": "2", "tasks": "", "memory.limit_in_bytes": "4096"},
        ),
    ],
    ids=["v2", "v1"],
)
def test_a_step_comes_after_all_others(
    tmp_path: Path,
    step: int,
    lines: list[str],
    files: dict[str, list[str]],
    expected: dict[str, str],
) -> None:
    process(tmp_path, 10, 1, "dockerd", *(line.rpartition(":")[0] + ":/engine" for line in lines))
    process(tmp_path, step, 10, "sh", *lines)
    paths = [
        tmp_path / "sys/fs/cgroup" / folder / name for folder in files for name in files[folder]
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert building.hold_back(step, 10, 4096, str(tmp_path))
    assert {path.name: path.read_text() for path in paths} == expected
    assert os.getpriority(os.PRIO_PROCESS, step) == 19
    assert idle(step)


def test_the_engines_own_group_is_never_limited(tmp_path: Path, step: int) -> None:
    """A step is in it for a moment, before it has one of its own."""
    process(tmp_path, 10, 1, "dockerd", "0::/docker.service")
    process(tmp_path, step, 10, "runc:[2:INIT]", "0::/docker.service")
    limit = tmp_path / "sys/fs/cgroup/docker.service/memory.max"
    limit.parent.mkdir(parents=True)
    limit.write_text("max")
    assert not building.hold_back(step, 10, 4096, str(tmp_path))
    assert limit.read_text() == "max"


def test_real_steps_are_held_back_while_it_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "engine_pid", os.getpid)
    monkeypatch.setattr(building, "PAUSE", 0.05)
    (tmp_path / "runc").symlink_to("/bin/sh")
    script = f"sleep 30 & echo $! > {tmp_path}/pid; wait"
    with building.held_back(1 << 40), subprocess.Popen([tmp_path / "runc", "-c", script]) as runc:
        deadline = time.monotonic() + 20
        while True:
            text = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""
            if text and idle(int(text)):
                break
            assert time.monotonic() < deadline, "nobody held it back"
            time.sleep(0.05)
        assert os.getpriority(os.PRIO_PROCESS, int(text)) == 19
        os.kill(int(text), 9)
        runc.wait()
    # Not who had it built.
    assert not idle(os.getpid())


def test_an_engine_that_says_nothing_of_itself(tmp_path: Path) -> None:
    assert building.engine_pid(str(tmp_path / "docker.pid")) == 0
    (tmp_path / "docker.pid").write_text("4711\n")
    assert building.engine_pid(str(tmp_path / "docker.pid")) == 4711


def test_the_role_sends_only_what_is_missing() -> None:
    """On a NAS that has the image, nothing goes there for it."""
    tasks = yaml.safe_load((ROOT / "roles/assistant/tasks/ship.yml").read_text(encoding="utf-8"))
    (build,) = [task for task in tasks if "build.yml" in json.dumps(task)]
    assert "__assistant_image_missing" in build["when"]
    names = [task["name"] for task in tasks]
    # In check mode the run ends before.
    ends = "End here in check mode while the image is not on the NAS, since its check cannot be run"
    assert names.index(ends) < names.index(build["name"])
