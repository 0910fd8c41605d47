"""A full disk is told as one, with the folder whose disk it is."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdhub.core import disk
from sdhub.core.disk import full_disk, watched
from sdhub.core.errors import BuildError, SdhubError
from sdhub.core.hub import Hub
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import SILENT
from sdhub.core.work import Work, publish_folder
from sdhub.watching.dispatch import failure

FULL = Path("/dev/full")
needs_device = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def full(out):
    """Raises what the system raises."""
    with FULL.open("wb", buffering=0) as stream:
        stream.write(b"x")


def deep(error):
    try:
        try:
            raise error
        except OSError as inner:
            raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/models/x.bin"),
        OSError(errno.EDQUOT, "Disk quota exceeded", b"/data/models/x.bin"),
        deep(OSError(errno.ENOSPC, "No space left on device", "/data/models/x.bin")),
    ],
)
def test_the_folder_is_named(error):
    assert full_disk(error).message == "the disk of /data/models is full"
    assert "SDHUB_HOME" in full_disk(error).hint


def test_libraries_say_it_in_words(tmp_path):
    for words in ("I/O error: No space left on device (os error 28)", "Disk quota exceeded"):
        assert "is full" in full_disk(RuntimeError(words), [tmp_path]).message
    assert full_disk(RuntimeError("basic_ios::clear: iostream error"), [tmp_path]) is None
    assert full_disk(OSError(errno.EACCES, "Permission denied", "/x")) is None
    assert full_disk(BuildError("no space left on device")) is None


def test_a_stream_that_fails_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    found = full_disk(RuntimeError("basic_ios::clear: iostream error"), [tmp_path])
    assert found.message == f"the disk of {tmp_path} is full"


@needs_device
def test_stages_and_folders(tmp_path):
    with pytest.raises(SdhubError, match=r"the disk of .* is full"):
        Work(tmp_path).stage("build", {}, full)
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(SdhubError, match=r"the disk of .* is full"):
        publish_folder(tmp_path / "out", full)


@needs_device
def test_a_build_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "jobs_of_disk.py").write_text(
        "def fill(out, progress):\n"
        "    with open('/dev/full', 'wb', buffering=0) as stream:\n"
        "        stream.write(b'x')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import jobs_of_disk

    from sdhub.core import isolated as isolate

    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sdhub.core.isolated import main; main()"
    monkeypatch.setattr(isolate, "COMMAND", [sys.executable, "-I", "-c", command])
    with pytest.raises(SdhubError, match=r"the disk of .* is full"):
        run_isolated(jobs_of_disk.fill, tmp_path / "out", progress=SILENT)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "/c/x"), RuntimeError("Data processing error: os error 28")],
)
def test_downloads(error):
    with pytest.raises(SdhubError, match=r"the disk of .* is full"), Hub().telling("read org/model", "org/model"):
        raise error
    with (
        pytest.raises(SdhubError, match=r"the disk of .* is full"),
        Hub("http://h").telling("read"),
    ):
        raise error
    assert "is full" in failure(error).detail


def test_other_errors_pass():
    with pytest.raises(KeyError), watched():
        raise KeyError("x")
