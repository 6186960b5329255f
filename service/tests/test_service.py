# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The real service with a real model, over a socket, asked by the official client."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

from .conftest import BASE_MODEL, CHAT_MODEL, EMBEDDING_MODEL, RERANK_MODEL, SECRET
from .service_process import Service, digest

AUTH = {"Authorization": f"Bearer {SECRET}"}
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave it as it was."""
    service = Service(tmp_path_factory.mktemp("service"), models)
    service.start()
    yield service
    assert service.stop() == 0


@pytest.fixture
def own_service(models: Path, tmp_path: Path) -> Iterator[Service]:
    """A service to break; nothing of it may be left at the end."""
    service = Service(tmp_path, models)
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop(signal.SIGKILL)
    service.wait(lambda: not service.pids("nas_assistant"), 10)


def client_of(service: Service, key: str = SECRET) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with client_of(service) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["default", "large"]
    assert client.models.retrieve("default").owned_by == "nas.assistant"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=MESSAGES, temperature=0, max_completion_tokens=16
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == "default"
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default",
        messages=MESSAGES,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > chunks[-1].usage.completion_tokens


def test_completion_and_its_stream(client: openai.OpenAI) -> None:
    request = {"model": "default", "prompt": "Once upon a", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**request).choices[0].text  # type: ignore[call-overload]
    stream = client.completions.create(**request, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in stream) == whole != ""


def test_errors(service: Service, client: openai.OpenAI) -> None:
    with (
        client_of(service, "wrong") as stranger,
        pytest.raises(openai.AuthenticationError) as unauthorized,
    ):
        stranger.models.list()
    assert unauthorized.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="large", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as value:
        client.chat.completions.create(model="default", messages=MESSAGES, max_tokens=0)
    assert value.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="default", prompt="word " * 3000)
    assert too_long.value.code == "context_length_exceeded"


CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "inhabitants": {"type": "integer", "minimum": 0, "maximum": 99},
        "old": {"type": "boolean"},
    },
    "required": ["city", "inhabitants", "old"],
    "additionalProperties": False,
}


def shaped(client: openai.OpenAI, question: str, shape: dict[str, Any]) -> Any:
    """The answer in a shape, which takes few enough tokens for it to be whole."""
    messages = [{"role": "user", "content": question}]
    asked = {"model": "default", "messages": messages, "temperature": 0, "max_tokens": 100}
    (choice,) = client.chat.completions.create(**asked, response_format=shape).choices  # type: ignore[call-overload]
    assert choice.finish_reason == "stop"
    return json.loads(choice.message.content)


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def test_answers_have_the_shape_that_was_asked_for(client: openai.OpenAI) -> None:
    anything = shaped(client, 'Say {"city": "Paris"} again.', {"type": "json_object"})
    assert isinstance(anything, dict)
    city = shaped(client, "What is the capital of France?", schema_of(CITY))
    Draft202012Validator(CITY).validate(city)
    with pytest.raises(openai.BadRequestError, match="unrecognized type nonsense") as bad:
        shaped(client, "Hi", schema_of({"type": "nonsense"}))
    assert bad.value.code == "invalid_json_schema"


def test_stop_ends_the_text_there(client: openai.OpenAI) -> None:
    asked = {"model": "default", "messages": MESSAGES, "temperature": 0, "max_tokens": 16}
    (whole,) = client.chat.completions.create(**asked).choices  # type: ignore[call-overload]
    (cut,) = client.chat.completions.create(**asked, stop=["Paris"]).choices  # type: ignore[call-overload]
    assert cut.message.content == whole.message.content.partition("Paris")[0]
    assert cut.finish_reason == "stop"


def test_a_seed_gives_the_same_text_again(client: openai.OpenAI) -> None:
    def write(seed: int) -> str:
        answer = client.completions.create(
            model="default", prompt="Once upon a", temperature=1, max_tokens=24, seed=seed
        )
        return answer.choices[0].text

    assert write(7) == write(7)
    assert len({write(seed) for seed in range(4)}) > 1


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=MESSAGES,
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert "".join(each.token for each in tokens) == choice.message.content
    for each in tokens:
        assert bytes(each.bytes or ()).decode() == each.token
        likely = [other.logprob for other in each.top_logprobs]
        assert len(likely) == 3
        assert likely == sorted(likely, reverse=True)
        # The likeliest one was taken.
        assert likely[0] == each.logprob <= 0


def run_keys(service: Service, *words: str) -> str:
    done = subprocess.run(
        service.command("keys", *words), env=service.environ(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_keys_come_and_go_while_it_serves(service: Service) -> None:
    secret = run_keys(service, "create", "phone", "--requests-per-minute", "2")
    with client_of(service, secret) as phone:
        service.wait(lambda: "phone" in service.log_path.read_text("utf-8"), 10)
        for stream in (False, True):
            answer = phone.completions.create(
                model="default", prompt="Once upon a", max_tokens=5, stream=stream
            )
            if stream:
                list(answer)
        with pytest.raises(openai.RateLimitError, match="2 requests a minute"):
            phone.completions.create(model="default", prompt="Once", max_tokens=1)
        run_keys(service, "revoke", "phone")
        service.wait(lambda: service.log[-1].get("keys") == ["owner"], 10)
        with pytest.raises(openai.AuthenticationError):
            phone.models.list()


def test_figures(service: Service, client: openai.OpenAI) -> None:
    asked = {"model": "default", "prompt": "Once upon a", "max_tokens": 5, "temperature": 0}
    before = figures(service)
    usage = client.completions.create(**asked).usage  # type: ignore[call-overload]
    list(client.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    chat = {"model": "default", "messages": MESSAGES, "max_tokens": 5, "stream": True}
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**chat))  # type: ignore[call-overload]

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    # The client may have the end of a stream before the service has noted it.
    requests = 'nas_assistant_requests_total{key="owner",model="default",status="200"}'
    deadline = time.monotonic() + 20
    after = figures(service)
    while grown(requests) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        after = figures(service)
    label = 'key="owner",kind="{}",model="default"'
    assert grown(f"nas_assistant_tokens_total{{{label.format('completion')}}}") == 15
    assert (
        grown(f"nas_assistant_tokens_total{{{label.format('prompt')}}}") > 2 * usage.prompt_tokens
    )
    assert grown(requests) == 3
    assert grown('nas_assistant_tokens_per_second_count{model="default"}') == 3
    assert after['nas_assistant_model_ready{model="default"}'] == 1
    status = httpx.get(f"{service.url}/admin/status", headers=AUTH).json()
    assert status["models"][0]["tokens_per_second"] > 0
    assert status["keys"][0]["used_today"]["requests"] >= 3


def figures(service: Service) -> dict[str, float]:
    text = httpx.get(f"{service.url}/metrics", headers=AUTH).raise_for_status().text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_the_unix_socket_is_for_the_group(service: Service) -> None:
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o660


def test_healthcheck_and_private_files(service: Service) -> None:
    done = subprocess.run(service.command("healthcheck"), env=service.environ(), timeout=30)
    assert done.returncode == 0
    (private,) = service.folder.glob("nas-assistant-*")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    (key,) = private.glob("*.key")
    for pid in service.pids("nas_assistant"):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        assert key.read_text() not in command


def test_one_engine_for_all_workers(service: Service) -> None:
    # The master and two workers, all with the same command.
    assert len(service.pids("-m gunicorn")) == 3
    assert len(service.pids("-m nas_assistant.wheel_server")) == 1


def test_more_requests_than_slots_all_get_their_answer(client: openai.OpenAI) -> None:
    texts: list[str] = []

    def ask() -> None:
        answer = client.completions.create(
            model="default", prompt="One, two, three,", max_tokens=8, temperature=0
        )
        texts.append(answer.choices[0].text)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(service: Service, stream: bool) -> None:
    """Both slots are taken by clients that leave; the next answer must not wait for their text."""
    for _ in range(2):
        with client_of(service).with_options(timeout=30 if stream else 2) as impatient:
            # Without its two end tokens the model cannot end before the client leaves.
            endless = {"logit_bias": {"0": -100, "2": -100}, "max_tokens": 900}
            request = {"model": "default", "prompt": "Tell", **endless}
            if stream:
                answer = impatient.completions.create(  # type: ignore[call-overload]
                    **request, stream=True
                )
                next(iter(answer))
                answer.close()
            else:
                with pytest.raises(openai.APITimeoutError):
                    impatient.completions.create(**request)  # type: ignore[call-overload]
    started = time.monotonic()
    with client_of(service) as client:
        client.completions.create(model="default", prompt="Hi", max_tokens=1)
    # Measured: 0.2 s; 900 tokens take at least nine on any machine that this was measured on.
    assert time.monotonic() - started < 1


def test_stop_lets_a_stream_finish(own_service: Service) -> None:
    own_service.start()
    with client_of(own_service) as client:
        stream = client.completions.create(
            model="default", prompt="A story:", max_tokens=200, stream=True, temperature=0
        )
        chunks = [next(iter(stream))]
        assert own_service.process is not None
        own_service.process.send_signal(signal.SIGTERM)
        chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason is not None
    assert own_service.process.wait(30) == 0
    assert own_service.log[-1]["event"] == "stopped"
    assert not own_service.socket.exists()
    assert not list(own_service.folder.glob("nas-assistant-*"))


def test_a_worker_that_dies_is_replaced(own_service: Service) -> None:
    own_service.start()
    before = own_service.pids("-m gunicorn")
    os.kill(max(before), signal.SIGKILL)
    own_service.wait(lambda: max(before) not in own_service.pids("-m gunicorn"))
    own_service.wait(lambda: len(own_service.pids("-m gunicorn")) == 3)
    with client_of(own_service) as client:
        for _ in range(4):
            client.completions.create(model="default", prompt="Hi", max_tokens=1)


def test_gunicorn_killed_ends_the_service(own_service: Service) -> None:
    own_service.start()
    os.kill(min(own_service.pids("-m gunicorn")), signal.SIGKILL)
    assert own_service.process is not None
    assert own_service.process.wait(30) == 1


def test_supervisor_killed_leaves_nothing_and_starts_again(own_service: Service) -> None:
    own_service.start()
    own_service.stop(signal.SIGKILL)
    own_service.wait(lambda: not own_service.pids("nas_assistant"), 20)
    own_service.start()
    assert own_service.stop() == 0


def test_a_model_is_loaded_for_the_first_who_asks(own_service: Service) -> None:
    """With a damaged one beside it, which is found out when it is asked for, and not before."""
    text = own_service.config.read_text("utf-8")
    text += f"\nkv_cache = q8_0\n[model:damaged]\nfile = damaged.gguf\nsha256 = {'0' * 64}\n"
    own_service.config.write_text(text, "utf-8")
    models = own_service.folder / "models"
    models.mkdir()
    for name, source in {
        CHAT_MODEL: CHAT_MODEL,
        BASE_MODEL: BASE_MODEL,
        "damaged.gguf": CHAT_MODEL,
    }.items():
        shutil.copyfile(own_service.models / source, models / name)
    own_service.models = models
    own_service.start()
    engine = "-m nas_assistant.wheel_server"
    assert len(own_service.pids(engine)) == 1
    with client_of(own_service) as client:
        asked = {"prompt": "Paris is", "max_tokens": 4}
        assert client.completions.create(model="large", **asked).choices  # type: ignore[call-overload]
        assert len(own_service.pids(engine)) == 2
        assert client.completions.create(model="default", **asked).choices  # type: ignore[call-overload]
        with pytest.raises(openai.InternalServerError, match="has SHA-256"):
            client.completions.create(model="damaged", **asked)  # type: ignore[call-overload]
        # Another worker may hear of it a moment later.
        own_service.wait(lambda: "damaged" not in [each.id for each in client.models.list()], 5)
    assert own_service.status("/readyz") == 200


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_texts_become_vectors(own_service: Service) -> None:
    add_model(own_service, "vectors", EMBEDDING_MODEL)
    own_service.start()
    texts = [
        "The cat sleeps on the sofa.",
        "A kitten naps on a couch.",
        "Stock markets fell today.",
    ]
    with client_of(own_service) as client:
        # The official client asks for base64.
        answer = client.embeddings.create(model="vectors", input=texts)
        cat, kitten, market = (entry.embedding for entry in answer.data)
        assert len(cat) == 384
        assert math.isclose(math.hypot(*cat), 1, rel_tol=1e-3)
        assert dot(cat, kitten) > 0.5 > 0.2 > dot(cat, market)
        assert answer.usage.prompt_tokens > 15
        whole = client.embeddings.create(model="vectors", input=texts[0], encoding_format="float")
        assert dot(whole.data[0].embedding, cat) > 0.999
        with pytest.raises(openai.BadRequestError) as too_long:
            client.embeddings.create(model="vectors", input="word " * 900)
        assert too_long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="ask it at /v1/embeddings"):
            client.chat.completions.create(model="vectors", messages=MESSAGES)


def add_model(service: Service, name: str, file: str) -> None:
    with service.config.open("a", encoding="utf-8") as config:
        config.write(f"\n[model:{name}]\nfile = {file}\ncontext = 512\n")
        config.write(f"sha256 = {digest(service.models / file)}\n")


def test_texts_are_ranked(own_service: Service) -> None:
    """The model's scores mean nothing: here it counts that each goes with its text."""
    add_model(own_service, "ranker", RERANK_MODEL)
    own_service.start()
    texts = ["Cats sleep a lot.", "Markets fell.", "It rains in Bergen, and has for a long time."]

    def ask(documents: list[str], **more: object) -> httpx.Response:
        body = {"query": "Do cats sleep?", "documents": documents, **more}
        return httpx.post(f"{own_service.url}/v1/rerank", json=body, headers=AUTH)

    def ranked(documents: list[str], **more: object) -> dict[str, float]:
        answer = ask(documents, **more).raise_for_status().json()
        results = answer["results"]
        scores = [each["relevance_score"] for each in results]
        assert scores == sorted(scores, reverse=True)
        assert answer["usage"]["prompt_tokens"] > 10
        assert answer["usage"]["served_by"] == "local"
        return {documents[each["index"]]: each["relevance_score"] for each in results}

    scores = ranked(texts)
    assert len(set(scores.values())) == len(texts)
    assert ranked(texts[::-1]) == pytest.approx(scores, abs=1e-3)
    best = max(scores, key=lambda text: scores[text])
    assert list(ranked(texts, top_n=1)) == [best]
    error = ask(["word " * 900])
    assert error.status_code == 400
    assert error.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("slots", [1, 4])
def test_guesses_change_no_text(own_service: Service, slots: int) -> None:
    """Of all slots at once, within the memory that is counted for them."""
    text = own_service.config.read_text("utf-8").replace("slots = 2", f"slots = {slots}")
    own_service.config.write_text(text, "utf-8")
    story = (
        "The keeper counted three boats, wrote the number in his book, and trimmed the lamp. " * 3
    )
    answers = []
    for speculation in ("", "\nspeculation = yes\n"):
        own_service.config.write_text(text + speculation, "utf-8")
        own_service.start(MODEL_VARIANT="large")
        with client_of(own_service) as client, ThreadPoolExecutor() as pool:
            asked = {"model": "large", "prompt": story, "max_tokens": 80, "temperature": 0}
            asking = [pool.submit(client.completions.create, **asked) for _ in range(slots)]  # type: ignore[arg-type]
            answers.append({each.result().choices[0].text for each in asking})
        (engine,) = own_service.pids("-m nas_assistant.wheel_server")
        status = httpx.get(f"{own_service.url}/admin/status", headers=AUTH).json()
        (need,) = [each["memory"] for each in status["models"] if each["name"] == "large"]
        assert anonymous_memory(engine) < need["total"] - need["weights"] - need["gateway"]
        assert (need["speculation"] > 0) is bool(speculation)
        own_service.stop()
    assert answers[0] == answers[1]


def anonymous_memory(pid: int) -> int:
    """Bytes that a process has for itself, without files that it maps."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith("Pss_Anon:")]
    return int(line.split()[1]) << 10


def test_base_model_completes_but_does_not_chat(own_service: Service) -> None:
    own_service.start(MODEL_VARIANT="large")
    with client_of(own_service) as client:
        assert client.completions.create(model="large", prompt="Paris is", max_tokens=4).choices
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="large", messages=MESSAGES)


@pytest.mark.parametrize("template", ["chatml", "gemma"])
def test_base_model_chats_with_a_template(own_service: Service, template: str) -> None:
    with own_service.config.open("a", encoding="utf-8") as config:
        config.write(f"\nchat_template = {template}\n")
    own_service.start(MODEL_VARIANT="large")
    with client_of(own_service) as client:
        answer = client.chat.completions.create(model="large", messages=MESSAGES, max_tokens=4)
        assert answer.choices


def test_refused_starts_say_why_in_one_line(own_service: Service) -> None:
    def refusal(command: str = "serve", **environ: str) -> str:
        code, lines = own_service.run(command, **environ)
        errors = [line for line in lines if line["level"] == "error"]
        assert code == 78
        assert [line["event"] for line in errors] == ["start_refused"]
        return str(errors[0]["message"])

    whole = own_service.config.read_text("utf-8")
    code, lines = own_service.run("check")
    assert (code, [line["event"] for line in lines]) == (0, ["check_passed", "check_passed"])
    assert "default, large" in refusal(MODEL_VARIANT="huge")
    own_service.config.write_text(whole.replace("slots = 2", "slots = many"), "utf-8")
    assert "slots = 'many'" in refusal("check")
    own_service.config.write_text(whole.replace("workers = 2", "workers = 2\nfoo = 1"), "utf-8")
    assert "unknown key" in refusal()
    own_service.config.write_text(whole.replace(CHAT_MODEL, BASE_MODEL), "utf-8")
    assert "SHA-256" in refusal()
    own_service.config.write_text(whole.replace("127.0.0.1:", "192.0.2.1:"), "utf-8")
    assert "cannot listen on 192.0.2.1" in refusal()
    own_service.config.unlink()
    assert "does not exist" in refusal()


def test_two_instances_do_not_share_a_socket(own_service: Service) -> None:
    own_service.start()
    code, lines = own_service.run("serve")
    assert code == 78
    assert "cannot listen" in lines[-1]["message"] or "in use" in lines[-1]["message"]
    assert own_service.status("/readyz") == 200
