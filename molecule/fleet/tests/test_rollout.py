# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Changes that go over the fleet, the bad ones too: clients do not notice either."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Load
from site_lab import Lab, kill, said, worked

from lab import docker

Loading = Callable[[], contextlib.AbstractContextManager[Load]]
Play = Callable[..., subprocess.CompletedProcess[str]]
GATE = {"watch": 4}
CONFIG = "/etc/nas-assistant/config.ini"
SLOW = """
import asyncio

_create_app = create_app


def create_app(*arguments):
    app = _create_app(*arguments)

    async def slow(scope, receive, send):
        if scope.get("path", "").endswith("completions"):
            await asyncio.sleep(3)
        await app(scope, receive, send)

    return slow
"""
# Answers that the service counts, and not those of the rollout's own questions.
FAILING = """
import contextlib
import dataclasses
import itertools

_create_app, _asked = create_app, itertools.count()


def create_app(settings, engine, ring):
    generate = engine.generate

    @contextlib.asynccontextmanager
    async def failing(call):
        async with generate(call) as answer:
            if {condition}:
                answer.outcome = dataclasses.replace(answer.outcome, status=500)
                raise ApiError(500, "broken", "This release is broken.")
            yield answer

    engine.generate = failing
    return _create_app(settings, engine, ring)
"""
READY = (
    "docker exec nas-assistant python3 -c "
    '"import urllib.request as r; r.urlopen(\\"http://127.0.0.1:8000/readyz\\")"'
)
LEFT = "ls /run/nas-assistant-drained /var/lib/nas-assistant-rollout 2>/dev/null || true"
INSPECT = "docker inspect nas-assistant --format "
MODELS = yaml.safe_load((ROOT / "inventories/lab/group_vars/nas/assistant.yml").read_text())[
    "assistant_models"
]
# How long requests wait for a container: of what keeps its socket, as it runs.
PATIENCE = (
    "pid=$(systemctl show --value --property MainPID nas-assistant-front.service); "
    "tr '\\0' ' ' < /proc/$pid/cmdline"
)


def queues(lab: Lab) -> list[str]:
    """What each NAS has for the length of its queue, 32 unless a rollout changes it."""
    return [lab.on(host, f"sed -n 's/^queue = //p' {CONFIG}") for host in lab.hosts]


def containers(lab: Lab) -> list[str]:
    """Image and limits of each NAS's assistant, which runs."""
    look = "'{{.State.Status}} {{.Config.Image}} {{.HostConfig.NanoCpus}}'"
    return [lab.on(host, INSPECT + look) for host in lab.hosts]


@pytest.fixture(autouse=True)
def nothing_left(lab: Lab) -> Iterator[None]:
    """No NAS is drained, or keeps what was before."""
    yield
    assert [lab.on(host, LEFT) for host in lab.hosts] == ["", "", ""]


@pytest.fixture
def release(lab: Lab, tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """Return a function that makes a release: the image that runs, with more lines of a Dockerfile,
    as an archive. In the end no NAS has one of them."""
    running = lab.on(lab.hosts[0], INSPECT + "'{{.Config.Image}}'")
    names: list[str] = []

    def make(name: str, *lines: str) -> dict[str, str]:
        names.append(f"nas-assistant-{name}:1")
        docker.docker(
            "build", "--tag", names[-1], "-", stdin="\n".join([f"FROM {running}", *lines])
        )
        archive = str(tmp_path / f"{name}.tar")
        docker.docker("save", "--output", archive, names[-1])
        return {"source": "archive", "name": names[-1], "archive": archive}

    yield make
    for name in names:
        docker.docker("rmi", name)


@pytest.fixture
def patched(release: Callable[..., dict[str, str]]) -> Callable[[str, str], dict[str, str]]:
    """Return a function that makes a release with more code at the end of its gateway."""

    def make(name: str, text: str) -> dict[str, str]:
        code = base64.b64encode(text.encode()).decode()
        patch = f"RUN echo {code} | base64 -d >> /app/nas_assistant/gateway.py"
        return release(name, "USER root", patch, "USER 10001:10001")

    return make


@pytest.fixture
def slow(patched: Callable[[str, str], dict[str, str]]) -> dict[str, str]:
    """A release that is well in all but one thing: answers begin three seconds late."""
    return patched("slow", SLOW)


def on_the_third(bad: Any, good: Any) -> dict[str, Any]:
    """Variables by which ``wish`` is one thing on the third NAS, and another one on the others."""
    return {"bad": bad, "good": good, "wish": "{{ bad if inventory_hostname == 'nas3' else good }}"}


@contextlib.contextmanager
def long_answers(ask: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Two clients that have one long answer streamed after the other; each must come to its end."""
    over = threading.Event()

    def ask_on() -> list[tuple[str, str]]:
        return list(iter(lambda: None if over.is_set() else ask(), None))

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask_on) for _ in range(2)]
        try:
            yield
        finally:
            over.set()
    ended = [each for one in asking for each in one.result()]
    assert {how for _, how in ended} == {"whole"}, ended


def test_another_image_under_load(
    lab: Lab,
    under_load: Loading,
    play: Play,
    release: Callable[..., dict[str, str]],
    long_answer: Callable[[], tuple[str, str]],
) -> None:
    """Each NAS ends what it had begun before it is changed."""
    before, other = containers(lab), release("rolled", "LABEL org.example.rolled=1")
    with under_load() as load, long_answers(long_answer):
        worked(play("rollout", assistant_image=other, rollout_gate=GATE))
    assert not load.failed
    assert {each.split()[1] for each in containers(lab)} == {other["name"]}
    with under_load() as load, long_answers(long_answer):
        # As if what all have left of their certificates were too little.
        text = worked(play("rollout", rollout_gate=GATE, status_limits={"certificate": 3000}))
    assert not load.failed
    assert containers(lab) == before
    for host in lab.hosts:
        assert f"{host['name']}: certificate member: " in " ".join(text.split())
    assert "run nas.assistant.proxy --tags proxy_certificate" in " ".join(text.split())


def test_a_bad_release_is_stopped_at_the_canary(
    lab: Lab,
    under_load: Loading,
    play: Play,
    slow: dict[str, str],
    release: Callable[..., dict[str, str]],
) -> None:
    """One that is slow, and one that does not start."""
    before = containers(lab)
    image, patience = before[0].split()[1], lab.on(lab.hosts[0], PATIENCE)
    for bad, why in (
        (slow, "the first token takes"),
        (release("broken", 'ENTRYPOINT ["/nowhere"]'), "/nowhere"),
    ):
        server = {"queue": 31, "timeout": 20, "patience": 31}
        wish = {"assistant_image": bad, "assistant_server": server, "rollout_gate": GATE}
        with under_load() as load:
            text = said(play("rollout", **wish))
        assert not load.failed
        assert why in text
        assert f"nas1: as before, {image}; nas2: not touched; nas3: not touched" in text
        assert containers(lab) == before
        assert queues(lab) == ["32", "32", "32"]
        assert lab.on(lab.hosts[0], PATIENCE) == patience


@pytest.mark.parametrize(
    ("name", "condition", "why"),
    [
        (
            "failing",
            'call.key != "rollout" and next(_asked) % 2 == 0',
            r"[1-9]\d* of \d+ requests of others failed in 15 s \(at most [1-5]\.\d %\)",
        ),
        ("partial", 'call.model == "large"', r"1 of 7 questions had no answer \(large: 500: "),
    ],
    ids=["half of them", "one model"],
)
def test_a_release_that_fails_others(
    lab: Lab,
    under_load: Loading,
    play: Play,
    patched: Callable[[str, str], dict[str, str]],
    name: str,
    condition: str,
    why: str,
) -> None:
    """One that answers the questions of the rollout itself, and not every one of its clients'; and
    one that breaks another model than the default one."""
    before = containers(lab)
    bad = patched(name, FAILING.replace("{condition}", condition))
    with under_load() as load:
        text = said(play("rollout", assistant_image=bad))
    assert re.search(why, text)
    image = before[0].split()[1]
    assert f"nas1: as before, {image}; nas2: not touched; nas3: not touched" in text
    assert containers(lab) == before
    # Those that the canary answered while it was watched; nothing else went wrong.
    assert bool(load.failed) is (name == "failing")
    assert all(each.startswith("500 ") and "is broken" in each for each in load.failed)


def test_a_batch_that_fails_leaves_the_others(
    lab: Lab, under_load: Loading, play: Play, release: Callable[..., dict[str, str]]
) -> None:
    """The third fails, the second is taken back with it, and the first keeps what is good."""
    before = containers(lab)
    good, bad = release("good", "LABEL org.example.good=1"), release("bad", 'ENTRYPOINT ["/no"]')
    wish: dict[str, Any] = {
        "rollout_batches": [1, 2],
        "assistant_server": {"queue": 31},
        "assistant_image": "{{ wish }}",
        **on_the_third(bad, good),
    }
    with under_load() as load:
        text = said(play("rollout", rollout_gate=GATE, **wish))
    assert not load.failed
    assert "nas1: new, first token after" in text
    assert "nas2: taken back with the others of its batch" in text
    assert containers(lab)[0].split()[1] == good["name"]
    assert containers(lab)[1:] == before[1:]
    assert queues(lab) == ["31", "32", "32"]
    worked(play("rollout", rollout_gate=GATE))
    assert containers(lab) == before
    assert queues(lab) == ["32", "32", "32"]


OTHER = {**MODELS["default"], "sha256": "0" * 64}
GONE = {"file": "gone.gguf", "sha256": "0" * 64, "src": "/nowhere/gone.gguf"}


@pytest.mark.parametrize(
    ("variable", "bad", "good", "why"),
    [
        (
            "assistant_model_variant",
            "huge",
            "default",
            "assistant_model_variant=huge: assistant_models has",
        ),
        ("assistant_mode", "clod", "local", "nas3: value of assistant_mode must be one of"),
        ("assistant_resources", {"memory": "900g"}, {"memory": "1g"}, "memory=900g: nas3 has"),
        ("assistant_models", MODELS | {"default": OTHER}, MODELS, "is to be another model by the"),
        ("assistant_data_dir", "/srv/other", "/var/lib/nas-assistant", "is to be elsewhere than"),
        # What it lacks is not got while a NAS is drained.
        ("assistant_models", MODELS | {"gone": GONE}, MODELS, "No NAS was drained, and nothing"),
    ],
    ids=["variant", "type", "memory", "replaced", "folder", "model"],
)
def test_what_one_of_them_refuses_stops_it_before_it_begins(
    lab: Lab, play: Play, variable: str, bad: Any, good: Any, why: str
) -> None:
    """Although the batch of that one comes last."""
    before, wish = containers(lab), {"assistant_server": {"queue": 31}, variable: "{{ wish }}"}
    text = said(play("rollout", rollout_gate=GATE, **wish, **on_the_third(bad, good)))
    assert why in text
    assert "Change one batch after the other" not in text
    assert containers(lab) == before
    assert queues(lab) == ["32", "32", "32"]


def test_the_last_one_that_answers_is_not_drained(lab: Lab, play: Play) -> None:
    for host in lab.hosts[1:]:
        lab.on(host, "docker stop nas-assistant")
    try:
        text = said(play("rollout", assistant_server={"queue": 31}, rollout_gate=GATE))
    finally:
        for host in lab.hosts[1:]:
            lab.on(host, "docker start nas-assistant")
            lab.on(host, f"timeout 120 sh -c 'until {READY}; do sleep 1; done'", 150)
    assert "while nas1 is changed, nobody else would answer (nas2 does not answer: " in text
    assert queues(lab) == ["32", "32", "32"]


def test_one_that_is_to_have_no_assistant_is_left_alone(lab: Lab, play: Play) -> None:
    """It is not the canary, and what it has is no business of a rollout."""
    absent = "{{ 'absent' if inventory_hostname == 'nas1' else 'present' }}"
    wish = {"assistant_state": absent, "assistant_server": {"queue": 31}}
    text = " ".join(worked(play("rollout", rollout_gate=GATE, **wish)).split())
    assert "Now nas2 is changed" in text
    assert queues(lab) == ["32", "31", "31"]
    worked(play("rollout", rollout_gate=GATE))
    assert queues(lab) == ["32", "32", "32"]


def test_what_would_change(lab: Lab, under_load: Loading, play: Play) -> None:
    before, wish = containers(lab), {"assistant_server": {"queue": 31}}
    with under_load() as load:
        text = worked(play("rollout", "--check", "--diff", rollout_gate=GATE, **wish))
    assert not load.failed
    assert all(line in text for line in ("-queue = 32", "+queue = 31"))
    assert "nas3: would be changed" in " ".join(text.split())
    assert containers(lab) == before
    assert queues(lab) == ["32", "32", "32"]


def test_a_nas_that_is_away_stops_it_before_it_begins(lab: Lab, play: Play) -> None:
    docker.docker("stop", lab.hosts[2]["container"])
    try:
        text = said(play("rollout", assistant_server={"queue": 31}, rollout_gate=GATE))
    finally:
        docker.docker("start", lab.hosts[2]["container"])
    assert "nas3 cannot be reached or is not fit" in text
    assert queues(lab)[:2] == ["32", "32"]


def one_line(log: Path) -> str:
    return " ".join(log.read_text().split())


@contextlib.contextmanager
def rolling(
    lab: Lab, log: Path, wish: dict[str, Any], reached: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """A rollout that has come to a certain point; in the end it is killed if it goes on."""
    with log.open("wb") as stream:
        controller = subprocess.Popen(
            lab.command("--extra-vars", json.dumps(wish), playbook="rollout"),
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
            stdout=stream,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 360
        while not reached():
            assert time.monotonic() < deadline
            assert controller.poll() is None
            time.sleep(0.5)
        yield controller
    finally:
        kill(controller)


def lose(container: str, controller: subprocess.Popen[bytes]) -> None:
    """Have a NAS away until the rollout has failed for it."""
    docker.docker("stop", container)
    try:
        assert controller.wait(timeout=400) != 0
    finally:
        docker.docker("start", container)


def wait_for_engine(container: str) -> None:
    """Of a NAS that was started again."""
    deadline = time.monotonic() + 120
    while docker.execute(container, "docker", "info", check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("forget", [False, True])
def test_one_that_is_killed_before_it_changed_anything(
    lab: Lab, play: Play, tmp_path: Path, forget: bool
) -> None:
    """The mark that it left is not taken for somebody's: the NAS goes back into the pool, also
    where its owner followed the advice to forget what was before."""
    before = containers(lab)
    asks_long = {"rollout_gate": {"requests": 100}}
    with rolling(lab, tmp_path / "log", asks_long, lambda: "drained" in lab.on(lab.hosts[0], LEFT)):
        pass
    assert "release.json" in lab.on(lab.hosts[0], LEFT)
    assert containers(lab) == before
    if forget:
        lab.on(lab.hosts[0], "rm -r /var/lib/nas-assistant-rollout")
    worked(play("rollout", rollout_gate=GATE))
    assert containers(lab) == before


def test_one_that_was_drained_stays_so(lab: Lab, play: Play) -> None:
    mark = "/run/nas-assistant-drained"
    lab.on(lab.hosts[1], f"touch {mark}")
    try:
        worked(play("rollout", rollout_gate=GATE))
        assert [lab.on(host, LEFT) for host in lab.hosts] == ["", mark, ""]
    finally:
        lab.on(lab.hosts[1], f"rm -f {mark}")


def test_a_canary_that_is_lost(lab: Lab, play: Play, tmp_path: Path) -> None:
    """Nobody is left to say how it ended, so what to do was said before."""
    before, log = containers(lab), tmp_path / "log"
    wish = {"assistant_server": {"queue": 31}, "rollout_gate": GATE}
    container = lab.hosts[0]["container"]
    with rolling(lab, log, wish, lambda: "Bring it back" in one_line(log)) as controller:
        lose(container, controller)
    text = one_line(log)
    assert "Now nas1 is changed. Should the run end without a word" in text
    assert "run nas.assistant.rollout again" in text
    wait_for_engine(container)
    assert queues(lab)[1:] == ["32", "32"]
    worked(play("rollout", rollout_gate=GATE))
    assert containers(lab) == before
    assert queues(lab) == ["32", "32", "32"]


def test_a_batch_that_is_lost_before_its_change(lab: Lab, play: Play, tmp_path: Path) -> None:
    """The third goes off while the canary is watched: the second is not changed for nothing."""
    look, log = INSPECT + "'{{.Id}} {{.State.StartedAt}}'", tmp_path / "log"
    before, container = lab.on(lab.hosts[1], look), lab.hosts[2]["container"]
    wish = {"rollout_batches": [1, 2], "assistant_server": {"queue": 31}}
    with rolling(lab, log, wish, lambda: "Watch how it does there" in one_line(log)) as controller:
        lose(container, controller)
    assert "nas1: new, first token after" in one_line(log)
    assert "nas2: as before" in one_line(log)
    assert "nas3: lost, may have either" in one_line(log)
    assert lab.on(lab.hosts[1], look) == before
    wait_for_engine(container)
    worked(play("rollout", rollout_gate=GATE))
    assert queues(lab) == ["32", "32", "32"]


def test_one_that_is_killed_ends_right_when_it_runs_again(
    lab: Lab, under_load: Loading, play: Play, slow: dict[str, str], tmp_path: Path
) -> None:
    wish = {"assistant_server": {"queue": 31}, "rollout_gate": GATE}
    before = containers(lab)
    with under_load() as load:
        # The configuration of the canary is the new one, and what runs there is not yet.
        with rolling(lab, tmp_path / "log", wish, lambda: queues(lab)[0] != "32"):
            pass
        assert "release.json" in lab.on(lab.hosts[0], LEFT)
        # One that fails now brings back what was before the first of them.
        text = said(play("rollout", **wish, assistant_image=slow))
        assert "did not end. Should this one fail" in text
        assert queues(lab) == ["32", "32", "32"]
        worked(play("rollout", **wish))
    assert not load.failed
    assert queues(lab) == ["31", "31", "31"]
    worked(play("rollout", rollout_gate=GATE))
    assert containers(lab) == before


def test_one_that_is_killed_in_a_later_batch(
    lab: Lab, under_load: Loading, play: Play, tmp_path: Path
) -> None:
    """What passed stays, and the rest comes to it."""
    before, wish = containers(lab), {"assistant_server": {"queue": 31}, "rollout_gate": GATE}
    with under_load() as load:
        with rolling(lab, tmp_path / "log", wish, lambda: queues(lab)[1] != "32"):
            pass
        assert [lab.on(host, LEFT) != "" for host in lab.hosts] == [False, True, False]
        worked(play("rollout", **wish))
        assert queues(lab) == ["31", "31", "31"]
        worked(play("rollout", rollout_gate=GATE))
    assert not load.failed
    assert containers(lab) == before


def test_one_that_is_killed_while_it_takes_back(
    lab: Lab, under_load: Loading, play: Play, slow: dict[str, str], tmp_path: Path
) -> None:
    before, log = containers(lab), tmp_path / "log"
    wish = {"assistant_server": {"queue": 31}, "rollout_gate": GATE, "assistant_image": slow}
    with under_load() as load:
        with rolling(lab, log, wish, lambda: "Make what ran before" in one_line(log)):
            pass
        text = said(play("rollout", **wish))
        assert "did not end. Should this one fail" in text
    assert not load.failed
    assert containers(lab) == before
    assert queues(lab) == ["32", "32", "32"]
