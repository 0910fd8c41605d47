"""Watching: new and changed checkpoints are found, and each is done once, whatever happens in between."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sdhub.core.errors import HubError, UsageError
from sdhub.core.hub import Hub
from sdhub.elsewhere.engine import Engine
from sdhub.elsewhere.publish import plan_jobs
from sdhub.watching.command import publish_arguments, words_of
from sdhub.watching.dispatch import one_by_one
from sdhub.watching.github import Events, Matrix
from sdhub.watching.jobs import Jobs
from sdhub.watching.orders import Order, Outcome, Task
from sdhub.watching.published import is_published
from sdhub.watching.query import Query, listed, parse_since
from sdhub.watching.state import ATTEMPTS, State
from sdhub.watching.watch import Watcher
from sdhub.workflow.many import PublishRequest
from sdhub.workflow.options import Options
from tests.checkpoint.tiny import skeleton
from tests.guides import calls
from tests.hubs import running_hub
from tests.runs import environment, sdhub, sdhub_json

SOURCES = 50
CARD = "---\nlicense: mit\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub") / "data", "--jobs") as url:
        yield url


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """True structure, zeros for weights: what headers tell is all that a look needs."""
    folder = skeleton(tmp_path_factory.mktemp("checkpoint") / "sd")
    (folder / "README.md").write_text(CARD)
    return folder


def api(hub):
    from huggingface_hub import HfApi

    return HfApi(hub, token="local")


def upload(hub, repo, folder, card=CARD):
    """A model, sent without large files so that it is one request."""
    client = api(hub)
    client.create_repo(repo, exist_ok=True)
    from huggingface_hub import CommitOperationAdd

    files = [path for path in folder.rglob("*") if path.is_file()]
    operations = [CommitOperationAdd(str(path.relative_to(folder)), path.read_bytes()) for path in files]
    operations = [each for each in operations if each.path_in_repo != "README.md"]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    return client.create_commit(repo, operations, commit_message="new").oid


def task(number=0, **changes):
    given = {
        "repository": f"org/model-{number}",
        "sha": f"{number:040x}",
        "recipe": "r" * 64,
        "variant": "openvino-int8",
        "backend": "openvino",
        "target": f"me/model-{number}",
    }
    return Task(**{**given, **changes})


@pytest.fixture
def state(tmp_path):
    with State(tmp_path / "state.sqlite3") as opened:
        yield opened


# The state.


def test_a_task_is_claimed_once_by_however_many_threads(state):
    for number in range(40):
        state.add(f"org/model-{number}", "sha", "wanted", [task(number)])
    claimed, guard = [], threading.Lock()

    def work():
        while order := state.claim():
            with guard:
                claimed.append(order.repository)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(f"org/model-{number}" for number in range(40))


def test_the_same_repository_sha_and_recipe_is_never_a_new_task(state):
    assert state.add("org/model-0", "sha", "wanted", [task()]) == [task()]
    order = state.claim()
    state.settle(order.tasks[0], Outcome("done", "there"))
    assert state.add("org/model-0", "sha", "other", [task()]) == []
    assert state.claim() is None
    assert len(state.add("org/model-0", "sha", "wanted", [task(sha="f" * 40)])) == 1
    assert len(state.add("org/model-0", "sha", "wanted", [task(recipe="s" * 64)])) == 1
    assert state.counts() == {"done": 1, "pending": 2}


def test_what_a_killed_process_had_begun_is_begun_again_and_not_for_ever(state):
    state.add("org/model-0", "sha", "wanted", [task()])
    for _ in range(ATTEMPTS):
        assert state.claim() is not None
        assert state.claim() is None
        state.recover()
    assert state.claim() is None
    assert state.counts() == {"failed": 1}
    state.recover()
    assert state.claim() is None


def test_orders_hold_the_variants_of_one_source_and_backend(state):
    tasks = [
        task(),
        task(recipe="s" * 64, variant="openvino-fp16"),
        task(recipe="t" * 64, backend="coreml", variant="coreml-6bit"),
        task(1),
    ]
    state.add("org/model-0", "sha", "wanted", tasks)
    orders = [state.claim() for _ in range(4)]
    assert [each and each.variants for each in orders] == [
        ("openvino-int8", "openvino-fp16"),
        ("coreml-6bit",),
        ("openvino-int8",),
        None,
    ]


def test_one_process_holds_a_state(state, tmp_path):
    with pytest.raises(UsageError, match="in use"):
        State(tmp_path / "state.sqlite3")


def test_a_file_that_is_no_state_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, and they are long enough to be no database header")
    with pytest.raises(UsageError, match="no state"):
        State(path)
    assert "my notes" in path.read_text()


# The query.


def test_the_whole_hub_is_refused():
    with pytest.raises(UsageError, match="too much"):
        Query()
    with pytest.raises(UsageError, match="too much"):
        Query(since=parse_since("7d"))


def test_moments_and_spans():
    assert parse_since("2026-11-01") == datetime(2026, 11, 1, tzinfo=timezone.utc)
    assert parse_since("2026-11-01T12:00:00Z").hour == 12
    for text, days in (("48h", 2), ("7d", 7), ("2w", 14)):
        assert abs(datetime.now(timezone.utc) - timedelta(days=days) - parse_since(text)).total_seconds() < 5
    for text in ("", "yesterday", "-3d", "3 d", "7y", "999999999999d"):
        with pytest.raises(UsageError):
            parse_since(text)


class Rows:
    """A list of models as a Hub gives it; `author`, `sort` and `expand` are kept to be looked at."""

    def __init__(self, rows):
        self.rows = rows
        self.asked = []

    def list_models(self, **asked):
        self.asked.append(asked)
        key = "likes" if asked["sort"] == "likes" else "last_modified"
        yield from sorted(self.rows, key=lambda row: getattr(row, key), reverse=True)


def rows():
    from types import SimpleNamespace

    start = datetime(2026, 11, 1, tzinfo=timezone.utc)
    return [
        SimpleNamespace(
            id=f"org/model-{number}",
            sha="a" * 40,
            likes=likes,
            last_modified=start + timedelta(days=number),
            tags=tags,
        )
        for number, (likes, tags) in enumerate([(5, []), (500, ["diffusers"]), (50, ["sdhub"]), (1000, [])])
    ]


@pytest.mark.parametrize(
    ("query", "after", "expected"),
    [
        (Query(("org",)), None, [0, 1, 3]),
        (Query(("org",), likes_over=500), None, [3]),
        (Query(likes_over=4), None, [0, 1, 3]),
        (Query(likes_over=4, since=datetime(2026, 11, 2, tzinfo=timezone.utc)), None, [1, 3]),
        (Query(("org",)), datetime(2026, 11, 2, 0, 30, tzinfo=timezone.utc), [1, 3]),
        (Query(("org",)), datetime(2026, 11, 4, 2, tzinfo=timezone.utc), []),
    ],
)
def test_what_is_listed(monkeypatch, query, after, expected):
    models = Rows(rows())
    monkeypatch.setattr(Hub, "api", models)
    found = listed(query, Hub("https://hub.example", None), after)
    assert [each.repository for each in found] == [f"org/model-{number}" for number in expected]


# Exactly once.


def test_fifty_sources_killed_at_random_moments_are_each_published_once(hub, checkpoint, tmp_path):
    for number in range(SOURCES):
        upload(hub, f"authors/model-{number:02}", checkpoint)
    moments = random.Random(5)
    state, kills = tmp_path / "state.sqlite3", 0
    command = [sys.executable, "-m", "tests.watcher", hub, str(state)]
    while kills < 8:
        process = subprocess.Popen(command, env=environment(tmp_path, hub), stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(timeout=1.5 + moments.uniform(0, 2.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, said
        break
    done = subprocess.run(command, env=environment(tmp_path, hub), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    client = api(hub)
    with State(state) as known:
        assert known.counts() == {"done": SOURCES}
    made = [each.id for each in client.list_models(author="variants")]
    assert len(made) == SOURCES
    for repo in made:
        commits = client.list_repo_commits(repo)
        assert len(commits) == 2, f"{repo}: {[each.title for each in commits]}"  # the first is the Hub's own
    assert kills >= 2


class Counting:
    """Notes which orders it was given."""

    def __init__(self, failures=0):
        self.orders = []
        self.failures = failures

    def __call__(self, orders):
        def act(order):
            self.orders.append(order)
            if len(self.orders) <= self.failures:
                raise HubError("the Hub is tired")
            return [Outcome("done")] * len(order.tasks)

        return one_by_one(orders, act)


def watcher(hub, state, dispatch, author, variants=("openvino-int8",)):
    endpoint = Hub(hub, "local")
    options = Options(namespace="made", variants=variants)
    return Watcher(Query((author,)), options, state, dispatch, source=endpoint, target=endpoint)


@pytest.fixture
def seen_through(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # sources come from the Hub that is watched
    monkeypatch.setenv("HF_TOKEN", "local")


def test_a_change_is_a_new_commit_and_done_again(hub, checkpoint, state, seen_through):
    first = upload(hub, "anna/model", checkpoint)
    dispatch = Counting()
    watching = watcher(hub, state, dispatch, "anna")
    watching.round()
    watching.round()
    second = upload(hub, "anna/model", checkpoint, card=CARD + "changed\n")
    watching.round()
    assert [order.sha for order in dispatch.orders] == [first, second]


def test_variants_that_a_source_cannot_have_are_left_away(hub, checkpoint, state, seen_through, tmp_path):
    upload(hub, "berta/model", checkpoint)
    upload(hub, "berta/words", _without_index(checkpoint, tmp_path / "words"))
    dispatch = Counting()
    watcher(hub, state, dispatch, "berta", ("openvino-int8", "openvino-fp16")).round()
    (order,) = dispatch.orders
    assert order.variants == ("openvino-int8", "openvino-fp16")
    (refused,) = state.refusals()
    assert refused["repository"] == "berta/words"


def _without_index(checkpoint, folder):
    import shutil

    shutil.copytree(checkpoint, folder)
    (folder / "model_index.json").unlink()
    return folder


def test_what_failed_is_tried_again_in_the_next_round(hub, checkpoint, state, seen_through):
    upload(hub, "clara/model", checkpoint)
    dispatch = Counting(failures=2)
    watching = watcher(hub, state, dispatch, "clara")
    for counts in ({"failed": 1}, {"failed": 1}, {"done": 1}, {"done": 1}):
        watching.round()
        assert state.counts() == counts
    assert len(dispatch.orders) == 3


def test_a_lost_state_does_not_publish_again(hub, checkpoint, tmp_path, seen_through):
    from tests.watcher import Small

    upload(hub, "dora/model", checkpoint)
    small = Small(Hub(hub, "local"))
    dispatch = Counting()
    with State(tmp_path / "one.sqlite3") as first:
        watcher(hub, first, small, "dora").round()
        (made,) = first.tasks()
    with State(tmp_path / "two.sqlite3") as second:
        watcher(hub, second, dispatch, "dora").round()
        assert second.counts() == {"done": 1}
    assert dispatch.orders == []
    fields = {name: made[name] for name in ("repository", "sha", "recipe", "variant", "backend", "target")}
    assert is_published(Task(**fields), Hub(hub, "local"))
    assert not is_published(Task(**{**fields, "sha": "0" * 40}), Hub(hub, "local"))
    assert not is_published(Task(**{**fields, "target": "made/nothing"}), Hub(hub, "local"))


def test_a_hub_that_is_away_is_waited_for(state):
    endpoint = Hub("http://127.0.0.1:9", None)
    stop = threading.Event()
    notes = []

    class Notes:
        def note(self, text):
            notes.append(text)
            stop.set()

    watching = watcher(endpoint.url, state, Counting(), "anna")
    watching.progress = Notes()
    import sdhub.core.retry as retry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry.time, "sleep", lambda _: None)
        watching.watch(stop, interval=0)
    assert any("next look" in note or "retrying" in note for note in notes)


# Sending.


def test_a_matrix_for_the_running_workflow(tmp_path):
    output = tmp_path / "output"
    output.write_text("before=1\n")
    orders = [Order((task(number), task(number, recipe="s" * 64, variant="openvino-fp16"))) for number in range(2)]
    sent = list(Matrix(output)(iter(orders)))
    assert [outcomes[0].status for _, outcomes in sent] == ["dispatched"] * 2
    lines = dict(line.split("=", 1) for line in output.read_text().splitlines())
    assert lines["count"] == "2"
    include = json.loads(lines["matrix"])["include"]
    assert include[0] == {
        "source": f"org/model-0@{0:040x}",
        "backend": "openvino",
        "variants": "openvino-int8 openvino-fp16",
        "key": orders[0].key,
    }


def test_a_matrix_of_nothing(tmp_path):
    assert list(Matrix(tmp_path / "output")(iter(()))) == []
    assert (tmp_path / "output").read_text() == 'matrix={"include":[]}\ncount=0\n'


class Stub:
    """A small HTTP server: the dispatches of GitHub."""

    def __init__(self):
        self.events: list[tuple[str, dict[str, Any], str]] = []
        events = self.events

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                events.append((self.path, body, self.headers["Authorization"]))
                self.send_response(204 if "fine" in self.path else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stub():
    made = Stub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize(
    ("shells", "statuses"),
    [
        (["true"], ["dispatched", "done"]),
        (["exit 1", "exit 137", "true"], ["dispatched"] * 3 + ["done"]),
        (["exit 1"] * ATTEMPTS, ["dispatched"] * ATTEMPTS + ["failed"]),
        (["exit 3"], ["dispatched", "refused"]),
    ],
)
def test_jobs_are_sent_and_looked_after(shells, statuses, hub, checkpoint, state, monkeypatch):
    """A job for each variant; one that fails is a failed try, one that is refused is not tried again."""
    author = f"{len(shells)}-jobs-{statuses[-1]}"
    sha = upload(hub, f"{author}/model", checkpoint)
    left = iter(shells)
    monkeypatch.setattr("sdhub.elsewhere.request.Request.command", property(lambda _: ["sh", "-c", next(left)]))
    at = Hub(hub, "hf_a-secret-token")
    engine = Engine(at, author)
    options = Options(namespace=author, variants=("openvino-int8",), private=True)
    watcher = Watcher(Query((author,)), options, state, Jobs(options, engine), source=at, target=at)
    seen = []
    for _ in statuses:
        watcher.round()
        (task,) = state.tasks()
        seen.append(task["status"])
        for job in engine.jobs():
            at.api.wait_for_job(job.id, namespace=author, poll_interval=0.05)
    assert seen == statuses
    jobs = engine.jobs()
    assert len(jobs) == len(shells) == task["attempts"]
    assert len({job.labels["sdhub"] for job in jobs}) == 1
    assert all(job.labels["sdhub-sha"] == sha and job.docker_image.endswith("bookworm") for job in jobs)
    watcher.round()
    assert len(engine.jobs()) == len(shells)


def test_a_job_publishes_what_the_watcher_wants(hub, checkpoint, monkeypatch):
    sha = upload(hub, "wanted/model", checkpoint)
    order = Order((task(repository="wanted/model", sha=sha, target="wanted/model-openvino-int8"),))
    options = Options(namespace="wanted", private=True, create_pr=True, license="mit")
    (made,) = plan_jobs(
        Engine(Hub(hub, "t"), "wanted"),
        PublishRequest(order.source, replace(options, variants=order.variants)),
        words_of(options),
    )
    wanted = f"publish wanted/model@{sha} --license mit --private --create-pr --variant openvino-int8 --to wanted"
    assert " ".join(made.request.words) == f"{wanted} --yes --json"
    assert set(publish_arguments(order, options)) == set(made.request.words)


def test_events_for_github(stub):
    order = Order((task(),))
    ((_, (outcome,)),) = Events("me/fine", "ghs_secret", stub.url)(iter([order]))
    assert outcome.status == "dispatched"
    ((path, body, authorization),) = stub.events
    assert path == "/repos/me/fine/dispatches"
    assert body["event_type"] == "sdhub-publish"
    assert body["client_payload"]["key"] == order.key
    assert authorization == "Bearer ghs_secret"
    ((_, (outcome,)),) = Events("me/gone", "ghs_secret", stub.url)(iter([order]))
    assert outcome.status == "failed"
    assert "404" in outcome.detail
    assert "ghs_secret" not in outcome.detail


# The program.


def test_the_program(hub, tmp_path):
    """One real source with a real variant; then nothing more to do; then what it knows."""
    from sdhub.demo import emoji_sd

    client = api(hub)
    client.create_repo("emil/emoji")
    client.upload_folder(repo_id="emil/emoji", folder_path=emoji_sd(), ignore_patterns=["README.md"])
    card = CARD.replace(
        "---\n", "---\nwidget:\n- text: pizza\ninference:\n  parameters:\n    num_inference_steps: 2\n", 1
    )
    client.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="emil/emoji")
    command = ["watch", "--author", "emil", "--variant", "openvino-int8", "--to", "emil", "--hub", hub, "--once"]
    for _ in range(2):
        done = sdhub_json(*command, home=tmp_path)  # without HF_ENDPOINT: --hub is what is watched, too
        assert done["counts"] == {"done": 1}
        (made,) = done["tasks"]
        assert made["target"] == "emil/emoji-openvino-int8"
        assert made["attempts"] == 1
    assert len(client.list_repo_commits("emil/emoji-openvino-int8")) == 2
    assert "emil/emoji-openvino-int8" in sdhub("watch", "--show", home=tmp_path).stdout


@pytest.mark.parametrize("words", calls("watching.md"), ids=" ".join)
def test_the_commands_of_the_guide(words, hub, tmp_path, monkeypatch):
    """Of authors and tags that have nothing: each looks, and ends."""
    monkeypatch.setenv("GITHUB_TOKEN", "not-needed")
    monkeypatch.delenv("GITHUB_OUTPUT", raising=False)
    where = [] if "--show" in words else ["--hub", hub]
    if "--once" in words or "--show" in words:
        assert "Nothing was found yet" in sdhub(*words, *where, home=tmp_path, endpoint=hub).stdout
        return
    command = [sys.executable, "-m", "sdhub", *words, *where]
    running = subprocess.Popen(command, env=environment(tmp_path, hub), stderr=subprocess.PIPE, text=True)
    assert "Watching" in running.stderr.readline()
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_calls_that_are_wrong(hub, tmp_path):
    assert "too much" in sdhub("watch", "--once", "--hub", hub, home=tmp_path, code=2).stderr
    assert (
        "no moment"
        in sdhub("watch", "--author", "a", "--since", "soon", "--hub", hub, home=tmp_path, code=2).stderr
    )
    wrong = sdhub("watch", "--author", "a", "--dispatch", "github", "--once", "--hub", hub, home=tmp_path, code=2)
    assert "no repository on GitHub" in wrong.stderr
