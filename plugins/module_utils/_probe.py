# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Asks the service real questions, with a key of its own, and measures how they are answered."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.nas.assistant.plugins.module_utils._docker_cli import (
    DockerError,
    run as docker,
)
from ansible_collections.nas.assistant.plugins.module_utils._gateway import SocketConnection

KEY = "rollout"  # its name; the secret is known to this process only
START = "/app/start.sh"
PATIENCE = 120  # seconds for one answer
NO_ANSWER = (OSError, http.client.HTTPException, ValueError)
# Different ones, so that none is answered from what the engine kept of the one before.
QUESTIONS = (
    "Name a colour.",
    "What do bees make?",
    "How many days has a week?",
    "Where do fish live?",
    "Say a word that rhymes with house.",
)
# Of others: not those that this asks itself.
ENDED = re.compile(
    rf'^nas_assistant_requests_total\{{(?!.*key="{KEY}").*status="(\d+)".*\}} (\S+)$', re.M
)
# Had no slot since there was no room. A key's limit, or one that is no more, is no fault.
FULL = re.compile(r'^nas_assistant_refused_total\{reason="full"\} (\S+)$', re.M)
# Requests that are being answered, or wait for it.
BUSY = re.compile(r"^nas_assistant_(?:slots_in_use\{.*\}|waiting) (\S+)$", re.M)
# Of models that write no text: where they are asked, and what.
VECTORS: Mapping[str, tuple[str, dict[str, object]]] = {
    "embedding": ("/v1/embeddings", {"input": QUESTIONS[0]}),
    "rerank": ("/v1/rerank", {"query": QUESTIONS[1], "documents": ["Honey.", "Seven."]}),
}


@dataclass
class Outcome:
    """What came of the questions: seconds to the first token of each, and what went wrong."""

    first: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Median of the time to the first token in milliseconds, 0 where no answer came."""
        return round(1000 * statistics.median(self.first), 1) if self.first else 0.0

    @property
    def stayed(self) -> bool:
        """Whether all were refused since the model is in the cloud, and the key is not for it."""
        return bool(self.errors) and all(
            error.startswith("403: ") and "model_not_allowed" in error for error in self.errors
        )


@dataclass
class Models:
    """What came of one question to each: who answered, who is not offered, and what went wrong."""

    answered: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def admin_key(container: str, *more: str) -> Iterator[str]:
    """Give the secret of an admin's key that the service has for as long as it is needed.

    :param more: options of ``keys create``.
    :raises DockerError: the container does not run, or makes none.
    """
    revoke = ["docker", "exec", container, START, "keys", "revoke", KEY]
    with contextlib.suppress(DockerError):  # there is one if a run was cut off
        docker(revoke)
    create = ["docker", "exec", container, START, "keys", "create", KEY, "--role", "admin", *more]
    secret = docker(create)
    try:
        yield secret.strip().splitlines()[-1]
    finally:
        docker(revoke)


def questions(path: str, secret: str, count: int, tokens: int) -> Outcome:
    """Ask so many questions, one after the other; the first, which warms up, is not counted."""
    outcome = Outcome()
    chat = True
    for number in range(count + 1):
        began = time.monotonic()
        try:
            status, said = ask(path, secret, QUESTIONS[number % len(QUESTIONS)], tokens, chat)
            if status == 400 and chat and "template" in said:
                # A model without one completes texts.
                chat = False
                status, said = ask(path, secret, QUESTIONS[0], tokens, chat)
        except NO_ANSWER as error:
            status, said = 0, f"{type(error).__name__}: {error}"
        if status != 200:
            outcome.errors.append(f"{status}: {said}" if status else said)
        elif number:
            outcome.first.append(float(said) - began)
    return outcome


def each(path: str, secret: str, names: Sequence[str], tokens: int) -> Models:
    """Ask each of these models one question of its kind; those that have no room, or whose file is
    damaged, are not offered and not asked.
    """
    found = Models()
    status, text = get(path, "/v1/models", secret)
    offered = json.loads(text)["data"] if status == 200 else []
    kinds = {model["id"]: model.get("kind", "chat") for model in offered}
    for name in names:
        if name not in kinds:
            found.missing.append(name)
            continue
        try:
            status, said = _ask_kind(path, secret, name, kinds[name], tokens)
        except NO_ANSWER as error:
            status, said = 0, f"{type(error).__name__}: {error}"
        if status == 200:
            found.answered.append(name)
        else:
            found.errors.append(f"{name}: {status}: {said}" if status else f"{name}: {said}")
    return found


def _ask_kind(path: str, secret: str, name: str, kind: str, tokens: int) -> tuple[int, str]:
    if kind not in VECTORS:
        return ask(path, secret, QUESTIONS[0], tokens, kind != "text", name)
    where, asked = VECTORS[kind]
    connection = SocketConnection(path, timeout=PATIENCE)
    try:
        body = json.dumps({"model": name, **asked})
        connection.request("POST", where, body.encode(), headers(secret))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace").strip()
    finally:
        connection.close()


def ask(
    path: str, secret: str, question: str, tokens: int, chat: bool, model: str = ""
) -> tuple[int, str]:
    """Ask one question; return 200 and the moment of its first token, or the status and why not.

    :param model: the default one unless it is named; a named one may have nothing to say, as some
        that only complete texts have not.
    :raises OSError: nobody answers.
    :raises ValueError: the answer ended without a token, or with an error.
    """
    asked = {"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question}
    wish = {**asked, "max_tokens": tokens, "temperature": 0, "stream": True}
    body = json.dumps({**wish, "model": model} if model else wish)
    where = "/v1/chat/completions" if chat else "/v1/completions"
    connection = SocketConnection(path, timeout=PATIENCE)
    try:
        connection.request("POST", where, body.encode(), headers(secret))
        answer = connection.getresponse()
        if answer.status != 200:
            return answer.status, answer.read().decode(errors="replace").strip()
        first, whole = 0.0, False
        for line in answer:
            text = line.decode(errors="replace").strip()
            if text == "data: [DONE]":
                whole = True
            elif text.startswith("data: "):
                piece = json.loads(text[6:])
                if "error" in piece:
                    raise ValueError(str(piece["error"]))
                first = first or (time.monotonic() if _text_of(piece) else 0.0)
        if not whole or not (first or model):
            raise ValueError("the answer ended before it was whole")
        return 200, str(first)
    finally:
        connection.close()


def _text_of(piece: Mapping[str, list[dict[str, object]]]) -> str:
    (choice,) = piece.get("choices") or [{}]
    delta = choice.get("delta")
    return str((delta.get("content") if isinstance(delta, dict) else choice.get("text")) or "")


def headers(secret: str) -> dict[str, str]:
    """Return what a request with a key has."""
    return {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}


def until_known(path: str, secret: str, patience: float = 15) -> None:
    """Wait until the service has read the new key, which it does each second.

    :raises DockerError: it does not.
    """
    deadline = time.monotonic() + patience
    while (status := get(path, "/v1/models", secret)[0]) != 200:
        if time.monotonic() > deadline:
            raise DockerError(f"the service does not take a key that it made itself: {status}")
        time.sleep(0.3)


def until_idle(path: str, secret: str, patience: float) -> None:
    """Wait until nothing is being answered, or so many seconds: what others had begun would make
    the answers that are measured look slow.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and busy(get(path, "/metrics", secret)[1]):
        time.sleep(0.5)


def busy(metrics: str) -> int:
    """Return how many requests are being answered, or wait for it."""
    return int(sum(map(float, BUSY.findall(metrics))))


def get(path: str, where: str, secret: str) -> tuple[int, str]:
    """Return status and text of a page; status 0 and the reason when nobody answers."""
    connection = SocketConnection(path)
    try:
        connection.request("GET", where, headers=headers(secret))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{path}: {error}"
    finally:
        connection.close()


def life(container: str) -> str:
    """Return what differs once the container has begun anew."""
    look = "{{.Id}} {{.State.StartedAt}} {{.RestartCount}}"
    return str(docker(["docker", "inspect", container, "--format", look]))


def counted(path: str, secret: str) -> tuple[int, int]:
    """Return what :func:`ended` makes of the service's figures.

    :raises DockerError: it does not give them.
    """
    status, text = get(path, "/metrics", secret)
    if status != 200:
        raise DockerError(f"/metrics: {status}: {text[:200]}")
    return ended(text)


def ended(metrics: str) -> tuple[int, int]:
    """Return how many requests of others ended, and how many of them by a fault of ours: with a
    status of 500 or more, or refused since there was no room.
    """
    found = [(int(status), float(count)) for status, count in ENDED.findall(metrics)]
    full = sum(float(count) for count in FULL.findall(metrics))
    return (
        int(sum(count for _, count in found) + full),
        int(sum(count for status, count in found if status >= 500) + full),
    )
