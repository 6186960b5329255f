# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

from collections.abc import Mapping

import pytest

from nas_assistant.quota import Exceeded, Quotas, Usage

from .conftest import api_key

NOON = 1_800_014_400.0  # 2027-01-15T12:00:00Z


class Time:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def quotas(time: Time, noted: Mapping[str, Mapping[str, Usage]] | None = None) -> Quotas:
    return Quotas(lambda day: (noted or {}).get(day, {}), clock=time, now=time)


def test_another_try_is_the_same_request(time: Time) -> None:
    books, key = quotas(time), api_key(requests_per_minute=1, parallel=1)
    assert books.begin(key) is None
    books.end(key.name, Usage(1, 5, 5))
    assert books.begin(key, again=True) is None
    exceeded = books.begin(key, again=True)
    assert exceeded is not None
    assert "1 requests at once" in exceeded.message
    books.end(key.name, Usage())
    exceeded = books.begin(key)
    assert exceeded is not None
    assert "1 requests a minute" in exceeded.message


def test_requests_a_minute(time: Time) -> None:
    books, key = quotas(time), api_key(requests_per_minute=2)
    assert books.begin(key) is None
    time.now += 20
    assert books.begin(key) is None
    time.now += 20
    assert books.begin(key) == Exceeded("The key 'owner' may send 2 requests a minute.", 20)
    assert books.begin(api_key("other")) is None
    time.now += 20
    assert books.begin(key) is None
    assert books.begin(key) is not None


def test_tokens_a_day(time: Time) -> None:
    books, key = (
        quotas(time, {"2027-01-15": {"owner": Usage(1, 60, 30)}}),
        api_key(tokens_per_day=100),
    )
    assert books.begin(key) is None
    books.end("owner", Usage(1, 5, 5))
    exceeded = books.begin(key)
    assert exceeded is not None
    assert "100 tokens a day, and has used 100" in exceeded.message
    assert exceeded.retry_after == 12 * 3600
    time.now += 12 * 3600
    assert books.begin(key) is None
    assert books.day == "2027-01-16"
    # A clock that is set back finds the day as it was noted.
    time.now -= 12 * 3600
    assert books.used("owner") == Usage(1, 60, 30)


def test_requests_at_once(time: Time) -> None:
    books, key = quotas(time), api_key(parallel=1)
    assert books.begin(key) is None
    assert books.begin(key) == Exceeded("The key 'owner' may have 1 requests at once.", 1)
    books.end("owner", Usage())
    assert books.begin(key) is None


def test_what_is_refused_counts_nowhere(time: Time) -> None:
    books, key = quotas(time), api_key(parallel=1, requests_per_minute=3)
    assert books.begin(key) is None
    for _ in range(5):
        assert books.begin(key) is not None
    books.end("owner", Usage())
    assert books.begin(key) is None
