"""What changed between two trees, as text."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sdhub.hub.cards import read_text
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.store.trees import File, Tree, changed_paths

MAX_FILES = 200
MAX_FILE_BYTES = 128 * 2**10
MAX_FILE_LINES = 3000
MAX_LINES = 4000


@dataclass(frozen=True)
class Change:
    """A changed file. `lines` is its unified diff, empty when it is binary, large or unchanged in text."""

    path: str
    before: File | None
    after: File | None
    lines: list[str]

    @property
    def kind(self) -> str:
        """`added`, `removed` or `changed`."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


def changes(hub: EmbeddedHub, before: Tree, after: Tree) -> list[Change]:
    """The first 200 changed files, with diffs of those that are small text files (4000 lines in all)."""
    found: list[Change] = []
    budget = MAX_LINES
    for path in changed_paths(before, after)[:MAX_FILES]:
        old, new = before.files.get(path), after.files.get(path)
        lines = _diff_lines(hub, path, old, new) if budget > 0 else []
        lines = lines[:budget]
        budget -= len(lines)
        found.append(Change(path, old, new, lines))
    return found


def unified_diff(hub: EmbeddedHub, before: Tree, after: Tree) -> str:
    """All changes as one text in git's shape."""
    parts: list[str] = []
    for change in changes(hub, before, after):
        parts.append(f"diff --git a/{change.path} b/{change.path}")
        parts += change.lines or ["Binary files differ"]
    return "\n".join(parts) + ("\n" if parts else "")


def _diff_lines(hub: EmbeddedHub, path: str, old: File | None, new: File | None) -> list[str]:
    texts = [_text(hub, file) for file in (old, new)]
    if texts[0] is None or texts[1] is None:
        return []
    names = (f"a/{path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null")
    before, after = texts[0].splitlines(), texts[1].splitlines()
    if max(len(before), len(after)) > MAX_FILE_LINES:
        return []
    return list(difflib.unified_diff(before, after, *names, lineterm=""))


def _text(hub: EmbeddedHub, file: File | None) -> str | None:
    if file is None:
        return ""
    text = None if file.lfs else read_text(hub, file, MAX_FILE_BYTES)
    return None if text is None or "\0" in text else text
