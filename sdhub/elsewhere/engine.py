"""HF Jobs, the Hub's own engine: starting a job, or finding the one that does the same already.

A job has the request's key as a label. Before one is made, jobs with that label are looked for: one that waits or
runs is joined, one that is done is read, so that nothing is paid for twice. Two clients that make one at the same
time see each other's afterwards, and all but the oldest are cancelled. The token goes along as a secret, never in
the command. The source is mounted where huggingface_hub's cache would have it; finished stages are kept in a
bucket, from which a later job goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.core.errors import HubError, UsageError
from sdhub.core.hub import PUBLIC, Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.elsewhere.hardware import Flavor, choose, flavors
from sdhub.elsewhere.request import LABEL, Price, Request, limit

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

ENGINE = "hf-jobs"
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
WAITS, DONE = "SCHEDULING", "COMPLETED"
ENDS = {DONE, "CANCELED", "DELETED", "ERROR"}
CACHE, KEPT, INPUTS = "/sdhub/hub", "/sdhub/kept", "/sdhub/inputs"
BUCKET, FILES = "sdhub-work", "sdhub-inputs"  # of a namespace: kept stages, and files of this machine


def parse_on(text: str) -> str | None:
    """The flavor in "hf-jobs[:FLAVOR]", None where none is named. Raises UsageError."""
    name, colon, flavor = text.partition(":")
    if name != ENGINE or (colon and not flavor):
        raise UsageError(f"nothing runs on {text[:40]!r}", hint=f"say {ENGINE}, or {ENGINE}:FLAVOR")
    return flavor or None


@dataclass
class Engine:
    """The jobs of `namespace` on a Hub. `flavor` and `seconds` None: what a request needs and a multiple of its
    forecast. `requirement` is the distribution to run; None is this version of sdhub.
    """

    hub: Hub
    namespace: str
    flavor: str | None = None
    seconds: int | None = None
    requirement: str | None = None
    progress: Progress = SILENT
    _known: list[Flavor] = field(default_factory=list, init=False)
    _bucket: bool | None = field(default=None, init=False)

    def price(self, request: Request) -> Price:
        """On what a request would run, and what it may cost. Raises UsageError, UnsupportedError, HubError."""
        self._known = self._known or flavors(self.hub, self.progress)
        flavor = choose(self._known, request.need, self.flavor)
        return Price(flavor, request.minutes, limit(request.minutes, self.seconds))

    def start(self, request: Request, still: Callable[[JobInfo], bool] = lambda _: True) -> JobInfo:
        """The job of a request: one that waits or runs, one that is done and `still` true, else a new one."""
        before: list[JobInfo] = self._ask("read the jobs", lambda: self.jobs({LABEL: request.key}))
        done = [each for each in before if stage(each) == DONE]
        found = _oldest(before) or max(done, key=_age, default=None)
        if found is not None and (stage(found) != DONE or still(found)):
            return found
        price = self.price(request)
        self._send_files(request)
        volumes = self._volumes(request)
        known, tries = {each.id for each in before}, count()

        def run() -> JobInfo:
            lost = self.jobs({LABEL: request.key}) if next(tries) else []  # of a try whose answer was lost
            made = min((each for each in lost if each.id not in known), key=_age, default=None)
            return made or self._run(request, price, volumes)

        job: JobInfo = self._ask("run a job", run)
        first = _oldest(self._ask("read the jobs", lambda: self.jobs({LABEL: request.key}))) or job
        if first.id != job.id:  # another client made one at the same time
            self.cancel(job.id)
        return first

    def jobs(self, labels: dict[str, str] | None = None) -> list[JobInfo]:
        """All jobs of sdhub with these labels, the newest first. Raises errors of huggingface_hub.

        By its page reader: before 1.21 its `list_jobs` knows neither labels nor pages. Filtered once more, since
        older servers ignore the filter.
        """
        from huggingface_hub import JobInfo
        from huggingface_hub.utils import paginate  # type: ignore[attr-defined]

        wanted = (labels or {}).items()
        asked = {"label": [f"{key}={value}" for key, value in wanted]}
        rows = paginate(f"{self.hub.url}/api/jobs/{self.namespace}", asked, self.hub.headers)
        found = [JobInfo(**row, endpoint=self.hub.url) for row in rows]
        return [job for job in found if LABEL in (has := job.labels or {}) and wanted <= has.items()]

    def cancel(self, job_id: str) -> None:
        """End a job. Raises HubError."""
        self._ask("cancel the job", lambda: self.hub.api.cancel_job(job_id=job_id, namespace=self.namespace))

    def _ask(self, doing: str, act: Callable[[], Any]) -> Any:
        return self.hub.ask(f"{doing} in {self.namespace}", act, self.progress)

    def _run(self, request: Request, price: Price, volumes: list[Any]) -> JobInfo:
        requirement = self.requirement or f"sdhub[{request.extra}]=={metadata.version('sdhub')}"
        env = {"SDHUB_COUNTS": "1", "PYTHONUNBUFFERED": "1"}
        if self.hub.url != PUBLIC:
            env["HF_ENDPOINT"] = self.hub.url
        if any(volume.mount_path == KEPT for volume in volumes):
            env["SDHUB_KEEP"] = KEPT
        if request.source:
            env["HF_HUB_CACHE"] = CACHE
        job: JobInfo = self.hub.api.run_job(
            image=IMAGE,
            command=["uv", "run", "--with", requirement, *request.command],
            env=env,
            secrets={"HF_TOKEN": self.hub.token},
            flavor=price.flavor.name,
            timeout=price.seconds,
            labels=request.all_labels,
            volumes=volumes or None,
            namespace=self.namespace,
        )
        return job

    def _volumes(self, request: Request) -> list[Any]:
        from huggingface_hub import Volume

        found = []
        if request.source:
            repository, sha = request.source
            place = f"{CACHE}/models--{repository.replace('/', '--')}/snapshots/{sha}"
            found.append(Volume(type="model", source=repository, revision=sha, mount_path=place, read_only=True))
        if self._has_bucket():
            inside = "--".join(request.source).replace("/", "--") if request.source else "built-in"
            bucket = f"{self.namespace}/{BUCKET}"
            found.append(Volume(type="bucket", source=bucket, mount_path=KEPT, path=inside, read_only=False))
        if request.files:
            source = f"{self.namespace}/{FILES}"
            found.append(Volume(type="dataset", source=source, mount_path=INPUTS, read_only=True))
        return found

    def _has_bucket(self) -> bool:
        """Whether the namespace has the bucket for kept stages, made where it is missing; without one, a retry
        begins anew.
        """
        if self._bucket is None:
            name = f"{self.namespace}/{BUCKET}"
            try:
                self._ask("make a bucket", lambda: self.hub.api.create_bucket(name, private=True, exist_ok=True))
                self._bucket = True
            except HubError as error:
                self.progress.note(f"{error.message}: a job that is cut off will begin anew")
                self._bucket = False
        return self._bucket

    def _send_files(self, request: Request) -> None:
        """Put files of this machine where the job can read them: a private dataset, each by its content."""
        if not request.files:
            return
        name, api = f"{self.namespace}/{FILES}", self.hub.api

        def send() -> None:
            api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
            for path, file in request.files.items():
                inside = path.removeprefix(f"{INPUTS}/")
                if not api.file_exists(name, inside, repo_type="dataset"):
                    api.upload_file(
                        repo_id=name, repo_type="dataset", path_in_repo=inside, path_or_fileobj=file.read_bytes()
                    )

        self._ask("upload files for a job", send)


def place_of(file: Path) -> str:
    """Where a job finds a file of this machine. Raises UsageError where it cannot be read."""
    from hashlib import sha256

    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint="look at its name") from None
    return f"{INPUTS}/{sha256(content).hexdigest()[:32]}{file.suffix}"


def stage(job: JobInfo) -> str:
    """As the Hub names it: SCHEDULING, RUNNING, COMPLETED, CANCELED, ERROR or DELETED."""
    return str(getattr(job.status.stage, "value", job.status.stage)).upper()


def ended(job: JobInfo) -> bool:
    """Whether a job runs no more."""
    return stage(job) in ENDS


def _oldest(jobs: list[JobInfo]) -> JobInfo | None:
    return min((each for each in jobs if not ended(each)), key=_age, default=None)


def _age(job: JobInfo) -> tuple[str, str]:
    return str(job.created_at), job.id
