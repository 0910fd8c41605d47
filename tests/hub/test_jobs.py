"""Jobs of the embedded Hub, by the unmodified client."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, Volume
from huggingface_hub.errors import HfHubHTTPError

from sdhub.hub.jobs import without_uv
from tests.hub.conftest import USERS
from tests.hubs import HubProcess, running_hub

SECRET = "hf_a-secret-nobody-may-see"


class Jobs:
    """The client of one user."""

    def __init__(self, url: str, token: str, namespace: str) -> None:
        self.api, self.namespace = HfApi(url, token=token), namespace

    def run(self, command: str, **more):
        return self.api.run_job(image="busybox", command=["sh", "-c", command], namespace=self.namespace, **more)

    def look(self, job):
        return self.api.inspect_job(job_id=job.id, namespace=self.namespace)

    def end(self, job):
        limit = time.monotonic() + 60
        while (now := self.look(job)).status.stage in ("SCHEDULING", "RUNNING"):
            assert time.monotonic() < limit
            time.sleep(0.05)
        return now

    def log(self, job, **more) -> list[str]:
        return list(self.api.fetch_job_logs(job_id=job.id, namespace=self.namespace, **more))

    def until(self, job, word: str) -> str:
        for line in self.api.fetch_job_logs(job_id=job.id, namespace=self.namespace, follow=True):
            if word in line:
                return line
        raise AssertionError(f"it never said {word}")


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "users.json").write_text(json.dumps(USERS))
    with running_hub(folder / "root", "--users", str(folder / "users.json"), "--jobs") as address:
        yield address


@pytest.fixture
def ada(url) -> Jobs:
    return Jobs(url, "token-of-ada", "ada")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    """Whether a process is no more, within a moment."""
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_a_job_is_what_was_asked_for(ada):
    job = ada.run(
        "echo one; echo two >&2; printf three", flavor="cpu-upgrade", labels={"a": "b.c-d_e"}, timeout="2m"
    )
    assert (job.status.stage, job.flavor, job.labels["a"]) == ("SCHEDULING", "cpu-upgrade", "b.c-d_e")
    assert (job.docker_image, job.owner.name, job.initiator.name) == ("busybox", "ada", "ada")
    assert ada.log(job, follow=True) == ["one", "two", "three"]
    done = ada.end(job)
    assert done.status.stage == "COMPLETED"
    assert done.durations.running_secs is not None and done.started_at <= done.finished_at
    assert ada.log(job) == ["one", "two", "three"]  # the whole log, again
    assert ada.log(job, tail=1) == ["three"]


def test_an_exit_code_is_told(ada):
    assert ada.end(ada.run("exit 3")).status.message == "Job failed with exit code: 3"
    missing = ada.api.run_job(image="x", command=["no-such-program"], namespace="ada")
    assert ada.end(missing).status.message == "Job failed with exit code: 127"


def test_a_job_has_an_environment_of_its_own(ada, monkeypatch):
    job = ada.run(
        'echo "$HOME|$HF_HOME|$TMPDIR|$PWD|$A|$HF_ENDPOINT|$JOB_ID|$SDHUB_HOME"; touch here', env={"A": "1"}
    )
    home, hf, passing, place, given, endpoint, job_id, ours = ada.log(job, follow=True)[0].split("|")
    assert {job.id} == {Path(each).parts[-3] for each in (home, passing, place)}
    assert Path(hf).parent == Path(home)
    assert (given, endpoint, job_id, ours) == ("1", ada.api.endpoint, job.id, "")
    ada.end(job)
    end = time.monotonic() + 5
    while Path(home).parent.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(home).parent.exists()  # with all that it left


def test_secrets_are_the_job_s_alone(ada, url):
    job = ada.run("test ${#HF_TOKEN} = 26 && echo the token is $HF_TOKEN", secrets={"HF_TOKEN": SECRET})
    assert ada.log(job, follow=True) == ["the token is ***"]
    assert ada.end(job).status.stage == "COMPLETED"
    http = httpx.Client(base_url=url, headers={"Authorization": "Bearer token-of-ada"}, trust_env=False)
    said = [http.get(path).text for path in ("/api/jobs/ada", f"/api/jobs/ada/{job.id}")]
    assert not any(SECRET in each for each in said)
    assert all(json.loads(each) for each in said)


def test_a_log_is_followed_as_it_is_written(ada, tmp_path):
    go = tmp_path / "go"
    job = ada.run(f"echo first; while ! test -e {go}; do sleep 0.02; done; echo last")
    assert ada.until(job, "first")
    go.touch()
    assert ada.log(job, follow=True) == ["first", "last"]


def test_a_job_is_ended_in_time(ada):
    job = ada.run("sleep 60 & echo $!; sleep 60", timeout=1)
    other = int(ada.log(job, follow=True)[0])
    done = ada.end(job)
    assert (done.status.stage, done.status.message) == ("ERROR", "Job timeout: it ran longer than 1 s")
    assert gone(other)


def test_cancelling_ends_all_of_a_job(ada):
    job = ada.run("trap '' TERM; sleep 61 & echo $!; sleep 61; sleep 61")
    child = int(ada.until(job, ""))
    ada.api.cancel_job(job_id=job.id, namespace="ada")
    assert ada.look(job).status.stage == "CANCELED"
    assert gone(child)
    ada.api.cancel_job(job_id=job.id, namespace="ada")  # again: nothing changes
    assert ada.look(job).status.stage == "CANCELED"


def test_a_killed_job_has_failed(ada):
    job = ada.run("echo $$; sleep 62")
    os.kill(int(ada.until(job, "")), signal.SIGKILL)
    assert ada.end(job).status.message == "Job failed with exit code: 137"


def test_jobs_are_found_by_label_and_stage(ada):
    one = ada.run("true", labels={"find": "me", "x": "1"})
    other = ada.run("false", labels={"find": "me", "x": "2"})
    ada.end(one), ada.end(other)

    def found(**more):
        return [each.id for each in ada.api.list_jobs(namespace="ada", **more)]

    assert found(labels={"find": "me"}) == [other.id, one.id]  # the newest first
    assert found(labels={"find": "me", "x": "1"}) == [one.id]
    assert found(labels={"find": "me"}, status="ERROR") == [other.id]
    assert found(labels={"find": "me"}, status=["ERROR", "COMPLETED"]) == [other.id, one.id]
    changed = ada.api.update_job_labels(job_id=one.id, labels={"y": "z"}, namespace="ada")
    assert changed.labels == {"y": "z"}
    assert found(labels={"find": "me"}) == [other.id]


def test_many_jobs_come_in_pages(ada):
    for _ in range(105):
        ada.run("true", labels={"many": "yes"})
    found = [each.id for each in ada.api.list_jobs(namespace="ada", labels={"many": "yes"})]
    assert len(found) == len(set(found)) == 105


def test_hardware(ada):
    known = {each.name: each for each in ada.api.list_jobs_hardware()}
    assert known["cpu-basic"].ram == "16 GB" and known["cpu-basic"].accelerator is None
    assert known["a100-large"].accelerator.vram == "80 GB"
    assert known["cpu-basic"].unit_cost_usd == pytest.approx(0.01 / 60, rel=0.01)


def test_repositories_are_mounted_for_reading_and_buckets_for_writing(ada):
    ada.api.create_repo("ada/source", exist_ok=True)
    first = ada.api.upload_file(repo_id="ada/source", path_in_repo="deep/a.txt", path_or_fileobj=b"old")
    ada.api.upload_file(repo_id="ada/source", path_in_repo="deep/a.txt", path_or_fileobj=b"new")
    assert ada.api.create_bucket("ada/kept", private=True, exist_ok=True).bucket_id == "ada/kept"
    assert ada.api.create_bucket("ada/kept", exist_ok=True).bucket_id == "ada/kept"
    volumes = [
        Volume(type="model", source="ada/source", mount_path="/at/old", revision=first.oid),
        Volume(type="model", source="ada/source", mount_path="/at/new", path="deep"),
        Volume(type="bucket", source="ada/kept", mount_path="/kept", path="one"),
    ]
    job = ada.run(
        "cat /at/old/deep/a.txt /at/new/a.txt; echo; stat -c %a $FILE; echo more >> /kept/log; cat '/kept/log'",
        volumes=volumes,
        env={"FILE": "/at/new/a.txt"},
    )
    assert ada.log(job, follow=True) == ["oldnew", "444", "more"]
    assert ada.end(job).status.stage == "COMPLETED"
    again = ada.run("echo twice >> /kept/log; cat /kept/log", volumes=volumes[2:])
    assert ada.log(again, follow=True) == ["more", "twice"]  # what a bucket has stays
    info = ada.api.bucket_info("ada/kept")
    assert (info.private, info.total_files, info.size) == (True, 1, 11)
    assert [each.id for each in ada.api.list_buckets("ada")] == ["ada/kept"]
    ada.api.delete_bucket("ada/kept")
    with pytest.raises(HfHubHTTPError, match="404"):
        ada.api.bucket_info("ada/kept")


def test_uv_is_this_environment(ada, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_EXPERIMENTAL_WARNING", "1")
    job = ada.api.run_uv_job(
        "python", script_args=["-c", "import huggingface_hub; print('found')"], dependencies=["x"], namespace="ada"
    )
    assert job.docker_image.startswith("ghcr.io/astral-sh/uv")
    assert ada.log(job, follow=True) == ["found"]
    assert without_uv(["uv", "run", "--with", "a", "--python", "3.12", "sdhub", "--with"]) == ["sdhub", "--with"]
    assert without_uv(["uv", "--version"]) == ["uv", "--version"]


@pytest.mark.parametrize(
    ("user", "namespace", "status"),
    [("bob", "ada", 404), ("eve", "ada", 404), ("stranger", "ada", 401), ("", "ada", 401), ("eve", "lab", 403)],
)
def test_jobs_are_their_owner_s(ada, url, user, namespace, status):
    job = Jobs(url, "token-of-ada", namespace).run("true")
    headers = {"Authorization": f"Bearer token-of-{user}"} if user else {}
    http = httpx.Client(base_url=url, headers=headers, trust_env=False)
    order = {"command": ["true"], "dockerImage": "x"}
    place = f"/api/jobs/{namespace}/{job.id}"
    assert http.post(f"/api/jobs/{namespace}", json=order).status_code == status
    assert http.post(f"{place}/cancel").status_code == status
    assert http.put(f"{place}/labels", json={"labels": {}}).status_code == status
    if status != 403:  # who may read in a namespace may look
        for path in (f"/api/jobs/{namespace}", place, f"{place}/logs"):
            assert http.get(path).status_code == status
    if user == "bob":
        hidden, absent = http.get(place), http.get("/api/jobs/ada/0123")
        assert (hidden.status_code, hidden.text) == (absent.status_code, absent.text)


def test_what_may_not_be_read_may_not_be_mounted(ada, url):
    ada.api.create_repo("ada/hidden", private=True, exist_ok=True)
    ada.api.create_bucket("ada/hidden", private=True, exist_ok=True)
    bob = Jobs(url, "token-of-bob", "bob")
    for kind in ("model", "bucket"):
        with pytest.raises(HfHubHTTPError, match="404"):
            bob.run("true", volumes=[Volume(type=kind, source="ada/hidden", mount_path="/x")])
    with pytest.raises(HfHubHTTPError, match=r"40[13]"):
        bob.api.create_bucket("ada/mine")


@pytest.mark.parametrize(
    "wrong",
    [
        {"command": []},
        {"command": "echo"},
        {"command": ["a\0b"]},
        {"command": ["x" * 70_000]},
        {"dockerImage": None},
        {"flavor": "cray-1"},
        {"timeoutSeconds": -1},
        {"timeoutSeconds": 10**9},
        {"labels": {"a b": "c"}},
        {"labels": {"a": "c/d"}},
        {"labels": ["a"]},
        {"environment": {"A=B": "c"}},
        {"environment": {"A": {}}},
        {"secrets": "x"},
        {"volumes": [{"type": "model", "source": "ada/x", "mountPath": "relative"}]},
        {"volumes": [{"type": "model", "source": "ada/x", "mountPath": "/a/../b"}]},
        {"volumes": [{"type": "floppy", "source": "ada/x", "mountPath": "/a"}]},
        {"volumes": [{"type": "bucket", "source": "x", "mountPath": "/a"}]},
        {"volumes": "x"},
    ],
)
def test_what_means_nothing_is_refused(url, wrong):
    http = httpx.Client(base_url=url, headers={"Authorization": "Bearer token-of-ada"}, trust_env=False)
    order = {"command": ["true"], "dockerImage": "x"} | wrong
    assert http.post("/api/jobs/ada", json=order).status_code == 400


def test_a_killed_hub_ends_its_jobs_and_says_so(tmp_path):
    hub = HubProcess(tmp_path / "root", "--jobs")
    ada = Jobs(hub.url, "token-of-ada", "ada")
    running = ada.run("echo $$; sleep 63")
    pid = int(ada.until(running, ""))
    hub.kill()
    assert gone(pid)
    hub = HubProcess(tmp_path / "root", "--jobs")
    try:
        ada = Jobs(hub.url, "token-of-ada", "ada")
        noted = ada.look(running)
        assert (noted.status.stage, noted.status.message) == ("ERROR", "the Hub that ran it ended")
        assert ada.log(running) == [str(pid)]
        assert not (tmp_path / "root" / "jobs" / running.id / "run").exists()
        other = HubProcess.__new__(HubProcess)
        with pytest.raises(RuntimeError):  # a second one would run them twice
            other.__init__(tmp_path / "root", "--jobs")
    finally:
        hub.stop()


def test_a_hub_that_was_not_asked_to_runs_none(hub_url):
    with pytest.raises(HfHubHTTPError, match="501"):
        Jobs(hub_url, "token", "ada").run("true")
