# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The line of a container's log that an owner should read."""

from __future__ import annotations

import itertools

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
