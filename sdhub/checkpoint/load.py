"""A checkpoint as a diffusers pipeline, LoRAs fused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint import accounting, lora, original
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.fetch import config_files, require_unchanged
from sdhub.checkpoint.half_precision import HALF, compute_in_float32, stored
from sdhub.checkpoint.headers import read_header
from sdhub.checkpoint.inspect import INDEX, Parts, parts_of
from sdhub.checkpoint.known import TOKENIZERS, UNLOADED
from sdhub.checkpoint.shapes import check_shapes, require_schedule
from sdhub.checkpoint.tokens import CONFIG as TOKENIZER_CONFIG
from sdhub.checkpoint.tokens import keep_tokenizer
from sdhub.checkpoint.tree import MAX_VOCABULARY, Folder
from sdhub.checkpoint.weights import choose, plain_name, require_finite
from sdhub.core.device import solver
from sdhub.core.documents import shown
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import MissingExtraError, SdhubError, SourceError, UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.nearly import meant
from sdhub.core.placement import place
from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.core.scratch import temporary

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", *HALF)
LOADABLE = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "SanaPipeline",
        "SanaSprintPipeline",
    }
)
WITH_CHECKER = ("sd1", "sd2")


def load(
    checkpoint: Checkpoint,
    path: Path,
    *,
    dtype: str = "float32",
    half_precision: bool = False,
    device: torch.device | None = None,
    hub: Hub | None = None,
    progress: Progress = SILENT,
) -> Any:
    """The pipeline of a fetched checkpoint, in evaluation mode, on the CPU or placed on a `device`
    (`sdhub.core.placement`), where LoRAs are fused too.

    `path` is what `fetch` returned, `dtype` one of float32, float16, bfloat16. `half_precision`: where the
    files of the denoiser have 16 bits and nothing is fused into it, its layers keep them, and compute in float32
    all the same (see `sdhub.checkpoint.half_precision`). The pipeline has no safety checker and no image
    processors. The network is used only for the configs of a single file; `hub` None is `HF_ENDPOINT` or
    huggingface.co. Raises SourceError where the files do not make a pipeline or a LoRA does not fit,
    UnsupportedError for a family that is inspected only, MissingExtraError.
    """
    if dtype not in DTYPES:
        raise UsageError(f"no dtype is called {shown(dtype, 20)}", hint=meant(dtype, DTYPES))
    if not checkpoint.family.buildable or checkpoint.pipeline not in LOADABLE:
        raise UnsupportedError(
            f"{checkpoint.family.title} can be inspected but not loaded yet",
            hint="Stable Diffusion 1.x to 3.x, FLUX.1 and Sana can",
        )
    hub = hub or endpoint(None)
    loras = [(each, lora.local(each, hub)) for each in checkpoint.loras]
    with progress.task(f"loading {checkpoint.name}"):
        kept = stored(checkpoint) if half_precision else None
        pipeline = _load(checkpoint, path, dtype, hub, kept, progress)
        _check_whole(checkpoint, pipeline, path)
        if kept:
            compute_in_float32(getattr(pipeline, checkpoint.family.denoiser))
        lora.fuse(pipeline, loras, progress, None if device is None else solver(device))
        require_unchanged(checkpoint)
    _settle_names(checkpoint, pipeline)
    return pipeline if device is None else place(pipeline, device)


def _load(checkpoint: Checkpoint, path: Path, dtype: str, hub: Hub, kept: str | None, progress: Progress) -> Any:
    single = checkpoint.source.single
    configs = config_files(checkpoint, hub) if single else path
    with vetted(checkpoint, configs) as folder, quiet():
        try:
            import diffusers
            import torch
            import transformers  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("torch", error.name or "diffusers") from None
        for line in check_shapes(checkpoint, folder):
            progress.note(line)
        kind = getattr(diffusers, checkpoint.pipeline)
        kinds: Any = getattr(torch, dtype)
        if kept:
            kinds = {"default": kinds, checkpoint.family.denoiser: getattr(torch, kept)}
        settings = {"torch_dtype": kinds, "local_files_only": True}
        try:
            made = original.components(checkpoint, path, folder, dtype) if single else {}
            pipeline = kind.from_pretrained(str(folder), use_safetensors=True, **made, **settings)
        except SdhubError:
            raise
        except Exception as error:
            reason = shown(" ".join(str(error).split()), 300) or type(error).__name__
            raise SourceError(
                f"diffusers could not load {checkpoint.id}: {reason}",
                hint="is the checkpoint whole, and do its configs fit its weights?",
            ) from error
    _settle_scheduler(checkpoint, pipeline, path)
    return pipeline


@contextmanager
def vetted(checkpoint: Checkpoint, folder: Path) -> Iterator[Path]:
    """A passing folder with exactly the vetted files, under plain names, and all its JSON written anew.

    So diffusers and transformers see no pickle, no code, no second variant, no component and no key that was not
    vetted.
    """
    tree = Folder(folder)
    parts = parts_of(tree)
    names = parts.files if checkpoint.source.single else checkpoint.files
    with temporary() as view:
        for name in names:
            if "/" not in name:
                continue
            document = _rewritten(name, parts, tree)
            if document is None:
                _link(folder / name, view / plain_name(name))
            else:
                _write(view / plain_name(name), document)
        for name, part in parts.components.items():
            config = f"{name}/{TOKENIZER_CONFIG}"
            if part.class_name in TOKENIZERS and config not in parts.documents:
                _write(view / config, {"tokenizer_class": part.class_name})
        _write(view / INDEX, _index(checkpoint, parts))
        yield view


def _rewritten(name: str, parts: Parts, tree: Folder) -> Mapping[str, Any] | None:
    """What a JSON file of the view holds; None for a file that is none. Raises SourceError."""
    component, _, file = name.rpartition("/")
    document = parts.documents.get(name)
    if document is not None:
        named = {"tokenizer_class": parts.components[component].class_name} if file == TOKENIZER_CONFIG else {}
        return {**document, **named}
    if not file.endswith(".json") or component not in parts.components:
        return None
    part = parts.components[component]
    if part.class_name in TOKENIZERS:
        vocabulary = tree.document(name, MAX_VOCABULARY)
        return keep_tokenizer(file, vocabulary, f"{name} of {tree.where}").document
    weights = choose(component, part.library, tree)
    shards = {key: path.rpartition("/")[2] for key, path in (weights.map or {}).items()}
    return {"metadata": {"total_size": sum(tree.sizes[path] for path in weights.files)}, "weight_map": shards}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def _index(checkpoint: Checkpoint, parts: Parts) -> Mapping[str, Any]:
    from importlib.metadata import version

    components: dict[str, list[str | None]] = {
        name: [None, None] if name in UNLOADED else list(entry) for name, entry in parts.index.components.items()
    }
    settings = dict(parts.index.settings)
    if checkpoint.family.name in WITH_CHECKER:
        settings["requires_safety_checker"] = False
    return {
        "_class_name": checkpoint.pipeline,
        "_diffusers_version": version("diffusers"),
        **settings,
        **components,
    }


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:  # Windows without the right to make links
        shutil.copyfile(source, target)


def _settle_scheduler(checkpoint: Checkpoint, pipeline: Any, path: Path) -> None:
    """What a single file says of itself goes before its config; what its name tells, before the family's."""
    if not checkpoint.source.single:
        return
    import diffusers

    config = dict(pipeline.scheduler.config)
    name, settings = checkpoint.said.scheduler(type(pipeline.scheduler).__name__)
    if config.get("prediction_type", "epsilon") != checkpoint.prediction_type:
        settings["prediction_type"] = checkpoint.prediction_type
    if settings:
        settings |= original.noise_levels(checkpoint, path)
        pipeline.scheduler = getattr(diffusers, name).from_config(config, **settings)
    made = pipeline.scheduler
    require_schedule(checkpoint, type(made).__name__, made.config, "the scheduler")


def _check_whole(checkpoint: Checkpoint, pipeline: Any, path: Path) -> None:
    """Libraries fill what a file lacks with random numbers, pass over what they do not know, and only warn."""
    if checkpoint.source.single:
        return  # its models were loaded strictly
    for part in checkpoint.components:
        module = getattr(pipeline, part.name, None)
        if not part.parameters or module is None:
            continue
        expected = sum(parameter.numel() for parameter in module.parameters())
        if expected > part.parameters:
            raise SourceError(
                f"the weights of {part.name} are incomplete: {part.parameters} of {expected} numbers",
                hint="get the checkpoint again, or look whether its config fits",
            )
        names = [name for file in part.files for name in read_header(path / file).tensors]
        left = accounting.left_over(names, module)
        if left is not None:
            raise accounting.unknown(left, f"{part.name} of {checkpoint.id}")
        require_finite(part.name, module.named_parameters())


def _settle_names(checkpoint: Checkpoint, pipeline: Any) -> None:
    """Say the checkpoint's own id where libraries put the passing folder, so that exports are reproducible."""
    pipeline.register_to_config(_name_or_path=checkpoint.id)
    for name, part in pipeline.components.items():
        where = f"{checkpoint.id}/{name}"
        if hasattr(part, "register_to_config"):
            part.register_to_config(_name_or_path=where)
        elif hasattr(part, "name_or_path"):
            part.name_or_path = where
        if hasattr(getattr(part, "config", None), "name_or_path"):
            part.config.name_or_path = where
