"""From a source to a checkpoint: JSON and headers alone; no weight is read, no heavy library imported."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdhub.checkpoint import companions, licenses, lora, scales, single_file
from sdhub.checkpoint.card_defaults import card_defaults
from sdhub.checkpoint.checkpoint import Checkpoint, Component, PinnedLora, Source
from sdhub.checkpoint.configs import keep_component
from sdhub.checkpoint.detect import Detected, detect, is_turbo, require_known, side_of
from sdhub.checkpoint.elsewhere import files_of, instead, only_file, refuse_variant
from sdhub.checkpoint.headers import Header, read_header
from sdhub.checkpoint.known import SCHEDULERS, STEMS, TOKENIZERS, UNLOADED
from sdhub.checkpoint.remote import Repository, repository
from sdhub.checkpoint.safety import Index, is_model, vet_classes, vet_config, vet_index
from sdhub.checkpoint.said import require_prediction
from sdhub.checkpoint.source import parse_config
from sdhub.checkpoint.tokens import FILES as TOKENIZER_FILES
from sdhub.checkpoint.tokens import keep_tokenizer
from sdhub.checkpoint.tree import MAX_VOCABULARY, Folder, Tree, stamp
from sdhub.checkpoint.values import Kept
from sdhub.checkpoint.weights import Weights, check_map, choose, measure
from sdhub.core.documents import shown
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import SourceError
from sdhub.core.hub import Hub
from sdhub.core.nearly import meant

INDEX = "model_index.json"
MAX_LISTED = 12
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"})
MAX_NAME = 80
NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+|\.{2,}|-{2,}")


@dataclass(frozen=True)
class Parts:
    """The components of a tree without their weights: configs, and all files but those of weights.

    `documents` are the JSON files as libraries may read them, and `left_out` what is not in these, a line each.
    """

    index: Index
    components: Mapping[str, Component]
    files: tuple[str, ...]
    detected: Detected
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def inspect(source: Source, hub: Hub | None = None) -> Checkpoint:
    """Resolve a source. A Hub source is pinned to the commit that its revision means now.
    `hub` None is `HF_ENDPOINT` or huggingface.co, with huggingface_hub's own token.

    Raises UnsafeError for what sdhub will not read, UnsupportedError for what it does not know, SourceError for
    what is missing or broken, HubError where the Hub refuses or cannot be reached.
    """
    hub = hub or (Hub() if source.is_local else endpoint(None))
    loras = tuple(lora.pin(each, hub) for each in source.loras)
    if source.kind == "file":
        found = _inspect_file(source, loras, hub)
    elif source.kind == "folder":
        found = _inspect_tree(source, Folder(Path(source.ref)), loras)
    else:
        found = _inspect_repository(source, repository(hub, source.ref, source.revision), loras, hub)
    name = _name(lora.named_after(found.name, loras)) if loras else found.name
    return replace(found, name=name, companions=companions.pin_all(found.source, hub))


def _inspect_repository(source: Source, tree: Repository, loras: tuple[PinnedLora, ...], hub: Hub) -> Checkpoint:
    """A diffusers repository, or the single file in one: the named one, else the only one."""
    refuse_variant(tree)
    diffusers = INDEX in tree.sizes
    path = source.file or (None if diffusers else only_file(tree))
    if path is None:
        return _inspect_tree(source, tree, loras)
    if path not in tree.sizes:
        raise SourceError(
            f"{tree.where} has no {shown(path)}", hint=meant(path, files_of(tree)) or "look at its page"
        )
    return _inspect_remote_file(replace(source, file=path), tree, loras, hub)


def parts_of(tree: Tree) -> Parts:
    """Vet everything of a diffusers checkpoint but its weights. Raises as `inspect`."""
    if INDEX not in tree.sizes:
        raise SourceError(f"{tree.where} has no {INDEX}", hint=instead(tree))
    index = vet_index(tree.document(INDEX), tree)
    require_known(index.pipeline, tree.where)
    index = vet_classes(index, tree.where)
    files = {name: _small_files(name, *index.components[name], tree) for name in _loaded(index)}
    documents = [path for paths in files.values() for path in paths if _is_config(path)]
    tree.prefetch(documents)
    read = {path: tree.document(path) for path in documents}
    kept = {path: _kept(path, document, index, tree) for path, document in read.items()}
    components = {name: _component(name, *entry, read, kept) for name, entry in sorted(index.components.items())}
    detected = detect(index.pipeline, components, tree.where)
    left_out = {INDEX: index.left_out, **{path: each.left_out for path, each in kept.items()}}
    return Parts(
        index,
        components,
        (INDEX, *(path for paths in files.values() for path in paths)),
        detected,
        {path: each.document for path, each in kept.items()},
        tuple(f"{path}: {_listed(keys)}" for path, keys in left_out.items() if keys),
    )


def _component(
    name: str, library: str, class_name: str, read: Mapping[str, Mapping[str, Any]], kept: Mapping[str, Kept]
) -> Component:
    """A component with its config: of a tokenizer as it was read, of a model as libraries get to read it."""
    path = _config_path(name, library, class_name)
    if class_name in TOKENIZERS or path not in kept:
        return Component(name, library, class_name, config=read.get(path, {}))
    return Component(name, library, class_name, config=kept[path].document)


def _kept(path: str, document: Mapping[str, Any], index: Index, tree: Tree) -> Kept:
    """What may be read of a small JSON file. Raises UnsafeError, SourceError."""
    component, _, name = path.rpartition("/")
    library, class_name = index.components[component]
    where = f"{path} of {tree.where}"
    vet_config(document, where)
    if class_name in TOKENIZERS:
        return keep_tokenizer(name, document, where)
    return keep_component(library, class_name, document, where)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(shown(key, 60) for key in keys[:MAX_LISTED]) + (
        f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
    )


def config_tree(ref: str, hub: Hub) -> Folder | Repository:
    """The tree that holds the configs of a single file: a folder, or `org/name[@revision]` pinned."""
    if Path(ref).is_absolute():
        return Folder(Path(ref))
    repo_id, _, revision = ref.partition("@")
    return repository(hub, repo_id, revision or None)


def _inspect_tree(source: Source, tree: Folder | Repository, loras: tuple[PinnedLora, ...]) -> Checkpoint:
    refuse_variant(tree)
    if source.config is not None:
        raise SourceError(
            f"{shown(source.ref)} brings its own configs", hint="a config is given for a single file"
        )
    parts = parts_of(tree)
    components, files = _weigh(parts, tree)
    remote = tree if isinstance(tree, Repository) else None
    card = remote.card if remote else licenses.read_card(tree)
    defaults = card_defaults(card)
    license_file = licenses.license_file(tree)
    notices = licenses.notices(tree)
    paths = sorted({*parts.files, *files, *notices, *([license_file] if license_file else [])})
    identity = source.ref if remote else _folder_name(Path(source.ref))
    turbo = is_turbo(parts.components, [identity, *defaults.bases])
    return Checkpoint(
        source=source,
        id=identity,
        name=_name(identity),
        sha=remote.sha if remote else None,
        family=parts.detected.family,
        pipeline=parts.detected.pipeline,
        components=components,
        prediction_type=parts.detected.prediction_type,
        license=licenses.license_of(card, license_file, notices),
        gated=remote.gated if remote else False,
        private=remote.private if remote else False,
        traits=parts.detected.traits | ({"turbo"} if turbo else frozenset()),
        files=tuple(paths),
        size=side_of(parts.components),
        prompts=defaults.prompts,
        steps=defaults.steps,
        guidance=defaults.guidance,
        sizes={path: tree.sizes[path] for path in paths},
        loras=loras,
        gate=licenses.gate_of(card) if remote and remote.gated else {},
        notes=parts.detected.notes,
        left_out=parts.left_out,
        stamps={} if remote else _stamps(Path(source.ref), paths),
    )


def _weigh(parts: Parts, tree: Tree) -> tuple[tuple[Component, ...], list[str]]:
    """The components with parameters, bytes and dtype from the headers of all weight files, read together."""
    chosen: dict[str, Weights] = {
        name: choose(name, part.library, tree)
        for name, part in parts.components.items()
        if name not in UNLOADED and is_model(part.library, part.class_name)
    }
    headers = tree.headers([path for weights in chosen.values() for path in weights.files])
    found = []
    for name, part in parts.components.items():
        if name not in chosen:
            found.append(part)
            continue
        weights = chosen[name]
        check_map(weights, headers, tree)
        tensors = {key: tensor for path in weights.files for key, tensor in headers[path].tensors.items()}
        if not any(tensor.elements for tensor in tensors.values()):
            raise SourceError(f"{name} of {tree.where} has no weights", hint="get the file again")
        scales.refuse(tensors, f"{name} of {tree.where}")
        found.append(
            Component(name, part.library, part.class_name, part.config, weights.files, **measure(tensors))
        )
    indexes = [weights.index for weights in chosen.values() if weights.index]
    return tuple(found), [*indexes, *headers]


def _inspect_file(source: Source, loras: tuple[PinnedLora, ...], hub: Hub) -> Checkpoint:
    path = Path(source.ref)
    found = _of_header(source, read_header(path), path.name, hub)
    sizes, stamps = {path.name: path.stat().st_size}, _stamps(path.parent, [path.name])
    return replace(found, sizes=sizes, stamps=stamps, loras=loras)


def _inspect_remote_file(source: Source, tree: Repository, loras: tuple[PinnedLora, ...], hub: Hub) -> Checkpoint:
    """A single file of a repository: its header, and what the repository's card says."""
    path = str(source.file)
    found = _of_header(source, tree.headers([path])[path], path, hub)
    license_file, notices = licenses.license_file(tree), licenses.notices(tree)
    files = (path, *([license_file] if license_file else []), *notices)
    defaults = card_defaults(tree.card)
    return replace(
        found,
        id=tree.repo_id,
        name=_name(tree.repo_id) if files_of(tree) == [path] else found.name,
        sha=tree.sha,
        license=licenses.license_of(tree.card, license_file, notices) or found.license,
        gated=tree.gated,
        private=tree.private,
        files=files,
        prompts=defaults.prompts,
        steps=defaults.steps,
        guidance=defaults.guidance,
        sizes={each: tree.sizes[each] for each in files},
        loras=loras,
        gate=licenses.gate_of(tree.card) if tree.gated else {},
    )


def _of_header(source: Source, header: Header, path: str, hub: Hub) -> Checkpoint:
    """A single file by its header, with the configs that are given for it."""
    name = path.rpartition("/")[2]
    found = single_file.recognize(header, name)
    pipeline, components = found.pipeline, found.components
    traits, prediction, side = found.traits, found.prediction_type, None
    config = None if source.config is None else parse_config(source.config)
    left_out: tuple[str, ...] = ()
    if config is not None:
        parts = parts_of(config_tree(config, hub))
        _require_same(found, parts, name)
        components = _with_configs(found, parts)
        detected = detect(parts.index.pipeline, {part.name: part for part in components}, name)
        pipeline, prediction = detected.pipeline, detected.prediction_type
        turbo = {"turbo"} if is_turbo(parts.components, [config]) else traits & {"turbo"}
        traits = detected.traits | turbo | (traits & {"ema"}) | {"no-safety-checker"}
        left_out = parts.left_out
        side = side_of(parts.components)
    require_prediction(found.said, prediction, name)
    return Checkpoint(
        source=source,
        id=name,
        name=_name(name.rpartition(".")[0]),
        sha=None,
        family=found.family,
        pipeline=pipeline,
        components=components,
        prediction_type=prediction,
        license=licenses.license_of_metadata(header.metadata.get("modelspec.license", "")),
        gated=False,
        private=False,
        traits=frozenset(traits),
        files=(name,),
        size=side,
        config=config or found.config,
        said=found.said,
        left_out=left_out,
    )


def _stamps(root: Path, paths: Sequence[str]) -> dict[str, tuple[int, ...]]:
    return {path: stamp(root / path) for path in paths}


def _require_same(found: single_file.SingleFile, parts: Parts, name: str) -> None:
    given = parts.detected.family
    channels = [part.config.get("in_channels") for part in found.components if part.name == "unet"]
    wanted = [part.config.get("in_channels") for part in parts.components.values() if part.name == "unet"]
    if given != found.family or channels != wanted:
        raise SourceError(
            f"{shown(name)} is {found.family.title}, its config is of another kind ({given.title})",
            hint=f"give a config of {found.family.title}, or leave it out",
        )


def _with_configs(found: single_file.SingleFile, parts: Parts) -> tuple[Component, ...]:
    weighed = {part.name: part for part in found.components}
    components = []
    for name, part in parts.components.items():
        if own := weighed.get(name):
            part = replace(own, library=part.library, class_name=part.class_name, config=part.config)
        elif name == "scheduler":
            class_name, settings = found.said.scheduler(part.class_name)
            part = replace(part, class_name=class_name, config={**part.config, **settings})
        components.append(part)
    return tuple(components)


def _loaded(index: Index) -> list[str]:
    return sorted(name for name in index.components if name not in UNLOADED)


def _small_files(name: str, library: str, class_name: str, tree: Tree) -> list[str]:
    """What is read of a component beside its weights. Raises SourceError where it is missing or too large."""
    if class_name in TOKENIZERS:
        found = [f"{name}/{each}" for each in tree.inside(name) if each in TOKENIZER_FILES]
        if not any(path.rpartition("/")[2] in VOCABULARIES for path in found):
            raise SourceError(f"{name} of {tree.where} has no vocabulary", hint="is the download complete?")
    else:
        found = [_config_path(name, library, class_name)]
    for path in found:
        tree.require(path, MAX_VOCABULARY)
    return found


def _config_path(name: str, library: str, class_name: str) -> str:
    if class_name in SCHEDULERS:
        return f"{name}/scheduler_config.json"
    if class_name in TOKENIZERS:
        return f"{name}/tokenizer_config.json"
    return f"{name}/config.json" if library in STEMS else ""


def _is_config(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.endswith(".json") and name not in VOCABULARIES


def _folder_name(path: Path) -> str:
    """The folder's name; for a snapshot in the Hub's cache the repository's."""
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.split("--")[-1]
    return path.name or "checkpoint"


def _name(identity: str) -> str:
    """A name that a repository can carry; one that had to be cut is told apart by a hash."""
    name = NO_NAME.sub("-", identity.rpartition("/")[2]).strip("-.") or "checkpoint"
    if len(name) <= MAX_NAME:
        return name
    mark = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9].rstrip('-.')}-{mark}"
