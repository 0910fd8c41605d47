"""JSON written by strangers, read strictly, and their words made fit for a message."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from typing import Any

from sdhub.core.errors import SourceError

MAX_DEPTH = 32
MAX_VALUES = 6_000_000  # values of Python take some hundred bytes each; the largest vocabularies have 2 million
MAX_INTEGER = 10**40  # tokenizers write int(1e30) for "no limit"


def shown(text: object, limit: int = 80) -> str:
    """`text` on one line, for a message: at most `limit` characters, all printable."""
    line = "".join(
        character if character.isprintable() else " " if character.isspace() else "?"
        for character in str(text)[: limit + 1]
    )
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def parse_object(raw: bytes, where: str, unbounded: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object in UTF-8: no duplicate keys, finite numbers, at most 32 levels deep.

    `unbounded` are the keys that may be `-Infinity`, which Python writes and JSON does not know. Raises
    SourceError that names `where`.
    """
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise SourceError(f"{where} holds more than {MAX_VALUES} values", hint="get the file again")
    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_below_all if unbounded else _refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else shown(error)
        raise SourceError(f"{where} is not valid JSON: {reason}", hint="get the file again") from None
    if not isinstance(document, dict):
        raise SourceError(f"{where} holds no JSON object", hint="get the file again")
    _check_values(document, where, unbounded)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(twice)} stands twice")
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _below_all(text: str) -> float:
    return -math.inf if text == "-Infinity" else _refuse_constant(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text, 20)} is too large a number")
    return number


def _check_values(document: Any, where: str, unbounded: Collection[str]) -> None:
    """Depth, numbers and text (a lone surrogate cannot be written to any file)."""
    pending: list[tuple[Any, int]] = [(document, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise SourceError(f"{where} is nested too deeply", hint="get the file again")
        if isinstance(value, str):
            _check_text(value, where)
        elif isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise SourceError(f"{where} holds an integer of more than 40 digits", hint="get the file again")
        elif value == -math.inf:
            raise SourceError(
                f"{where} is not valid JSON: -Infinity is no number of JSON", hint="get the file again"
            )
        elif isinstance(value, dict):
            for key in value:
                _check_text(key, where)
            finite = (each for key, each in value.items() if each != -math.inf or key not in unbounded)
            pending.extend(_deeper(finite, depth))
        elif isinstance(value, list):
            pending.extend(_deeper(value, depth))


def _deeper(values: Iterable[Any], depth: int) -> list[tuple[Any, int]]:
    return [(value, depth + 1) for value in values]


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SourceError(f"{where} holds text that is not Unicode", hint="get the file again") from None
