"""A variant's folder held against its layout, before anything of it reaches a library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdhub.backends.variant.keys import HINT
from sdhub.backends.variant.layout import ROLES, SETTINGS, Entry, File, Layout, Variant
from sdhub.checkpoint.known import CLASSES, UNLOADED
from sdhub.checkpoint.safety import PICKLES, is_code
from sdhub.checkpoint.tree import MAX_DOCUMENT, Folder, check_path
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError

INDEX = "model_index.json"
MAX_COPIED = 512 * 2**20  # bytes of a view that are not linked to, which are held in memory
VERSION = re.compile(r"\d{1,4}(\.[0-9a-z]{1,8}){1,4}")


@dataclass(frozen=True)
class Vetted:
    """What the view of a variant holds, by path: bytes that sdhub wrote, or the file that is linked to."""

    where: str
    files: Mapping[str, bytes | Path]


def vet(folder: Path, layout: Layout) -> Vetted:
    """Hold a folder against the layout of its backend's variants.

    Raises UnsafeError for a file or name that is none of such a variant or could run code, SourceError for a
    broken one, UnsupportedError for what sdhub does not read.
    """
    tree = Folder(folder)
    named = [(known, path) for path in tree.sizes if (known := _known(path, tree, layout)) is not None]
    named.sort(key=lambda each: layout.files.index(each[0]))  # small documents come before graphs and weights
    pipeline, version, settings, components = _index(tree, layout)
    variant = Variant(tree, layout, components)
    files: dict[str, bytes | Path] = {}
    copied = 0
    for known, path in named:
        if known.keep is None:
            continue
        kept = known.keep(variant, path)
        copied += len(kept or b"")
        if copied > MAX_COPIED:
            raise SourceError(
                f"the graphs and documents of {tree.where} have more than {MAX_COPIED} bytes", hint=HINT
            )
        files[path] = (tree.root / path).resolve() if kept is None else kept
    entries = {name: [each.library, each.class_name] for name, each in components.items()}
    absent = {name: [None, None] for name in UNLOADED}
    index = {"_class_name": pipeline, "_diffusers_version": version, **absent, **settings, **entries}
    return Vetted(tree.where, {**files, INDEX: json.dumps(index).encode()})


def _known(path: str, tree: Folder, layout: Layout) -> File | None:
    """The file of the layout that a path is of; None for what stands beside a variant. Raises UnsafeError."""
    check_path(path, tree.where)
    known = layout.file(path)
    if is_code(path) or (known is None and path.lower().endswith(PICKLES)):
        raise UnsafeError(f"{shown(path)} of {tree.where} could run code", hint=HINT)
    if known is None and layout.is_own(path):
        raise UnsafeError(f"{tree.where} holds {shown(path)}, which is no file of its kind of variant", hint=HINT)
    return known


def _index(tree: Folder, layout: Layout) -> tuple[str, str, dict[str, Any], dict[str, Entry]]:
    """Of `model_index.json`: pipeline, version of diffusers, settings (what is plain or absent), components."""
    document = tree.document(INDEX, MAX_DOCUMENT)
    where = f"{INDEX} of {tree.where}"
    pipeline, version = document.pop("_class_name", None), document.pop("_diffusers_version", "0.36.0")
    if not isinstance(pipeline, str) or pipeline not in layout.pipelines:
        raise UnsafeError(
            f"{where} names the pipeline {shown(pipeline, 60)!r}, which sdhub does not know", hint=HINT
        )
    if not isinstance(version, str) or VERSION.fullmatch(version) is None:
        raise SourceError(f"{where}: _diffusers_version is {shown(version, 40)!r}, no version", hint=HINT)
    document.pop("_name_or_path", None)  # where it came from: nothing is looked for there
    settings, components = {}, {}
    for name, value in document.items():
        if name in SETTINGS | layout.settings:
            if not isinstance(value, bool):
                raise SourceError(f"{where}: {name} is {shown(value, 40)}, neither true nor false", hint=HINT)
            settings[name] = value
        elif name in ROLES or name in UNLOADED:
            entry = _entry(name, value, where)
            if entry is None:  # a refiner has no first tokenizer
                settings[name] = value
            elif name not in UNLOADED:
                components[name] = entry
        else:
            raise UnsafeError(f"{where} sets {shown(name, 60)}, which sdhub does not know", hint=HINT)
    return pipeline, version, settings, components


def _entry(name: str, value: Any, where: str) -> Entry | None:
    if not isinstance(value, list) or len(value) != 2:
        raise SourceError(f"{where}: component {name} must be [library, class]", hint="get the file again")
    if value == [None, None]:
        return None
    library, class_name = value
    if not isinstance(library, str) or not isinstance(class_name, str):
        raise SourceError(f"{where}: component {name} must be [library, class]", hint="get the file again")
    if name in UNLOADED:
        known = class_name in CLASSES.get(library, ())
    else:
        known = library == ROLES[name][0] and class_name in ROLES[name][1]
    if not known:
        said = f"{shown(library, 40)}.{shown(class_name, 60)}"
        raise UnsafeError(f"{where}: component {name} is {said}, which sdhub does not know", hint=HINT)
    return Entry(library, class_name)
