"""Cards: the front matter of a README.md as data, and what the Hub derives from it.

A card comes from a stranger. YAML is read by the safe loader, of bounded size also after its aliases are
expanded; what comes out is plain JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime
from functools import lru_cache
from math import isfinite
from typing import Any

import yaml

from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.store.trees import File, Tree

README = "README.md"
MAX_README = 2 * 2**20
MAX_YAML = 256 * 2**10
MAX_NODES = 50_000
MAX_DEPTH = 64

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


class CardError(ValueError):
    """The front matter cannot be used; the message says why."""


def split_card(text: str) -> tuple[str, str]:
    """The YAML between the `---` lines ("" when there is none) and the Markdown after it."""
    found = _FRONT.match(text)
    return (found.group(1), text[found.end() :]) if found else ("", text)


def parse_front_matter(source: str) -> dict[str, Any]:
    """YAML as plain JSON data. Raises CardError."""
    if len(source) > MAX_YAML:
        raise CardError(f"the metadata has more than {MAX_YAML} characters")
    if _brackets(source) > MAX_DEPTH:
        raise CardError(f"the metadata is nested more than {MAX_DEPTH} deep")
    loader = yaml.SafeLoader(source)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        _check_size(node)
        value = _plain(loader.construct_document(node))
    except yaml.YAMLError as error:
        raise CardError(" ".join(str(error).split())[:500]) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CardError(str(error) or "the metadata is nested too deeply") from None
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise CardError("the metadata is not a mapping")
    return value


def _brackets(source: str) -> int:
    """The most brackets open at once; many of them take the YAML scanner time in their square."""
    depth = deepest = 0
    for character in source:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth = max(0, depth - 1)
    return deepest


def _check_size(root: yaml.Node) -> None:
    sizes: dict[int, int] = {}
    if _size(root, sizes, set()) > MAX_NODES:
        raise CardError(f"the metadata has more than {MAX_NODES} values")


def _size(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Nodes below and with this one, each alias counted in full."""
    if id(node) in above:
        raise CardError("the metadata contains itself")
    if id(node) not in sizes:
        children = list(_children(node))
        sizes[id(node)] = 1 + sum(_size(child, sizes, above | {id(node)}) for child in children)
    return sizes[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return str(value)


def read_text(hub: EmbeddedHub, file: File, limit: int = MAX_README) -> str | None:
    """A file as text when it is UTF-8 of at most `limit` bytes, else None."""
    if file.size > limit:
        return None
    try:
        return hub.blobs.path(file.sha256).read_bytes().decode("utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return None


def card_text(hub: EmbeddedHub, tree: Tree) -> str:
    """The README.md of a tree, "" when there is none that can be read."""
    file = tree.files.get(README)
    return (read_text(hub, file) or "") if file else ""


def card_data(hub: EmbeddedHub, tree: Tree) -> dict[str, Any] | None:
    """The front matter of a tree's card; None when there is none, or when it is broken. Do not change it."""
    file = tree.files.get(README)
    return _card_data(hub, file) if file else None


@lru_cache(maxsize=1024)
def _card_data(hub: EmbeddedHub, file: File) -> dict[str, Any] | None:
    source = split_card(read_text(hub, file) or "")[0]
    try:
        return parse_front_matter(source) if source.strip() else None
    except CardError:
        return None


def texts(value: Any) -> list[str]:
    """A text or a list of texts as a list; anything else is dropped."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item]


def derived_tags(data: dict[str, Any] | None) -> list[str]:
    """The tags the Hub shows: the card's own, and those of its library, licence, languages and base models."""
    if not data:
        return []
    tags = texts(data.get("library_name")) + texts(data.get("tags")) + texts(data.get("pipeline_tag"))
    tags += texts(data.get("language"))
    relation = data.get("base_model_relation")
    for model in texts(data.get("base_model")):
        tags.append(f"base_model:{model}")
        if isinstance(relation, str):
            tags.append(f"base_model:{relation}:{model}")
    tags += [f"dataset:{name}" for name in texts(data.get("datasets"))]
    tags += [f"license:{name}" for name in texts(data.get("license"))]
    return list(dict.fromkeys(tags))
