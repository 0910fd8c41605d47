"""Everything that makes a published repository: plain data, so that the card and the files come from one place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sdhub.checkpoint.checkpoint import Checkpoint, License
from sdhub.core.hub import PUBLIC
from sdhub.core.work import digest
from sdhub.demo import emoji_sd
from sdhub.publishing import words
from sdhub.publishing.markdown import safe_url
from sdhub.publishing.package import regular_files, sha256_of
from sdhub.recipes.recipe import identity

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class Sibling:
    """A variant with the figures of its evidence; `branch` None is `main`."""

    variant: str
    repo_id: str
    figures: Mapping[str, Any]
    branch: str | None = None

    @property
    def note(self) -> str:
        """Its figures in a line."""
        figures = self.figures
        speed = words.speed(figures.get("latency"))
        return f"{words.size(figures.get('bytes'))}, {speed}, PSNR {words.psnr(figures)}"


@dataclass(frozen=True)
class Publication:
    """One variant with all that is said about it.

    `identity` identifies the source's bytes (commit SHA or fingerprint). `license` is the settled one,
    `license_file` its text on disk, if the source has one, and `notices` what has to come with it. `variant` is
    the name ("openvino-int8"), `description` one sentence about its treatment, `folder` holds its files.
    `library` is the card's library_name, `install` the shell line and `usage` the exact Python lines for users,
    which must save one PNG in the current folder. `evidence` is the document of `sdhub.evidence.compare`,
    `pictures` maps names ("base-00.png") to files. `source_endpoint` is the Hub that the source came from.

    `notes` are limits of the variant, a sentence each; `bundles` maps names of further zips to folders below
    `folder`; `checks` says who draws after publishing: the card's own lines ("usage"), or sdhub where they need
    another machine ("sdhub"). `branch` None is `main`. `siblings` are all variants of the source that are known,
    this one among them; `hub` is the address of a Hub that stays, for links to them.
    """

    repo_id: str
    checkpoint: Checkpoint
    identity: str
    license: License
    variant: str
    description: str
    folder: Path
    library: str
    tags: tuple[str, ...]
    install: str
    usage: str
    recipe: Mapping[str, Any]
    evidence: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    license_file: Path | None = None
    notices: tuple[Path, ...] = ()
    contact_sheet: Path | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)
    source_endpoint: str = PUBLIC
    notes: tuple[str, ...] = ()
    bundles: Mapping[str, Path] = field(default_factory=dict)
    checks: Literal["usage", "sdhub"] = "usage"
    branch: str | None = None
    siblings: tuple[Sibling, ...] = ()
    private: bool = False
    hub: str | None = None

    @property
    def name(self) -> str:
        """The repository's name without its namespace, and the branch where it is not `main`."""
        name = self.repo_id.rpartition("/")[2]
        return f"{name}-{self.branch}" if self.branch else name

    def key(self, kept: Path) -> dict[str, str]:
        """A hash of each field, so that none can be forgotten: what comes of this publication depends on no more.

        Files count by their content. Those in `kept`, the work folder, stand for it by their path, since a stage's
        folder is named after all that it depends on.
        """
        return {name: digest(value) for name, value in _key_of(self, kept).items()}

    @property
    def recipe_document(self) -> dict[str, Any]:
        """What `recipe.json` holds: the recipe, with how an analysis found it where one did."""
        return {key: value for key, value in self.recipe.items() if key != "analysis" or value is not None}

    @property
    def recipe_sha256(self) -> str:
        """The recipe's identity, to which how it was found does not belong."""
        return identity(self.recipe)

    @property
    def source_url(self) -> str | None:
        """The page of a source on a Hub."""
        if self.checkpoint.source.kind != "hub" or not _HUB_ID.fullmatch(self.checkpoint.id):
            return None
        return f"{self.source_endpoint.rstrip('/')}/{self.checkpoint.id}"

    @property
    def base_model(self) -> str | None:
        """The source's id where others can look it up: on a Hub, or as the checkpoint that sdhub ships."""
        source = self.checkpoint.source
        known = self.source_url or (source.kind == "folder" and source.ref == str(emoji_sd()))
        return self.checkpoint.id if known else None

    @property
    def source_commit_url(self) -> str | None:
        """The page of the source's pinned commit."""
        url = self.source_url
        return f"{url}/tree/{self.checkpoint.sha}" if url and self.checkpoint.sha else None

    @property
    def license_target(self) -> str | None:
        """The name that the licence text has in the repository."""
        if self.license_file is None:
            return None
        suffix = PurePosixPath(self.license_file.name).suffix.lower()
        return f"LICENSE{suffix}" if suffix in {".md", ".txt"} else "LICENSE"

    @property
    def license_link(self) -> str | None:
        """Where the terms are: an address, or the licence text in the repository; None for a plain id."""
        link = self.license.link
        if link and link.startswith(("https://", "http://")):
            return safe_url(link)
        if link is None and self.license.id != "other":
            return None
        if self.license_target or not link:
            return self.license_target
        page, relative = self.source_commit_url, safe_url(link)
        return f"{page.replace('/tree/', '/blob/', 1)}/{relative}" if page and relative else None


def _key_of(value: Any, kept: Path) -> Any:
    """A value as JSON. Of a dataclass all fields count but those whose metadata says `key=False`."""
    if is_dataclass(value):
        counted = [each.name for each in fields(value) if each.metadata.get("key", True)]
        return {name: _key_of(getattr(value, name), kept) for name in counted}
    if isinstance(value, Path):
        if value.is_relative_to(kept):
            return value.relative_to(kept).as_posix()
        files = regular_files(value) if value.is_dir() else {value.name: value}
        return {name: sha256_of(path) for name, path in files.items()}
    if isinstance(value, Mapping):
        return {str(name): _key_of(each, kept) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_key_of(each, kept) for each in value]
    if isinstance(value, frozenset):
        return sorted(value)
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def prompts_of(evidence: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of an evidence document, one per prompt."""
    prompts = evidence.get("prompts")
    return [each for each in prompts if isinstance(each, Mapping)] if isinstance(prompts, (list, tuple)) else []
