"""The work folder: results are whole or absent, kept by key, and survive being killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sdhub.core.work import Work, canonical, digest, home, publish_folder, write_atomic


def test_a_stage_runs_once_per_key(tmp_path):
    work, made = Work(tmp_path), []

    def make(out):
        made.append(out)
        (out / "result").write_text("whole")

    first = work.stage("build", {"a": 1, "b": 2}, make)
    again = work.stage("build", {"b": 2, "a": 1}, make)
    other = work.stage("build", {"a": 1, "b": 3}, make)
    assert first == again != other
    assert len(made) == 2
    assert (first / "result").read_text() == "whole"
    assert work.has("build", {"a": 1, "b": 2})


def test_a_failed_stage_leaves_nothing(tmp_path):
    work = Work(tmp_path)

    def fail(out):
        (out / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work.stage("build", {}, fail)
    assert not work.has("build", {})
    assert not list(tmp_path.rglob("half"))


def test_two_threads_share_one_result(tmp_path):
    work, made = Work(tmp_path), []

    def make(out):
        made.append(1)
        time.sleep(0.2)
        (out / "x").touch()

    threads = [threading.Thread(target=work.stage, args=("s", {"k": 1}, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


KILLED = """
import sys, time
from pathlib import Path
from sdhub.core.work import Work
def make(out):
    for number in range(200):
        (out / f"{number:03d}").write_text(str(number))
        print(number, flush=True)
        time.sleep(0.002)
Work(Path(sys.argv[1])).stage("build", {"k": 1}, make)
"""


@pytest.mark.parametrize("lines", [1, 40, 120, 199])
def test_kill_9_leaves_no_half_result_and_the_next_run_finishes(tmp_path, lines):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(lines):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    work = Work(tmp_path)
    if work.has("build", {"k": 1}):
        assert len(list(work.path("build", {"k": 1}).iterdir())) == 200
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in work.path("build", {"k": 1}).iterdir()) == [f"{n:03d}" for n in range(200)]


def test_canonical_json_is_sorted_compact_utf8():
    assert canonical({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_new_folder_is_whole_or_absent(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        publish_folder(tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []
    publish_folder(tmp_path / "out", lambda folder: (folder / "file").touch())
    assert (tmp_path / "out" / "file").exists()


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SDHUB_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("SDHUB_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "sdhub"
