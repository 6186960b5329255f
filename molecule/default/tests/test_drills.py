# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What goes wrong at home: each drill ends with the assistant answering again, or still."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from testinfra.host import Host

Playbook = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[[str, Sequence[dict[str, Any]]], list[str]]
# Of this machine, and so of each lab NAS on it.
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MODELS = Path(__file__).parents[3] / "inventories/lab/group_vars/nas/assistant.yml"
SOCKETS = "nas-assistant-front.socket nas-assistant-fetch.socket"
MODEL = "/var/lib/nas-assistant/models/smollm2-135m-instruct-q4_1.gguf"


def inode(host: Host, path: str) -> str:
    """Identity and time of a file: another one means that it was written again."""
    return str(host.check_output(f"stat -c '%i %Y' {path}"))


def ask(client: httpx.Client) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    return client.post("/v1/chat/completions", json=body)


def test_killed_main_process_comes_back(
    host: Host, client: httpx.Client, wait_ready: Callable[[], float]
) -> None:
    before = inode(host, MODEL)
    pid = host.check_output("docker inspect nas-assistant --format '{{.State.Pid}}'")
    # Until it is gone with its children: they may say that they are ready, and then not answer.
    host.check_output(f"kill -9 {pid} && timeout 60 tail --pid={pid} -f /dev/null")
    wait_ready()
    assert ask(client).status_code == 200
    assert inode(host, MODEL) == before


def test_restarted_nas_comes_back(
    host: Host, client: httpx.Client, lab_container: str, wait_ready: Callable[[], float]
) -> None:
    before = inode(host, MODEL)
    subprocess.run(["docker", "restart", lab_container], check=True, capture_output=True)
    wait_ready()
    assert ask(client).status_code == 200
    assert inode(host, MODEL) == before


def test_stopped_service_is_said_in_one_shape(
    host: Host, client: httpx.Client, wait_ready: Callable[[], float]
) -> None:
    """First to whom waited until patience was over, then at once; also without what waits."""
    host.check_output("docker stop nas-assistant")
    for stop in ("true", "true", f"systemctl stop {SOCKETS}"):
        host.check_output(stop)
        away(ask(client))
    host.check_output(f"systemctl start {SOCKETS}")
    host.check_output("docker start nas-assistant")
    wait_ready()


def away(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["error"]["code"] == "service_unavailable"


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"assistant_model_variant": "huge"}, ["assistant_model_variant=huge", "default, large"]),
    ({"assistant_resources": {"memory": "200m"}}, ["memory", "MiB"]),
    ({"assistant_resources": {"memory": "0m"}}, ["memory=0m", "a whole number with m or g"]),
    (
        {"assistant_resources": {"memory": "9000g"}},
        ["memory=9000g", "MiB. Leave the NAS its share"],
    ),
    # All of the memory there is: the lab's NAS have this machine's.
    (
        {"assistant_resources": {"memory": f"{MEMORY >> 20}m"}},
        [f"memory={MEMORY >> 20}m", "at least 256 MiB"],
    ),
    ({"assistant_keys": {"owner": {"role": "root"}}}, ["owner.role=root: it is user or admin"]),
    ({"assistant_data_dir": "/etc/nas-assistant"}, ["none of the system's own"]),
    ({"proxy_server_names": ["*"]}, ["proxy_server_names=['*']"]),
    ({"proxy_read_timeout": 0}, ["proxy_read_timeout=0"]),
    ({"assistant_resources": {"memory": "1g", "cpus": 99}}, ["cpus=99: it is a number from 0 to"]),
    ({"assistant_resources": {"cpuset_cpus": "900"}}, ["cpuset_cpus=900", "or some of 0"]),
    ({"docker_daemon": {"data-root": "/srv/docker"}}, ["data-root=/srv/docker", "storage_pools"]),
    ({"proxy_https_port": 2222}, ["sshd listens on port 2222", "Nothing of the proxy was changed"]),
    ({"assistant_engine": {"slots": 0}}, ["slots"]),
    ({"assistant_keys": {"owner": {"key": "short"}}}, ["owner.key is one word of at least 32"]),
    ({"assistant_mode": "hybrid"}, ["assistant_upstreams: assistant_mode=hybrid needs one"]),
    (
        {"assistant_mode": "hybrid", "assistant_upstreams": {"x": {"url": "https://example.com"}}},
        ["x.key is one word, from Ansible Vault"],
    ),
    (
        {"assistant_models": {"default": {"file": "../x.gguf"}}},
        ["assistant_models: default.file=../x.gguf: it is a plain name"],
    ),
]


def test_wrong_input_is_refused_and_the_old_service_goes_on(
    host: Host, client: httpx.Client, refused: Refused, playbook: Playbook
) -> None:
    look = "docker inspect nas-assistant --format '{{.State.StartedAt}}'"
    started = host.check_output(look)
    roles = {role: [each for each in REFUSED if next(iter(each[0])).startswith(role)]
             for role in ("assistant", "docker", "proxy")}  # fmt: skip
    for role, rows in roles.items():
        told = refused(role, [variables for variables, _ in rows])
        for (_, words), said in zip(rows, told, strict=True):
            for word in words:
                assert word in said
    # The engine is asked for this one, and takes it back.
    done = playbook("docker", docker_daemon={"no-such-key": 1})
    assert done.returncode != 0
    assert "no-such-key" in done.stdout
    assert "was put back" in " ".join(done.stdout.split())
    assert host.check_output(look) == started
    assert ask(client).status_code == 200


def test_corrupt_model_is_said_by_log_and_mended_by_the_playbook(
    host: Host, client: httpx.Client, playbook: Playbook, wait_ready: Callable[[], float]
) -> None:
    host.check_output(f"dd if=/dev/zero of={MODEL} bs=1 seek=50000000 count=4 conv=notrunc")
    host.run("docker restart nas-assistant")
    log = host.check_output("sleep 3; docker logs --tail 5 nas-assistant 2>&1")
    assert "SHA-256" in log
    assert ask(client).status_code == 503
    done = playbook("assistant")
    assert done.returncode == 0, done.stdout
    wait_ready()
    assert ask(client).status_code == 200


def test_models_are_verified_listed_and_taken_away(
    host: Host, client: httpx.Client, playbook: Playbook, wait_ready: Callable[[], float]
) -> None:
    assert "changed=0" in playbook("models").stdout
    folder = str(Path(MODEL).parent)
    # As a disk does it: the bytes change, and nobody has written to the file.
    large = f"{folder}/gemma-3-270m-q4_k_m.gguf"
    host.check_output(
        f"cp --preserve=timestamps {large} /tmp/whole && cp /tmp/whole {folder}/old.gguf"
        f" && dd if=/dev/zero of={large} bs=1 seek=50000000 count=4 conv=notrunc"
        f" && touch --reference /tmp/whole {large}"
    )
    done = playbook("models")
    assert done.returncode == 0, done.stdout
    assert host.run(f"cmp {large} /tmp/whole").rc == 0
    said = " ".join(done.stdout.split())
    assert "large: gemma-3-270m-q4_k_m.gguf, 242 MiB, as its SHA-256 says" in said
    assert "old.gguf, 242 MiB, belongs to no variant" in said
    assert host.file(f"{folder}/old.gguf").exists
    assert playbook("models", assistant_models_prune=True).returncode == 0
    assert not host.file(f"{folder}/old.gguf").exists
    assert "changed=0" in playbook("models", assistant_models_prune=True).stdout
    # What the service may have read of the damaged one, it has read again.
    wait_ready()
    assert ask(client).status_code == 200
    host.check_output("rm /tmp/whole")


def as_(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def until(client: httpx.Client, secret: str, status: int) -> None:
    """The service looks for other keys each second."""
    deadline = time.monotonic() + 10
    while client.get("/v1/models", headers=as_(secret)).status_code != status:
        assert time.monotonic() < deadline, f"no {status}"
        time.sleep(0.2)


def test_a_key_slipped_in_by_hand_is_revoked(
    host: Host, client: httpx.Client, playbook: Playbook
) -> None:
    evil = "e" * 40
    digest = hashlib.sha256(evil.encode()).hexdigest()
    entry = json.dumps({"name": "evil", "sha256": digest})
    file = "/etc/nas-assistant/keys/keys.json"
    host.check_output(f"sed -i '1s/$/{entry},/' {file}")
    until(client, evil, 200)
    done = playbook("keys")
    assert done.returncode == 0, done.stdout
    until(client, evil, 401)
    assert "changed=0" in playbook("keys").stdout


def test_keys_come_rotate_and_go_without_a_restart(
    host: Host,
    client: httpx.Client,
    playbook: Playbook,
    credentials: Path,
    wait_ready: Callable[[], float],
) -> None:
    look = "docker inspect nas-assistant --format '{{.State.StartedAt}}'"
    started = host.check_output(look)
    keys = {"owner": {"role": "admin"}, "phone": {"parallel": 1, "models": ["default"]}}
    planned = playbook("keys", "--check", assistant_keys=keys)
    assert planned.returncode == 0, planned.stdout
    assert not (credentials / "api_key.phone").exists()
    done = playbook("keys", assistant_keys=keys)
    listed = " ".join(done.stdout.split())
    assert "phone, user, from inventory, 1 at once, models default" in listed
    first = (credentials / "api_key.phone").read_text().strip()
    until(client, first, 200)
    assert client.get("/metrics", headers=as_(first)).status_code == 403
    assert "nas_assistant_requests_total" in client.get("/metrics").text
    assert playbook("keys", assistant_keys=keys, assistant_keys_rotate=["phone"]).returncode == 0
    second = (credentials / "api_key.phone").read_text().strip()
    until(client, first, 401)
    until(client, second, 200)
    odd = playbook("keys", assistant_keys=keys, assistant_keys_rotate=["nobody"])
    assert "made here are the secrets of owner, phone" in " ".join(odd.stdout.split())
    # One that only this NAS has is nothing to the inventory.
    own = host.check_output("docker exec nas-assistant /app/start.sh keys create guest")
    until(client, own, 200)
    assert playbook("keys").returncode == 0
    until(client, second, 401)
    assert host.check_output(look) == started
    # It outlives the container.
    host.check_output("docker restart nas-assistant")
    wait_ready()
    until(client, own, 200)
    host.check_output("docker exec nas-assistant /app/start.sh keys revoke guest")
    until(client, own, 401)
    (credentials / "api_key.phone").unlink()


@pytest.mark.parametrize("alter", ["docker pause nas-assistant", "docker rename nas-assistant foo"])
def test_an_altered_container_is_mended(
    host: Host, client: httpx.Client, playbook: Playbook, alter: str
) -> None:
    host.check_output(alter)
    done = playbook("assistant")
    assert done.returncode == 0, done.stdout
    assert host.check_output("docker ps --all --format '{{.Names}} {{.State}}'") == (
        "nas-assistant running"
    )
    assert ask(client).status_code == 200


def test_broken_docker_settings_are_said(host: Host, playbook: Playbook, nas_name: str) -> None:
    path = "/etc/docker/daemon.json"
    before = host.file(path).content_string
    host.check_output(f"echo '{{' > {path}")
    try:
        done = playbook("docker")
        assert done.returncode != 0
        assert f"daemon.json on {nas_name} is not a JSON object" in " ".join(done.stdout.split())
    finally:
        host.check_output(f"printf %s > {path}", before)


def test_check_mode_shows_a_change_to_come(playbook: Playbook) -> None:
    for variables in ({"assistant_server": {"queue": 7}}, {"assistant_image": {"engine": "x"}}):
        done = playbook("site", "--check", "--diff", **variables)
        if "assistant_server" in variables:
            assert done.returncode == 0, done.stdout
            assert "+queue = 7" in done.stdout
        else:
            assert "value of engine must be one of: source, wheel" in done.stdout


def test_a_site_that_does_not_get_on_with_others_is_taken_back(
    host: Host, client: httpx.Client, playbook: Playbook
) -> None:
    rival = "/etc/nginx/conf.d/zz-rival.conf"
    host.check_output(f"echo 'upstream nas_assistant {{ server 127.0.0.1:9; }}' > {rival}")
    try:
        done = playbook("proxy", proxy_body_limit="5m")
        assert done.returncode != 0
        assert "duplicate upstream" in done.stdout
        assert "The old state is in place again" in " ".join(done.stdout.split())
        assert host.run("grep -c 'max_body_size 4m' /etc/nginx/conf.d/nas-assistant.conf").rc == 0
        # Another name wants another certificate, and clients still trust the one that is served.
        done = playbook("proxy", proxy_server_names=["other.example.com"])
        assert done.returncode != 0
        assert ask(client).status_code == 200
        assert host.check_output("ls /etc/nginx/conf.d").split() == [
            "nas-assistant.conf",
            "zz-rival.conf",
        ]
    finally:
        host.check_output(f"rm {rival}")
    assert host.run("nginx -t").rc == 0
    assert ask(client).status_code == 200


def test_a_model_that_a_client_names_is_loaded(host: Host, client: httpx.Client) -> None:
    """Both do not fit into the container's memory: one makes room for the other, and comes back."""
    models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert models == ["default", "large"]

    for model in ("large", "default", "large", "default"):
        body = {"model": model, "prompt": "One, two,", "max_tokens": 4}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
    status = client.get("/admin/status").json()
    assert [each["name"] for each in status["models"]] == models
    # One context is set; the rest is what fits into 1 GiB.
    sizes = {each["name"]: (each["slots"], each["context"]) for each in status["models"]}
    assert sizes == {"default": (4, 2048), "large": (4, 4096)}
    assert status["memory"]["used"] < status["memory"]["limit"]
    assert host.run(
        "docker inspect nas-assistant --format '{{.State.OOMKilled}}'"
    ).stdout.strip() == ("false")


@contextlib.contextmanager
def asking(connect: Callable[[], httpx.Client]) -> Iterator[None]:
    """Clients that ask again and again meanwhile; each must be answered, if after a while."""
    over = threading.Event()

    def ask_on() -> list[int]:
        answers = []
        with connect() as client:
            while not over.is_set():
                request = {"prompt": "One, two,", "max_tokens": 4}
                answers.append(client.post("/v1/completions", json=request).status_code)
        return answers

    with ThreadPoolExecutor() as pool:
        threads = [pool.submit(ask_on) for _ in range(3)]
        try:
            yield
        finally:
            over.set()
    answers = [status for thread in threads for status in thread.result()]
    assert set(answers) == {200}
    assert len(answers) > len(threads)


def test_variant_is_switched_without_a_new_image(
    host: Host,
    client: httpx.Client,
    connect: Callable[[], httpx.Client],
    playbook: Playbook,
    wait_ready: Callable[[], float],
) -> None:
    """And without a request that is lost."""
    image = host.check_output("docker inspect nas-assistant --format '{{.Image}}'")
    with asking(connect):
        assert playbook("assistant", assistant_model_variant="large").returncode == 0
    models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert "large" in models
    chat = ask(client)
    assert chat.status_code == 400
    assert "template" in chat.json()["error"]["message"]
    words = client.post("/v1/completions", json={"prompt": "One, two,", "max_tokens": 4})
    assert words.json()["choices"][0]["text"]
    assert playbook("assistant").returncode == 0
    wait_ready()
    assert host.check_output("docker inspect nas-assistant --format '{{.Image}}'") == image
    assert ask(client).status_code == 200


@pytest.fixture
def other_api(
    host: Host, connect: Callable[[], httpx.Client], tmp_path: Path
) -> Iterator[tuple[str, str]]:
    """An API elsewhere, with a certificate of its own: the controller, where the lab's network has
    its gateway, which has the NAS answer. (The NAS itself is closed to its containers.)
    """

    class Relay(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with connect() as client:
                headers = {"Authorization": self.headers["Authorization"]}
                answer = client.post(self.path, content=body, headers=headers)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    gateway = host.check_output("ip -4 route show default").split()[2]
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=test", "-keyout", str(key)]
    command += ["-addext", f"subjectAltName=IP:{gateway}", "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer((gateway, 0), Relay) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
        yield f"https://{gateway}:{server.server_port}/v1", certificate.read_text("ascii")
        server.shutdown()


def test_hybrid_asks_another_api_and_local_takes_the_way_out_away(
    host: Host,
    client: httpx.Client,
    playbook: Playbook,
    wait_ready: Callable[[], float],
    other_api: tuple[str, str],
    key: str,
) -> None:
    url, certificates = other_api
    neighbour = {"url": url, "key": key, "certificates": certificates}
    lab = yaml.safe_load(MODELS.read_text("utf-8"))
    models = lab["assistant_models"]
    wishes: dict[str, Any] = {
        "assistant_mode": "hybrid",
        "assistant_upstreams": {"neighbour": neighbour},
        "assistant_server": {**lab["assistant_server"], "log_text": True},
        "assistant_models": {
            **models,
            "default": {**models["default"], "fallback": "remote"},
            "remote": {"upstream": "neighbour", "model": "large", "kind": "text"},
        },
    }
    done = playbook("assistant", **wishes)
    assert done.returncode == 0, done.stdout
    told = f"assistant_mode=hybrid. What is asked of remote goes to {url}."
    assert told in " ".join(done.stdout.split())
    assert key not in done.stdout
    wait_ready()
    body = {"prompt": "One, two,", "max_tokens": 4, "temperature": 0}
    outside = client.post("/v1/completions", json={"model": "remote", **body})
    assert outside.headers["x-served-by"] == "cloud:neighbour", outside.text
    assert outside.json()["usage"]["served_by"] == "cloud:neighbour"
    inside = client.post("/v1/completions", json={"model": "large", **body})
    assert inside.headers["x-served-by"] == "local"
    assert inside.json()["choices"] == outside.json()["choices"]
    again = playbook("assistant", **wishes).stdout
    assert "changed=0" in again
    assert "assistant_server.log_text=true" in again
    log = [json.loads(line) for line in host.check_output("docker logs nas-assistant").splitlines()]
    # Once asked here in the name of the other API, and once as what it is.
    asked = [line["asked"] for line in log if line["event"] == "text"]
    assert asked.count(body["prompt"]) == 3
    assert key not in str(log)

    # Without its own model it answers all the same, until a run brings that back.
    host.check_output(f"rm {MODEL} && docker restart nas-assistant")
    wait_ready()
    look = "docker exec nas-assistant /app/start.sh healthcheck"
    told = json.loads(host.check_output(look))
    assert (told["status"], "does not exist" in told["reason"]) == ("degraded", True)
    assert client.post("/v1/completions", json=body).headers["x-served-by"] == "cloud:neighbour"
    assert "degraded" in playbook("status", **wishes).stdout
    done = playbook("models", **wishes)
    assert done.returncode == 0, done.stdout
    assert json.loads(host.check_output(look))["status"] == "ready"
    assert client.post("/v1/completions", json=body).headers["x-served-by"] == "local"
    keys = "/etc/nas-assistant/keys/upstreams.json"
    assert host.check_output(f"stat -c '%U %g %a' {keys}") == "root 10001 640"

    assert playbook("assistant").returncode == 0
    wait_ready()
    assert host.check_output("docker exec nas-assistant ls /sys/class/net").split() == ["lo"]
    assert not host.file(keys).exists
    assert "nas-assistant" not in host.check_output("docker network ls --format '{{.Name}}'")
    gone = client.post("/v1/completions", json={"model": "remote", **body})
    assert gone.json()["error"]["code"] == "model_not_found"


ALTERED = [
    ("chmod 0644 /etc/nas-assistant/config.ini", "stat -c %a /etc/nas-assistant/config.ini", "640"),
    ("echo x >> /etc/nas-assistant/config.ini", "grep -c ^x /etc/nas-assistant/config.ini", "0"),
    ("echo '{}' > /etc/docker/daemon.json", "grep -c live-restore /etc/docker/daemon.json", "1"),
    ("rm /etc/nas-assistant/tls/server.crt", "ls /etc/nas-assistant/tls", "server.crt"),
    ("sed -i 's/TLSv1.2//' /etc/nginx/conf.d/nas-assistant.conf",
     "grep -c TLSv1.2 /etc/nginx/conf.d/nas-assistant.conf", "1"),
    ("docker rm -f nas-assistant", "docker ps --format '{{.Names}}'", "nas-assistant"),
    ("systemctl disable --now nginx", "systemctl is-enabled nginx", "enabled"),
]  # fmt: skip


def test_what_was_altered_by_hand_is_mended(
    host: Host,
    connect: Callable[[], httpx.Client],
    playbook: Playbook,
    wait_ready: Callable[[], float],
) -> None:
    for alter, _, _ in ALTERED:
        host.check_output(alter)
    done = playbook("site")
    assert done.returncode == 0, done.stdout
    for _, look, expected in ALTERED:
        assert expected in host.run(look).stdout.split(), look
    wait_ready()
    with connect() as client:
        assert ask(client).status_code == 200
    again = playbook("site")
    assert "changed=0" in again.stdout


def test_a_reload_that_a_killed_run_left_undone_is_made_up_for(
    host: Host, playbook: Playbook
) -> None:
    # As if the run had ended right after the file was written: new on disk, old in memory.
    host.check_output("sleep 1; touch /etc/nginx/conf.d/nas-assistant.conf /etc/docker/daemon.json")
    for name in ("proxy", "docker"):
        assert "changed=1" in playbook(name).stdout
        assert "changed=0" in playbook(name).stdout


def test_absent_takes_away_and_present_brings_back(
    host: Host, playbook: Playbook, wait_ready: Callable[[], float]
) -> None:
    before = inode(host, MODEL)
    gone = playbook("assistant", assistant_state="absent")
    assert gone.returncode == 0, gone.stdout
    assert "nas-assistant" not in host.check_output("docker ps -a --format '{{.Names}}'")
    assert "changed=0" in playbook("assistant", assistant_state="absent").stdout
    assert playbook("assistant").returncode == 0
    wait_ready()
    assert inode(host, MODEL) == before
