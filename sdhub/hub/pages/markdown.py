"""Cards and comments as HTML. Nothing of the author's HTML passes: of it only text, line breaks and pictures stay.

Links go to the repository's own pages or to http(s) and mail addresses; pictures are files of the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.trees import Tree

MAX_TEXT = 512 * 2**10

_UNSAFE_NAME = re.compile(r"[^\w\- ]")


@dataclass(frozen=True)
class Place:
    """Where a text stands: relative addresses in it mean files of this repository at this commit."""

    repo: Repo
    tree: Tree
    oid: str

    def picture(self, source: str) -> str | None:
        """The address of a picture that is a file of the repository, else None."""
        path = self._path(source)
        return self._url("resolve", path) if path in self.tree.files else None

    def link(self, target: str) -> str | None:
        """The address a link may lead to, else None."""
        parts = urlsplit(target)
        path = self._path(target)
        if path in self.tree.files:
            return self._url("blob", path)
        if path and path in self.tree.folders:
            return self._url("tree", path)
        if target.startswith("#") and not parts.netloc:
            return "#card-" + quote(target[1:])
        return target if parts.scheme in {"http", "https", "mailto"} else None

    def _path(self, address: str) -> str:
        """The path in the repository that an address means, "" if none."""
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            found = re.fullmatch(
                rf".*/{re.escape(self.repo.full_name)}/(?:resolve|blob|raw)/main/(.+)", parts.path
            )
            return unquote(found.group(1)) if found and parts.scheme in {"http", "https"} else ""
        path = posixpath.normpath(unquote(parts.path)).lstrip("/") if parts.path else ""
        return "" if path.startswith("..") else path

    def _url(self, word: str, path: str) -> str:
        return f"{self.repo.url_path}/{word}/{self.oid}/{quote(path)}"


def render(text: str, place: Place | None = None) -> str:
    """Markdown (CommonMark, tables, strikethrough) as safe HTML."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for kind in ("html_block", "html_inline"):
        parser.add_render_rule(kind, _html_rule(place))
    tokens = parser.parse(text[:MAX_TEXT])
    _rewrite(tokens, place)
    return str(parser.renderer.render(tokens, parser.options, {}))


def _html_rule(place: Place | None) -> Callable[..., str]:
    def rule(_self: Any, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        block = tokens[index].type == "html_block"
        reader = _HtmlReader(place)
        reader.feed(tokens[index].content)
        reader.close()
        kept = "".join(reader.kept).strip() if block else "".join(reader.kept)
        return f"<p>{kept}</p>\n" if block and kept else kept

    return rule


class _HtmlReader(HTMLParser):
    """Keeps text, `<br>` and pictures of the repository."""

    def __init__(self, place: Place | None) -> None:
        super().__init__(convert_charrefs=True)
        self.kept: list[str] = []
        self._place = place
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep `<br>` and `<img>`; what is in scripts and styles is no text."""
        values = {key: value or "" for key, value in attrs}
        if tag in {"script", "style"}:
            self._silent += 1
        elif tag == "br":
            self.kept.append("<br>")
        elif tag == "img":
            self.kept.append(_picture_html(self._place, values.get("src", ""), values.get("alt", "")))

    def handle_endtag(self, tag: str) -> None:
        """Drop."""
        if tag in {"script", "style"}:
            self._silent = max(0, self._silent - 1)

    def handle_data(self, data: str) -> None:
        """Keep text."""
        if not self._silent:
            self.kept.append(escape(data))


def _picture_html(place: Place | None, source: str, alt: str) -> str:
    address = place.picture(source) if place else None
    if address is None:
        return f'<span class="missing">{escape(alt or "picture")}</span>'
    return f'<img src="{escape(address)}" alt="{escape(alt)}" loading="lazy">'


def _rewrite(tokens: Sequence[Token], place: Place | None) -> None:
    names: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _anchor(tokens[index + 1].content, names))
        if token.type in {"th_open", "td_open"} and token.attrGet("style"):
            token.attrs = {"class": str(token.attrGet("style")).removeprefix("text-align:")}
        if token.children:
            token.children = [_inline(child, place) for child in token.children]


def _inline(token: Token, place: Place | None) -> Token:
    if token.type == "image":
        alt = "".join(child.content for child in token.children or [])
        return Token("html_inline", "", 0, content=_img_tag(str(token.attrGet("src") or ""), alt))
    if token.type == "link_open":
        target = str(token.attrGet("href") or "")
        address = place.link(target) if place else _outside(target)
        token.attrs = {"href": address, "rel": "nofollow noopener noreferrer"} if address else {}
    return token


def _img_tag(source: str, alt: str) -> str:
    return f'<img src="{escape(source)}" alt="{escape(alt)}">'


def _outside(target: str) -> str | None:
    return target if urlsplit(target).scheme in {"http", "https", "mailto"} else None


def _anchor(title: str, names: dict[str, int]) -> str:
    name = "-".join(_UNSAFE_NAME.sub("", title.lower()).split()) or "section"
    names[name] = names.get(name, -1) + 1
    return f"card-{name}" + (f"-{names[name]}" if names[name] else "")
