"""Models that go along with a checkpoint and take no part in drawing: ControlNets, and the safety checker.

They are pinned and vetted as the checkpoint is, and loaded only where a variant is built that has room for them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdhub.checkpoint import licenses
from sdhub.checkpoint.checkpoint import Checkpoint, Companion, Component, Kind, Source
from sdhub.checkpoint.configs import keep_component
from sdhub.checkpoint.remote import Repository, download, repository
from sdhub.checkpoint.safety import vet_config
from sdhub.checkpoint.shapes import check_model
from sdhub.checkpoint.tree import Folder, require_same, stamp
from sdhub.checkpoint.weights import check_map, choose, measure, plain_name
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.core.scratch import temporary

CONFIG = "config.json"
CHECKER = "safety_checker"
LIBRARIES: Mapping[Kind, str] = {"controlnet": "diffusers", "safety_checker": "transformers"}
CLASSES: Mapping[Kind, tuple[str, str]] = {
    "controlnet": ("diffusers", "ControlNetModel"),
    "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
}
FITTING = ("block_out_channels", "layers_per_block", "cross_attention_dim", "in_channels")


@dataclass(frozen=True)
class LoadedCompanion:
    """A companion with its float32 module of torch, on the CPU."""

    companion: Companion
    module: Any


def pin_all(source: Source, hub: Hub) -> tuple[Companion, ...]:
    """All companions that a source asks for. Raises as `inspect`."""
    found = [pin("controlnet", ref, "", hub) for ref in source.controlnets]
    if source.safety_checker:
        if source.single:
            raise UsageError(
                f"{shown(source.ref)} is a single file, which has no safety checker", hint="leave it out"
            )
        ref = f"{source.ref}@{source.revision}" if source.revision else source.ref
        found.append(pin("safety_checker", ref, CHECKER, hub))
    return tuple(found)


def pin(kind: Kind, ref: str, folder: str, hub: Hub) -> Companion:
    """A companion in `folder` ("" is the root) of a local folder or of `org/name[@revision]`, vetted."""
    tree = _tree(ref, hub)
    config = f"{folder}/{CONFIG}".lstrip("/")
    if config not in tree.sizes:
        raise SourceError(f"{tree.where} has no {config}", hint=_instead(kind))
    document = tree.document(config)
    vet_config(document, f"{config} of {tree.where}")
    _require_class(kind, document, tree.where)
    document = dict(keep_component(*CLASSES[kind], document, f"{config} of {tree.where}").document)
    weights = choose(folder, LIBRARIES[kind], tree)
    names = [config, *([weights.index] if weights.index else []), *weights.files]
    remote = tree if isinstance(tree, Repository) else None
    stamps = {} if remote else {name: stamp(Path(ref) / name) for name in names}
    headers = tree.headers(weights.files)
    check_map(weights, headers, tree)
    tensors = {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}
    license = (
        licenses.license_of(remote.card, None) if remote else licenses.license_of(licenses.read_card(tree), None)
    )
    if license and remote:
        license = licenses.addressed(license, remote)
    return Companion(
        kind=kind,
        ref=remote.repo_id if remote else ref,
        folder=folder,
        sha=remote.sha if remote else None,
        sizes={name: tree.sizes[name] for name in names},
        config=document,
        parameters=int(measure(tensors)["parameters"]),
        restricted=bool(remote and (remote.private or remote.gated)),
        license=license,
        stamps=stamps,
    )


def local(companion: Companion, hub: Hub) -> Path:
    """The folder on this machine that holds a companion's files, downloaded where need be. Raises SourceError."""
    if companion.sha is None:
        root = Path(companion.ref)
    else:
        paths = {name: download(hub, companion.ref, companion.sha, name) for name in companion.sizes}
        root = paths[f"{companion.folder}/{CONFIG}".lstrip("/")].parent
        root = root.parent if companion.folder else root
    require_same(root, companion.stamps)
    for name, size in companion.sizes.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != size:
            raise SourceError(
                f"{shown(name)} of {shown(companion.name)} changed since it was inspected", hint="start again"
            )
    return root


def load_all(
    checkpoint: Checkpoint, pipeline: Any, hub: Hub, progress: Progress = SILENT
) -> tuple[LoadedCompanion, ...]:
    """The companions of a checkpoint; ControlNets have to fit the denoiser of `pipeline`.

    Raises SourceError for files that do not make a model, and for a ControlNet of another family.
    """
    found = []
    for companion in checkpoint.companions:
        with progress.task(f"loading {companion.name}"):
            root = local(companion, hub)
            found.append(LoadedCompanion(companion, _load(companion, root)))
            require_same(root, companion.stamps)
        if companion.kind == "controlnet":
            _require_fit(companion, pipeline.unet.config)
    return tuple(found)


def _tree(ref: str, hub: Hub) -> Folder | Repository:
    if Path(ref).is_absolute():
        return Folder(Path(ref))
    repo_id, _, revision = ref.partition("@")
    return repository(hub, repo_id, revision or None)


def _require_class(kind: Kind, document: Mapping[str, Any], where: str) -> None:
    name = document.get("_class_name")
    if kind == "controlnet" and name != "ControlNetModel":
        raise UnsupportedError(f"{where} is a {shown(str(name), 60)}, no ControlNetModel", hint=_instead(kind))


def _instead(kind: Kind) -> str:
    if kind == "controlnet":
        return "a ControlNet of Stable Diffusion 1.x, 2.x or XL as diffusers saves it"
    return "leave --safety-checker out"


def _load(companion: Companion, root: Path) -> Any:
    with _view(companion, root) as folder, quiet():
        import torch
        from diffusers import ControlNetModel
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        kind: Any = ControlNetModel if companion.kind == "controlnet" else StableDiffusionSafetyChecker
        _check(companion, folder)
        try:
            module = kind.from_pretrained(
                str(folder), torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        except Exception as error:
            raise SourceError(
                f"{shown(companion.name)} could not be loaded: {shown(' '.join(str(error).split()), 300)}",
                hint="is it whole, and does its config fit its weights?",
            ) from error
    if sum(parameter.numel() for parameter in module.parameters()) > companion.parameters:
        raise SourceError(f"the weights of {shown(companion.name)} are incomplete", hint="get it again")
    return module.eval()


def _check(companion: Companion, folder: Path) -> None:
    """Raises SourceError where its config and its files, in a view, make no model."""
    library, class_name = CLASSES[companion.kind]
    part = Component(companion.kind, library, class_name, companion.config, parameters=companion.parameters)
    files = [str(path) for path in sorted(folder.glob("*.safetensors"))]
    check_model(part, folder / CONFIG, files, f"{CONFIG} of {shown(companion.name)}")


@contextmanager
def _view(companion: Companion, root: Path) -> Iterator[Path]:
    """A passing folder with exactly the vetted files, under plain names, and the config as it was vetted."""
    with temporary() as view:
        for name in companion.sizes:
            target = view / plain_name(name).rpartition("/")[2]
            if target.name == CONFIG:
                target.write_text(json.dumps(companion.config), encoding="utf-8")
                continue
            try:
                target.symlink_to((root / name).resolve())
            except OSError:  # Windows without the right to make links
                shutil.copyfile(root / name, target)
        yield view


def _require_fit(companion: Companion, unet: Mapping[str, Any]) -> None:
    for key in FITTING[:3] if unet["in_channels"] == 9 else FITTING:
        own, wanted = companion.config.get(key), unet[key]
        if own is not None and _plain(own) != _plain(wanted):
            raise SourceError(
                f"the ControlNet {shown(companion.name)} was made for another model: "
                f"{key} {shown(str(own), 40)}, not {shown(str(wanted), 40)}",
                hint="look at the base model on its page",
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
