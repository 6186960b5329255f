# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A lab that is up, and what runs against it."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Lab:
    """A lab that is up: its folder, its inventory, its hosts as lab.json names them."""

    name: str
    inventory: Path
    hosts: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        return ROOT / ".lab" / self.name

    def command(self, *arguments: str) -> list[str]:
        """Command line of the site playbook against this lab."""
        return ["ansible-playbook", "-i", str(self.inventory), "nas.assistant.site", *arguments]

    def site(self, *arguments: str) -> str:
        """Run the site playbook to its end; return what it printed."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr
        return done.stdout

    def client(self, host: dict[str, Any]) -> httpx.Client:
        """A client of one NAS with the owner's key, trusting its certificate only."""
        credentials = self.folder / "credentials"
        return httpx.Client(
            base_url=f"https://{host['ssh_host']}",
            verify=ssl.create_default_context(cafile=str(credentials / f"{host['name']}.crt")),
            headers={
                "Authorization": f"Bearer {(credentials / 'api_key.owner').read_text().strip()}"
            },
            trust_env=False,
            timeout=120,
        )

    def on(self, host: dict[str, Any], *command: str) -> str:
        """Run a command on a NAS; return its output."""
        done = subprocess.run(
            ["docker", "exec", host["container"], *command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
