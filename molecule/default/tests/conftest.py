# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The finished NAS, as its owner and as a client on the network see it.

There are three. Each worker of pytest-xdist has one to itself, and runs all tests of a file on it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import testinfra
import yaml
from testinfra.host import Host

from lab import ssh

ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "inventory")
LAB = ROOT / ".lab/molecule"
CONTAINER = "nas-assistant"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
# What takes long and differs little, and the drills that take minutes.
LONG = pytest.mark.skipif(
    not os.environ.get("NAS_ASSISTANT_FULL"), reason="one of those that make test-full runs"
)
NAS = f"nas{int(WORKER.removeprefix('gw')) + 1}"


@pytest.fixture
def host(log_in: Callable[[], Host]) -> Host:
    """The NAS over SSH, by the door that is open now, as root."""
    return log_in()


@pytest.fixture(scope="session")
def log_in(address: str) -> Callable[[], Host]:
    """Return a function that finds the door anew."""

    def find() -> Host:
        door = ssh.door(LAB, address)
        assert door, f"{address} lets nobody in"
        config = LAB / f"ssh_config.{NAS}"
        options = ssh.options(LAB)[1::2]
        config.write_text("".join(f"{option.replace('=', ' ', 1)}\n" for option in options))
        root = f"sudo={door.user != 'root'}"
        settings = f"ssh_config={config}&ssh_identity_file={LAB / ssh.KEY}&{root}"
        return testinfra.get_host(f"ssh://{door.user}@{address}:{door.port}?{settings}")

    return find


@pytest.fixture(scope="session")
def nas_name() -> str:
    """The NAS's name in the inventory."""
    return NAS


@pytest.fixture(scope="session")
def lab_host() -> dict[str, Any]:
    """The NAS as the lab made it."""
    hosts = json.loads((LAB / "lab.json").read_text())["hosts"]
    return next(dict(host) for host in hosts if host["name"] == NAS)


@pytest.fixture(scope="session")
def address(lab_host: dict[str, Any]) -> str:
    """The NAS's address on the lab's network."""
    return str(lab_host["ssh_host"])


@pytest.fixture(scope="session")
def lab_container(lab_host: dict[str, Any]) -> str:
    """Name of the container that plays the NAS."""
    return str(lab_host["container"])


@pytest.fixture(scope="session")
def credentials() -> Path:
    """The folder of what the playbooks hand to the owner."""
    return LAB / "credentials"


@pytest.fixture(scope="session")
def key(credentials: Path) -> str:
    """The owner's API key, as the playbook left it on the controller."""
    path = credentials / "api_key.owner"
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    return path.read_text().strip()


@pytest.fixture(scope="session")
def certificate(credentials: Path) -> Path:
    """The certificate that the playbook handed to the owner."""
    return credentials / f"{NAS}.crt"


def trusting(certificate: Path) -> ssl.SSLContext:
    """What checks that it is the NAS, by its present certificate alone."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
    return context


@pytest.fixture(scope="session")
def connect(address: str, key: str, certificate: Path) -> Callable[[], httpx.Client]:
    """Return a function that makes a client which trusts the NAS's present certificate only."""

    def make() -> httpx.Client:
        return httpx.Client(
            base_url=f"https://{address}",
            verify=trusting(certificate),
            trust_env=False,
            timeout=120,
            headers={"Authorization": f"Bearer {key}"},
        )

    return make


@pytest.fixture
def client(connect: Callable[[], httpx.Client]) -> Iterator[httpx.Client]:
    """A client of the NAS with the owner's key."""
    with connect() as made:
        yield made


@pytest.fixture
def inspected(host: Host) -> dict[str, Any]:
    """What Docker knows of the assistant's container."""
    (found,) = json.loads(host.check_output(f"docker container inspect {CONTAINER}"))
    return dict(found)


@pytest.fixture
def wait_ready(address: str, certificate: Path) -> Callable[[], float]:
    """Return a function that waits until the NAS answers again and gives the seconds it took."""

    def wait(limit: float = 90) -> float:
        started = time.monotonic()
        while True:
            # No httpx here: of a handshake that is broken off, it leaves the socket open.
            asking = http.client.HTTPSConnection(
                address, context=trusting(certificate), timeout=120
            )
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                contextlib.closing(asking),
            ):
                asking.request("GET", "/readyz")
                if asking.getresponse().status == 200:
                    return time.monotonic() - started
            assert time.monotonic() - started < limit, "the assistant did not come back"
            time.sleep(0.5)

    return wait


@pytest.fixture(scope="session")
def playbook_in() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a playbook of the collection on the NAS, in an inventory."""

    def run(
        inventory: Path, environ: dict[str, str], name: str, *arguments: str, limit: str = NAS
    ) -> subprocess.CompletedProcess[str]:
        command = ["ansible-playbook", "-i", str(inventory), f"nas.assistant.{name}", *arguments]
        command += ["--limit", limit]
        # Molecule asks for colours, and what is read here is text.
        environ = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", **environ}
        return subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="session")
def playbook(
    playbook_in: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a playbook on the NAS with extra variables."""

    def run(name: str, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        extra = ["--extra-vars", json.dumps(variables)] if variables else []
        return playbook_in(INVENTORY, {}, name, *arguments, *extra)

    return run


@pytest.fixture
def refused(
    playbook_in: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Callable[[str, Sequence[dict[str, Any]]], list[str]]:
    """Return a function that runs a playbook once, on the NAS under as many names as there are sets
    of variables, and gives what was said under each; all must fail, and change nothing.
    """

    def run(name: str, sets: Sequence[dict[str, Any]]) -> list[str]:
        inventory = tmp_path / f"refused-{name}"
        inventory.mkdir()
        (inventory / "group_vars").symlink_to(ROOT / "inventories/lab/group_vars")
        lab = yaml.safe_load((INVENTORY / "lab.yml").read_text(encoding="utf-8"))["nas"]
        names = [f"{NAS}-{number}" for number in range(len(sets))]
        hosts = {each: {**lab["hosts"][NAS], **variables}
                 for each, variables in zip(names, sets, strict=True)}  # fmt: skip
        text = yaml.safe_dump({"nas": {**lab, "hosts": hosts}})
        (inventory / "hosts.yml").write_text(text, encoding="utf-8")
        done = playbook_in(inventory, {}, name, "--forks", "8", limit="nas")
        assert "Traceback" not in done.stdout
        for each in names:
            assert re.search(rf"^{each} .* changed=0 .* failed=1 ", done.stdout, re.M), done.stdout
        parts = re.split(r"^(?=fatal: |failed: |TASK |PLAY )", done.stdout, flags=re.M)
        # Of a loop, each item that failed is told by itself.
        told = {each: re.compile(rf"(fatal|failed): \[{each}[] ]") for each in names}
        said = ["".join(part for part in parts if told[each].match(part)) for each in names]
        # As YAML writes an apostrophe.
        return [" ".join(text.split()).replace("''", "'") for text in said]

    return run
