"""Variants of one source side by side: the collection that ties them together, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdhub.core.documents import parse_object
from sdhub.core.errors import HubError, SdhubError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.scratch import temporary
from sdhub.publishing.markdown import plain
from sdhub.publishing.publication import Sibling
from sdhub.publishing.repository import MANIFEST
from sdhub.publishing.target import Target

T = TypeVar("T")
MAX_TITLE, MAX_NOTE = 59, 500  # the Hub's
MAX_SIBLINGS = 50


def title_of(source_id: str) -> str:
    """The title of a source's collection."""
    return f"{plain(source_id, MAX_TITLE - len(' on devices'))} on devices"


def merged(own: Iterable[Sibling], others: Iterable[Sibling]) -> tuple[Sibling, ...]:
    """All of them by variant, each place once; one's own figures before others'."""
    places = {(each.repo_id, each.branch): each for each in (*others, *own)}
    return tuple(sorted(places.values(), key=lambda each: (each.variant, each.repo_id)))


class Collection:
    """The collection of a source's variants in a namespace; it need not be there yet."""

    def __init__(self, namespace: str, source_id: str, hub: Hub, progress: Progress = SILENT) -> None:
        self.namespace = namespace
        self.title = title_of(source_id)
        self.progress = progress
        self.hub = hub
        self.api = hub.api

    def siblings(self, identity: str, *, private: bool) -> list[Sibling]:
        """Variants in it of the same state of the source; private ones only where `private`.

        None where the Hub has no such collection, or it cannot be read.
        """
        try:
            found = self._find()
            names = [each.item_id for each in found.items if each.item_type == "model"] if found else []
            read = [self._read(name, identity, private=private) for name in names[:MAX_SIBLINGS]]
        except SdhubError:
            return []
        return [each for each in read if each is not None]

    def tie(self, siblings: Sequence[Sibling], *, private: bool) -> str | None:
        """Put variants into it, making it where it is missing; returns its page.

        A Hub without collections, or a token that may not make them, is told to `progress` and no failure.
        """
        try:
            found = self._find() or self._ask("make a collection", lambda: self._create(private=private))
            there = {each.item_id for each in found.items}
            for each in siblings:
                if each.repo_id not in there:
                    there.add(each.repo_id)
                    self._add(found.slug, each)
        except HubError as error:
            self.progress.note(f"no collection: {error.message}")
            return None
        return f"{self.hub.url}/collections/{found.slug}"

    def _ask(self, doing: str, act: Callable[[], T]) -> T:
        return self.hub.ask(f"{doing} of {self.namespace}", act, self.progress)

    def _find(self) -> Any:
        def fetch() -> Any:
            for each in self.api.list_collections(owner=self.namespace, limit=100):
                if each.title == self.title:
                    return self.api.get_collection(each.slug)
            return None

        return self._ask("read the collections", fetch)

    def _create(self, *, private: bool) -> Any:
        return self.api.create_collection(self.title, namespace=self.namespace, private=private, exists_ok=True)

    def _add(self, slug: str, sibling: Sibling) -> None:
        note = sibling.note[:MAX_NOTE]
        self._ask(
            "put a variant into a collection",
            lambda: self.api.add_collection_item(
                slug, item_id=sibling.repo_id, item_type="model", note=note, exists_ok=True
            ),
        )

    def _read(self, repo_id: str, identity: str, *, private: bool) -> Sibling | None:
        target = Target(repo_id, self.hub)
        info = target.info()
        if info is None or info.sha is None or (info.private and not private):
            return None
        with temporary() as cache:
            try:
                path = target.ask(
                    "read",
                    lambda: self.api.hf_hub_download(repo_id, MANIFEST, revision=info.sha, cache_dir=cache),
                )
                document = parse_object(Path(path).read_bytes(), MANIFEST)
            except SdhubError:  # others may put into a collection what they like
                return None
        source, figures = document.get("source"), document.get("evidence")
        if (
            not isinstance(source, Mapping)
            or not isinstance(figures, Mapping)
            or source.get("identity") != identity
        ):
            return None
        return Sibling(str(document.get("variant")), repo_id, figures)
