"""`build` and `analyze` as one HF Job each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import SdhubError, UsageError
from sdhub.core.work import publish_folder
from sdhub.elsewhere.engine import Engine
from sdhub.elsewhere.follow import follow
from sdhub.elsewhere.hardware import Need
from sdhub.elsewhere.publish import WORK_COPIES, on_gpu, pinned, request_of, visible
from sdhub.elsewhere.request import Request
from sdhub.publishing.download import download
from sdhub.publishing.target import Target
from sdhub.recipes.adjust import AS_IT_IS, Adjustment
from sdhub.workflow.analyze import analyzable
from sdhub.workflow.options import Options
from sdhub.workflow.plan import choose, make_plan

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

BUILT = "built"  # the folder that a job builds into


def seen(
    engine: Engine,
    source: str,
    loras: Sequence[str] = (),
    config: str | None = None,
    controlnets: Sequence[str] = (),
    safety_checker: bool = False,
) -> Checkpoint:
    """The checkpoint that a source names on the engine's Hub. Raises as `resolve`, UsageError for a local one."""
    return visible(resolve(source, loras, config, controlnets, safety_checker, hub=engine.hub))


def build_request(
    engine: Engine,
    checkpoint: Checkpoint,
    variants: Sequence[str] = (),
    recipe: Path | None = None,
    adjustment: Adjustment = AS_IT_IS,
    words: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
) -> Request:
    """The request of a `build` that puts what it builds into a private repository. Raises as `build`."""
    chosen = choose(checkpoint, variants, recipe, adjustment)
    if len(chosen) != 1:
        raise UsageError("one variant can be built into one folder", hint="say which with --variant")
    ((backend, document),) = chosen
    backend.accept(checkpoint, document)
    forecast = backend.forecast(checkpoint, document)
    named = [word for each in variants for word in ("--variant", each)]
    return request_of(
        checkpoint,
        ["build", pinned(checkpoint), *words, *named, "--output", BUILT, "--json"],
        recipe=document.sha256,
        extra=backend.extra,
        minutes=forecast.seconds / 60,
        need=Need(forecast.peak_bytes, checkpoint.bytes + WORK_COPIES * forecast.bytes, on_gpu(words)),
        variant=document.name,
        files=files,
        then=lambda key: ["push", BUILT, built_repository(engine, key), "--private"],
    )


def built_repository(engine: Engine, key: str) -> str:
    """Where a job puts what it builds, until it is fetched."""
    return f"{engine.namespace}/sdhub-{BUILT}-{key[:16]}"


def is_built(engine: Engine, request: Request) -> bool:
    """Whether what a job built is still there."""
    return Target(built_repository(engine, request.key), engine.hub).info() is not None


def fetch_built(engine: Engine, request: Request, output: Path) -> None:
    """Put what a job built into the new folder `output`, and remove it from the Hub. Raises HubError."""
    repository = built_repository(engine, request.key)

    def fill(folder: Path) -> None:
        download(repository, folder, hub=engine.hub, progress=engine.progress)
        (folder / ".gitattributes").unlink(missing_ok=True)

    publish_folder(output, fill)
    engine.hub.ask(f"remove {repository}", lambda: engine.hub.api.delete_repo(repository, missing_ok=True))


def analyze_request(
    checkpoint: Checkpoint, backend: str | None, words: Sequence[str], files: Mapping[str, Path] | None = None
) -> Request:
    """The request of an `analyze`, forecast as what publishing the backend's preset takes."""
    analyst = analyzable(backend)
    plan = make_plan(checkpoint, Options(variants=(analyst.analyzed_as,)))
    (row,) = plan.document()["variants"]
    return request_of(
        checkpoint,
        ["analyze", pinned(checkpoint), *words, "--json"],
        recipe=plan.variants[0].recipe.sha256,
        extra=analyst.extra,
        minutes=row["minutes"],
        need=Need(row["peak_bytes"], checkpoint.bytes + WORK_COPIES * row["bytes"], on_gpu(words)),
        variant="analysis",
        files=files,
    )


def document_of(engine: Engine, job: JobInfo) -> dict[str, Any]:
    """The document that a job ends with. Raises SdhubError where it fails, HubError."""
    end = follow(engine.hub, engine.namespace, job.id, engine.progress)
    if not end.done:
        raise end.failure()
    document = end.document()
    if document is None:
        raise SdhubError(f"the log of {job.url} has no report", hint="run again later")
    return document
