# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One list of models for all NAS, whatever became of their files."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable

from conftest import Load
from site_lab import Lab, worked

Loading = Callable[[], contextlib.AbstractContextManager[Load]]
Play = Callable[..., subprocess.CompletedProcess[str]]
FOLDER = "/var/lib/nas-assistant/models"
LARGE = f"{FOLDER}/gemma-3-270m-q4_k_m.gguf"
# Each NAS is another: one has a file that is nobody's, one a damaged one, and one lacks one.
HARMED = (
    f"cp {LARGE} {FOLDER}/old.gguf",
    f"dd if=/dev/zero of={LARGE} bs=1 seek=50000000 count=4 conv=notrunc",
    f"rm {LARGE}",
)


def files(lab: Lab) -> list[str]:
    """Names and digests of what each NAS has."""
    return [lab.on(host, f"cd {FOLDER} && sha256sum *.gguf") for host in lab.hosts]


def test_the_same_models_everywhere(lab: Lab, under_load: Loading, play: Play) -> None:
    (whole,) = set(files(lab))
    for host, harm in zip(lab.hosts, HARMED, strict=True):
        lab.on(host, harm)
    assert len(set(files(lab))) == 3
    with under_load() as load:
        done = worked(play("models", assistant_models_prune=True))
    assert not load.failed
    assert files(lab) == [whole] * 3
    said = " ".join(done.split())
    assert said.count("large: gemma-3-270m-q4_k_m.gguf, 242 MiB, as its SHA-256 says") == 3
    assert worked(play("models", assistant_models_prune=True)).count("changed=0") == 3
