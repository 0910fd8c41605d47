"""Downloading a whole repository into a folder of its own, from an empty cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sdhub.core.errors import CheckError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress


def download(
    repo_id: str,
    folder: Path,
    *,
    hub: Hub,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> str:
    """Put all files of a repository at `revision` (default: `main`) into the new `folder`; returns the commit.

    Raises HubError, CheckError for a repository without commits.
    """
    api, doing = hub.api, f"download {repo_id}"
    with progress.task(f"downloading {repo_id}"):
        commit = hub.ask(doing, lambda: api.model_info(repo_id, revision=revision), progress).sha
        if commit is None:
            raise CheckError(f"{repo_id} is empty")
        hub.ask(
            doing,
            lambda: api.snapshot_download(repo_id, revision=commit, local_dir=folder, tqdm_class=silent_bar()),
            progress,
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return commit


def silent_bar() -> type[Any]:
    """A progress bar for `snapshot_download` that is never drawn."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    def start(self: Any, *args: Any, **settings: Any) -> None:
        settings.pop("name", None)
        tqdm.__init__(self, *args, **{**settings, "disable": True})

    return type("Silent", (tqdm,), {"__init__": start})
