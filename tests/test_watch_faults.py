"""One bad source stops nothing: whatever it raises, and wherever, is its outcome, and the others go on."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from sdhub.core.errors import HubError, SdhubError, UsageError
from sdhub.core.hub import Hub
from sdhub.watching import look, query, state
from sdhub.watching.local import Local
from sdhub.watching.orders import Outcome, Task
from sdhub.watching.query import Found, Query
from sdhub.watching.state import ATTEMPTS, LOOKS, State
from sdhub.watching.watch import Watcher
from sdhub.watching.webhook import Change, Deliveries
from sdhub.workflow.options import Options
from sdhub.workflow.run import Run
from sdhub.workflow.stages import VariantStages
from tests.runs import sdhub
from tests.spaces.sources import space_module

HUB = Hub("http://127.0.0.1:9", "token")
BAD = "org/model-1"
SOURCES = ["org/model-0", BAD, "org/model-2"]


class Panic(BaseException):
    """As libraries in Rust raise it."""


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no words")


ERRORS = [
    SdhubError("no"),
    HubError("no"),
    KeyError("siblings"),
    RecursionError("deep"),
    MemoryError(),
    OSError(5, "Input/output error"),
    Unspeakable(),
    Panic("index out of bounds"),
]


def task(repository):
    fields = {
        "recipe": "r" * 64,
        "variant": "openvino-int8",
        "backend": "openvino",
        "target": f"me/{repository[4:]}",
    }
    return Task(repository=repository, sha="a" * 40, **fields)


class Faulty:
    """A watcher over three sources, of which one raises `error` at `stage`; the work itself is left away."""

    def __init__(self, monkeypatch, known, stage, error, tmp_path):
        self.error, self.stage, self.tries = error, stage, 0
        self.state = known
        found = [Found(each, "a" * 40, datetime.now(timezone.utc)) for each in SOURCES]
        monkeypatch.setattr("sdhub.watching.watch.listed", lambda *_: found)
        monkeypatch.setattr("sdhub.watching.watch.is_published", self.at("published", lambda task, _: False))
        self.patch(
            monkeypatch, look, "resolve", "inspect", lambda source, hub: SimpleNamespace(id=source, sha="a" * 40)
        )
        self.patch(monkeypatch, look, "make_plan", "plan", self.plan)
        monkeypatch.setattr(State, "add", self.at("note", State.add, position=1))
        monkeypatch.setattr(State, "settle", self.at("settle", State.settle, position=1))
        monkeypatch.setattr("sdhub.watching.local.resolve", lambda source, hub: SimpleNamespace(id=source))
        monkeypatch.setattr("sdhub.watching.local.publish", self.publish)
        for place, name in ((VariantStages, "build"), (VariantStages, "evidence")):
            monkeypatch.setattr(place, name, self.at(name, lambda _: tmp_path, always=True))
        monkeypatch.setattr("sdhub.workflow.run.vet_target", lambda *_, **__: None)
        monkeypatch.setattr(Run, "_repository", lambda *_: tmp_path)
        monkeypatch.setattr("sdhub.workflow.run._packages", lambda _: ())
        monkeypatch.setattr("sdhub.workflow.run._hashes", lambda _: {})
        monkeypatch.setattr("sdhub.workflow.run.regular_files", lambda _: {})
        monkeypatch.setattr(Run, "_push", self.at("push", self.pushed, always=True))
        monkeypatch.setattr(Run, "_check", self.at("check", lambda *_: None, always=True))
        monkeypatch.setattr(Run, "_others", lambda _: [])
        monkeypatch.setattr(Run, "_tie", self.at("tie", lambda *_: None, always=True))
        (tmp_path / "evidence.json").write_text("{}")
        options = Options(namespace="me", variants=("openvino-int8",))
        local = Local(options, HUB, HUB.url)
        self.watcher = Watcher(Query(("org",)), options, known, local, source=HUB, target=HUB)

    def at(self, stage, act, *, position=0, always=False):
        def acting(*given, **named):
            name = str(getattr(given[position], "repository", given[position]) if given else "")
            if stage == self.stage and (always or BAD in name):
                self.tries += 1
                raise self.error
            return act(*given, **named)

        return acting

    def patch(self, monkeypatch, place, name, stage, act):
        def first(given, *more, **named):
            if stage == self.stage and BAD in str(getattr(given, "id", given)):
                self.tries += 1
                raise self.error
            return act(given, *more, **named)

        monkeypatch.setattr(place, name, first)

    def plan(self, checkpoint, *_, **__):
        made = task(checkpoint.id.partition("@")[0])
        planned = SimpleNamespace(
            recipe=SimpleNamespace(sha256=made.recipe),
            name=made.variant,
            backend=SimpleNamespace(name=made.backend),
            repo_id=made.target,
        )
        return SimpleNamespace(variants=[planned])

    def pushed(self, run, planned, folder):
        """A commit is checked before its branch moves."""
        run._check(planned, folder, "c")
        return SimpleNamespace(
            status="published", url="u", commit="c", pull_request_url=None, uploaded_bytes=0, changes={}
        )

    def publish(self, checkpoint, **_):
        """The real run for the bad source, with stages that do nothing but raise; a report for the others."""
        from sdhub.workflow.report import Published

        if BAD not in checkpoint.id:
            done = Published("openvino-int8", "me/x", "r" * 64, status="published", url="there")
            return SimpleNamespace(variants=[done])
        planned = SimpleNamespace(
            name="openvino-int8",
            repo_id="me/x",
            branch="main",
            recipe=SimpleNamespace(sha256="r" * 64, components={}, name="x"),
            backend=SimpleNamespace(versions=dict, name="openvino", revision=1, runtime_devices=()),
        )
        base = SimpleNamespace(
            checkpoint=SimpleNamespace(id=BAD, sha="a" * 40),
            identity="i",
            sampling=SimpleNamespace(document=dict),
            progress=None,
            device="cpu",
            runtime_device=None,
        )
        adjustment = SimpleNamespace(min_psnr=None)
        job = SimpleNamespace(
            plan=SimpleNamespace(variants=[planned], peak_bytes=lambda _: 0),
            hub=HUB,
            namespace="me",
            private=False,
            dry_run=False,
            license=None,
            options=SimpleNamespace(adjustment=adjustment),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sdhub.workflow.run.mixed.is_open", lambda _: False)
            patch.setattr("sdhub.workflow.run.figures_of", lambda _: {})
            return Run(job, base).report()


@pytest.fixture
def known(tmp_path):
    with State(tmp_path / "state.sqlite3") as opened:
        yield opened


LOOKED = ["inspect", "plan", "note"]
DONE = ["build", "evidence", "push", "check", "tie"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", [*LOOKED, "published", *DONE, "settle"])
def test_a_source_that_raises_is_noted_and_given_up_and_the_others_are_done(
    stage, error, monkeypatch, known, tmp_path
):
    faulty = Faulty(monkeypatch, known, stage, error, tmp_path)
    for _ in range(LOOKS + 4):
        faulty.watcher.round()
    status = {each["repository"]: each["status"] for each in known.tasks()}
    assert status["org/model-0"] == status["org/model-2"] == "done"
    if stage in LOOKED:
        assert faulty.tries == LOOKS
        (refused,) = known.refusals()
        assert refused["repository"] == BAD
        assert "given up after" in refused["reason"]
        assert type(error).__name__ in refused["reason"] or "no" in refused["reason"]
    elif stage in DONE:
        assert faulty.tries == ATTEMPTS
        assert status[BAD] == "failed"
        assert known.tasks()[1]["detail"]
    elif stage == "published":
        assert status[BAD] == "done"  # nobody knows whether it is there: it is done
    else:
        assert faulty.tries == ATTEMPTS
        assert status[BAD] == "failed"


@pytest.mark.parametrize("stage", ["inspect", "build", "settle"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=lambda error: type(error).__name__)
def test_what_ends_the_program_ends_it(stage, error, monkeypatch, known, tmp_path):
    faulty = Faulty(monkeypatch, known, stage, error, tmp_path)
    with pytest.raises(type(error)):
        faulty.watcher.round()


def test_waits_grow(monkeypatch, known, tmp_path):
    """As the loop and the webhook try: after 10 minutes, 20, 40, … for looks and tasks alike."""

    def later(seconds):
        moment = datetime.now(timezone.utc) - timedelta(seconds=seconds)
        with known._write() as connection:
            for table in ("task", "trouble"):
                connection.execute(f"UPDATE {table} SET changed_at = ?", (moment.isoformat(timespec="seconds"),))

    for stage, tries in (("inspect", LOOKS), ("build", ATTEMPTS)):
        with pytest.MonkeyPatch.context() as patch:
            faulty = Faulty(patch, known, stage, KeyError("x"), tmp_path)
            faulty.watcher.round(at_once=False)
            assert faulty.tries == 1
            for number in range(1, tries):
                later(state.FIRST_WAIT * 2 ** (number - 1) - 5)
                faulty.watcher.round(at_once=False)
                assert faulty.tries == number
                later(state.FIRST_WAIT * 2 ** (number - 1))
                faulty.watcher.round(at_once=False)
                assert faulty.tries == number + 1
            later(10**7)
            faulty.watcher.round(at_once=False)
            assert faulty.tries == tries
        with known._write() as connection:
            for table in ("source", "task", "trouble"):
                connection.execute(f"DELETE FROM {table}")


def test_three_bad_sources_in_a_row_do_not_hold_the_rest_for_ever(monkeypatch, known):
    found = [Found(f"org/model-{number}", "a" * 40, datetime.now(timezone.utc)) for number in range(7)]
    good = found[-1].repository

    def tasks(repository, *_):
        if repository != good:
            raise HubError("an odd answer")
        return [task(repository)]

    monkeypatch.setattr(look, "tasks_of", tasks)
    looker = look.Looker(Options(namespace="me"), known, HUB)
    assert not looker.look(found, at_once=False)
    for _ in range(2):
        looker.look(found, at_once=False)  # those that failed wait, and the others have their turn
    assert [each["repository"] for each in known.tasks()] == [good]


def test_an_odd_row_or_list_is_told(monkeypatch, known):
    now = datetime.now(timezone.utc)
    rows = [
        SimpleNamespace(id="org/a", sha="a" * 40, likes=None, last_modified="yesterday", tags=[]),
        SimpleNamespace(id="org/b", sha="a" * 40, likes=1, tags=[]),
        SimpleNamespace(id="org/c", sha="a" * 40, likes=1, last_modified=now, tags=7),
        SimpleNamespace(id="org/d", sha="a" * 40, likes=1, last_modified=now, tags=None),
    ]
    monkeypatch.setattr(Hub, "api", SimpleNamespace(list_models=lambda **_: rows))
    assert [each.repository for each in query.listed(Query(("org",)), HUB, None)] == ["org/d"]

    def broken(**_):
        raise KeyError("id")

    monkeypatch.setattr(Hub, "api", SimpleNamespace(list_models=broken))
    watcher = Watcher(Query(("org",)), Options(namespace="me"), known, iter, source=HUB, target=HUB)
    with pytest.raises(HubError, match=r"cannot be read \(KeyError"):
        watcher.round()


def test_the_worker_of_the_space_goes_on(monkeypatch, tmp_path):
    hooks = space_module("publisher", "hooks")
    deliveries = Deliveries(tmp_path / "deliveries.sqlite3")
    for repository in SOURCES:
        deliveries.note(Change(repository, "a" * 40))

    def tasks(repository, *_):
        if repository == BAD:
            raise RecursionError("deep")
        return [task(repository)]

    def dispatch(orders):
        for order in orders:
            yield order, [Outcome("done")]

    monkeypatch.setattr(look, "tasks_of", tasks)
    monkeypatch.setattr("sdhub.watching.watch.is_published", lambda *_: False)
    worker = hooks.Worker(Options(namespace="me"), HUB, tmp_path, deliveries, dispatch)
    worker.round()
    assert worker._state.counts() == {"done": 2}
    assert [each.repository for each in deliveries.waiting()] == [BAD]
    for _ in range(LOOKS):
        with worker._state._write() as connection:
            connection.execute("UPDATE trouble SET changed_at = '2026-01-01T00:00:00+00:00'")
        worker.round()
    assert deliveries.waiting() == []
    (refused,) = worker._state.refusals()
    assert refused["repository"] == BAD
    monkeypatch.setattr(worker._state, "recover", lambda **_: 1 / 0)
    worker.round()  # told in the log


# A damaged state.


def filled(path):
    with State(path) as known:
        for number in range(200):
            known.add(f"org/model-{number}", "a" * 40, "wanted", [task(f"org/model-{number}")])
        known.set_mark("query", datetime.now(timezone.utc))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def changed(statement):
    def damage(path):
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()

    return damage


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scrambled(path):
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x5a" * (len(raw) - 4096)
    path.write_bytes(raw)


def huge(path):
    with path.open("r+b") as stream:
        stream.truncate(2**40)


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        scrambled,
        huge,
        changed("UPDATE mark SET moment = 'some day'"),
        changed("UPDATE mark SET moment = '2026-11-01'"),
        changed("UPDATE task SET attempts = 'many' WHERE number = 7"),
        changed("UPDATE task SET repository = x'00ff' WHERE number = 7"),
        changed("UPDATE task SET status = 'sideways' WHERE number = 7"),
        changed("ALTER TABLE task RENAME COLUMN recipe TO receipt"),
    ],
)
def test_a_damaged_state_is_set_aside_and_told(damage, tmp_path):
    path = tmp_path / "state.sqlite3"
    filled(path)
    damage(path)
    with State(path) as known:
        assert known.set_aside == tmp_path / "state.sqlite3.damaged"
        assert known.set_aside.is_file()
        assert known.tasks() == []
    with State(path) as known:
        assert known.set_aside is None


def test_the_program_tells_of_a_damaged_state(tmp_path):
    path = tmp_path / "state.sqlite3"
    filled(path)
    truncated(path)
    shown = sdhub("watch", "--show", "--state", str(path), home=tmp_path)
    assert "was damaged: set aside as state.sqlite3.damaged" in shown.stderr
    assert "Nothing was found yet" in shown.stdout


def test_files_of_others_are_refused_and_left_alone(tmp_path):
    other = tmp_path / "other.sqlite3"
    changed("CREATE TABLE bookmark (title TEXT)")(other)
    words = tmp_path / "state.json"
    words.write_text(json.dumps({"tasks": [1, 2, 3], "marks": {"a": "b"}}) * 20)
    for path in (other, words):
        before = path.read_bytes()
        with pytest.raises(UsageError, match="no state of a watcher"):
            State(path)
        assert path.read_bytes() == before
    with pytest.raises(UsageError):
        State(words / "state.sqlite3")


def test_a_state_that_breaks_while_it_is_used_is_one_line(known):
    known._connection.execute("DROP TABLE task")
    with pytest.raises(SdhubError, match="cannot be used"):
        known.claim()
