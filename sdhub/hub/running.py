"""Running Spaces: each app in a process of its own, on a port of this machine.

A Space is code, and who may write to this Hub can have it run here as its user: the server does so only when asked
to (`--spaces`). An app sees a folder of its own with the files of `main`, its variables and secrets, and the Hub's
address; nothing else of the server's environment but what a process needs.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from sdhub.hub.cards import card_data
from sdhub.hub.errors import Refusal, StartError
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.store import revisions, spaces
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.trees import Tree, load_tree

Python = Literal["present", "own"]
START_SECONDS = 600
END_SECONDS = 5
KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "OMP_NUM_THREADS", "SYSTEMROOT")
MAX_BYTES = 2**30

logger = logging.getLogger("sdhub.hub")


@dataclass
class _App:
    """One start of a Space's app."""

    process: subprocess.Popen[bytes] | None = None
    url: str | None = None
    message: str | None = None


class Runner:
    """Starts and ends the apps of a Hub's Spaces; `python` is the environment they run in: the present one, or one
    of their own made from `requirements.txt`. One runner at a time on a root: raises StartError otherwise.
    """

    def __init__(self, hub: EmbeddedHub, python: Python, url: str) -> None:
        self._root = hub.root / "spaces"
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._root / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise StartError(f"another server runs the Spaces of {hub.root}") from None
        self._hub = hub
        self._database = hub.database
        self._python = python
        self._guard = threading.Lock()
        self._apps: dict[int, _App] = {}
        self._url = url
        with hub.database.write() as connection:
            spaces.put_to_sleep(connection)

    def url_of(self, repo: Repo) -> str | None:
        """Where the app of a Space answers, once it does."""
        app = self._apps.get(repo.id)
        return app.url if app else None

    def message_of(self, repo: Repo) -> str | None:
        """Why a Space failed."""
        app = self._apps.get(repo.id)
        return app.message if app else None

    def start(self, repo: Repo) -> None:
        """Begin to run the `main` of a Space, in the place of what runs; returns at once."""
        if repo.sdk != "gradio":
            return
        with self._guard:
            before = self._apps.get(repo.id)
            app = self._apps[repo.id] = _App()
        if before and before.process:
            _end(before.process)
        self._set_stage(repo, app, "BUILDING")
        threading.Thread(target=self._run, args=(repo, app), daemon=True).start()

    def stop(self, repo: Repo) -> None:
        """End the app of a Space."""
        with self._guard:
            app = self._apps.pop(repo.id, None)
        if app and app.process:
            _end(app.process)

    def close(self) -> None:
        """End all apps."""
        with self._guard:
            apps, self._apps = list(self._apps.values()), {}
        for app in apps:
            if app.process:
                _end(app.process)
        self._lock.release()

    def _run(self, repo: Repo, app: _App) -> None:
        try:
            folder, app_file = self._place(repo)
        except (Refusal, OSError) as error:
            self._fail(repo, app, "NO_APP_FILE" if isinstance(error, Refusal) else "BUILD_ERROR", str(error))
            return
        try:
            python = self._environment(folder) if self._python == "own" else Path(sys.executable)
        except (OSError, subprocess.SubprocessError) as error:
            self._fail(repo, app, "BUILD_ERROR", f"requirements.txt could not be installed: {error}")
            return
        self._set_stage(repo, app, "APP_STARTING")
        self._serve(repo, app, folder, app_file, python)

    def _place(self, repo: Repo) -> tuple[Path, str]:
        """The files of `main` in a folder of their own, and the app's name. 404 where there is none."""
        connection = self._database.connection()
        revision = revisions.resolve(connection, repo.id, revisions.MAIN)
        tree = load_tree(connection, repo.id, revision.tree)
        app_file = self._app_file(tree)
        folder = self._root / str(repo.id) / "app"
        shutil.rmtree(folder, ignore_errors=True)
        for file in tree.files.values():
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._hub.blobs.path(file.sha256), path)
        return folder, app_file

    def _app_file(self, tree: Tree) -> str:
        if sum(file.size for file in tree.files.values()) > MAX_BYTES:
            raise Refusal(413, "the Space has more than a gigabyte of files")
        app_file = str((card_data(self._hub, tree) or {}).get("app_file") or "app.py")
        if app_file not in tree.files:
            raise Refusal(404, f"there is no {app_file[:80]}")
        return app_file

    def _environment(self, folder: Path) -> Path:
        """The Python of an environment with what `requirements.txt` says, made where it is not there yet."""
        requirements = folder / "requirements.txt"
        wanted = requirements.read_bytes() if requirements.is_file() else b""
        place = self._root / "environments" / sha256(wanted + sys.version.encode()).hexdigest()[:16]
        place.parent.mkdir(parents=True, exist_ok=True)
        python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        with FileLock(f"{place}.lock"):
            if not (place / ".made").is_file():
                shutil.rmtree(place, ignore_errors=True)
                subprocess.run([sys.executable, "-m", "venv", place], check=True, stdin=subprocess.DEVNULL)  # noqa: S603
                if wanted:
                    install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
                    subprocess.run(install, check=True, stdin=subprocess.DEVNULL)  # noqa: S603
                (place / ".made").touch()
        return python

    def _serve(self, repo: Repo, app: _App, folder: Path, app_file: str, python: Path) -> None:
        port = _free_port()
        log = folder.parent / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(  # noqa: S603 — what `--spaces` is for
                [str(python), str(Path(__file__).with_name("supervisor.py")), app_file],
                cwd=folder,
                env=self._variables(repo, folder, port),
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        with self._guard:
            current = self._apps.get(repo.id) is app
            if current:
                app.process = process
        if not current:
            _end(process)
            return
        if _answers(process, port):
            app.url = f"http://127.0.0.1:{port}"
            self._set_stage(repo, app, "RUNNING")
            process.wait()
        else:
            _end(process)
        app.url = None
        self._fail(repo, app, "RUNTIME_ERROR", _last_line(log))

    def _variables(self, repo: Repo, folder: Path, port: int) -> dict[str, str]:
        home = folder.parent / "home"
        home.mkdir(exist_ok=True)
        own = {
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "HF_ENDPOINT": self._url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(home / "gradio"),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
            "SPACE_ID": repo.full_name,
            "SPACE_AUTHOR_NAME": repo.namespace,
            "SPACE_REPO_NAME": repo.name,
            "SPACE_HOST": f"127.0.0.1:{port}",
            "PYTHONUNBUFFERED": "1",
        }
        given = spaces.environment(self._database.connection(), repo)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return {**kept, **given, **own}

    def _fail(self, repo: Repo, app: _App, stage: str, message: str) -> None:
        app.message = message
        self._set_stage(repo, app, stage)

    def _set_stage(self, repo: Repo, app: _App, stage: str) -> None:
        """Note a stage, unless the app was ended or started again."""
        with self._database.write() as connection:
            if self._apps.get(repo.id) is app:
                spaces.set_stage(connection, repo, stage)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the app listens before it ends and in time."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()  # the supervisor ends with it
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "it ended without a word")
