"""The licence that a checkpoint states, read from words of strangers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.checkpoint import License
from sdhub.checkpoint.tree import Tree

if TYPE_CHECKING:
    from sdhub.checkpoint.remote import Repository

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
FILE = re.compile(r"(licen[sc]e|copying)([-_.]\w+)*", re.IGNORECASE)
NOTICE = re.compile(
    r"(notices?|(third[-_.]?party[-_.]?)?notices?|(acceptable[-_.]?)?use[-_.]?polic(y|ies)|use[-_.]?restrictions"
    r"|attribution)(\.(md|txt))?",
    re.IGNORECASE,
)
AND = " and "
MAX_IDS = 8
GATE = ("extra_gated_heading", "extra_gated_description", "extra_gated_prompt", "extra_gated_button_content")
LINK = re.compile(r"https?://[^\s<>\"'`()\[\]]{1,300}|[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")
MAX_README = 2**20
MAX_FRONT_MATTER = 2**16
MAX_LICENSE = 2**20
MAX_NOTICES = 8
MAX_GATE = 8000

# What people write into `modelspec.license`, in letters and digits alone.
SPELLINGS = {
    "apache20": "apache-2.0",
    "apachelicense20": "apache-2.0",
    "creativemlopenrailm": "creativeml-openrail-m",
    "creativemlopenrailmlicense": "creativeml-openrail-m",
    "creativemlopenrailmaddendum": "creativeml-openrail-m",
    "openrail++": "openrail++",
    "creativemlopenrail++m": "openrail++",
    "creativemlopenrail++mlicense": "openrail++",
    "cc01.0": "cc0-1.0",
    "mit": "mit",
    "mitlicense": "mit",
}


def license_file(tree: Tree) -> str | None:
    """The licence text in the root of a checkpoint."""
    found = (name for name in tree.inside("") if FILE.fullmatch(name) and tree.sizes[name] <= MAX_LICENSE)
    return next((name for name in found if not name.lower().endswith((".json", ".py"))), None)


def notices(tree: Tree) -> tuple[str, ...]:
    """Notices and use policies in the root of a checkpoint."""
    found = (name for name in tree.inside("") if NOTICE.fullmatch(name) and tree.sizes[name] <= MAX_LICENSE)
    return tuple(sorted(found)[:MAX_NOTICES])


def gate_of(card: Mapping[str, Any]) -> dict[str, str]:
    """What a card asks of those who want access: its texts, as they are shown before the gate."""
    texts = {key: card.get(key) for key in GATE}
    return {key: text[:MAX_GATE] for key, text in texts.items() if isinstance(text, str) and text.strip()}


def license_of(card: Mapping[str, Any], file: str | None, notices: tuple[str, ...] = ()) -> License | None:
    """From a card's `license`, `license_name` and `license_link`; None where no usable id is stated.

    A card may state several, without saying whether one may choose: their ids are joined by `AND`, and no variant
    is published under that unless the user says which.
    """
    given = card.get("license")
    stated: list[Any] = given if isinstance(given, list) else [given]
    usable = all(isinstance(each, str) and ID.fullmatch(each.strip()) for each in stated)
    if not usable or not 0 < len(stated) <= MAX_IDS:
        return None
    name, link = _name(card.get("license_name")), _link(card.get("license_link"))
    ids = dict.fromkeys(each.strip().lower() for each in stated)
    return License(AND.join(ids), name, link, file, notices)


def addressed(license: License, tree: Repository) -> License:
    """A licence whose text is not copied: where it names a file of its repository, that file's address."""
    link = license.link or license_file(tree)
    if link and "://" not in link:
        link = f"{tree.hub.url}/{tree.repo_id}/blob/{tree.sha}/{link}"
    return replace(license, link=link)


def license_of_metadata(text: str) -> License | None:
    """From `modelspec.license` of a single file, an id or free text."""
    squeezed = re.sub(r"[^a-z0-9+.]", "", text.lower())
    for spelling in (squeezed, squeezed.replace(".", "")):
        if spelling in SPELLINGS:
            return License(SPELLINGS[spelling])
    if ID.fullmatch(text.strip()):
        return License(text.strip().lower())
    name = _name(text)
    return License("other", name) if name else None


def front_matter(readme: bytes) -> dict[str, Any]:
    """The front matter of a README as plain text values; empty where there is none or it is no YAML mapping.

    No types, no tags, no aliases: nothing in it can grow or be constructed.
    """
    import yaml

    class Loader(yaml.BaseLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

    text = readme[:MAX_FRONT_MATTER].decode("utf-8", errors="replace").removeprefix("\ufeff")
    parts = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t\r]*$", text, re.DOTALL | re.MULTILINE)
    if parts is None:
        return {}
    try:
        document = yaml.load(parts.group(1), Loader=Loader)  # noqa: S506 — a BaseLoader constructs text only
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def read_card(tree: Tree) -> dict[str, Any]:
    """The front matter of the README in a tree."""
    if tree.sizes.get("README.md", MAX_README + 1) > MAX_README:
        return {}
    return front_matter(tree.read("README.md"))


def _name(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    text = " ".join(value.split())[:120]
    return text if text and text.isprintable() else None


def _link(value: Any) -> str | None:
    return value if isinstance(value, str) and LINK.fullmatch(value) else None
