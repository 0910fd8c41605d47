"""LoRAs: found and vetted from headers, then fused into a loaded pipeline, layer by layer as their files say.

Each layer becomes W + scale · alpha / rank · up · down with its own alpha and rank (Hu et al., arXiv 2106.09685),
computed in float32 from the file, and held against the file afterwards. No adapter is put into any module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint import adapter, licenses
from sdhub.checkpoint.adapter import Settings
from sdhub.checkpoint.checkpoint import License, Lora, PinnedLora
from sdhub.checkpoint.headers import Header, read_header
from sdhub.checkpoint.lora_file import Layer, read_layers
from sdhub.checkpoint.lora_names import Piece, Place, inner, places_of
from sdhub.checkpoint.remote import Repository, download, repository
from sdhub.checkpoint.safety import PICKLES, convert_hint
from sdhub.checkpoint.source import LORA_FILES
from sdhub.checkpoint.tree import MAX_VOCABULARY, require_same, stamp
from sdhub.core.documents import shown
from sdhub.core.errors import SdhubError, SourceError, UnsafeError, UnsupportedError
from sdhub.core.hub import Hub
from sdhub.core.progress import Progress

if TYPE_CHECKING:
    import torch

PEFT, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MISFIT = "it was made for another family or model; look at the base model on its page"


def pin(lora: Lora, hub: Hub) -> PinnedLora:
    """Find the file of a LoRA and vet its header. Raises SourceError, UnsafeError, UnsupportedError, HubError."""
    path = Path(lora.ref)
    if path.is_absolute():
        if not path.is_file():
            raise SourceError(f"the LoRA {shown(path.name)} is gone", hint="look at its path")
        names = [name for name in (path.name, _config_of(path.name)) if name and (path.parent / name).is_file()]
        stamps = {name: stamp(path.parent / name) for name in names}
        header = read_header(path)
        read_layers(header, shown(path.name))
        _settings(header, path, shown(path.name))
        stated = licenses.license_of_metadata(header.metadata.get("modelspec.license", ""))
        return PinnedLora(
            lora.ref, lora.scale, str(path), None, path.stat().st_size, license=stated, stamps=stamps
        )
    repo_id, _, revision = lora.ref.partition("@")
    tree = repository(hub, repo_id, revision or None)
    name = _file(tree, lora.inside)
    where = f"{shown(name)} of {repo_id}"
    header = tree.headers([name])[name]
    read_layers(header, where)
    config = _config_of(name)
    if config is None:
        adapter.in_header(header, where)
    else:
        tree.require(config, MAX_VOCABULARY)
        adapter.in_config(tree.read(config), f"{shown(config)} of {repo_id}")
    return PinnedLora(
        repo_id,
        lora.scale,
        name,
        tree.sha,
        tree.sizes[name],
        tree.private or tree.gated,
        _license(tree, header),
    )


def local(lora: PinnedLora, hub: Hub) -> Path:
    """The LoRA's file on this machine, downloaded with its settings if need be. Raises SourceError, HubError."""
    path = Path(lora.file) if lora.sha is None else download(hub, lora.ref, lora.sha, lora.file)
    if lora.sha is not None and (config := _config_of(lora.file)):
        download(hub, lora.ref, lora.sha, config)
    require_same(path.parent, lora.stamps)
    if not path.is_file() or path.stat().st_size != lora.bytes:
        raise SourceError(f"the LoRA {shown(path.name)} changed since it was inspected", hint="start again")
    return path


def local_files(lora: PinnedLora) -> tuple[Path, ...]:
    """The files of a LoRA that is not from the Hub."""
    config = _config_of(lora.file)
    return tuple(Path(name) for name in (lora.file, config) if name and lora.sha is None)


def named_after(name: str, loras: Sequence[PinnedLora]) -> str:
    """The name of a checkpoint with LoRAs: its own, then theirs, each with its scale where that is not 1."""
    scales = ("" if each.scale == 1 else f"-x{each.scale!r}".removesuffix(".0") for each in loras)
    return "-".join([name, *(f"{_short(each)}{scale}" for each, scale in zip(loras, scales, strict=True))])


@dataclass(frozen=True)
class Change:
    """What one layer of one file adds to rows of a parameter: `factor` times a product, or a tensor as it is."""

    file: Any
    label: str
    piece: Piece
    factor: float
    up: str | None = None
    down: str | None = None
    plain: str | None = None


def fuse(
    pipeline: Any,
    loras: Sequence[tuple[PinnedLora, Path]],
    progress: Progress,
    device: torch.device | None = None,
) -> None:
    """Change every layer that LoRAs name, by what their files say, and nothing else.

    Weights stay in their type and where they are; sums are made in float32, a layer in memory at a time, on
    `device` where there is one. Raises SourceError,
    UnsupportedError for a layer that the pipeline lacks or that is of another size, naming it.
    """
    if not loras:
        return
    from safetensors import safe_open

    places = places_of(pipeline)
    changes: dict[tuple[str, str, str], list[Change]] = {}
    with ExitStack() as stack:
        for lora, path in loras:
            file = stack.enter_context(safe_open(str(path), framework="pt"))
            for leaf, change in _changes(pipeline, lora, path, file, places):
                changes.setdefault((change.piece.component, change.piece.path, leaf), []).append(change)
        with progress.task("fusing LoRAs", total=len(changes), unit="weights") as task:
            for (component, path_, leaf), own in changes.items():
                _apply(getattr(getattr(pipeline, component).get_submodule(path_), leaf), own, device)
                task.advance(1)


def _changes(
    pipeline: Any, lora: PinnedLora, path: Path, file: Any, places: Mapping[str, set[Place]]
) -> Iterator[tuple[str, Change]]:
    """Every change of one file, with the parameter's name in its module; each tensor is used once."""
    label = f"the LoRA {shown(lora.name)}"
    header = read_header(path)
    layers, settings = read_layers(header, label), _settings(header, path, label)
    where = {layer.name: _place(layer, places, PurePath(lora.file).parent.name) for layer in layers}
    if not any(where.values()):
        raise SourceError(f"{label} matches no layer of this checkpoint", hint=MISFIT)
    seen: dict[Place, str] = {}
    for layer in layers:
        place, layer_label = where[layer.name], f"{label}: layer {shown(layer.name, 120)}"
        if place is None:
            raise SourceError(f"{layer_label} does not fit: this checkpoint has none of that name", hint=MISFIT)
        if place in seen:
            raise SourceError(
                f"{layer_label} is named twice, also as {shown(seen[place], 120)}", hint="use another file"
            )
        seen[place] = layer.name
        factor = _factor(layer, place, settings, file, layer_label)
        for leaf, up, down, plain in (
            ("weight", layer.up, layer.down, None),
            ("bias", layer.up_bias, None, None),
            ("weight", None, None, layer.weight),
            ("bias", None, None, layer.bias),
        ):
            if up is None and plain is None:
                continue
            for piece in place:
                module = getattr(pipeline, piece.component).get_submodule(piece.path)
                change = Change(
                    file, layer_label, piece, lora.scale * (factor if plain is None else 1), up, down, plain
                )
                _require_fit(getattr(module, leaf, None), change, header, place)
                yield leaf, change


def _place(layer: Layer, places: Mapping[str, set[Place]], folder: str) -> Place | None:
    """Where a layer is. A name that two components share is of the one that the file's folder is called by."""
    found = places.get(layer.name, set())
    if len(found) > 1:
        found = {place for place in found if place[0].component == folder} or found
    if len(found) > 1:
        of = ", ".join(sorted(place[0].component for place in found))
        raise SourceError(
            f"layer {shown(layer.name, 120)} may be of {of}",
            hint="put the file into a folder that is called like the component",
        )
    return next(iter(found), None)


def _factor(layer: Layer, place: Place, settings: Settings, file: Any, label: str) -> float:
    """alpha / rank, from the file or its settings; 1 where neither says anything."""
    said = None
    if layer.rank:
        said = settings.factor(place[0].component, inner(layer.name), layer.rank, label)
    if layer.alpha is None:
        return 1.0 if said is None else said
    alpha = float(file.get_tensor(layer.alpha).float().reshape(()))
    if abs(alpha) > adapter.MAX_ALPHA or alpha != alpha:
        raise SourceError(f"{label} has the alpha {alpha}", hint="use another file")
    if not layer.rank:
        if alpha != 1:
            raise SourceError(f"{label} has an alpha and no rank", hint="use another file")
        return 1.0
    if said is not None and abs(said - alpha / layer.rank) > 1e-6 * abs(said):
        raise SourceError(f"{label} has the alpha {alpha}, its settings say another", hint="use another file")
    return alpha / layer.rank


def _require_fit(parameter: Any, change: Change, header: Header, place: Place) -> None:
    """Raises SourceError, UnsupportedError unless the file's shapes are the layer's."""
    if parameter is None:
        raise SourceError(f"{change.label} has no bias here", hint=MISFIT)
    rows = sum(piece.stop - piece.start for piece in place)
    if change.plain is not None:
        given = header.tensors[change.plain].shape
    else:
        assert change.up is not None
        inputs = header.tensors[change.down].shape[1:] if change.down else ()
        given = (header.tensors[change.up].shape[0], *inputs)
    wanted = (rows, *parameter.shape[1:])
    if _plain(wanted) != _plain(given):
        raise SourceError(
            f"{change.label} does not fit this checkpoint: it is {given}, the layer {wanted}",
            hint=MISFIT,
        )
    if change.down is not None and parameter.ndim < 2:
        raise UnsupportedError(f"{change.label} is of a layer that has no matrix", hint="use another file")


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without ones at its end: a convolution of one pixel is a linear layer."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _apply(parameter: torch.Tensor, changes: Sequence[Change], device: torch.device | None) -> None:
    """Add all changes of one parameter, and hold the sum against the files."""
    import torch

    with torch.no_grad():
        before = parameter.detach().to(device or parameter.device)
        fused = before.float().clone()
        for change in changes:
            piece = change.piece
            rows = fused[piece.into : piece.into + piece.stop - piece.start]
            rows += _delta(change, fused.device).reshape(rows.shape)
        result = fused.to(parameter.dtype)
        if not bool(torch.isfinite(result).all()):
            raise SourceError(
                f"{changes[-1].label} makes numbers that are infinite or none", hint="is its scale right?"
            )
        _prove(before, result, changes)
        parameter.data.copy_(result)


def _delta(change: Change, device: torch.device) -> torch.Tensor:
    """What is added, in float32, of the rows that are this piece's."""
    piece = change.piece
    if change.plain is not None:
        return change.factor * _tensor(change, change.plain, device)[piece.start : piece.stop]
    assert change.up is not None
    up = _tensor(change, change.up, device)[piece.start : piece.stop]
    if change.down is None:
        return change.factor * up
    return change.factor * (up.flatten(1) @ _tensor(change, change.down, device).flatten(1))


def _prove(before: torch.Tensor, after: torch.Tensor, changes: Sequence[Change]) -> None:
    """(after - before) x against the factors one after the other, for a random x. Raises SdhubError.

    The product of the factors, its rows and its shape are made no use of. What may differ is the rounding of sums
    to the parameter's type.
    """
    import torch

    width, device = before.flatten(1).shape[1] if before.ndim > 1 else 1, before.device
    probe = torch.randn(width, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    old, new = (each.double().reshape(-1, width) for each in (before, after))
    got, wanted = (new - old) @ probe, torch.zeros(len(old), 1, dtype=torch.float64, device=device)
    room = torch.finfo(before.dtype).eps * (new.abs() @ probe.abs())
    for change in changes:
        piece = change.piece
        into = slice(piece.into, piece.into + piece.stop - piece.start)
        left = _tensor(change, change.plain or change.up or "", device).double()[piece.start : piece.stop]
        left = left.reshape(len(left), -1)
        right = probe if change.plain is not None or change.down is None else None
        if right is None:
            down = _tensor(change, str(change.down), device).double().flatten(1)
            right, most = down @ probe, down.abs() @ probe.abs()
        else:
            most = right.abs()
        wanted[into] += change.factor * (left @ right)
        room[into] += 1e-5 * abs(change.factor) * (left.abs() @ most)
    if bool(((got - wanted).abs() > room + 1e-30).any()):
        raise SdhubError(f"{changes[-1].label} was not fused as its file says", hint="this is a fault of sdhub")


def _tensor(change: Change, name: str, device: torch.device) -> torch.Tensor:
    import torch

    tensor: torch.Tensor = change.file.get_tensor(name).to(device).float()
    if not bool(torch.isfinite(tensor).all()):
        raise SourceError(f"{change.label}: {shown(name, 120)} has numbers that are none", hint="use another file")
    return tensor


def _settings(header: Header, path: Path, where: str) -> Settings:
    config = _config_of(path.name)
    if config is None:
        return adapter.in_header(header, where)
    beside = path.parent / config
    if not beside.is_file():
        raise SourceError(f"{where} lacks its {config}, which has its alpha", hint="get that file too, beside it")
    if beside.stat().st_size > MAX_VOCABULARY:
        raise SourceError(f"{config} of {where} is too large", hint="get it again")
    return adapter.in_config(beside.read_bytes(), f"{config} of {where}")


def _config_of(file: str) -> str | None:
    """The settings that PEFT writes beside a file, for the name that it writes."""
    folder, slash, name = file.rpartition("/")
    return f"{folder}{slash}{CONFIG}" if name == PEFT else None


def _short(lora: PinnedLora) -> str:
    path = PurePath(lora.file)
    if lora.sha is None:
        return path.parent.name if path.name in LORA_FILES else path.stem
    repository = lora.ref.rpartition("/")[2]
    if path.name in LORA_FILES:
        return repository if path.parent.name == "" else f"{repository}-{path.parent.name}"
    return path.stem if len(path.parts) > 1 else repository


def _license(tree: Repository, header: Header) -> License | None:
    """What the card states, or the file itself."""
    stated = licenses.license_of(tree.card, None)
    if stated is None:
        return licenses.license_of_metadata(header.metadata.get("modelspec.license", ""))
    return licenses.addressed(stated, tree)


def _file(tree: Repository, inside: str) -> str:
    """The file that is meant in a repository: the one named, or the only one in `inside` or the root."""
    if inside.endswith(".safetensors"):
        if inside not in tree.sizes:
            raise SourceError(f"{tree.repo_id} has no {shown(inside)}", hint="look at its files on its page")
        return inside
    prefix = f"{inside}/" if inside else ""
    names = [f"{prefix}{name.removeprefix(prefix)}" for name in tree.inside(inside)]
    found = [name for name in names if name.endswith(".safetensors")]
    for usual in LORA_FILES:
        if f"{prefix}{usual}" in found:
            return f"{prefix}{usual}"
    if len(found) == 1:
        return found[0]
    where = f"{tree.repo_id}/{shown(inside)}" if inside else tree.repo_id
    if found:
        raise SourceError(
            f"the LoRA {where} has {len(found)} files: {', '.join(shown(name, 40) for name in found[:5])}",
            hint=f"name the one you mean: --lora {tree.repo_id}/{shown(found[0])}",
        )
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        raise UnsafeError(
            f"the LoRA {where} is a pickle only ({shown(pickles[0])}), which can run code",
            hint=convert_hint(pickles[0]),
        )
    deeper = next((name for name in sorted(tree.sizes) if name.endswith(".safetensors")), None)
    hint = f"name the one you mean: --lora {tree.repo_id}/{shown(deeper)}" if deeper else "is it a LoRA?"
    raise SourceError(f"the LoRA {where} has no .safetensors file", hint=hint)
