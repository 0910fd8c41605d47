"""The webhook: who may deliver, what is taken, and that it is done once."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from sdhub.core.errors import HubError, UsageError
from sdhub.core.hub import Hub
from sdhub.watching.dispatch import one_by_one
from sdhub.watching.orders import Outcome
from sdhub.watching.webhook import MAX_BODY, MOST_WAITING, Change, Deliveries, Refused, Webhook, parse
from sdhub.workflow.options import Options
from tests.checkpoint.tiny import skeleton
from tests.hubs import running_hub
from tests.spaces.sources import space_module
from tests.test_watch import CARD, upload

SECRET = "correct horse battery staple"
SHA = "a" * 40


def event(repo="acme/model", sha=SHA, action="update", scope="repo.content", kind="model", **more):
    return {
        "event": {"action": action, "scope": scope},
        "repo": {"type": kind, "name": repo, "id": "1", "private": False, "headSha": sha},
        "webhook": {"id": "2", "version": 3},
        **more,
    }


class Hook:
    """The endpoint behind a client; `heads` is what the Hub says, `woken` how often there was news."""

    def __init__(self, folder):
        from starlette.testclient import TestClient

        self.heads = {"acme/model": SHA}
        self.woken = 0
        self.deliveries = Deliveries(folder / "deliveries.sqlite3")
        self.webhook = Webhook(SECRET, self.deliveries, self.head, self.wake)
        app = Starlette(routes=[Route("/webhook", self.webhook.__call__, methods=["POST"])])
        self.client = TestClient(app)

    def head(self, repository):
        found = self.heads.get(repository)
        if isinstance(found, Exception):
            raise found
        return found

    def wake(self):
        self.woken += 1

    def post(self, body, secret=SECRET):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = [secret] if isinstance(secret, str) else secret
        headers = [(b"X-Webhook-Secret", each.encode()) for each in given]
        return self.client.post("/webhook", content=raw, headers=headers).status_code


@pytest.fixture
def hook(tmp_path):
    return Hook(tmp_path)


@pytest.mark.parametrize("secret", ["", "short", "fifteen letters"])
def test_no_webhook_without_a_secret(secret, tmp_path):
    with pytest.raises(UsageError, match="secret of at least"):
        Webhook(secret, Deliveries(tmp_path / "d.sqlite3"), lambda _: None, lambda: None)


def test_a_change_is_taken(hook):
    assert hook.post(event()) == 202
    assert hook.deliveries.waiting() == [Change("acme/model", SHA)]
    assert hook.woken == 1


@pytest.mark.parametrize(
    "secret",
    [[], "", "wrong", SECRET + " ", SECRET.upper(), SECRET[:-1], [SECRET, SECRET], ["x", SECRET], "é" * 30],
)
def test_a_wrong_or_missing_secret_is_refused_before_the_body_is_read(secret, hook, caplog):
    with caplog.at_level(logging.DEBUG):
        assert hook.post(b"x" * (MAX_BODY + 1), secret) == 401
    assert SECRET not in caplog.text
    assert "wrong" not in caplog.text
    assert hook.deliveries.waiting() == []


def test_the_secret_is_compared_in_constant_time(hook, monkeypatch):
    """By `hmac.compare_digest`, on digests: neither content nor length shows."""
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("sdhub.watching.webhook.hmac.compare_digest", compare)
    hook.post(event(), "x")
    hook.post(event(), "x" * 500)
    hook.post(event(), [])
    assert compared == [(32, 32)] * 3


def test_a_replay_is_refused(hook):
    body = json.dumps(event()).encode()
    assert [hook.post(body) for _ in range(3)] == [202, 409, 409]


def test_an_old_delivery_in_new_words_is_refused(hook):
    hook.post(event())
    hook.heads["acme/model"] = "b" * 40
    assert hook.post(event(note="again")) == 409
    assert hook.post(event(sha="b" * 40)) == 202


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"event": 7, "repo": []}',
        json.dumps(event(repo="../../etc/passwd")).encode(),
        json.dumps(event(repo="a/b\nc")).encode(),
        json.dumps(event(repo=7)).encode(),
        json.dumps(event(sha="main")).encode(),
        json.dumps(event(sha=None)).encode(),
    ],
)
def test_garbage_is_refused(body, hook):
    assert hook.post(body) == 400
    assert hook.deliveries.waiting() == []


def test_a_body_that_is_too_large_is_refused(hook):
    assert hook.post(json.dumps(event(note="x" * MAX_BODY)).encode()) == 413


@pytest.mark.parametrize(
    "body",
    [
        event(kind="dataset"),
        event(kind="space"),
        event(action="delete", scope="repo"),
        event(scope="discussion"),
        event(updatedRefs=[{"ref": "refs/pr/3", "newSha": SHA}]),
    ],
)
def test_other_events_are_of_no_interest(body, hook):
    assert hook.post(body) == 200
    assert hook.woken == 0


def test_a_hub_that_is_away_is_asked_again_later(hook):
    hook.heads["acme/model"] = HubError("away")
    assert hook.post(event()) == 503
    hook.heads["acme/model"] = SHA
    assert hook.post(event()) == 202


def test_no_more_wait_than_fit(hook):
    for number in range(MOST_WAITING):
        hook.deliveries.note(Change(f"acme/model-{number}", SHA))
    assert hook.post(event()) == 503


def test_updated_refs_of_main_count():
    assert parse(json.dumps(event(updatedRefs=[{"ref": "refs/heads/main"}])).encode()) == Change("acme/model", SHA)


def test_two_hundred_deliveries_of_one_event_are_one_publish(tmp_path, monkeypatch):
    """Half of them byte for byte, half in other words; the worker of the Space works against an embedded Hub."""
    hooks = space_module("publisher", "hooks")
    done = []

    def dispatch(orders):
        def act(order):
            done.append(order)
            return [Outcome("done")] * len(order.tasks)

        return one_by_one(orders, act)

    with running_hub(tmp_path / "hub") as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "local")
        sha = upload(url, "acme/model", skeleton(tmp_path / "sd"), card=CARD)
        options = Options(namespace="made", variants=("openvino-int8",))
        hook = Hook(tmp_path)
        worker = hooks.Worker(options, Hub(url, "local"), tmp_path, hook.deliveries, dispatch)
        hook.webhook = Webhook(SECRET, hook.deliveries, worker.head, worker.wake)
        bodies = [json.dumps(event(sha=sha, note=number % 101)).encode() for number in range(200)]

        def deliver(body):
            try:
                return hook.webhook.deliver(body)[0]
            except Refused as refused:
                return refused.status

        with ThreadPoolExecutor(50) as pool:
            statuses = list(pool.map(deliver, bodies))
        worker.round()
        worker.round()
    assert statuses.count(202) == 101
    assert statuses.count(409) == 99
    (order,) = done
    assert (order.repository, order.sha, order.variants) == ("acme/model", sha, ("openvino-int8",))
