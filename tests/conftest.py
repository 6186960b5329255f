# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Runs a module's main() in this process, as Ansible would run it on a NAS."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

Answer = dict[str, Any]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Return a function that runs a module with arguments and gives its JSON answer."""

    def run(main: Callable[[], None], check: bool = False, **arguments: Any) -> Answer:
        given = {**arguments, "_ansible_check_mode": check}
        with patch_module_args(given), pytest.raises(SystemExit):
            main()
        answer: Answer = json.loads(capsys.readouterr().out)
        return answer

    return run
