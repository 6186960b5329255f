# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The line of a container's log that an owner should read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.modules import container_ready
from ansible_collections.nas.assistant.plugins.modules.container_ready import last_error

REFUSED = '{"level": "error", "event": "start_refused", "message": "MODEL_VARIANT=huge: unknown"}'


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (REFUSED, "MODEL_VARIANT=huge: unknown"),
        (f'{{"level": "info", "message": "starting"}}\n{REFUSED}', "MODEL_VARIANT=huge: unknown"),
        (f"{REFUSED}\nTerminated", "MODEL_VARIANT=huge: unknown"),
        ("exec /app/start.sh: exec format error", "exec /app/start.sh: exec format error"),
        ("", ""),
        ('["a list"]', '["a list"]'),
    ],
)
def test_last_error(log: str, message: str) -> None:
    assert last_error(log) == message


@pytest.mark.parametrize(
    ("refused", "said"), [(True, "MODEL_VARIANT=huge: unknown"), (False, "exited, exit code 78")]
)
def test_a_refusal_that_was_logged_before_its_life_began(
    monkeypatch: pytest.MonkeyPatch, refused: bool, said: str
) -> None:
    """As it was found on a slow CPU. What another end was logged with may have been mended."""
    monkeypatch.setattr(
        container_ready, "docker", lambda words: "" if "--since" in words else REFUSED
    )
    message = container_ready.give_up(
        "nas", "2026-01-01T00:00:00Z", "exited, exit code 78", refused
    )
    assert message.startswith(f"nas: {said} (")


@pytest.mark.parametrize("since", ["2026-01-02", "2026-01-05"])
def test_a_log_that_a_power_cut_damaged(monkeypatch: pytest.MonkeyPatch, since: str) -> None:
    """Docker 20.10 prints what is before the damage, and ends with 0. The life may be noted to have
    begun after its first words.
    """
    old = ("2026-01-01", '{"level": "error", "message": "mended since"}')
    new = ("2026-01-03", '{"level": "error", "message": "this CPU lacks avx2"}')
    log = [old] * 30 + [("", "\0" * 300)] + [new] * 4

    def docker(words: list[str]) -> str:
        if "logs" not in words:
            return ""
        lines = log[-int(words[words.index("--tail") + 1]) :]
        whole = itertools.takewhile(lambda line: "\0" not in line[1], lines)
        least = words[words.index("--since") + 1] if "--since" in words else ""
        return "\n".join(text for when, text in whole if when >= least)

    monkeypatch.setattr(container_ready, "docker", docker)
    message = container_ready.give_up("nas", since, "exited, exit code 78", refused=True)
    assert message.startswith("nas: this CPU lacks avx2 (")


READY = {"status": "ready"}
LOADING = {"status": "degraded", "reason": "it is being loaded", "loading": True}
DAMAGED = {"status": "degraded", "reason": "it is damaged", "loading": False}
Answers = Callable[..., list[list[str]]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Have a running container give these answers, the last one for ever, and time pass by itself.
    What Docker is told is kept.
    """

    def answers(*given: tuple[int, dict[str, Any]]) -> list[list[str]]:
        told: list[list[str]] = []
        left, now = list(given), 0.0

        def ask(_: str) -> tuple[int, dict[str, Any]]:
            return left.pop(0) if len(left) > 1 else left[0]

        def docker(words: list[str]) -> str:
            told.append(words)
            return ""

        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

        state = container_ready.State(True, 0, "2026-01-01T00:00:00Z", "running, exit code 0")
        monkeypatch.setattr(container_ready, "ask", ask)
        monkeypatch.setattr(container_ready, "state_of", lambda _: state)
        monkeypatch.setattr(container_ready, "docker", docker)
        monkeypatch.setattr(container_ready.time, "sleep", sleep)
        monkeypatch.setattr(container_ready.time, "monotonic", lambda: now)
        return told

    return answers


def test_a_model_that_comes_while_a_cloud_answers(answers: Answers) -> None:
    told = answers((503, {"reason": "starting"}), *[(200, LOADING)] * 900, (200, READY))
    waited = container_ready.wait("nas", "/socket", 600)
    assert (waited["answer"], waited["seconds"]) == (READY, 450.5)
    assert not told


def test_an_engine_that_is_started_again_may_come(answers: Answers) -> None:
    answers(*[(200, DAMAGED)] * 20, *[(200, LOADING)] * 20, *[(200, DAMAGED)] * 20, (200, READY))
    assert container_ready.wait("nas", "/socket", 600)["answer"] == READY


@pytest.mark.parametrize(("answer", "seconds"), [(DAMAGED, 30), (LOADING, 600)])
def test_a_model_that_does_not_come(answers: Answers, answer: dict[str, Any], seconds: int) -> None:
    """It is said, but what a cloud answers is better than nothing."""
    told = answers((200, answer))
    said = rf"nas: {answer['reason']} \(after {seconds} s a model of a cloud .* goes on\)"
    with pytest.raises(container_ready.DockerError, match=said):
        container_ready.wait("nas", "/socket", 600)
    assert not told
