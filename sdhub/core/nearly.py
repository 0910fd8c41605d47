"""A name that is nearly right: the one that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 6


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `word`, if one is."""
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word[:100].lower(), list(names), n=1, cutoff=0.6)
    return names[found[0]] if found else None


def meant(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint: "did you mean …?" with one name; else all names where they are few, else `otherwise`."""
    names = list(known)
    found = nearest(word, names)
    if found is not None:
        return f"did you mean {found}?"
    return f"there are: {', '.join(names)}" if 0 < len(names) <= FEW else otherwise
