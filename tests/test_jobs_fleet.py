"""A thousand sources as HF Jobs: with failures, retries, lost answers and rate limits, each is published once.

The server, its jobs API and the clients are the real ones; the job itself is a stand-in that ends at once and says
how long it ran.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import uvicorn
from starlette.responses import JSONResponse

from sdhub.checkpoint.resolve import inspect
from sdhub.core.hub import Hub
from sdhub.elsewhere.engine import Engine
from sdhub.elsewhere.hardware import Need, flavors
from sdhub.elsewhere.ledger import ledger
from sdhub.elsewhere.publish import PlannedJob, request_of
from sdhub.hub.app import make_app
from sdhub.hub.hub import open_hub
from sdhub.hub.server import address, listen
from sdhub.hub.store import jobs as store
from sdhub.hub.users import Users
from sdhub.watching.jobs import Jobs
from sdhub.watching.orders import Task
from sdhub.watching.state import ATTEMPTS, State
from sdhub.watching.watch import carry_out, look_back
from sdhub.workflow.many import PublishRequest
from sdhub.workflow.options import Options
from sdhub.workflow.plan import plan

SOURCES = 1000
EARLY, LATE, LIMITED, LOST = 0.06, 0.04, 0.03, 0.02  # shares of jobs that fail, and of requests
KEYS = "sdhub-source"


class Standins:
    """Runs jobs: some fail before they publish, some after, and none publishes what is there already."""

    def __init__(self, hub, forecast):
        self._hub, self._forecast = hub, forecast
        self._pool = ThreadPoolExecutor(4)
        self._guard = threading.Lock()
        self._random = random.Random(1)
        self.published: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()
        self.most = 0
        self.wasted = 0.0

    def submit(self, job, secrets):
        assert secrets == {"HF_TOKEN": "token"}
        self._pool.submit(self._run, job)

    def cancel(self, job):
        with self._hub.database.write() as connection:
            store.end(connection, job, "CANCELED")

    def _run(self, job):
        name = job.labels[KEYS]
        with self._guard:
            self.runs[name] += 1
            self.alive[name] += 1
            self.most = max(self.most, self.alive[name])
            luck, length = self._random.random(), self._random.lognormvariate(0, 0.2)
            if self.runs[name] >= ATTEMPTS:  # what fails at each try is given up: another test's matter
                luck = 1.0
        minutes = self._forecast[name] * length * (0.3 if luck < EARLY else 1.0)
        failed = luck < EARLY + LATE
        with self._hub.database.write() as connection:
            store.begin(connection, job)
        with self._guard:
            if luck >= EARLY and not self.published[name]:
                self.published[name] += 1
            self.alive[name] -= 1
            self.wasted += minutes * failed
        ran = timedelta(minutes=minutes)
        with self._hub.database.write() as connection:
            store.end(
                connection, job, *(("ERROR", "Job failed with exit code: 1") if failed else ("COMPLETED", ""))
            )
            (began,) = connection.execute("SELECT started_at FROM job WHERE id = ?", (job.id,)).fetchone()
            moment = (datetime.fromisoformat(began.replace("Z", "+00:00")) + ran).isoformat(
                timespec="milliseconds"
            )
            connection.execute(
                "UPDATE job SET finished_at = ? WHERE id = ?", (moment.replace("+00:00", "Z"), job.id)
            )

    def wait(self):
        self._pool.shutdown(wait=True)
        self._pool = ThreadPoolExecutor(4)


class Rough:
    """In front of a Hub: some requests are too many, and some answers are lost after the work is done."""

    def __init__(self, app):
        self._app, self._random = app, random.Random(2)
        self.limited = self.lost = 0

    async def __call__(self, scope, receive, send):
        luck = self._random.random()
        if scope["path"].startswith("/api/") and luck < LIMITED:
            self.limited += 1
            answer = JSONResponse({"error": "Too many requests"}, 429, {"Retry-After": "1"})
            await answer(scope, receive, send)
        elif scope["method"] == "POST" and luck < LIMITED + LOST:
            self.lost += 1

            async def swallow(message):
                pass

            await self._app(scope, receive, swallow)
            await JSONResponse({"error": "Bad gateway"}, 502)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


@pytest.fixture
def server(tmp_path):
    """(address, what runs jobs, what is in front, forecast minutes by source)."""
    draw = random.Random(3)
    forecast = {f"org--model-{number}": round(draw.uniform(2, 40), 1) for number in range(SOURCES)}
    hub = open_hub(tmp_path / "root", Users(), loopback=True)
    standins = Standins(hub, forecast)
    front = Rough(make_app(replace(hub, jobs=standins)))
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(front, log_config=None, lifespan="off", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield address("127.0.0.1", listener), standins, front, forecast
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture
def planned(monkeypatch, server):
    """`plan_jobs` without a look at each source: the built-in checkpoint stands for all."""
    checkpoint = inspect("demo")
    (variant,) = plan(checkpoint, "sdnq-int8").variants
    forecast = server[3]

    def plan_jobs(engine, order, words=(), files=None):
        name = order.source.partition("@")[0]
        request = request_of(
            checkpoint,
            ["publish", order.source, *words, "--to", engine.namespace],
            recipe=variant.recipe.sha256,
            extra="sdnq",
            minutes=forecast[name.replace("/", "--")],
            need=Need(variant.forecast.peak_bytes, variant.forecast.bytes),
            variant=variant.name,
        )
        request = replace(request, labels={**request.labels, "source": name})
        found = replace(variant, repo_id=f"me/{name.partition('/')[2]}-sdnq-int8")
        asked = PublishRequest(order.source, order.options, dry_run=True)  # nothing is really published
        return [PlannedJob(asked, None, found, request, engine.price(request))]

    monkeypatch.setattr("sdhub.watching.jobs.plan_jobs", plan_jobs)
    monkeypatch.setattr("sdhub.watching.watch.is_published", lambda task, _: False)
    monkeypatch.setattr("sdhub.core.retry.time.sleep", lambda _: None)
    return variant


def test_a_thousand_sources_are_published_once_each(server, planned, tmp_path, record_property):
    url, standins, front, forecast = server
    hub = Hub(url, "token")
    engine = Engine(hub, "me")
    tasks = [
        Task(f"org/model-{number}", f"{number:040x}", planned.recipe.sha256, planned.name, "sdnq", f"me/{number}")
        for number in range(SOURCES)
    ]
    rounds = 0
    with State(tmp_path / "state.sqlite3") as state:
        for task in tasks:
            state.add(task.repository, task.sha, "wanted", [task])
        while state.counts() != {"done": SOURCES}:
            rounds += 1
            assert rounds < 10, state.counts()
            dispatch = Jobs(Options(namespace="me"), engine)
            look_back(state, dispatch)
            state.recover()
            carry_out(state, dispatch, hub)
            standins.wait()
            look_back(state, dispatch)
    assert set(standins.published.values()) == {1} and len(standins.published) == SOURCES
    assert standins.most == 1  # never two jobs of one source at a time
    assert front.limited > 50 and front.lost > 10
    assert 1.05 * SOURCES < sum(standins.runs.values()) < 1.2 * SOURCES

    entries = ledger(engine.jobs(), flavors(hub))
    assert len(entries) == sum(standins.runs.values())
    asked = sum(forecast.values()) * engine._known[0].price
    counted = sum(each.dollars for each in entries)
    wasted = standins.wasted * engine._known[0].price
    record_property("dollars", {"forecast": asked, "counted": counted, "for failures": wasted})
    assert counted - wasted == pytest.approx(asked, rel=0.05)
    assert 0 < wasted < 0.1 * asked
    assert sum(each.forecast_dollars for each in entries) > asked  # each try was forecast
