"""Processes of their own: results, progress, errors; and nothing of the current folder is run."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from sdhub.core.endpoint import embedded
from sdhub.core.errors import BuildError, SdhubError, UnsafeError
from sdhub.core.isolated import ExhaustedError, apart, bounded
from sdhub.core.progress import SILENT, Progress, Task


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

    from sdhub.core import isolated as isolate

    # The child does not look where this test's module lies: tell it.
    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sdhub.core.isolated import main; main()"
    monkeypatch.setattr(isolate, "COMMAND", [sys.executable, "-I", "-c", command])
    recorder = Recorder()
    apart(jobs.work, tmp_path / "out", progress=recorder)
    assert (tmp_path / "out").read_text() == "done"
    assert recorder.said == ["begun", ("counting", 2, "things"), 2]
    with pytest.raises(BuildError) as failure:
        apart(jobs.fail, progress=SILENT)
    assert (failure.value.message, failure.value.hint) == ("no", "try less")
    with pytest.raises(SdhubError, match="too much"):
        apart(jobs.die, progress=SILENT)


linux = pytest.mark.skipif(sys.platform != "linux", reason="only there is a copy of the process taken")


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
    started = time.monotonic()
    with pytest.raises(ExhaustedError, match=f"more than 64 MiB or {seconds} s"):
        bounded(function, *arguments, seconds=seconds, mib=64)
    assert time.monotonic() - started < 30
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # nothing of it stays


@pytest.mark.parametrize("name", ["pickle", "json", "torch", "numpy", "sdhub"])
def test_modules_in_the_current_folder_are_not_run(tmp_path, monkeypatch, name):
    """A stranger's checkpoint may be the current folder, and hold any file."""
    (tmp_path / f"{name}.py").write_text("open('executed', 'w')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SdhubError):
        apart(subprocess.list2cmdline, progress=SILENT)  # any importable function: it fails on its argument
    with embedded(tmp_path / "hub") as url:
        assert url.startswith("http://127.0.0.1:")
    assert not (tmp_path / "executed").exists()
