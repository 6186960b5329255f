# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Every role has the same shape, and its argument specification says what its defaults do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.parent.parent for path in ROOT.glob("roles/*/tasks/main.yml"))
# Task keywords that a table of contents may use. What most NAS have no use for is included: one
# task that is skipped, where an import is as many as there are in the file.
IMPORT, INCLUDE = "ansible.builtin.import_tasks", "ansible.builtin.include_tasks"
CONTENTS = {"name", IMPORT, INCLUDE, "when", "tags"}
EXPRESSION = re.compile(r"\{[{%](?s:.*?)[%}]\}|(?<=when: ).*|(?<=that: ).*")
AS_SWITCH = re.compile(r"( \| default\(\w+\))? \| bool\b")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: Path) -> dict[str, Any]:
    spec: dict[str, Any] = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]
    return dict(spec["options"])


pytestmark = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def test_defaults_are_those_of_the_specification(role: Path) -> None:
    documented = {
        key: option["default"] for key, option in options(role).items() if "default" in option
    }
    required = {key for key, option in options(role).items() if option.get("required")}
    defaults = load(role / "defaults/main.yml")
    # Ansible evaluates a documented default to check it, also in check mode: it must make nothing.
    for key in [key for key, value in defaults.items() if "builtin.password" in str(value)]:
        assert key not in documented
        del defaults[key]
    # A required variable has an empty value at most, so that the role's own message can name it.
    for key in required & set(defaults):
        assert not defaults.pop(key)
    assert defaults == documented


def test_nested_defaults_are_those_that_the_role_lays_under(role: Path) -> None:
    internal = load(role / "vars/main.yml")
    for key, option in options(role).items():
        if "options" not in option:
            continue
        documented = {name: inner["default"] for name, inner in option["options"].items()}
        assert internal[f"__{key}_defaults"] == documented
        assert internal[f"__{key}"] == f"{{{{ __{key}_defaults | combine({key}) }}}}"


def test_switches_are_taken_as_words_too(role: Path) -> None:
    """``-e NAME=false`` and an INI inventory give a word, which would count as true."""
    switches = [key for key, option in options(role).items() if option["type"] == "bool"]
    for path in [*role.rglob("*.yml"), *role.rglob("*.j2")]:
        for expression in EXPRESSION.findall(path.read_text(encoding="utf-8")):
            for name in switches:
                asked = re.findall(rf"(?<!')\b{name}\b(?![':])(.*)", expression, re.DOTALL)
                if expression != f"{{{{ {name} }}}}":
                    assert all(AS_SWITCH.match(rest) for rest in asked), (path, expression)


def test_variables_carry_the_roles_name(role: Path) -> None:
    assert all(key.startswith(f"{role.name}_") for key in options(role))
    assert all(key.startswith(f"__{role.name}_") for key in load(role / "vars/main.yml"))
    assert len(options(role)) <= 20


def test_every_option_says_what_it_is_for(role: Path) -> None:
    for key, option in options(role).items():
        assert option.get("type"), key
        assert option.get("description"), key


def test_main_is_a_table_of_contents(role: Path) -> None:
    for task in load(role / "tasks/main.yml"):
        assert set(task) <= CONTENTS
        assert task["tags"][0] == role.name
        assert all(tag.startswith(role.name) for tag in task["tags"])
        if INCLUDE in task:
            assert "when" in task
            # Else a run with that tag would include nothing.
            assert task[INCLUDE]["apply"]["tags"] == task["tags"]


def test_readme_names_state_and_tags(role: Path) -> None:
    text = (role / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {role.name}\n")
    for task in load(role / "tasks/main.yml"):
        for tag in task["tags"]:
            assert f"`{tag}`" in text


def test_templates_open_with_ansible_managed(role: Path) -> None:
    for template in role.glob("templates/**/*.j2"):
        assert "ansible_managed" in template.read_text(encoding="utf-8").splitlines()[0], template
