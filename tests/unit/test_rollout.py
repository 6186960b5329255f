# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a rollout refuses before anything changes, and what it takes for granted of other roles."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pytest
from ansible.template import trust_as_template
from ansible_collections.nas.assistant.plugins.filter import assistant_models, rollout
from ansible_collections.nas.assistant.plugins.filter.rollout import (
    rollout_alone,
    rollout_replaced,
)
from expressions import ROLES, load, templar

CONFIG = """
[server]
queue = 32
[model:default]
file = a.gguf
sha256 = aa
[model:remote]
upstream = cloud
"""


@pytest.mark.parametrize(
    ("models", "replaced"),
    [
        ({"default": {"file": "a.gguf", "sha256": "AA"}}, []),
        ({"default": {"file": "a.gguf", "sha256": "bb"}}, ["a.gguf"]),
        ({"other": {"file": "a.gguf", "sha256": "bb"}}, ["a.gguf"]),
        ({"default": {"file": "b.gguf", "sha256": "bb"}}, []),
        ({"remote": {"upstream": "cloud"}}, []),
        ({}, []),
    ],
)
def test_what_would_be_replaced(models: dict[str, Any], replaced: list[str]) -> None:
    assert rollout_replaced(CONFIG, models) == replaced


@pytest.mark.parametrize("config", ["", "no configuration"])
def test_where_there_is_none(config: str) -> None:
    assert rollout_replaced(config, {"default": {"file": "a.gguf", "sha256": "bb"}}) == []


POOL = ("nas1", "nas2", "nas3")
WELL: dict[str, Any] = {"pool": POOL, "answers": True, "why": "", "out": ""}
LOADING = WELL | {"answers": False, "why": "does not answer: loading"}
# By a rollout that was killed, and by its owner.
CUT_OFF = WELL | {"answers": False, "why": "is drained by a rollout that did not end"}
DRAINED = WELL | {"answers": False, "why": "is drained", "out": "is drained (by its owner)"}
ALONE = WELL | {"pool": ()}


@pytest.mark.parametrize(
    ("batches", "fleet", "alone"),
    [
        ([1, "50%"], (WELL, WELL, WELL), []),
        ([1, "50%"], (ALONE, ALONE, ALONE), []),
        # The canary is all that answers; a drained one does not help either.
        ([1, "50%"], (WELL, LOADING, LOADING), ["nas1"]),
        ([1, "50%"], (WELL, DRAINED, LOADING), ["nas1"]),
        # Who does not answer loses nothing, and answers once it was changed.
        ([1, "50%"], (LOADING, WELL, LOADING), []),
        ([1, "50%"], (CUT_OFF, WELL, LOADING), []),
        ([1, "50%"], (DRAINED, WELL, LOADING), ["nas2"]),
        ([1, "50%"], (LOADING, LOADING, LOADING), []),
        # All of a batch at the same time.
        (["100%"], (WELL, WELL, WELL), [*POOL]),
        ([1, 2], (WELL, WELL, WELL), []),
        ([2, 1], (WELL, WELL, LOADING), ["nas1", "nas2"]),
        (["34%"], (WELL, WELL, DRAINED), []),
        ([1], (WELL, WELL, WELL), []),
    ],
)
def test_the_last_one_that_answers(
    batches: list[Any], fleet: Sequence[dict[str, Any]], alone: list[str]
) -> None:
    found = rollout_alone(POOL, batches, dict(zip(POOL, fleet, strict=True)))
    assert sorted(found) == alone


def test_why_nobody_else_answers() -> None:
    fleet = {"nas1": WELL, "nas2": LOADING, "nas3": DRAINED}
    assert rollout_alone(POOL, [1], fleet) == {
        "nas1": "nas2 does not answer: loading; nas3 is drained (by its owner)"
    }
    fleet = {"nas1": WELL, "nas2": WELL | {"pool": ("nas2",)}}
    assert rollout_alone(["nas1", "nas2"], [1], fleet) == {}
    # The others were left out of the run.
    assert rollout_alone(["nas1"], [1], {"nas1": WELL}) == {}


def evaluate(expression: str, **given: Any) -> Any:
    filters = (assistant_models.FilterModule(), rollout.FilterModule())
    return templar("rollout", filters, **given).template(trust_as_template(expression))


@pytest.mark.parametrize(
    ("assistant", "kept", "member", "expected"),
    [
        ({"ready": True, "drained": False}, {"unfinished": False, "notes": {}}, {}, (True, "")),
        (
            {"ready": True, "drained": True},
            {"unfinished": False, "notes": {}},
            {},
            (False, "is drained (/run/nas-assistant-drained)"),
        ),
        (
            {"ready": True, "drained": True},
            {"unfinished": True, "notes": {"drained": False}},
            {},
            (False, ""),
        ),
        (
            {"ready": True, "drained": True},
            {"unfinished": True, "notes": {"drained": True}},
            {},
            (False, "is drained (/run/nas-assistant-drained)"),
        ),
        (
            {"ready": True, "drained": False},
            {"unfinished": False, "notes": {}},
            {"down": True},
            (False, "is down (proxy_member)"),
        ),
        # Docker did not say how it is.
        ({}, {"unfinished": False, "notes": {}}, {}, (False, "")),
    ],
)
def test_who_answers_by_what_was_looked_at(
    assistant: dict[str, Any],
    kept: dict[str, Any],
    member: dict[str, Any],
    expected: tuple[bool, str],
) -> None:
    host = {
        "inventory_hostname": "nas1",
        "proxy_pool": ["nas1", "nas2"],
        "proxy_member": member,
        "__status_report": {"found": {"assistant": assistant}},
        "__rollout_looked": kept,
    }
    absent = {"inventory_hostname": "nas2", "assistant_state": "absent"}
    found = evaluate(
        "{{ __rollout_fleet }}",
        ansible_play_hosts_all=["nas1", "nas2"],
        hostvars={"nas1": host, "nas2": absent},
    )
    assert found.keys() == {"nas1"}
    assert (found["nas1"]["answers"], found["nas1"]["out"]) == expected
    assert found["nas1"]["pool"] == ["nas1", "nas2"]


def test_who_is_to_have_no_assistant_is_not_missed() -> None:
    hosts: dict[str, dict[str, Any]] = {
        "nas1": {},
        "nas2": {"assistant_state": "absent"},
        "nas3": {"assistant_state": "present"},
        "nas4": {"rollout_batches": [1]},
    }
    given = {
        "ansible_play_hosts_all": list(hosts),
        "ansible_play_hosts": ["nas1", "nas4"],
        "hostvars": {name: {"inventory_hostname": name, **each} for name, each in hosts.items()},
    }
    assert evaluate("{{ __rollout_takes_part }}", **given) == ["nas1", "nas3", "nas4"]
    assert evaluate("{{ __rollout_away }}", **given) == ["nas3"]
    assert evaluate("{{ __rollout_batches }}", **given) == [[1, "50%"], [1]]


@pytest.mark.parametrize(
    ("mark", "drained"),
    [
        (None, False),
        ("rollout\n", False),  # of a rollout, whatever became of that
        ("", True),  # touch
        ("the disks are replaced\n", True),
    ],
)
def test_whose_mark_it_is(mark: str | None, drained: bool) -> None:
    # A file that is not there is an answer without its content.
    read = {} if mark is None else {"content": base64.b64encode(mark.encode()).decode()}
    assert evaluate("{{ __rollout_drained_by_others }}", __rollout_mark=read) is drained


@pytest.mark.parametrize(
    ("before", "gate", "allowed"),
    [
        (0, 0.01, 0.01),
        (0.03, 0.01, 0.03),
        (0.5, 0.01, 0.05),  # it had no model for its first week
        (0.5, 0, 0),
        (0.5, 0.3, 0.5),
    ],
)
def test_what_part_of_requests_may_fail(before: float, gate: float, allowed: float) -> None:
    noted = {"notes": {"failed": before}}
    given = {"rollout_gate": {"failed": gate}, "__rollout_noted": noted}
    assert evaluate("{{ __rollout_failing }}", **given) == pytest.approx(allowed)


def test_all_models_of_the_nas_are_asked() -> None:
    here, there = {"file": "a.gguf"}, {"upstream": "example"}
    models = {"assistant_models": {"default": here, "large": here, "cloud": there}}
    assert evaluate("{{ __rollout_models }}", **models) == ["large"]
    chosen = {"assistant_model_variant": "large", "assistant_mode": "hybrid"}
    assert evaluate("{{ __rollout_models }}", **models, **chosen) == ["default"]
    assert evaluate("{{ __rollout_models }}") == []


def test_a_failed_loop_says_what_was_wrong() -> None:
    results = [{"failed": False}, {}, {"failed": True, "msg": "no such file"}]
    loop = {"msg": "One or more items failed", "results": results}
    task = {"ansible_failed_task": {"name": "Bring the models"}}
    said = evaluate("{{ __rollout_why | trim }}", ansible_failed_result=loop, **task)
    assert said == "Bring the models: no such file"
    said = evaluate("{{ __rollout_why | trim }}", ansible_failed_result={"msg": "broken"}, **task)
    assert said == "Bring the models: broken"


def test_what_comes_back_is_what_the_role_installs() -> None:
    """But for keys, which are not of a release."""
    role = load(ROLES / "assistant/vars/main.yml")
    kept = evaluate("{{ __rollout_files + (__rollout_units | map(attribute='reads') | flatten) }}")
    names = {"__assistant_units", "__assistant_config_dir", "__assistant_keys_dir"}
    known = {name: role[name] for name in names}
    paths = [each["dest"] for each in role["__assistant_front_files"]]
    paths += [role[f"__assistant_{name}"] for name in ("config", "tuned_file", "upstream_keys")]
    known |= {"__assistant_front_program": role["__assistant_front_program"]}
    assert sorted(kept) == sorted(evaluate(path, **known) for path in paths)
    units = evaluate("{{ __rollout_units | map(attribute='name') }}")
    assert {f"/etc/systemd/system/{unit}" for unit in units} <= set(kept)
