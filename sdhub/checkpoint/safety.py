"""The gate: what is refused before any byte of a weight is read.

A checkpoint is data from strangers. Python names in it are looked up in the allow-list of `known.py`, never
imported from what the file says; whatever asks for code of its own, or for a path outside its folder, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from sdhub.checkpoint.known import CLASSES, ROLES, SCHEDULERS, SETTINGS, STEMS, TOKENIZERS
from sdhub.checkpoint.tree import Tree
from sdhub.checkpoint.values import FLAG, keep
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError, UnsupportedError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
CODE = re.compile(
    r".+\.(py|pyc|pyo|pyd|pyw|pyx|pyz|so(\.\d+)*|dll|dylib|exe|sh|bash|bat|cmd|ps1|js|mjs|jar|class|egg|whl)",
    re.IGNORECASE,
)
CODE_KEYS = frozenset({"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code"})
REWRITING = ("attribute_map", "init_inputs")
COMPONENT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
IMPLEMENTATION = re.compile(r"[a-z0-9_|]*")
PLAIN = "use a checkpoint that runs on diffusers alone"


@dataclass(frozen=True)
class Index:
    """A vetted `model_index.json`: the pipeline, components by (library, class), its plain settings, and the keys
    that are not used."""

    pipeline: str
    components: Mapping[str, tuple[str, str]]
    settings: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def convert_hint(path: str = "FILE") -> str:
    """How to turn a pickle into safetensors, where its maker is trusted."""
    return (
        f"if you trust its maker, convert {shown(path, 40)} to safetensors on a machine that may be lost "
        "(the Space safetensors/convert does it for a repository on the Hub)"
    )


def vet_index(document: Mapping[str, Any], tree: Tree) -> Index:
    """Take `model_index.json` apart. Raises UnsafeError for code of its own, SourceError where it is broken.

    Classes are not judged here: an unknown pipeline is better told of by its own name (`vet_classes` follows).
    """
    where = f"model_index.json of {tree.where}"
    vet_config(document, where)
    pipeline = document.get("_class_name")
    if not isinstance(pipeline, str) or not pipeline.isidentifier():
        raise SourceError(f"{where} names no pipeline class", hint="is it a diffusers checkpoint?")
    components, settings = {}, {}
    for name, value in document.items():
        if name.startswith("_"):
            continue
        if COMPONENT.fullmatch(name) is None:
            raise UnsafeError(f"{where} names the component {shown(name)!r}", hint=PLAIN)
        if not isinstance(value, list):
            if name in ROLES and value is not None:
                raise SourceError(f"{where}: component {name} must be [library, class]", hint="get the file again")
            settings[name] = value
        elif value != [None, None]:
            components[name] = _entry(name, value, tree, where)
    kept = keep(settings, dict.fromkeys(SETTINGS, FLAG), where)
    strangers = [name for name in components if name not in ROLES]
    return Index(pipeline, components, kept.document, (*kept.left_out, *strangers))


def vet_classes(index: Index, where: str) -> Index:
    """The index with the components that pipelines have.

    Raises UnsafeError for a library or class outside the allow-list, SourceError for a known class in the place of
    another.
    """
    for name, (library, class_name) in index.components.items():
        if class_name not in CLASSES.get(library, frozenset()):
            raise UnsafeError(
                f"{where}: component {name} is {shown(library, 40)}.{shown(class_name, 60)}, "
                "which sdhub does not know",
                hint=f"{PLAIN}, or add the class to sdhub/checkpoint/known.py",
            )
        if class_name not in ROLES.get(name, (class_name,)):
            raise SourceError(
                f"{where}: component {name} is a {class_name}, which is none",
                hint="correct model_index.json, or get the checkpoint again",
            )
    known = {name: entry for name, entry in index.components.items() if name in ROLES}
    return replace(index, components=known)


def vet_config(document: Mapping[str, Any], where: str) -> None:
    """Refuse a config that brings code, or names weights elsewhere; it has been parsed strictly before.

    Raises UnsafeError, and UnsupportedError for weights that are quantized already.
    """
    for key, value in _entries(document):
        if key in CODE_KEYS and value:
            raise UnsafeError(f"{where} asks for remote code ({key})", hint=PLAIN)
        if key == "_class_name" and isinstance(value, list):
            raise UnsafeError(f"{where} takes its class from a Python file (_class_name)", hint=PLAIN)
        if key.endswith(("attn_implementation", "experts_implementation", "_implementation_internal")):
            _vet_implementation(key, value, where)
        if key in REWRITING and value:
            raise UnsafeError(f"{where} sets {key}, by which a file gives other keys than it shows", hint=PLAIN)
        if key == "transformers_weights" and value:
            raise UnsafeError(f"{where} names its own weight file ({key})", hint=PLAIN)
        if key.startswith("__") and key.endswith("__"):
            raise UnsafeError(f"{where} sets {shown(key)}, a name of Python's own", hint=PLAIN)
        if key == "quantization_config" and value:
            raise UnsupportedError(
                f"{where} says that the weights are quantized already", hint="name the checkpoint it was made from"
            )


def is_code(path: str) -> bool:
    """Whether a file's name is one of code, whatever loads it."""
    return CODE.fullmatch(path.rpartition("/")[2]) is not None


def refuse_weights(folder: str, names: Sequence[str], library: str, tree: Tree) -> NoReturn:
    """Say why `folder` has no safetensors file to read: raises UnsafeError for pickles, else SourceError."""
    stem = STEMS[library]
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        raise UnsafeError(
            f"{folder} of {tree.where} has its weights as pickle only ({shown(pickles[0])}), which can run code",
            hint=convert_hint(f"{folder}/{pickles[0]}"),
        )
    others = [name for name in names if name.endswith(".safetensors")]
    there = f"; there is {shown(others[0])}" if others else ""
    raise SourceError(
        f"{folder} of {tree.where} has no {stem}.safetensors{there}",
        hint="is the download complete? (git lfs pull)",
    )


def is_model(library: str, class_name: str) -> bool:
    """Whether a component of this class has weights."""
    return (
        library in STEMS
        and class_name not in SCHEDULERS
        and class_name not in TOKENIZERS
        and not class_name.endswith(("Processor", "FeatureExtractor"))
    )


def _entry(name: str, value: list[Any], tree: Tree, where: str) -> tuple[str, str]:
    if len(value) != 2 or not all(isinstance(each, str) for each in value):
        raise SourceError(f"{where}: component {name} must be [library, class]", hint="get the file again")
    library, class_name = value
    modules = (f"{library}.py", f"{name}/{library}.py", f"{library.replace('.', '/')}.py")
    if any(module in tree.sizes for module in modules):
        raise UnsafeError(f"{where}: component {name} is code of the checkpoint ({shown(library)}.py)", hint=PLAIN)
    return library, class_name


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values at any depth; `parse_object` has bounded it."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(document, list):
        for value in document:
            yield from _entries(value)


def _vet_implementation(key: str, value: Any, where: str) -> None:
    """transformers downloads and runs a kernel from the Hub where the implementation reads `org/name`."""
    for each in value.values() if isinstance(value, Mapping) else [value]:
        if each is not None and (not isinstance(each, str) or IMPLEMENTATION.fullmatch(each) is None):
            raise UnsafeError(f"{where} asks for a kernel from elsewhere ({key})", hint=PLAIN)
