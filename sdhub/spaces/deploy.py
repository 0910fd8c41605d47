"""Deploying a Space: created or updated with what differs, and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sdhub.core.errors import CheckError, HubError, PrivacyError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.retry import status_of

if TYPE_CHECKING:
    from huggingface_hub import SpaceInfo

T = TypeVar("T")
ATTEMPTS = 5
WAIT_SECONDS = 1200.0
LOOK_SECONDS = 2.0
HARDWARE = "cpu-basic"
SETTLED = {"RUNNING", "SLEEPING", "PAUSED"}
DOWN = {"BUILD_ERROR", "CONFIG_ERROR", "RUNTIME_ERROR", "STOPPED", "DELETING"}


@dataclass(frozen=True)
class Deployed:
    """A Space on a Hub: `app` is where it answers, `stage` as the Hub names it, `changed` what was sent."""

    repo_id: str
    url: str
    status: Literal["created", "updated", "unchanged"]
    stage: str
    app: str | None
    changed: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "repo": self.repo_id,
            "url": self.url,
            "status": self.status,
            "stage": self.stage,
            "app": self.app,
            "changed": list(self.changed),
        }


def deploy(
    repo_id: str,
    files: Mapping[str, bytes],
    *,
    hub: Hub,
    hardware: str = HARDWARE,
    private: bool = False,
    secrets: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    wait_seconds: float = WAIT_SECONDS,
    progress: Progress = SILENT,
) -> Deployed:
    """Make the Space `repo_id` hold `files`, in one commit of those that differ, and wait until it runs.

    Secrets and variables go through the Hub's API and into no file; they are set before the files, so that the
    first start has them, and one that runs already is started again to have them. Files of others in it are left
    alone. A Space that stays asleep (as on an embedded Hub that runs none) is left so. Raises HubError;
    PrivacyError where `private` is asked for and the Space is public; CheckError where it does not come up, with
    what the Hub says of it.
    """
    space = _Space(repo_id, hub, progress)
    made = space.create(hardware=hardware, private=private)
    for name, value in (variables or {}).items():
        space.ask("set a variable of", lambda: space.api.add_space_variable(repo_id, name, value))  # noqa: B023
    for name, value in (secrets or {}).items():
        space.ask("set a secret of", lambda: space.api.add_space_secret(repo_id, name, value))  # noqa: B023
    changed = space.update(files)
    if not changed:
        space.wake(always=bool(secrets or variables))
    stage = space.wait(wait_seconds)
    status: Literal["created", "updated", "unchanged"] = (
        "created" if made else "updated" if changed else "unchanged"
    )
    return Deployed(repo_id, space.url, status, stage, space.app(), changed)


class _Space:
    """A Space that is being deployed."""

    def __init__(self, repo_id: str, hub: Hub, progress: Progress) -> None:
        self.repo_id = repo_id
        self.hub = hub
        self.progress = progress
        self.api = hub.api
        self.url = f"{hub.url}/spaces/{repo_id}"

    def ask(self, doing: str, act: Callable[[], T]) -> T:
        """`act`, with patience. Raises HubError."""
        return self.hub.ask(f"{doing} {self.repo_id}", act, self.progress)

    def info(self) -> SpaceInfo | None:
        """What the Hub says of it; None where it is not there."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def fetch() -> SpaceInfo | None:
            try:
                return self.api.space_info(self.repo_id, files_metadata=True)
            except RepositoryNotFoundError:
                return None

        return self.ask("look at", fetch)

    def create(self, *, hardware: str, private: bool) -> bool:
        """Whether it had to be made; one that is there gets the hardware asked for."""
        info = self.info()
        if info is None:
            self.ask(
                "create",
                lambda: self.api.create_repo(
                    self.repo_id,
                    repo_type="space",
                    space_sdk="gradio",
                    space_hardware=None if hardware == HARDWARE else hardware,
                    private=private,
                    exist_ok=True,
                ),
            )
            return True
        if private and not info.private:
            raise PrivacyError(
                f"the Space {self.repo_id} is public, and shows what is private",
                hint="make it private, or choose another one with --to",
            )
        known = {str(getattr(each, "value", each)) for each in self._hardware() if each}
        if hardware not in (known or {HARDWARE}):
            self.ask("set the hardware of", lambda: self.api.request_space_hardware(self.repo_id, hardware))  # type: ignore[arg-type]
        return False

    def _hardware(self) -> tuple[Any, Any]:
        runtime = self.ask("look at", lambda: self.api.get_space_runtime(self.repo_id))
        return runtime.hardware, runtime.requested_hardware

    def update(self, files: Mapping[str, bytes]) -> tuple[str, ...]:
        """One commit of what differs; the paths. A commit of someone else in between is noticed."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        sent: list[str] = []
        for _ in range(ATTEMPTS):
            info = self.info()
            there = {each.rfilename: each.blob_id for each in (info.siblings or ())} if info else {}
            changed = {name: raw for name, raw in files.items() if there.get(name) != _blob_id(raw)}
            if not changed:
                return tuple(sent)
            parent = info.sha if info else None
            operations = [CommitOperationAdd(name, raw) for name, raw in sorted(changed.items())]

            def commit(operations: list[Any] = operations, parent: str | None = parent) -> None:
                try:
                    self.api.create_commit(
                        self.repo_id,
                        operations,
                        commit_message="Deploy with sdhub",
                        repo_type="space",
                        parent_commit=parent,
                    )
                except HfHubHTTPError as error:
                    if status_of(error) != 412:
                        raise

            sent = sorted({*sent, *changed})
            self.ask("publish to", commit)
        raise HubError(
            f"{self.repo_id} was changed by someone else {ATTEMPTS} times in a row", hint="run again later"
        )

    def wake(self, *, always: bool) -> None:
        """Start one that is not running; `always` also one that is."""
        runtime = self.ask("look at", lambda: self.api.get_space_runtime(self.repo_id))
        if always or str(runtime.stage) in DOWN | {"SLEEPING", "PAUSED"}:
            self.ask("start", lambda: self.api.restart_space(self.repo_id))

    def wait(self, seconds: float) -> str:
        """The stage, once it runs. Raises CheckError where it fails, or takes longer."""
        deadline, last = time.monotonic() + seconds, ""
        with self.progress.task(f"starting the Space {self.repo_id}"):
            while True:
                runtime = self.ask("look at", lambda: self.api.get_space_runtime(self.repo_id))
                stage = str(getattr(runtime.stage, "value", runtime.stage))
                if stage != last:
                    self.progress.note(f"{self.repo_id}: {stage.lower().replace('_', ' ')}")
                    last = stage
                if stage in SETTLED:
                    return stage
                said = runtime.raw.get("errorMessage")
                if stage in DOWN or (stage == "NO_APP_FILE" and said):  # without a word, it is not yet built
                    raise CheckError(
                        f"the Space {self.repo_id} is down ({stage}): {str(said or 'no reason is given')[:300]}",
                        hint=f"its logs are on {self.url}",
                    )
                if time.monotonic() > deadline:
                    raise CheckError(
                        f"the Space {self.repo_id} is not up after {seconds:.0f} s ({stage})",
                        hint=f"look at {self.url}",
                    )
                time.sleep(LOOK_SECONDS)

    def app(self) -> str | None:
        """Where it answers, if the Hub says so."""
        info = self.info()
        host = getattr(info, "host", None)
        return str(host) if host else None


def _blob_id(raw: bytes) -> str:
    import hashlib

    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
