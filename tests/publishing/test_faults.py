"""Faults; `benchmarks/faults.py` is the long form of the first test: two hundred runs."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError

from sdhub.core import retry
from sdhub.core.access import check_token
from sdhub.core.errors import HubError
from sdhub.core.hub import Hub
from sdhub.core.progress import Progress
from sdhub.core.retry import Patience, asked_for, passes, patiently
from sdhub.publishing.push import push
from tests.publishing.faults import TOKEN, faulty_hub, hasty, make_folder, runs

SEEDS = range(1000, 1016)


def test_every_run_publishes_wholly_or_not_at_all_and_the_retry_publishes():
    outcomes = dict(runs(SEEDS))
    assert set(outcomes) == set(SEEDS)
    assert {"published", "as it was"} <= {each.became for each in outcomes.values()}


def test_what_was_uploaded_before_a_failure_is_not_uploaded_again(tmp_path):
    """The commit is refused until the last try; the blobs are there, and the next run sends none."""
    import random

    from huggingface_hub import HfApi

    puts, commits = [], []

    class Counting:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope.get("method") == "PUT":
                puts.append(scope["path"])
            if "/commit/" in scope.get("path", ""):
                commits.append(scope["path"])
                if len(commits) < 40:
                    await receive()
                    await send({"type": "http.response.start", "status": 503, "headers": []})
                    await send({"type": "http.response.body"})
                    return
            await self.app(scope, receive, send)

    make_folder(tmp_path / "folder", random.Random(1))
    with faulty_hub(tmp_path / "hub") as (url, faults), hasty() as waits:
        HfApi(endpoint=url, token=TOKEN).create_repo("a/new")
        faults.app = Counting(faults.app)
        with pytest.raises(HubError, match="503"):
            push(tmp_path / "folder", "a/new", hub=Hub(url, TOKEN), message="m")
        assert len(puts) == len(set(puts)) == 2
        commits.extend([""] * 40)
        assert push(tmp_path / "folder", "a/new", hub=Hub(url, TOKEN), message="m").status == "published"
        assert len(puts) == 2
        assert len(waits) >= 4


def _failure(status, **headers):
    request = httpx.Request("GET", "http://hub.test/api")
    return HfHubHTTPError("no", response=httpx.Response(status, headers=headers, request=request))


class Telling(Progress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def _flaky(failures, result="done"):
    left = list(failures)

    def act():
        if left:
            raise left.pop(0)
        return result

    return act


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(retry.time, "sleep", found.append)
    return found


def test_waits_double_with_jitter_up_to_a_limit(waits):
    patience = Patience(attempts=8, first=1, longest=10, draw=lambda: 0.5)
    told = Telling()
    assert patiently("try", _flaky([_failure(503)] * 7), patience=patience, progress=told) == "done"
    assert waits == [0.75 * each for each in (1, 2, 4, 8, 10, 10, 10)]
    assert told.said[0] == "try: 503, retrying in 1 s"
    drawn = {Patience().wait(1, _failure(500)) for _ in range(20)}
    assert len(drawn) > 10
    assert all(0.5 <= each <= 1 for each in drawn)


def test_a_server_that_names_a_time_is_obeyed(waits):
    patience = Patience(draw=lambda: 0.0)
    act = _flaky([_failure(429, **{"Retry-After": "12"}), _failure(429, RateLimit='"api";r=0;t=55')])
    patiently("try", act, patience=patience)
    assert waits == [12, 55]
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    assert 85 < asked_for(_failure(503, **{"Retry-After": later})) <= 90
    for nonsense in ("soon", "-5", "1e9", ""):
        assert asked_for(_failure(429, **{"Retry-After": nonsense})) is None
    with pytest.raises(HfHubHTTPError):
        patiently("try", _flaky([_failure(429, **{"Retry-After": "86400"})]), patience=patience)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413, 422, 501])
def test_what_does_not_pass_is_told_at_once(waits, status):
    with pytest.raises(HfHubHTTPError):
        patiently("try", _flaky([_failure(status)]))
    assert not waits
    assert not passes(HubError("told of already"))
    assert not passes(ValueError("a name that is none"))


def test_lines_that_break_are_tried_again(waits):
    failures = [httpx.ConnectError("a"), httpx.ReadTimeout("b"), httpx.RemoteProtocolError("c"), ConnectionError()]
    assert patiently("try", _flaky(failures)) == "done"
    with pytest.raises(httpx.ReadTimeout):
        patiently("try", _flaky([httpx.ReadTimeout("b")] * 5))


def test_the_token_is_checked_patiently_and_never_told(tmp_path):
    with faulty_hub(tmp_path / "hub") as (url, faults), hasty():
        faults.on(3, 0.7, None)
        assert check_token(Hub(url, TOKEN), "anyone") == "anyone"
        faults.on(3, 1.0, 0)
        with pytest.raises(HubError) as failed:
            check_token(Hub(url, TOKEN), "anyone")
        assert TOKEN not in failed.value.message + failed.value.hint
        assert "\n" not in failed.value.message
