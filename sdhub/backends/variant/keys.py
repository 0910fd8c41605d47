"""Keys and names in a stranger's document."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError

LAYER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,255}")
MOST_NAMES = 100_000
HINT = "do not use it; ask who published it for a clean one"


def vet_keys(document: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises UnsafeError for a key that is not `known`."""
    for key in document:
        if key not in known:
            raise UnsafeError(f"{where} sets {shown(key, 60)}, which sdhub does not know", hint=HINT)


def vet_names(names: Any, where: str) -> None:
    """Raises SourceError unless `names` is a list of paths of layers."""
    if not isinstance(names, list) or len(names) > MOST_NAMES:
        raise SourceError(f"{where} must be a list of layers", hint=HINT)
    for name in names:
        if not isinstance(name, str) or LAYER.fullmatch(name) is None or "__" in name:
            raise SourceError(f"{where} names {shown(name, 60)!r}, no layer", hint=HINT)
