# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A real container that is kept, changed, and made again as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.modules import container_release

from lab import docker, label

Call = Callable[..., dict[str, Any]]
NAME = f"nas-release-{os.getpid()}"
LAB = "integration"
# What another container must have in common with the first.
COMPARED = ("Memory", "NanoCpus", "PidsLimit", "ReadonlyRootfs", "CapDrop", "SecurityOpt", "Binds",
            "RestartPolicy", "NetworkMode", "OomScoreAdj", "Ulimits", "Tmpfs")  # fmt: skip
OPTIONS = (
    *("--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "32"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/run"),
    *("--user", "10001:10001", "--env", "MODEL_VARIANT=large", "--oom-score-adj", "300"),
    *("--ulimit", "nofile=4096", "--restart", "unless-stopped"),
)


def inspect(name: str = NAME) -> dict[str, Any]:
    (found,) = docker.inspect("container", [name])
    return found


def start(*more: str) -> None:
    images = docker.lines("images", "--quiet", "--filter", f"label={label.LAB}={label.IMAGE}")
    if not images:
        pytest.skip("no image of the lab here: make prepare")
    image = images[0]
    docker.docker("rm", "--force", NAME, check=False)
    options = ("--detach", "--name", NAME, *label.arguments(LAB), "--entrypoint", "sleep")
    docker.docker("run", *options, "--stop-timeout", "1", *more, image, "600")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    if docker.docker("version", check=False).returncode != 0:
        pytest.skip("no Docker engine answers here")
    yield
    for name in (NAME, f"{NAME}-refused"):
        docker.docker("rm", "--force", name, check=False)
    docker.docker("network", "rm", NAME, check=False)


@pytest.fixture
def release(call: Call, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that asks for a state; two files belong to the container."""

    def run(state: str, **more: Any) -> dict[str, Any]:
        files = [str(tmp_path / "config.ini"), str(tmp_path / "upstreams.json")]
        folder = str(tmp_path / "kept")
        return call(
            container_release.main, container=NAME, files=files, folder=folder, state=state, **more
        )

    (tmp_path / "config.ini").write_text("old")
    (tmp_path / "config.ini").chmod(0o640)
    return run


def test_a_changed_container_is_made_again(release: Call, tmp_path: Path) -> None:
    volume = ("--volume", f"{tmp_path}:/there:ro")
    start("--network", "none", *volume, *OPTIONS)
    before = inspect()
    assert release("kept", check=True)["changed"]
    kept = release("kept", notes={"ms": 40})
    assert kept == {
        **kept,
        "changed": True,
        "unfinished": False,
        "image": before["Config"]["Image"],
    }
    assert oct((tmp_path / "kept").stat().st_mode & 0o777) == "0o700"
    assert oct((tmp_path / "kept/release.json").stat().st_mode & 0o777) == "0o600"
    # Nothing was changed yet, so nothing is to be done.
    assert not release("restored")["changed"]

    start("--memory", "128m")
    (tmp_path / "config.ini").write_text("new and wrong")
    (tmp_path / "upstreams.json").write_text("{}")
    # A run that is started again after it was cut off does not take this for what was good.
    again = release("kept", notes={"ms": 900})
    assert (again["changed"], again["unfinished"], again["notes"]) == (False, True, {"ms": 40})
    assert release("kept", notes={"more": 1})["notes"] == {"ms": 40, "more": 1}
    assert release("restored", check=True)["changed"]
    done = release("restored")
    assert done["changed"]
    assert done["done"][-1] == f"made {NAME} as it was, of {before['Config']['Image']}"

    after = inspect()
    assert after["State"]["Running"]
    assert {key: after["HostConfig"][key] for key in COMPARED} == {
        key: before["HostConfig"][key] for key in COMPARED
    }
    for part in ("User", "Env", "Labels", "Cmd", "Entrypoint", "StopTimeout", "Image"):
        assert after["Config"][part] == before["Config"][part]
    assert (tmp_path / "config.ini").read_text() == "old"
    assert oct((tmp_path / "config.ini").stat().st_mode & 0o777) == "0o640"
    assert not (tmp_path / "upstreams.json").exists()
    assert docker.inspect("container", [f"{NAME}-refused"]) == []
    assert not release("restored")["changed"]
    assert release("forgotten")["changed"]
    assert not release("forgotten")["changed"]
    assert "nothing is kept" in release("restored")["msg"]


def test_its_network_comes_back(release: Call) -> None:
    option = "com.docker.network.bridge.enable_icc=false"
    docker.docker("network", "create", "--opt", option, *label.arguments(LAB), NAME)
    start("--network", NAME)
    release("kept")
    start("--network", "none")
    docker.docker("network", "rm", NAME)
    assert f"made the network {NAME}" in release("restored")["done"]
    assert list(inspect()["NetworkSettings"]["Networks"]) == [NAME]
    (network,) = docker.inspect("network", [NAME])
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"


def test_data_that_is_to_be_elsewhere_is_refused(release: Call, tmp_path: Path) -> None:
    start("--volume", f"{tmp_path}:/data")
    said = release("kept", mounts=[str(tmp_path), "/srv/new/run"])["msg"]
    assert "has no /srv/new/run, so its data is to be elsewhere" in said
    assert not (tmp_path / "kept/release.json").exists()
    assert release("kept", mounts=[str(tmp_path)])["changed"]


@pytest.mark.parametrize("ill", ["pause", "stop", "restart"])
def test_the_same_container_is_started_again(release: Call, ill: str) -> None:
    start()
    kept = inspect()
    release("kept")
    docker.docker(ill, NAME)
    assert release("restored")["done"] == [f"started {NAME} again"]
    assert inspect()["Id"] == kept["Id"]
    assert inspect()["State"]["Status"] == "running"


def test_where_there_was_none_none_is_left_serving(release: Call) -> None:
    assert release("kept")["image"] == ""
    start()
    assert release("restored")["done"] == [f"stopped {NAME}, which is new here"]
    assert not inspect()["State"]["Running"]
    assert not release("restored")["changed"]


def test_an_image_that_is_gone_and_a_damaged_record(release: Call, tmp_path: Path) -> None:
    start()
    release("kept")
    path = tmp_path / "kept/release.json"
    kept = json.loads(path.read_text())
    kept["container"]["Id"] = "0" * 64
    kept["container"]["Image"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(kept))
    running = inspect()["Id"]
    assert "is no more on this NAS" in release("restored")["msg"]
    # What runs goes on: there is nothing that could take its place.
    assert inspect()["Id"] == running
    assert inspect()["State"]["Running"]
    path.write_text("{")
    assert "is damaged" in release("kept")["msg"]
