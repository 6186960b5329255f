# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is done on the machine that a file of tests calls ``lab``."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable

import pytest
from site_lab import Lab, play

PATIENCE = 900  # seconds; an emulated CPU, perhaps beside other work


@pytest.fixture(scope="module")
def playbook(lab: Lab) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a playbook with extra variables."""
    return functools.partial(play, lab)


@pytest.fixture(scope="module")
def on(lab: Lab) -> Callable[[str], str]:
    """Return a function that runs a command on the NAS."""
    return lambda command: lab.on(lab.hosts[0], command, PATIENCE)
