# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The container engine, asked and not only its file."""

from __future__ import annotations

import json

from testinfra.host import Host


def test_engine_runs_and_starts_at_boot(host: Host) -> None:
    service = host.service("docker")
    assert service.is_running
    assert service.is_enabled


def test_settings_are_in_force(host: Host) -> None:
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert info["LoggingDriver"] == "json-file"
    assert info["LiveRestoreEnabled"] is True


def test_logs_rotate(host: Host) -> None:
    log = json.loads(
        host.check_output("docker inspect nas-assistant --format '{{json .HostConfig.LogConfig}}'")
    )
    assert log["Config"] == {"max-size": "10m", "max-file": "3"}
