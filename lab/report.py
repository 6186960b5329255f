# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""`lab demo-report`: ask each NAS of the lab a real question over HTTPS, and say how to go on."""

from __future__ import annotations

import json
import ssl
import textwrap
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab import inventory, paths, ssh
from lab.errors import LabError
from lab.inventory import Host
from lab.progress import record, say

NAME = "demo"
QUESTION = "Explain in two sentences what a network-attached storage (NAS) is."

_PATIENCE = 60  # seconds for a NAS that still loads its model
_SITE = "Run the playbook again (`make demo`); it mends what is not as it should be."


@dataclass(frozen=True)
class Answer:
    """What a NAS said, in how many tokens and seconds."""

    text: str
    tokens: int
    seconds: float


def report(credentials: Path, used_inventory: str) -> None:
    """Ask every NAS of the lab demo, print the first answer, write .lab/demo.json."""
    hosts = inventory.read(NAME)
    if not hosts:
        raise LabError(f"{inventory.path(NAME)} names no NAS. `make demo` makes one.")
    key = api_key(credentials)
    bundle = paths.lab(NAME) / "ca.pem"
    inventory.replace(bundle, certificates(credentials, [host.name for host in hosts]))
    trust = ssl.create_default_context(cafile=str(bundle))
    answers = []
    for host in hosts:
        answer = ask(f"https://{host.ssh_host}", key, trust)
        say(
            f"{host.name} answered over HTTPS, certificate verified: {answer.tokens} tokens in "
            f"{answer.seconds:.1f} s"
        )
        record(f"first question to {host.name}", answer.seconds)
        answers.append(answer)
    hosts = [as_it_is_now(host) for host in hosts]
    document = demo_json(hosts, bundle, key, used_inventory)
    inventory.replace(paths.home() / "demo.json", json.dumps(document, indent=2) + "\n", 0o600)
    print(summary(document, answers[0]), flush=True)


def as_it_is_now(host: Host) -> Host:
    """A NAS with the door that it has after the playbooks."""
    door = ssh.door(paths.lab(NAME), host.ssh_host)
    if door is None:
        raise LabError(f"{host.name} at {host.ssh_host} lets nobody in over SSH. {_SITE}")
    return replace(host, ssh_port=door.port, ssh_user=door.user)


def api_key(folder: Path) -> str:
    """The owner's API key, as the playbooks left it."""
    path = folder / "api_key.owner"
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise LabError(f"no API key: {path} is missing. {_SITE}") from None


def certificates(folder: Path, names: list[str]) -> str:
    """The certificates of these NAS, as one PEM bundle."""
    bundle = ""
    for name in names:
        path = folder / f"{name}.crt"
        if not path.is_file():
            raise LabError(f"no certificate of {name}: {path} is missing. {_SITE}")
        bundle += path.read_text(encoding="utf-8").strip() + "\n"
    return bundle


def ask(url: str, key: str, trust: ssl.SSLContext | None, patience: float = _PATIENCE) -> Answer:
    """Ask one question and return the answer; wait a while for a NAS that is not ready yet."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return _ask(url, key, trust)
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {_message(error)}"
            if error.code not in (502, 503) or time.monotonic() > deadline:
                raise LabError(f"{url} answered {reason}. {_remedy(error.code)}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                raise LabError(
                    f"{url}: {error.reason}. The certificate on the NAS is not the one that the "
                    f"playbooks left "
                    f"here, or does not name this address. {_SITE}"
                ) from None
            if time.monotonic() > deadline:
                raise LabError(f"{url} gives no answer: {error.reason}. {_SITE}") from None
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise LabError(f"{url} gave no usable answer: {error!r}. {_SITE}") from None
        time.sleep(1)


def demo_json(hosts: list[Host], bundle: Path, key: str, used_inventory: str) -> dict[str, Any]:
    """What scripts and tests need to go on from a finished demo."""
    keys = ("name", "container", "ssh_host", "ssh_port", "ssh_user", "ssh_key")
    return {
        "url": f"https://{hosts[0].ssh_host}",
        "ca_file": str(bundle),
        "api_key": key,
        "inventory": str(Path(used_inventory).resolve()),
        "hosts": [{name: getattr(host, name) for name in keys} for host in hosts],
    }


def summary(document: dict[str, Any], answer: Answer) -> str:
    """What the demo ends with: the answer, how to ask on, where to look."""
    first = document["hosts"][0]
    body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "Hello"}]})
    said = textwrap.indent(textwrap.fill(answer.text, 96), "    ")
    speed = answer.tokens / answer.seconds if answer.seconds else 0.0
    command = f"ssh -i {first['ssh_key']} -o UserKnownHostsFile={paths.lab(NAME) / 'known_hosts'}"
    return f"""
  Question  {QUESTION}
  Answer    ({answer.tokens} tokens in {answer.seconds:.1f} s: {speed:.0f} tokens/s)

{said}

  URL       {document["url"]}   (a page to chat on; OpenAI's API: {document["url"]}/v1)
  API key   {document["api_key"]}
  CA file   {document["ca_file"]}

  Ask it yourself:
    curl --cacert {document["ca_file"]} {document["url"]}/v1/chat/completions \\
      -H 'Authorization: Bearer {document["api_key"]}' -H 'Content-Type: application/json' \\
      -d '{body}'

  Next:
    make demo                 run the playbooks again: nothing changes
    make demo NAS=3           a fleet of three
    {command} -p {first["ssh_port"]} {first["ssh_user"]}@{first["ssh_host"]}
                              look inside {first["name"]}
    README.md                 point the same playbooks at your own NAS
    make down                 remove all of this
"""


def _ask(url: str, key: str, trust: ssl.SSLContext | None) -> Answer:
    question = {
        "model": "default",
        "max_tokens": 96,
        # So small a model is at its best when it does not improvise.
        "temperature": 0.1,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    request = urllib.request.Request(  # noqa: S310  # the URL is ours
        f"{url}/v1/chat/completions",
        data=json.dumps(question).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    # A lab NAS is a neighbour: a proxy that the environment names does not know the way there.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if trust is not None:
        handlers.append(urllib.request.HTTPSHandler(context=trust))
    began = time.monotonic()
    with urllib.request.build_opener(*handlers).open(request, timeout=300) as response:
        document = json.load(response)
    seconds = time.monotonic() - began
    text = str(document["choices"][0]["message"]["content"]).strip()
    if not text:
        raise ValueError("an empty answer")
    return Answer(text, int(document["usage"]["completion_tokens"]), seconds)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)


def _remedy(code: int) -> str:
    if code in (401, 403):
        return f"The key in the credentials folder is not the one on the NAS. {_SITE}"
    if code in (502, 503):
        return f"The assistant behind Nginx is not ready; its log on the NAS says why. {_SITE}"
    return _SITE
