"""Processes of their own: results, progress, errors; and nothing of the current folder is run."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdhub.core import isolated
from sdhub.core.endpoint import embedded
from sdhub.core.errors import BuildError, SdhubError, UnsafeError
from sdhub.core.isolated import ExhaustedError, bounded, run_isolated
from sdhub.core.progress import SILENT, Progress, Task

# The child does not look where a test's module lies: tell it. It needs less than sdhub's own.
AT = (
    "import sys; sys.path.insert(0, {folder!r}); from sdhub.core import isolated; "
    "isolated.PRELOADED = ('fractions', 'not_there'); isolated.main()"
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="only there are copies of a process made")


class Recorder(Progress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)

    @contextmanager
    def task(self, label, total=None, unit=""):
        self.said.append((label, total, unit))
        yield RecordedTask(self)


class RecordedTask(Task):
    def __init__(self, recorder):
        self.recorder = recorder

    def advance(self, amount=1.0):
        self.recorder.said.append(amount)


def test_progress_and_errors_come_back(tmp_path, monkeypatch):
    (tmp_path / "jobs.py").write_text(
        "from sdhub.core.errors import BuildError\n"
        "def work(out, progress):\n"
        "    print('a library talks')\n"
        "    progress.note('begun')\n"
        "    with progress.task('counting', total=2, unit='things') as task:\n"
        "        task.advance(2)\n"
        "    out.write_text('done')\n"
        "def fail(progress):\n"
        "    raise BuildError('no', hint='try less')\n"
        "def die(progress):\n"
        "    raise MemoryError('too much')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import jobs

    monkeypatch.setattr(isolated, "COMMAND", [sys.executable, "-I", "-c", AT.format(folder=str(tmp_path))])
    recorder = Recorder()
    run_isolated(jobs.work, tmp_path / "out", progress=recorder)
    assert (tmp_path / "out").read_text() == "done"
    assert recorder.said == ["begun", ("counting", 2, "things"), 2]
    with pytest.raises(BuildError) as failure:
        run_isolated(jobs.fail, progress=SILENT)
    assert (failure.value.message, failure.value.hint) == ("no", "try less")
    with pytest.raises(SdhubError, match="too much"):
        run_isolated(jobs.die, progress=SILENT)


def children():
    """Of this process: fork servers of other tests."""
    return sorted(each.read_text() for each in Path("/proc/self/task").glob("*/children"))


def _refuse():
    raise UnsafeError("no", hint="try less")


def _spend(mib):
    return len(bytearray(mib * 2**20))


def _turn():
    while True:
        pass


def test_a_bounded_call_answers_and_raises_as_if_it_were_not():
    assert bounded(sorted, [3, 1, 2], seconds=10, mib=64) == [1, 2, 3]
    assert bounded(_spend, 1, seconds=10, mib=64) == 2**20
    with pytest.raises(UnsafeError) as failure:
        bounded(_refuse, seconds=10, mib=64)
    assert (failure.value.message, failure.value.hint) == ("no", "try less")


@linux
def test_a_bounded_call_cannot_change_its_parent():
    kept = []
    assert bounded(kept.extend, [1], seconds=10, mib=64) is None
    assert kept == []


@linux
@pytest.mark.parametrize(
    ("function", "arguments", "seconds"),
    [(_spend, (512,), 10), (_turn, (), 1), (time.sleep, (60,), 1), (os._exit, (0,), 10), (os.abort, (), 10)],
    ids=["memory", "computing", "waiting", "leaving", "dying"],
)
def test_a_bounded_call_ends(function, arguments, seconds):
    started, before = time.monotonic(), children()
    with pytest.raises(ExhaustedError, match=f"more than 64 MiB or {seconds} s"):
        bounded(function, *arguments, seconds=seconds, mib=64)
    assert time.monotonic() - started < 30
    assert children() == before  # nothing of it stays


@pytest.mark.parametrize("name", ["pickle", "json", "torch", "numpy", "sdhub"])
def test_modules_in_the_current_folder_are_not_run(tmp_path, monkeypatch, name):
    """A stranger's checkpoint may be the current folder, and hold any file."""
    (tmp_path / f"{name}.py").write_text("open('executed', 'w')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SdhubError):
        run_isolated(subprocess.list2cmdline, progress=SILENT)  # any importable function: it fails on its argument
    with embedded(tmp_path / "hub") as url:
        assert url.startswith("http://127.0.0.1:")
    assert not (tmp_path / "executed").exists()


JOBS = """
import json, os, signal, sys, time
def look(out, progress):
    own = {"parent": os.getppid(), "loaded": "fractions" in sys.modules}
    out.write_text(json.dumps({**own, "said": os.environ.get("SAID"), "at": os.environ["TMPDIR"]}))
def end(code, seconds, progress):
    time.sleep(seconds)
    os._exit(code)
def kill(progress):
    os.kill(os.getpid(), signal.SIGKILL)
def wait(out, progress):
    out.write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Functions of a module that children find as well."""
    (tmp_path / "forked_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(isolated, "COMMAND", [sys.executable, "-I", "-c", AT.format(folder=str(tmp_path))])
    return importlib.import_module("forked_jobs")


@linux
def test_children_are_copies_of_one_process_with_an_environment_each(jobs, tmp_path, monkeypatch):
    seen = []
    for said in ("one", "two"):
        monkeypatch.setenv("SAID", said)
        run_isolated(jobs.look, tmp_path / "out", progress=SILENT)
        seen.append(json.loads((tmp_path / "out").read_text()))
    assert seen[0]["parent"] == seen[1]["parent"] != os.getpid()
    assert [each["said"] for each in seen] == ["one", "two"]
    assert all(each["loaded"] for each in seen)
    assert seen[0]["at"] != seen[1]["at"] and not any(Path(each["at"]).exists() for each in seen)


@linux
def test_each_child_has_its_own_end(jobs):
    def ended(code):
        with pytest.raises(SdhubError, match=f"exit code {code}"):
            run_isolated(jobs.end, code, 0.5, progress=SILENT)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ended, (3, 4, 5)))
    with pytest.raises(SdhubError, match="killed, perhaps for want of memory"):
        run_isolated(jobs.kill, progress=SILENT)


@linux
def test_a_killed_server_is_begun_again(jobs, tmp_path):
    parents = []
    for _ in range(2):
        run_isolated(jobs.look, tmp_path / "out", progress=SILENT)
        parents.append(json.loads((tmp_path / "out").read_text())["parent"])
        os.kill(parents[-1], signal.SIGKILL)
        until(lambda: not alive(parents[-1]))
    assert parents[0] != parents[1]


@linux
def test_server_and_children_end_with_a_parent_that_is_killed(jobs, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pathlib import Path; import forked_jobs; "
        "from sdhub.core import isolated; from sdhub.core.progress import SILENT; "
        f"isolated.COMMAND = {isolated.COMMAND!r}; "
        f"isolated.run_isolated(forked_jobs.wait, Path({str(tmp_path / 'out')!r}), progress=SILENT)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until(lambda: (tmp_path / "out").is_file() and (tmp_path / "out").read_text())
        parent.kill()
    left = [int(each) for each in (tmp_path / "out").read_text().split()]
    until(lambda: not any(map(alive, left)))


def alive(process):
    """Whether it runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(said, seconds=60):
    end = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
