"""Every command of sdhub that its messages and hints name, in one place: a test runs each as it is printed."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

LOCAL_PORT = 8420  # of the embedded Hub, where nothing else has it


def schema() -> str:
    """Prints the JSON Schema of recipes."""
    return _line("recipe", "schema")


def cache() -> str:
    """Shows what is kept on this machine."""
    return _line("cache")


def serve(url: str | None = None) -> str:
    """Opens the pages of the embedded Hub, on the port that the address `url` has."""
    port = urlsplit(url).port if url else None
    return _line("hub", "serve", *(["--port", str(port)] if port not in {None, LOCAL_PORT} else []))


def serve_spaces(url: str | None = None) -> str:
    """Opens them, and runs the apps of Spaces."""
    return f"{serve(url)} --spaces present"


def generate(variant: str | Path, prompt: str, picture: str, hub: str | None = None) -> str:
    """Draws with a variant's folder or repository."""
    return _line("generate", str(variant), prompt, *(["--hub", hub] if hub else []), "-o", picture)


def publish_own() -> str:
    """Publishes to the embedded Hub; SOURCE and NAMESPACE are the reader's."""
    return _line("publish", "SOURCE", "--to", "NAMESPACE", "--hub", "local")


def publish_recipe(source: str, recipe: Path, loras: Sequence[str] = (), config: str | None = None) -> str:
    """Publishes what an analysis found, of the same source."""
    fused = [word for each in loras for word in ("--lora", each)]
    return _line("publish", source, *fused, *(["--config", config] if config else []), "--recipe", str(recipe))


def inspect(source: str | None = None) -> str:
    """Lists the variants that a source can have; without one, SOURCE is the reader's."""
    return _line("inspect", source or "SOURCE")


def deploy_private(repo: str = "REPO") -> str:
    """Deploys a Space of private variants, that reads them with the token of this environment."""
    return _line("space", "deploy", repo, "--secret", "HF_TOKEN")


def deploy(repo: str = "REPO") -> str:
    """Deploys a Space."""
    return _line("space", "deploy", repo)


def serve_jobs() -> str:
    """Opens the embedded Hub, and runs jobs."""
    return _line("hub", "serve", "--jobs")


def follow(job: str, namespace: str, hub: str | None = None) -> str:
    """Follows a job."""
    return _line("jobs", "follow", job, "--namespace", namespace, *(["--hub", hub] if hub else []))


def cancel(job: str, namespace: str, hub: str | None = None) -> str:
    """Cancels a job."""
    return _line("jobs", "cancel", job, "--namespace", namespace, *(["--hub", hub] if hub else []))


def program() -> str:
    """How this program is called: `sdhub` where the shell finds it so, else as it was, `.venv/bin/sdhub`."""
    called = Path(sys.argv[0])
    if called.stem != "sdhub" or not called.is_file():
        return "sdhub"
    found = shutil.which("sdhub")
    return "sdhub" if found and called.samefile(found) else sys.argv[0]


def _line(*words: str) -> str:
    return shlex.join([program(), *words])
