"""Processes of their own: results, progress, errors; and nothing of the current folder is run."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from sdhub.core.endpoint import embedded
from sdhub.core.errors import BuildError, SdhubError
from sdhub.core.isolated import apart
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
