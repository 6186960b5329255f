# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Programs that others wrote for OpenAI's API, unchanged, against the real service."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from .conftest import EMBEDDING_MODEL, SECRET
from .service_process import Service, digest, free_port

pytestmark = pytest.mark.skipif(
    not os.environ.get("NAS_ASSISTANT_FULL"), reason="one of those that make test-full runs"
)
OPEN_WEBUI = os.environ.get("OPEN_WEBUI", "")
LOCK = Path(__file__).with_name("clients.txt")
SYSTEM = "You are a helpful assistant."
QUESTION = "What is the capital of France?"
LANGCHAIN = """
import sys
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

at = {"base_url": sys.argv[1] + "/v1", "api_key": sys.argv[2]}
chat = ChatOpenAI(model="default", temperature=0, max_tokens=16, **at)
messages = [SystemMessage(sys.argv[3]), HumanMessage(sys.argv[4])]
answer = chat.invoke(messages)
assert "Paris" in answer.content, answer
assert answer.usage_metadata["output_tokens"] > 0, answer
streamed = "".join(chunk.content for chunk in chat.stream(messages))
assert streamed == answer.content, streamed
vectors = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False, **at)
near, same, far = vectors.embed_documents(["a cat sleeps", "a kitten naps", "stock prices fell"])
def product(a, b):
    return sum(x * y for x, y in zip(a, b))
assert product(near, same) > product(near, far)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the clients' own environment."""
    folder = tmp_path_factory.mktemp("clients")
    uv = Path(sys.executable).with_name("uv")
    run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)])
    options = ["--quiet", "--require-hashes", "--python", str(folder / "bin/python")]
    run([str(uv), "pip", "install", *options, "--requirement", str(LOCK)])
    return folder / "bin"


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("s"), models)
    sha256 = digest(models / EMBEDDING_MODEL)
    service.more_config = f"[model:vectors]\nfile = {EMBEDDING_MODEL}\nsha256 = {sha256}\n"
    service.more_config += "context = 256\n"
    service.write_config()
    service.start()
    yield service
    assert service.stop() == 0


def run(
    command: list[str], folder: Path | None = None, environ: dict[str, str] | None = None
) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | (environ or {}),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_llm(programs: Path, service: Service, tmp_path: Path) -> None:
    model = f"- model_id: nas\n  model_name: default\n  api_base: {service.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(
        model + "  api_key_name: nas\n", encoding="utf-8"
    )
    place = {"LLM_USER_PATH": str(tmp_path)}
    run([str(programs / "llm"), "keys", "set", "nas", "--value", SECRET], environ=place)
    ask = [str(programs / "llm"), "-m", "nas", "-s", SYSTEM, QUESTION]
    ask += ["-o", "temperature", "0", "-o", "max_tokens", "16"]
    streamed = run(ask, environ=place)
    assert "Paris" in streamed
    assert run([*ask, "--no-stream"], environ=place) == streamed


def test_langchain(programs: Path, service: Service) -> None:
    words = [LANGCHAIN, service.url, SECRET, SYSTEM, QUESTION]
    run([str(programs / "python"), "-c", *words])


@pytest.fixture
def open_webui(service: Service, tmp_path: Path) -> Iterator[httpx.Client]:
    """Open WebUI with our service as its only source of models, and a client that may use it."""
    port = free_port()
    environ = {
        "DATA_DIR": str(tmp_path),
        "OPENAI_API_BASE_URL": f"{service.url}/v1",
        "OPENAI_API_KEY": SECRET,
        "ENABLE_OLLAMA_API": "false",
        # Vectors for documents come from ours too; otherwise it downloads a model for them.
        "RAG_EMBEDDING_ENGINE": "openai",
        "RAG_EMBEDDING_MODEL": "vectors",
        "OFFLINE_MODE": "true",
    }
    command = [OPEN_WEBUI, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | environ, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=120
        ) as client:
            deadline = time.monotonic() + 300
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                said = (tmp_path / "log").read_text("utf-8", "replace")
                assert process.poll() is None and time.monotonic() < deadline, said  # noqa: PT018
                time.sleep(1)
            account = {"name": "us", "email": "us@example.com", "password": "correct horse"}
            token = client.post("/api/v1/auths/signup", json=account).json()["token"]
            client.headers["Authorization"] = f"Bearer {token}"
            yield client
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.skipif(not OPEN_WEBUI, reason="OPEN_WEBUI names no program open-webui; it takes 9 GB")
def test_open_webui(open_webui: httpx.Client) -> None:
    models = [model["id"] for model in open_webui.get("/api/models").json()["data"]]
    assert {"default", "large"} <= set(models)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    wish = {"model": "default", "messages": messages, "temperature": 0, "max_tokens": 16}
    answer = open_webui.post("/api/chat/completions", json=wish | {"stream": False})
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    with open_webui.stream("POST", "/api/chat/completions", json=wish | {"stream": True}) as stream:
        events = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
    pieces = [json.loads(event)["choices"] for event in events]
    text = "".join(piece[0]["delta"].get("content") or "" for piece in pieces if piece)
    assert text == answer.json()["choices"][0]["message"]["content"]


def test_schemathesis(programs: Path, service: Service, tmp_path: Path) -> None:
    """Whatever it makes of the description, there is no 5xx, and no answer that it does not say."""
    checks = [
        *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
        *("response_schema_conformance", "response_headers_conformance", "ignored_auth"),
    ]
    run(
        [
            *(str(programs / "schemathesis"), "run", f"{service.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {SECRET}", "--checks", ",".join(checks)),
            *("--max-examples", "40", "--seed", "1", "--request-timeout", "60", "--no-color"),
            # A model that writes until its context is full takes its time.
            *("--suppress-health-check", "all"),
        ],
        tmp_path,  # it leaves a folder of its own where it runs
    )
    assert service.pids("nas_assistant")
    errors = [line for line in service.log if line["level"] == "error"]
    assert not errors
