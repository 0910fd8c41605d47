"""What is kept on disk: swept where its maker is dead, cleared least recently used first, never under a user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sdhub.core import scratch
from sdhub.core.errors import UsageError
from sdhub.core.scratch import temporary
from sdhub.core.work import Work, key_file
from sdhub.workflow import cache
from tests.runs import environment, sdhub, sdhub_json

MAKER = """
import sys, time
from pathlib import Path
from sdhub.core.scratch import temporary
from sdhub.core.work import Work
def make(out):
    (out / "half").write_bytes(b"x" * 1000)
    print("made", flush=True)
    time.sleep(60)
with temporary("test") as place:
    (place / "repository").write_bytes(b"x" * 1000)
    Work(Path(sys.argv[1]) / "work").stage("build", {"k": 1}, make)
"""


pytestmark = pytest.mark.usefixtures("passing")


@pytest.fixture
def maker(tmp_path, passing):
    process = subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "made\n"
    yield process
    process.kill()
    process.communicate()


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def filled(size):
    return lambda out: (out / "data").write_bytes(b"x" * size)


def test_a_folder_goes_with_its_block(passing):
    with temporary("name") as place:
        (place / "file").touch()
        assert list(place.iterdir()) == [place / "file"]
        assert scratch.sweep() == 0
    assert list(passing.iterdir()) == []


def test_what_a_killed_process_left_goes_at_the_next_start(maker, passing, tmp_path):
    partial = next((tmp_path / "work" / "build").glob("*.partial"))
    assert cache.sweep(tmp_path / "work") == []  # it lives: nothing is touched
    assert partial.is_dir()
    assert len(scratch.passing()) == 1
    kill(maker)
    sdhub("cache", home=tmp_path)
    assert list(passing.iterdir()) == []
    assert not partial.exists()


@pytest.mark.parametrize("change", ["no owner", "another host", "link", "another name"])
def test_what_may_be_of_others_stays(maker, passing, change, tmp_path):
    kill(maker)
    (folder,) = scratch.passing()
    owner = folder / scratch.OWNER
    if change == "no owner":
        owner.unlink()
    elif change == "another host":
        owner.write_text(json.dumps({**json.loads(owner.read_text()), "host": "elsewhere"}))
    elif change == "link":
        aside = tmp_path / "aside"
        folder.rename(aside)
        folder.symlink_to(aside)
    else:
        folder.rename(folder.with_name("tmp-other"))
    assert scratch.sweep() == 0
    if change == "another host":
        os.utime(owner, (0, 0))
        assert scratch.sweep() == 1


def test_a_folder_of_another_user_stays(maker, monkeypatch):
    kill(maker)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert scratch.sweep() == 0


def test_a_live_process_is_known_without_locks(passing, monkeypatch):
    """On a file system that grants every lock."""
    with temporary() as place:
        monkeypatch.setattr(scratch.fcntl, "flock", lambda *_: None)
        assert scratch.sweep() == 0
        assert place.is_dir()


def test_least_recently_used_first(tmp_path):
    folders = []
    for number in range(4):
        folders.append(Work(tmp_path).stage("build", {"k": number}, filled(1000)))
        os.utime(key_file(folders[-1]), (time.time() - 86_400 * (10 - number),) * 2)
    Work(tmp_path).stage("build", {"k": 0}, filled(1000))  # used again: now the newest
    assert [each.path for each in cache.holdings(tmp_path) if each.kind == "result"] == [*folders[1:], folders[0]]
    gone = cache.clear(max_bytes=2500, root=tmp_path)
    assert [each.path for each in gone if each.kind == "result"] == folders[1:3]
    gone = cache.clear(older_than=86_400, root=tmp_path)
    assert [each.path for each in gone if each.kind == "result"] == [folders[3]]
    assert (folders[0] / "data").is_file()
    assert not key_file(folders[3]).exists()


def test_what_is_used_stays(tmp_path):
    user = Work(tmp_path)
    folder = user.stage("build", {"k": 1}, filled(10))
    assert cache.clear(everything=True, root=tmp_path) == []
    assert (folder / "data").is_file()
    del user
    assert [each.path for each in cache.clear(everything=True, root=tmp_path)] == [folder]
    again = Work(tmp_path)
    assert (again.stage("build", {"k": 1}, filled(20)) / "data").stat().st_size == 20
    assert cache.clear(everything=True, root=tmp_path) == []


def test_two_users_and_a_cleaner(tmp_path):
    """Results are whole whenever they are asked for, however often they are cleared meanwhile."""
    code = (
        "import sys; from pathlib import Path; from sdhub.core.work import Work\n"
        "for number in range(60):\n"
        "    Work(Path(sys.argv[1])).stage('s', {'k': number % 3}, lambda out: (out / 'x').write_bytes(b'x'))\n"
    )
    users = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    while any(each.poll() is None for each in users):
        cache.clear(everything=True, root=tmp_path)
    assert [each.returncode for each in users] == [0, 0]


def test_the_program(tmp_path, passing):
    folder = Work(tmp_path / "work").stage("variant", {"k": 1}, filled(3_000_000))
    os.utime(key_file(folder), (time.time() - 40 * 86_400,) * 2)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "blob").write_text("published")
    (entry,) = sdhub_json("cache", home=tmp_path)["entries"]
    assert (entry["stage"], entry["bytes"], entry["in_use"]) == ("variant", 3_000_000, False)
    shown = sdhub("cache", home=tmp_path).stdout
    assert "3.0 MB" in shown
    assert "40 d ago" in shown
    assert "nothing says what" in sdhub("cache", "clear", home=tmp_path, code=2).stderr
    assert "no span" in sdhub("cache", "clear", "--older-than", "soon", home=tmp_path, code=2).stderr
    command = [sys.executable, "-m", "sdhub", "cache", "clear", "--all"]
    asked = subprocess.run(command, env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True)
    assert asked.returncode == 2
    sdhub("cache", "clear", "--all", "--dry-run", home=tmp_path)
    assert folder.is_dir()
    assert "3.0 MB cleared" in sdhub("cache", "clear", "--older-than", "30d", "--yes", home=tmp_path).stdout
    assert not folder.exists()
    assert (tmp_path / "hub" / "blob").read_text() == "published"


def test_spans_and_sizes():
    assert (cache.parse_span("90s"), cache.parse_span("30d")) == (90, 30 * 86_400)
    assert (cache.parse_bytes("20GB"), cache.parse_bytes("1.5GiB"), cache.parse_bytes("0")) == (
        20e9,
        1.5 * 2**30,
        0,
    )
    for text in ("", "-1GB", "many", "1PB"):
        with pytest.raises(UsageError):
            cache.parse_bytes(text)
