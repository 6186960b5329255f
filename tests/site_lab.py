# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A lab that is up, and what runs against it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lab import ssh, vm

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Lab:
    """A lab that is up: its folder, its inventory, its hosts as lab.json names them."""

    name: str
    inventory: Path
    hosts: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        return ROOT / ".lab" / self.name

    def command(self, *arguments: str, playbook: str = "site") -> list[str]:
        """Command line of a playbook against this lab."""
        return [
            *("ansible-playbook", "-i", str(self.inventory)),
            f"nas.assistant.{playbook}",
            *arguments,
        ]

    def site(self, *arguments: str, playbook: str = "site") -> str:
        """Run a playbook to its end; return what it printed."""
        command = self.command(*arguments, playbook=playbook)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr
        return done.stdout

    def client(self, host: dict[str, Any], timeout: float = 120) -> httpx.Client:
        """A client of one NAS with the owner's key, trusting its certificate only."""
        credentials = self.folder / "credentials"
        return httpx.Client(
            base_url=f"https://{host['ssh_host']}",
            verify=ssl.create_default_context(cafile=str(credentials / f"{host['name']}.crt")),
            headers={
                "Authorization": f"Bearer {(credentials / 'api_key.owner').read_text().strip()}"
            },
            trust_env=False,
            timeout=httpx.Timeout(timeout, connect=30),
        )

    def on(self, host: dict[str, Any], command: str, timeout: float = 120) -> str:
        """Run a shell command as root on a NAS over SSH; return its output."""
        done = ssh.as_root(self.folder, host["ssh_host"], command, timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def reboot(lab: Lab, patience: float) -> None:
    """Restart a lab's only NAS, and wait until somebody answers there again."""
    (host,) = lab.hosts
    look = "cat /proc/sys/kernel/random/boot_id"
    booted = before = lab.on(host, look)
    # The connection may break before the exit code arrives.
    lab.on(host, "systemd-run --on-active=1 systemctl reboot")
    deadline = time.monotonic() + patience
    while booted == before:
        assert time.monotonic() < deadline, "it did not reboot"
        time.sleep(1)
        with contextlib.suppress(AssertionError):  # nobody answers while it boots
            booted = lab.on(host, look)


def switch_off(lab: Lab, patience: float) -> None:
    """Switch off a lab's only NAS, a virtual machine, as its power button does."""
    lab.on(lab.hosts[0], "systemd-run --on-active=1 systemctl poweroff")
    deadline = time.monotonic() + patience
    while vm.running(lab.folder):
        assert time.monotonic() < deadline, "it does not switch off"
        time.sleep(1)


def play(
    lab: Lab, name: str, *arguments: str, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run a playbook with extra variables, whatever comes of it."""
    command = lab.command(*arguments, "--extra-vars", json.dumps(variables), playbook=name)
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def worked(run: subprocess.CompletedProcess[str]) -> str:
    """What a run said that had to succeed."""
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-1000:]
    return run.stdout


def said(run: subprocess.CompletedProcess[str]) -> str:
    """What a run said that had to be refused, in one line."""
    assert run.returncode != 0, run.stdout[-3000:]
    return " ".join(run.stdout.split())


def run_lab(*arguments: str) -> None:
    """Run a command of the lab."""
    subprocess.run([sys.executable, "-m", "lab", *arguments], cwd=ROOT, check=True)


def read_lab(name: str, inventory: Path) -> Lab:
    """A lab that is up, with an inventory in this folder."""
    hosts = json.loads((ROOT / ".lab" / name / "lab.json").read_text())["hosts"]
    return Lab(name, inventory, hosts)


def make_inventory(folder: Path) -> Path:
    """Make a folder for the inventory of a lab; return the file that the lab is to write."""
    folder.mkdir()
    (folder / "group_vars").symlink_to(ROOT / "inventories/lab/group_vars")
    return folder / "hosts.yml"


@contextlib.contextmanager
def blank(name: str, *options: str, kind: str = "up") -> Iterator[Lab]:
    """A blank lab for as long as it is needed; ``kind`` is ``vm`` for a virtual machine."""
    with tempfile.TemporaryDirectory() as folder:
        inventory = make_inventory(Path(folder) / "inventory")
        run_lab(kind, "--name", name, *options, "--inventory", str(inventory))
        try:
            yield read_lab(name, inventory.parent)
        finally:
            run_lab("down", "--name", name)


def build_image() -> dict[str, Any]:
    """Build the assistant's image, as the lab's inventory has it; return its name and archive."""
    bundle = os.environ.get("PIP_CERT")
    wish = {
        "context": str(ROOT / "service"),
        "name": "nas-assistant",
        "args": {"BASE_IMAGE": "nas-lab-debian:12", "ENGINE": "wheel"},
        "secrets": {"ca_bundle": bundle} if bundle else {},
        "network": "host",
        "archive_dir": str(ROOT / ".lab/cache/images"),
    }
    command = ["ansible", "localhost", "-m", "nas.assistant.image_build", "-a", json.dumps(wish)]
    environ = {"ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "json"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=True
    )
    # After it comes how long each task took.
    (play,) = json.JSONDecoder().raw_decode(done.stdout)[0]["plays"]
    result: dict[str, Any] = play["tasks"][0]["hosts"]["localhost"]
    return result


def pids(of: int) -> list[int]:
    """A process and all that it started, and these in turn."""
    found = [of]
    for pid in found:
        with contextlib.suppress(OSError):  # it ended meanwhile
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
    return found


def kill(controller: subprocess.Popen[bytes]) -> None:
    """Kill a run of Ansible with its workers, each of which has a session of its own."""
    for pid in pids(controller.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    controller.wait()


def wait_for(client: httpx.Client, path: str, status: int, patience: float) -> None:
    """Ask until the status is there; while a NAS boots, nobody answers at all."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get(path).status_code == status:
                return
        assert time.monotonic() < deadline, f"no {status} after {patience} s"
        time.sleep(1)


QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France? One sentence."}],
    "max_tokens": 40,
    "temperature": 0,
}


def check_answer(client: httpx.Client) -> None:
    """Ask what so small a model knows; fail unless it answers."""
    answer = client.post("/v1/chat/completions", json=QUESTION)
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
