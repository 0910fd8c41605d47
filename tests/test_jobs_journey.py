"""`publish --on hf-jobs` as a user runs it, with the client, the job and the Hub killed on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from sdhub.demo import emoji_sd
from tests.hubs import HubProcess
from tests.runs import environment, sdhub, sdhub_json

TOKEN = "a-token-nobody-may-see"
TARGET = "me/emoji-sdnq-int8-fast"
SECONDS = 300


class World:
    """A Hub that can be killed and begun again at its address, and a client's home."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home, self.prompts = folder / "root", folder / "home", folder / "prompts.json"
        self.prompts.write_text('["pizza"]')
        self.hub = HubProcess(self.root, "--jobs")
        self.url = self.hub.url
        self.api = HfApi(self.url, token=TOKEN)

    def begin_again(self) -> None:
        self.hub = HubProcess(self.root, "--jobs", "--port", self.url.rpartition(":")[2])

    @property
    def words(self) -> list[str]:
        given = ["--variant", "sdnq-int8", "--fast", "--steps", "2", "--prompts", str(self.prompts)]
        return ["publish", "me/emoji", *given, "--to", "me", "--on", "hf-jobs", "--json"]

    def client(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "sdhub", *self.words]
        return subprocess.Popen(
            command,
            env=environment(self.home, self.url),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def jobs(self):
        """The oldest first."""
        return list(self.api.list_jobs(namespace="me"))[::-1]

    def log(self, job) -> str:
        path = self.root / "jobs" / job.id / "log"
        return path.read_text() if path.exists() else ""

    def kept(self, stage: str) -> bool:
        return any(self.root.glob(f"buckets/*/*/{stage}/*.json"))


def until(what, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def kill_job(job) -> None:
    """All processes of a job, at once."""
    mark = f"JOB_ID={job.id}".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("jobs"))
    made.api.create_repo("me/emoji")
    made.api.upload_folder(repo_id="me/emoji", folder_path=emoji_sd())
    yield made
    made.hub.stop()


@pytest.fixture(scope="module")
def published(world):
    """The report of the last of four clients; the first was killed, the second's job, the third's Hub."""
    one = world.client()
    until(lambda: world.jobs() and "build sdnq" in world.log(world.jobs()[0]), one)
    one.kill()
    one.communicate()

    two = world.client()
    until(lambda: world.kept("variant"), two)
    (first,) = world.jobs()  # the second client joined it
    assert first.status.stage == "RUNNING"
    kill_job(first)
    _, said = two.communicate(timeout=SECONDS)
    assert two.returncode == 1 and "exit code: 137" in said

    three = world.client()
    until(lambda: world.kept("base"), three)
    world.hub.kill()
    world.begin_again()
    _, said = three.communicate(timeout=SECONDS)
    assert three.returncode == 1 and "the Hub that ran it ended" in said

    return sdhub_json(*world.words, home=world.home, endpoint=world.url)


def test_it_is_published_once(published, world):
    (variant,) = published["variants"]
    assert (variant["name"], variant["repo"], variant["status"]) == ("sdnq-int8-fast", TARGET, "published")
    assert variant["evidence"]["psnr_db"] > 30
    commits = [each.title for each in world.api.list_repo_commits(TARGET)]
    assert len(commits) == 2 and commits[1] == "initial commit"
    assert world.api.model_info(TARGET).sha == variant["commit"]
    source = json.loads(Path(world.api.hf_hub_download(TARGET, "sdhub.json")).read_text())["source"]
    assert (source["id"], source["sha"]) == ("me/emoji", world.api.model_info("me/emoji").sha)


def test_each_job_went_on_from_where_the_one_before_was_cut_off(published, world):
    first, second, third = world.jobs()
    stages = [each.status.stage for each in (first, second, third)]
    assert stages == ["ERROR", "ERROR", "COMPLETED"]
    assert len({each.labels["sdhub"] for each in (first, second, third)}) == 1
    assert "quantizing unet" in world.log(first)
    for later in (second, third):
        assert "kept from an earlier job" in world.log(later)
        assert "quantizing unet" not in world.log(later)
    assert "draw with emoji" in world.log(second) and "  drawing …" in world.log(second)


def test_the_source_came_from_its_volume(published, world):
    counts = re.findall(r"downloading emoji … (\d+)\D", world.log(world.jobs()[0]))
    assert counts and set(counts) == {"0"}


def test_again_reads_the_finished_job(published, world):
    assert sdhub_json(*world.words, home=world.home, endpoint=world.url) == published
    assert len(world.jobs()) == 3


def test_the_token_is_nowhere(published, world):
    sdhub("jobs", "list", "--namespace", "me", home=world.home, endpoint=world.url)
    told = [path for path in world.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert told == []


def test_the_list_has_what_each_cost(published, world):
    rows = sdhub_json("jobs", "list", "--namespace", "me", home=world.home, endpoint=world.url)["jobs"]
    assert [each["stage"] for each in rows] == ["COMPLETED", "ERROR", "ERROR"]
    assert {(each["verb"], each["source"], each["variant"]) for each in rows} == {
        ("publish", "me/emoji", "sdnq-int8-fast")
    }
    assert all(each["dollars"] == pytest.approx(each["minutes"] * 0.000167, abs=7e-5) for each in rows)


def test_what_is_gone_from_the_hub_is_made_again(published, world):
    """A finished job is believed only as long as what it published is there: here, a job of it is begun."""
    world.api.delete_repo(TARGET)
    done = sdhub(*world.words[:-1], "--detach", home=world.home, endpoint=world.url)
    job_id = re.search(r"jobs follow ([0-9a-f]{24})", done.stdout)[1]
    assert job_id == world.jobs()[-1].id and len(world.jobs()) == 4
    sdhub("jobs", "cancel", job_id, "--namespace", "me", home=world.home, endpoint=world.url)
    assert world.jobs()[-1].status.stage == "CANCELED"
    followed = sdhub("jobs", "follow", job_id, "--namespace", "me", home=world.home, endpoint=world.url, code=1)
    assert "the job was canceled" in followed.stderr


def test_the_plan_has_the_price(world):
    words = ["plan", "me/emoji", "--variant", "sdnq-int8", "--fast", "--to", "me", "--on"]
    (job,) = sdhub_json(*words, "hf-jobs", home=world.home, endpoint=world.url)["jobs"]
    assert (job["flavor"], job["variant"]) == ("cpu-basic", "sdnq-int8-fast")
    assert job["dollars"] == pytest.approx(job["minutes"] * 0.000167, abs=1e-4)
    assert job["limit_minutes"] == pytest.approx(2 * job["minutes"] + 20, abs=0.2)
    (named,) = sdhub_json(*words, "hf-jobs:l4x1", home=world.home, endpoint=world.url)["jobs"]
    assert named["flavor"] == "l4x1" and named["dollars"] > job["dollars"]
    shown = sdhub(*words, "hf-jobs", home=world.home, endpoint=world.url).stdout
    assert "cpu-basic" in shown and "by the forecast and the Hub's list of prices" in shown


REFUSED = [
    (["publish", str(emoji_sd().parent / "emoji-sd"), "--on", "hf-jobs:moon"], "no hardware called moon"),
    (["publish", "me/emoji", "--on", "moon"], "nothing runs on 'moon'"),
    (["publish", "me/emoji", "--on", "hf-jobs", "--timeout", "soon"], "time limit"),
    (["publish", "me/emoji", "--on", "hf-jobs", "--space"], "not with --on"),
    (["publish", "{folder}", "--on", "hf-jobs"], "a job cannot see it"),
    (["publish", "me/emoji", "--on", "hf-jobs", "--judge", "{folder}"], "a job cannot see it"),
    (["publish", "demo", "--on", "hf-jobs", "--hub", "local", "--detach"], "ends with this command"),
    (["build", "{folder}", "--on", "hf-jobs", "-o", "{folder}/new"], "a job cannot see it"),
    (["build", "me/emoji", "--on", "hf-jobs", "-o", "{folder}"], "exists"),
    (["analyze", "me/emoji", "--on", "hf-jobs", "--curve", "c.svg"], "leave away --apple and --curve"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_a_job_cannot_do_is_refused_at_once(words, said, world, tmp_path):
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(emoji_sd(), folder)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    words = [each.replace("{folder}", str(folder)) for each in words]
    jobs = len(world.jobs())
    done = sdhub(*words, home=world.home, endpoint=world.url, code=2)
    assert said in done.stderr and len(done.stderr.splitlines()) <= 3
    assert len(world.jobs()) == jobs


@pytest.mark.long
def test_an_analysis_and_a_build_of_what_it_found(world, tmp_path):
    """Each as a job; the recipe goes to the second as a file of this machine, the variant comes back."""
    recipe, out = tmp_path / "mixed.json", tmp_path / "out"
    words = ["analyze", "me/emoji", "--backend", "sdnq", "--budget", "5bits", "-o", str(recipe), "--on", "hf-jobs"]
    found = sdhub_json(*words, home=world.home, endpoint=world.url)
    assert json.loads(recipe.read_text()) == found["recipes"][0]
    words = ["build", "me/emoji", "--recipe", str(recipe), "-o", str(out), "--on", "hf-jobs"]
    built = sdhub_json(*words, home=world.home, endpoint=world.url)
    assert built["output"] == str(out)
    assert json.loads((out / "recipe.json").read_text()) == found["recipes"][0]
    assert built["bytes"] < 20e6 and (out / "unet" / "diffusion_pytorch_model.safetensors").exists()
    kept = [each.id for each in world.api.list_models(author="local")]
    assert kept == [], "what was fetched is removed"
    jobs = [each.labels["sdhub-verb"] for each in world.api.list_jobs(namespace="local")]
    assert jobs == ["build", "analyze"]
