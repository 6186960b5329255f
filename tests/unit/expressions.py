# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What Ansible makes of a role's variables, templates and tasks, without a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).parents[2] / "roles"


def trusted(value: Any) -> Any:
    """Return what a role says, as something that may have expressions in it."""
    if isinstance(value, dict):
        return {key: trusted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [trusted(each) for each in value]
    return trust_as_template(value) if isinstance(value, str) else value


def load(path: Path) -> Any:
    return trusted(yaml.safe_load(path.read_text(encoding="utf-8")))


def templar(role: str, filters: Iterable[Any], **given: Any) -> Templar:
    """Return what evaluates expressions with a role's defaults, its internal variables, and those
    that are given."""
    folder = ROLES / role
    variables = {**load(folder / "defaults/main.yml"), **load(folder / "vars/main.yml")}
    variables |= {"role_path": str(folder), "inventory_hostname": "nas1", **given}
    loader = DataLoader()
    loader.set_basedir(str(folder))
    found = Templar(loader=loader, variables=variables)
    for plugins in filters:
        for name, function in plugins.filters().items():
            found._engine.environment.filters[f"nas.assistant.{name}"] = function
    return found


def page_of(role: str, filters: Iterable[Any], **given: Any) -> str:
    """Return the page of a role that writes one for a fleet, without its style sheet."""

    def lookup(kind: str, path: str, errors: str = "strict") -> str | None:
        if path.endswith("report.css"):
            return ""
        try:
            return Path(path).read_text(encoding="utf-8")
        except ValueError:
            assert (kind, errors) == ("ansible.builtin.file", "ignore")
            return None

    found = templar(role, filters, **given)
    found._engine.environment.globals["lookup"] = lookup
    text = (ROLES / role / "templates/index.html.j2").read_text(encoding="utf-8")
    return str(found.template(trusted(text)))
