"""Which weight files a component is read from, and what their headers say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdhub.checkpoint.headers import Header, Tensor
from sdhub.checkpoint.known import STEMS
from sdhub.checkpoint.safety import PLAIN, refuse_weights
from sdhub.checkpoint.tree import MAX_INDEX, Tree, check_path
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError

BUFFERS = ("position_ids",)


@dataclass(frozen=True)
class Weights:
    """`files` hold the weights; `index` is the JSON that names them where they are sharded."""

    files: tuple[str, ...]
    index: str | None = None
    map: Mapping[str, str] | None = None


def plain_name(path: str) -> str:
    """The path under which libraries look for a weight file or index: the name without its variant."""
    folder, _, name = path.rpartition("/")
    for stem in STEMS.values():
        for each in (*_single(stem), *_index(stem)):
            if name == each:
                name = f"{stem}.safetensors.index.json" if "index" in each else f"{stem}.safetensors"
    return f"{folder}/{name}" if folder else name


def choose(folder: str, library: str, tree: Tree) -> Weights:
    """The weight files of the component in `folder`: the plain names first, else the variant `fp16`.

    `folder` "" is the root. Raises UnsafeError where there are only pickles or a shard lies elsewhere, SourceError
    where files are missing.
    """
    stem = STEMS[library]
    names = tree.inside(folder)
    for single, indexes in zip(_single(stem), (_index(stem)[:1], _index(stem)[1:]), strict=True):
        if single in names:
            return Weights((_inside(folder, single),))
        for index in indexes:
            if index in names:
                return _sharded(folder, index, tree)
    return refuse_weights(folder, names, library, tree)


def check_map(weights: Weights, headers: Mapping[str, Header], tree: Tree) -> None:
    """Raises SourceError where a tensor is not in the shard that the index names."""
    for name, path in (weights.map or {}).items():
        if name not in headers[path].tensors:
            raise SourceError(
                f"{weights.index} of {tree.where} says that {shown(path)} holds {shown(name)}, which it does not",
                hint="get the shards of one version again",
            )


def measure(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`parameters`, `bytes` and `dtype` of a component; buffers such as position ids are no parameters."""
    spans: Counter[str] = Counter()
    parameters = 0
    for name, tensor in tensors.items():
        spans[tensor.dtype] += tensor.bytes
        if not name.endswith(BUFFERS):
            parameters += tensor.elements
    dtype = max(spans, key=lambda each: (spans[each], each), default="")
    return {"parameters": parameters, "bytes": sum(spans.values()), "dtype": dtype}


def require_finite(component: str, tensors: Iterable[tuple[str, Any]]) -> None:
    """Raises SourceError, naming the tensor, where one of `tensors` (of torch) holds a number that is none.

    One sum tells of most tensors that all is well; only where it does not are the numbers looked at.
    """
    import torch

    for name, tensor in tensors:
        if not tensor.dtype.is_floating_point or tensor.is_meta:
            continue
        values = tensor.detach()
        values = values.float() if values.element_size() == 1 else values
        if torch.isfinite(values.sum(dtype=torch.float32)) or bool(torch.isfinite(values).all()):
            continue
        nans = int(torch.isnan(values).sum())
        raise SourceError(
            f"{component}: {shown(name)} holds {nans or int(torch.isinf(values).sum())} numbers that are "
            f"{'no numbers (NaN)' if nans else 'infinite'}",
            hint="the file is broken, or was merged or trained wrongly: get another version of it",
        )


def _single(stem: str) -> tuple[str, str]:
    return f"{stem}.safetensors", f"{stem}.fp16.safetensors"


def _index(stem: str) -> tuple[str, str, str]:
    """The plain index, and both places where libraries put the variant."""
    return (
        f"{stem}.safetensors.index.json",
        f"{stem}.safetensors.index.fp16.json",
        f"{stem}.fp16.safetensors.index.json",
    )


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _sharded(folder: str, index: str, tree: Tree) -> Weights:
    path = _inside(folder, index)
    entries = tree.document(path, MAX_INDEX).get("weight_map")
    if not isinstance(entries, dict) or not entries or not all(isinstance(each, str) for each in entries.values()):
        raise SourceError(f"{path} of {tree.where} has no weight_map of names to files", hint="get the file again")
    for shard in sorted(set(entries.values())):
        check_path(shard, f"{path} of {tree.where}")
        if "/" in shard or not shard.endswith(".safetensors"):
            raise UnsafeError(
                f"{path} of {tree.where} names {shown(shard)}, no safetensors shard beside it", hint=PLAIN
            )
        if _inside(folder, shard) not in tree.sizes:
            raise SourceError(
                f"{path} of {tree.where} names the shard {shown(shard)}, which is missing",
                hint="is the download complete?",
            )
    shards = {name: _inside(folder, value) for name, value in entries.items()}
    return Weights(tuple(sorted(set(shards.values()))), path, shards)
