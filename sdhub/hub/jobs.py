"""Running jobs: each command in a process group of its own on this machine, whatever image and hardware it names.

A job is code, and who may write to this Hub can have it run here as its user: the server does so only when asked
to (`--jobs`). What an image would bring comes from this Python's environment, and packages that `uv run --with`
names are taken as they are installed there. A job has a home, a work folder and a folder for passing files of its
own, which go with it, and of the server's environment what a process needs; its secrets are in its environment
alone.
Repositories are mounted as copies whose files may not be written, buckets as they are: below a folder that stands
for `/`, so that paths in the command and in variables that begin as a mount does are told anew.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from sdhub.hub.errors import Refusal, StartError
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.running import END_SECONDS, KEPT
from sdhub.hub.store import buckets, jobs, repositories, revisions
from sdhub.hub.store.clock import now
from sdhub.hub.store.jobs import Job
from sdhub.hub.store.trees import load_tree

AT_ONCE = max(2, (os.cpu_count() or 2) // 4)
MAX_LOG, MAX_LINE = 64 * 2**20, 16 * 2**10
SECRET = 8  # characters from which on a secret is struck out of a log: shorter ones are words
ENDED = "the Hub that ran it ended"

logger = logging.getLogger("sdhub.hub")


class JobRunner:
    """Runs the jobs of a Hub at `url`, `AT_ONCE` at a time. One on a root: raises StartError otherwise.

    What another one had begun or taken on is noted as failed: it ended with that.
    """

    def __init__(self, hub: EmbeddedHub, url: str) -> None:
        if os.name != "posix":
            raise StartError("jobs run on Linux and macOS only")
        self._root = hub.root / "jobs"
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._root / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise StartError(f"another server runs the jobs of {hub.root}") from None
        with hub.database.write() as connection:
            jobs.end_all(connection, ENDED)
        for folder in self._root.glob("*/run"):
            shutil.rmtree(folder, ignore_errors=True)
        self._hub, self._url = hub, url
        self._waiting: deque[tuple[Job, Mapping[str, str]]] = deque()
        self._running: dict[int, _Running] = {}
        self._change = threading.Condition()
        self._closed = False
        for _ in range(AT_ONCE):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, job: Job, secrets: Mapping[str, str]) -> None:
        """Run a job when there is room."""
        with self._change:
            self._waiting.append((job, secrets))
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """End a job that waits or runs, with all that it started; returns when it is ended."""
        with self._hub.database.write() as connection:
            jobs.end(connection, job, "CANCELED")
        with self._change:
            running = self._running.get(job.number)
        if running:
            running.end()

    def close(self) -> None:
        """End all jobs; none is begun any more."""
        with self._change:
            self._closed = True
            running = list(self._running.values())
            self._change.notify_all()
        with self._hub.database.write() as connection:
            jobs.end_all(connection, ENDED)
        for each in running:
            each.end()
        self._lock.release()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job, secrets = self._waiting.popleft()
            try:
                self._do(job, secrets)
            except Exception:
                logger.exception("job %s was lost", job.id)  # the next one is not to blame

    def _do(self, job: Job, secrets: Mapping[str, str]) -> None:
        stage, message = self._run(job, secrets)
        with self._hub.database.write() as connection:
            jobs.end(connection, job, stage, message)

    def _run(self, job: Job, secrets: Mapping[str, str]) -> tuple[str, str]:
        """Stage and message that a job ends with."""
        with self._hub.database.write() as connection:
            if not jobs.begin(connection, job):
                return "CANCELED", ""
        folder = log_of(self._hub.root, job).parent / "run"
        try:
            root = folder / "root"
            self._mount(job, root)
            running = _Running(self._command(job, root), folder, self._variables(job, folder, root, secrets))
            with self._change:
                self._running[job.number] = running
            if self._hub_ended(job):  # it was cancelled meanwhile
                running.end()
            return running.follow(log_of(self._hub.root, job), list(secrets.values()), job.spec["timeoutSeconds"])
        except Exception as error:  # noqa: BLE001 — the next job is not to blame
            said = error.message if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
            return "ERROR", f"it could not be started: {said}"
        finally:
            with self._change:
                self._running.pop(job.number, None)
            shutil.rmtree(folder, ignore_errors=True)

    def _hub_ended(self, job: Job) -> bool:
        return jobs.find(self._hub.database.connection(), job.namespace, job.id).ended

    def _mount(self, job: Job, root: Path) -> None:
        for volume in job.spec["volumes"]:
            place = root / volume["mountPath"].lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            namespace, _, name = volume["source"].partition("/")
            if volume["type"] == "bucket":
                self._mount_bucket(namespace, name, volume, place)
            else:
                self._mount_repository(namespace, name, volume, place)

    def _mount_bucket(self, namespace: str, name: str, volume: Mapping[str, Any], place: Path) -> None:
        bucket = buckets.find(self._hub.database.connection(), namespace, name)
        if bucket is None:
            raise Refusal(404, f"there is no bucket {volume['source']}")
        folder = bucket.folder(self._hub.root) / (volume.get("path") or "")
        folder.mkdir(parents=True, exist_ok=True)
        if not volume.get("readOnly"):
            place.symlink_to(folder, target_is_directory=True)
            return
        shutil.copytree(folder, place, copy_function=_copy_read_only)

    def _mount_repository(self, namespace: str, name: str, volume: Mapping[str, Any], place: Path) -> None:
        connection = self._hub.database.connection()
        repo = repositories.find(connection, volume["type"], namespace, name)
        if repo is None:
            raise Refusal(404, f"there is no {volume['type']} {volume['source']}")
        revision = revisions.resolve(connection, repo.id, volume.get("revision") or revisions.MAIN)
        inside = f"{volume['path'].strip('/')}/" if volume.get("path") else ""
        place.mkdir(parents=True, exist_ok=True)
        for file in load_tree(connection, repo.id, revision.tree).files.values():
            if file.path.startswith(inside):
                path = place / file.path.removeprefix(inside)
                path.parent.mkdir(parents=True, exist_ok=True)
                _copy_read_only(self._hub.blobs.path(file.sha256), path)

    def _command(self, job: Job, root: Path) -> list[str]:
        told = _told(job, root)
        return [told(word) for word in without_uv([*job.spec["command"], *job.spec["arguments"]])]

    def _variables(self, job: Job, folder: Path, root: Path, secrets: Mapping[str, str]) -> dict[str, str]:
        own = {
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "passing"),
            "HF_HOME": str(folder / "home" / "huggingface"),
            "HF_ENDPOINT": self._url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "JOB_ID": job.id,
            "PYTHONUNBUFFERED": "1",
        }
        for name in ("home", "passing", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        kept["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), kept.get("PATH", os.defpath)])
        told = _told(job, root)
        given = {name: told(value) for name, value in job.spec["environment"].items()}
        return {**kept, **own, **given, **secrets}


class _Running:
    """The process group of a job."""

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        supervisor = Path(__file__).with_name("supervisor.py")
        self._process = subprocess.Popen(  # noqa: S603 — what `--jobs` is for
            [sys.executable, "-I", str(supervisor), "--", *command],
            cwd=folder / "work",
            env=dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def follow(self, log: Path, secrets: Sequence[str], seconds: float) -> tuple[str, str]:
        """Keep what it says in `log` until it ends, within `seconds`; stage and message."""
        pump = threading.Thread(target=_pump, args=(self._process.stdout, log, secrets), daemon=True)
        pump.start()
        late = False
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
            code = self.end()
        self._signal(signal.SIGKILL)  # what it left running
        pump.join(END_SECONDS)
        if late:
            return "ERROR", f"Job timeout: it ran longer than {seconds:g} s"
        return ("COMPLETED", "") if code == 0 else ("ERROR", f"Job failed with exit code: {_shell(code)}")

    def end(self) -> int:
        """Ask the group to end, and end it where it does not."""
        self._signal(signal.SIGTERM)
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            return self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left; on macOS, only dead ones
            os.killpg(self._process.pid, number)


def log_of(root: Path, job: Job) -> Path:
    """The file with what a job says: lines of time, tab, text."""
    return root / "jobs" / job.id / "log"


def _pump(said: IO[bytes], log: Path, secrets: Sequence[str]) -> None:
    """Write what is said into the log, line by line, without secrets; what is too much is left away."""
    struck = [each for each in secrets if len(each) >= SECRET]
    with log.open("w", encoding="utf-8", newline="\n") as out:
        out.write(f"{now()}\t===== Job started at {now()} =====\n")
        out.flush()
        while line := said.readline(MAX_LINE):
            text = line.decode("utf-8", errors="replace").rstrip("\r\n").rpartition("\r")[2]
            for secret in struck:
                text = text.replace(secret, "***")
            if out.tell() < MAX_LOG:
                out.write(f"{now()}\t{text}\n")
                out.flush()


def _shell(code: int) -> int:
    return code if code >= 0 else 128 - code


def without_uv(words: Sequence[str]) -> list[str]:
    """The command that `uv run [--with PACKAGE]… [--python VERSION] COMMAND…` runs; scripts by this Python."""
    rest = list(words)
    if rest[:2] == ["uv", "run"]:
        rest = rest[2:]
        while len(rest) > 2 and rest[0] in ("--with", "--python", "-p"):
            rest = rest[2:]
    if rest and rest[0].endswith(".py"):
        rest.insert(0, sys.executable)
    return rest


def _told(job: Job, root: Path) -> Callable[[str], str]:
    """Tells paths below the first folder of any mount as they are on this machine."""
    tops = sorted({volume["mountPath"].split("/")[1] for volume in job.spec["volumes"]})
    if not tops:
        return str
    path = re.compile(rf"(?<![\w./-])/(?=(?:{'|'.join(map(re.escape, tops))})(?:[^\w.-]|$))")
    return lambda text: path.sub(lambda _: f"{root}/", text)


def _copy_read_only(source: str | Path, target: str | Path) -> str:
    shutil.copyfile(source, target)
    Path(target).chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    return str(target)
