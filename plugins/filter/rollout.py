# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a rollout must not do, since it could not be taken back."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from typing import Any


def rollout_replaced(config: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the files of models that are to be others by the same name.

    :param config: the service's configuration as it is on the NAS; empty where there is none.
    :param models: ``assistant_models`` as they are to be.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(config)
    except configparser.Error:  # nothing runs with it
        return []
    sections = [parser[name] for name in parser.sections() if name.startswith("model:")]
    there = {section.get("file", ""): section.get("sha256", "").lower() for section in sections}
    wanted = {str(model.get("file", "")): str(model.get("sha256", "")) for model in models.values()}
    return sorted(
        file
        for file, digest in wanted.items()
        if file and there.get(file, digest.lower()) != digest.lower()
    )


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"rollout_replaced": rollout_replaced}
