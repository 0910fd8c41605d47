"""Work as HF Jobs: against the embedded Hub, with a stand-in for the command."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.progress import Progress, Task
from sdhub.elsewhere import follow as following
from sdhub.elsewhere.engine import BUCKET, Engine, parse_on, place_of, stage
from sdhub.elsewhere.follow import Ended, follow
from sdhub.elsewhere.hardware import Flavor, Need, choose, flavors
from sdhub.elsewhere.publish import plan_jobs, results, start
from sdhub.elsewhere.request import LABEL, Request, label, limit, parse_timeout
from sdhub.recipes.adjust import Adjustment
from sdhub.workflow.many import PublishRequest
from sdhub.workflow.options import Options
from sdhub.workflow.plan import plan
from tests.hubs import HubProcess, running_hub
from tests.runs import sdhub_json

TOKEN = "hf_a-token-nobody-may-see"
GIB = 2**30


@dataclass(frozen=True)
class Standin(Request):
    """A request whose job runs `shell` instead of sdhub."""

    shell: str = "true"

    @property
    def command(self) -> list[str]:
        return ["sh", "-c", self.shell]


def standin(shell: str, key: str, **more) -> Standin:
    labels = {"verb": "publish", "source": "org/name"}
    return Standin(key, ("publish",), "sdnq", 3.0, Need(GIB, GIB), labels, shell=shell, **more)


class Recorder(Progress):
    """Notes, and bars as (label, unit, [total, advances…])."""

    def __init__(self):
        self.notes, self.bars = [], []

    def note(self, text):
        self.notes.append(text)

    def task(self, label, total=None, unit=""):
        from contextlib import nullcontext

        counts = [total]
        self.bars.append((label, unit, counts))

        class Bar(Task):
            def advance(self, amount=1.0):
                counts.append(amount)

            def total(self, amount):
                counts[0] = amount

        return nullcontext(Bar())


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("elsewhere") / "root", "--jobs") as address:
        yield address


@pytest.fixture
def engine(url):
    return Engine(Hub(url, TOKEN), "me")


@pytest.fixture
def key(request):
    return request.node.name[:60]


def end(engine, job, progress=None):
    return follow(engine.hub, engine.namespace, job.id, progress or Progress())


CPU = Flavor("cpu", 16e9, 50e9, 0, 0.0002)
BIG = Flavor("big", 128e9, None, 0, 0.02)
GPU = Flavor("gpu", 30e9, 400e9, 24e9, 0.01)


@pytest.mark.parametrize(
    ("need", "name"),
    [
        (Need(10e9, 10e9), "cpu"),
        (Need(14e9, 10e9), "gpu"),  # 14 GB and a margin are more than 16
        (Need(10e9, 60e9), "gpu"),
        (Need(30e9, 10e9), "big"),
        (Need(30e9, 10e12), "big"),  # its disk is not told
        (Need(10e9, 10e9, gpu=True), "gpu"),
    ],
)
def test_the_cheapest_hardware_that_has_what_is_needed(need, name):
    assert choose(sorted([CPU, BIG, GPU], key=lambda each: each.price), need).name == name


def test_hardware_that_is_not_there():
    with pytest.raises(UnsupportedError, match="36 GB of memory on a GPU"):
        choose([CPU, BIG, GPU], Need(30e9, 1, gpu=True))
    with pytest.raises(UsageError, match="no hardware called gpv") as error:
        choose([CPU, GPU], Need(1, 1), "gpv")
    assert "gpu" in error.value.hint
    assert choose([CPU, GPU], Need(1e15, 1), "gpu") is GPU  # named: its user knows


def test_the_hub_s_list(engine):
    known = {each.name: each for each in flavors(engine.hub)}
    assert known["cpu-basic"] == Flavor("cpu-basic", 16e9, None, 0, pytest.approx(0.000167))
    assert known["a100-large"].gpu_memory == 80e9
    prices = [each.price for each in flavors(engine.hub)]
    assert prices == sorted(prices)


def test_what_on_and_timeout_say():
    assert (parse_on("hf-jobs"), parse_on("hf-jobs:l4x1")) == (None, "l4x1")
    assert [parse_timeout(each) for each in ("90", "90s", "1.5m", "6h", "1d")] == [90, 90, 90, 21600, 86400]
    for wrong in ("moon", "hf-jobs:", "hf-jobsx"):
        with pytest.raises(UsageError):
            parse_on(wrong)
    for wrong in ("", "6 h", "-1", "0", "1w", "99d"):
        with pytest.raises(UsageError):
            parse_timeout(wrong)
    assert limit(30, None) == 80 * 60 and limit(30, 5) == 5
    assert label("org/na me@1") == "org--na-me-1" and len(label("x" * 300)) == 100


def test_a_job_becomes_progress_and_a_document(engine, key, tmp_path):
    go = tmp_path / "go"
    said = ["a note", "  drawing … 0/8 steps", "  drawing … 5/8 steps", "  drawing … 8/8 steps", "  waiting …"]
    document = json.dumps({"variants": [{"name": "x"}], "nested": {"a": 1}}, indent=2)
    words = " ".join(f"'{each}'" for each in [*said, document])
    job = engine.start(standin(f"while ! test -e {go}; do sleep 0.02; done; printf '%s\n' {words}", key))
    threading.Timer(0.5, go.touch).start()
    told = Recorder()
    done = end(engine, job, told)
    assert done.done and done.exit_code == 0
    assert done.document() == {"variants": [{"name": "x"}], "nested": {"a": 1}}
    assert [each for each in told.notes if "machine" not in each and "ended already" not in each] in (
        ["a note"],
        [],
    )
    assert told.bars in ([("drawing", "steps", [8.0, 0, 5, 3]), ("waiting", "", [None, 0])], [])


def test_lines_become_bars():
    told = Recorder()
    teller = following._Teller(told)
    lines = [
        "  load … 0",
        "  load … 3",
        "  get … 0/9 M weights",
        "  get … 9/9 M weights",
        "word",
        "{",
        "  a …",
        "}",
    ]
    with teller.telling():
        for each in [*lines, "  get … 0/2 B", "after"]:
            teller.line(each)
    assert told.notes == ["word", "after"]
    assert told.bars == [
        ("load", "", [None, 0, 3]),
        ("get", "M weights", [9.0, 0, 9]),
        ("get", "B", [2.0, 0]),
    ]


def test_a_job_that_waits_or_runs_is_joined_and_a_finished_one_read(engine, key, tmp_path):
    go, ran = tmp_path / "go", tmp_path / "ran"
    request = standin(f"echo >> {ran}; while ! test -e {go}; do sleep 0.02; done; echo '{{\"a\": 1}}'", key)
    job = engine.start(request)
    assert engine.start(request).id == job.id
    go.touch()
    assert end(engine, job).document() == {"a": 1}
    again = engine.start(request)
    assert again.id == job.id
    assert end(engine, again).document() == {"a": 1}
    assert ran.read_text() == "\n"
    other = engine.start(request, lambda _: False)  # what it made is gone
    assert other.id != job.id
    assert end(engine, other).done and ran.read_text() == "\n\n"


def test_a_job_that_failed_is_run_again(engine, key):
    request = standin("echo 'error: it went wrong'; echo '  hint: try again'; exit 3", key)
    first = end(engine, engine.start(request))
    error = first.failure()
    assert (error.message, error.hint, error.exit_code) == ("it went wrong", "try again", 3)
    assert engine.start(request).id != first.job.id


def test_a_cancelled_job_says_so(engine, key):
    job = engine.start(standin("sleep 60", key))
    engine.cancel(job.id)
    done = end(engine, job)
    assert done.failure().message == "the job was canceled" and done.exit_code == 1


def test_where_another_client_was_first_ours_is_cancelled(engine, key, monkeypatch):
    request = standin("sleep 30", key)
    other = Engine(engine.hub, "me")
    run = engine._run

    def late(*arguments):
        late.first = late.first or other._run(*arguments)
        late.own = run(*arguments)
        return late.own

    late.first = None
    monkeypatch.setattr(engine, "_run", late)
    job = engine.start(request)
    assert job.id == late.first.id
    stages = {each.id: stage(each) for each in engine.jobs({LABEL: key})}
    assert stages[late.own.id] == "CANCELED" and stages[job.id] in ("SCHEDULING", "RUNNING")
    engine.cancel(job.id)


def test_a_job_whose_answer_was_lost_is_found(engine, key, monkeypatch):
    monkeypatch.setattr("sdhub.core.retry.time.sleep", lambda _: None)
    run, lost = engine._run, []

    def lose(*arguments):
        job = run(*arguments)
        if not lost:
            lost.append(job)
            raise ConnectionError("the answer is lost")
        return job

    monkeypatch.setattr(engine, "_run", lose)
    job = engine.start(standin("true", key))
    assert job.id == lost[0].id
    assert len(engine.jobs({LABEL: key})) == 1


def test_source_files_and_kept_stages_are_where_the_job_looks(engine, key, tmp_path):
    api = engine.hub.api
    api.create_repo("me/model", exist_ok=True)
    sha = api.upload_file(repo_id="me/model", path_in_repo="unet/x", path_or_fileobj=b"weights").oid
    mine = tmp_path / "mine.json"
    mine.write_text('{"my": "recipe"}')
    place = place_of(mine)
    code = (
        "from huggingface_hub import hf_hub_download as d; "
        f"print(open(d('me/model', 'unet/x', revision='{sha}')).read())"
    )
    shell = f'python -c "{code}"; cat {place}; echo; echo kept > $SDHUB_KEEP/a; echo $HF_TOKEN'
    request = standin(shell, key, source=("me/model", sha), files={place: mine})
    job = engine.start(request)
    assert end(engine, job).lines == ("weights", '{"my": "recipe"}', "***")
    by_place = {each.mount_path: each for each in job.volumes}
    snapshot = f"/sdhub/hub/models--me--model/snapshots/{sha}"
    assert set(by_place) == {snapshot, "/sdhub/kept", "/sdhub/inputs"}
    assert by_place[snapshot].read_only and by_place[snapshot].revision == sha
    assert api.bucket_info(f"me/{BUCKET}").private
    assert api.repo_info("me/sdhub-inputs", repo_type="dataset").private
    later = engine.start(standin("cat $SDHUB_KEEP/a", f"{key}-later", source=("me/model", sha)))
    assert end(engine, later).lines == ("kept",)


def test_the_token_is_a_secret_alone(engine, key, url):
    job = engine.start(standin("echo $HF_TOKEN; env", key))
    lines = end(engine, job).lines
    http = httpx.Client(base_url=url, headers={"Authorization": "Bearer x"}, trust_env=False)
    assert not any(TOKEN in each for each in [*lines, http.get(f"/api/jobs/me/{job.id}").text])
    assert "***" in lines


def test_a_hub_without_buckets_is_told_and_no_hindrance(engine, key, monkeypatch):
    told = engine.progress = Recorder()
    monkeypatch.setattr("huggingface_hub.HfApi.create_bucket", refuse_bucket)
    job = engine.start(standin('echo "[$SDHUB_KEEP]"', key))
    assert end(engine, job).lines == ("[]",)
    assert any("will begin anew" in each for each in told.notes)


def refuse_bucket(self, *_, **__):
    raise ValueError("no buckets here")


def test_a_hub_that_is_away_is_waited_for(tmp_path, monkeypatch):
    """Killed while its log is followed: the follower waits, and learns that the job ended with it."""
    hub = HubProcess(tmp_path / "root", "--jobs")
    port = hub.url.rpartition(":")[2]
    engine = Engine(Hub(hub.url, TOKEN), "me")
    job = engine.start(standin("echo begun; sleep 60", "away"))
    told, found = Recorder(), []
    thread = threading.Thread(target=lambda: found.append(follow(engine.hub, "me", job.id, told)))
    thread.start()
    while "begun" not in told.notes:
        time.sleep(0.02)
    hub.kill()
    hub = HubProcess(tmp_path / "root", "--jobs", "--port", port)
    thread.join(timeout=60)
    hub.stop()
    (done,) = found
    assert done.failure().message == "the Hub that ran it ended"
    assert done.lines == ("begun",)


def test_kept_stages(tmp_path, monkeypatch):
    from sdhub.core.work import Work

    monkeypatch.setenv("SDHUB_KEEP", str(tmp_path / "kept"))
    made = []

    def make(out: Path) -> None:
        made.append(1)
        (out / "deep").mkdir()
        (out / "deep" / "a").write_text("content")
        (out / "empty").write_text("")

    def stage_of(machine: str) -> Path:
        return Work(tmp_path / machine).stage("build", {"a": 1}, make)

    for machine in ("one", "two"):
        found = stage_of(machine)
        assert (found / "deep" / "a").read_text() == "content" and (found / "empty").exists()
    assert len(made) == 1
    kept = next((tmp_path / "kept").rglob("a"))
    kept.write_text("cut")  # as a job that was killed leaves it
    assert (stage_of("three") / "deep" / "a").read_text() == "content"
    assert len(made) == 2
    assert (stage_of("four") / "deep" / "a").read_text() == "content"
    assert len(made) == 2


def test_what_cannot_be_kept_is_told(tmp_path, monkeypatch):
    from sdhub.core.work import Work

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDHUB_KEEP", str(tmp_path / "file" / "below"))
    told = Recorder()
    made = Work(tmp_path / "work").stage("s", {"a": 1}, lambda out: (out / "a").write_text("b"), progress=told)
    assert (made / "a").read_text() == "b"
    assert any("cannot be kept" in each for each in told.notes)


def test_a_failed_job_without_words_tells_where_its_log_is(engine, key):
    job = engine.start(standin("exit 9", key))
    error = end(engine, job).failure()
    assert error.message == "Job failed with exit code: 9" and error.exit_code == 1
    assert f"jobs follow {job.id} --namespace me --hub {engine.hub.url}" in error.hint
    assert Ended(engine.hub, job, ("no document", "{broken")).document() is None


def reporting(request: Request) -> list[str]:
    """Publishes nothing, and says that it did; of one variant it is refused."""
    variant = request.labels["variant"]
    if variant == "openvino-int8":
        return ["sh", "-c", "echo 'error: no licence'; echo '  hint: say which'; exit 3"]
    row = {"name": variant, "status": "published", "reason": None, "repo": f"me/{variant}", "branch": None}
    row |= {"evidence": None, "bytes": 1}
    report = {"source": {"id": request.words[1]}, "variants": [row], "collection": f"of {variant}"}
    return ["printf", "%s", json.dumps(report, indent=2)]


def test_variants_of_sources_are_jobs_beside_each_other(engine, monkeypatch):
    monkeypatch.setattr(Request, "command", property(reporting))
    wanted = Options(variants=("sdnq-int8", "openvino-int8", "sdnq-uint4"))
    planned = plan_jobs(engine, PublishRequest("demo", wanted), ["--steps", "2"])
    assert [each.variant.name for each in planned] == list(wanted.variants)
    assert len({each.request.key for each in planned}) == 3
    words = "publish demo --steps 2 --variant sdnq-int8 --to me --yes --json"
    assert planned[0].request.words == tuple(words.split())
    for each in planned:  # a job draws the base for itself
        (row,) = plan("demo", each.variant.name).document()["variants"]
        assert each.price.minutes == row["minutes"] and each.price.flavor.name == "cpu-basic"
    (gpu, *_) = plan_jobs(engine, PublishRequest("demo", wanted), ["--device", "cuda"])
    assert gpu.price.flavor.name == "t4-small"
    (result,) = results(engine, start(engine, planned))
    assert [each["name"] for each in result.report["variants"]] == ["sdnq-int8", "sdnq-uint4"]
    assert result.report["collection"] == "of sdnq-int8"
    assert (result.error.message, result.error.hint, result.exit_code) == ("no licence", "say which", 3)


def test_the_key_is_all_that_a_result_depends_on(engine):
    def key(source="demo", variant="sdnq-int8", words=(), **more):
        (made,) = plan_jobs(engine, PublishRequest(source, Options(variants=(variant,), **more)), words)
        return made.request.key

    assert key() == key()
    changed = [key(variant="sdnq-uint4"), key(words=["--steps", "3"]), key(adjustment=Adjustment(fast=True))]
    assert len({key(), *changed}) == 4


def test_one_source_that_is_not_there_stops_no_other(url, tmp_path, monkeypatch):
    """As the program is called: what can be published is, and the exit code is that of the first failure."""
    done = sdhub_json(
        *("publish", "me/nothing", "demo", "--variant", "sdnq-int8", "--to", "me", "--on", "hf-jobs:moon"),
        home=tmp_path,
        endpoint=url,
        code=2,
    )
    errors = [each["error"]["message"] for each in done["sources"]]
    assert errors == ["the Hub shows no model me/nothing", "the Hub has no hardware called moon"]


def test_what_this_machine_lacks_a_job_may_have(url, engine, tmp_path):
    words = ["publish", "demo", "--variant", "sdnq-int8", "--device", "cuda", "--to", "me", "--on", "hf-jobs"]
    (made,) = sdhub_json(*words, "--timeout", "1h", "--detach", home=tmp_path, endpoint=url)["jobs"]
    engine.cancel(made["id"])
    assert (made["flavor"], made["limit_minutes"]) == ("t4-small", 60)
    (job,) = [each for each in engine.jobs() if each.id == made["id"]]
    assert "--device cuda" in " ".join(job.command)


def test_a_proposal_to_others_is_a_job_of_one_s_own(tmp_path):
    """With users: who may not write in a namespace may propose to it, and pays for the job."""
    users = [{"name": name, "token": f"token-of-{name}", "role": "write", "orgs": []} for name in ("ada", "bob")]
    (tmp_path / "users.json").write_text(json.dumps(users))
    with running_hub(tmp_path / "root", "--jobs", "--users", str(tmp_path / "users.json")) as url:
        engine = Engine(Hub(url, "token-of-ada"), "ada")
        options = Options(namespace="bob", variants=("sdnq-int8",), create_pr=True)
        (made,) = plan_jobs(engine, PublishRequest("demo", options), ["--create-pr"])
        assert made.request.words[-4:] == ("--to", "bob", "--yes", "--json")
        job = engine.start(standin("true", "proposed"))
        assert job.owner.name == "ada"
