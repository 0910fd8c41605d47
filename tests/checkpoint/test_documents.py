from __future__ import annotations

import json

import pytest

from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import SourceError


def test_an_object_is_read() -> None:
    document = {"a": [1, 2.5, None, True, "ü"], "b": {"c": -3}}
    assert parse_object(json.dumps(document).encode(), "x") == document


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"text"',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1' + b"0" * 41 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": "\xff"}',
        b'{"a": ' * 40 + b"1" + b"}" * 40,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": 1} trailing',
        b"\x80\x04\x95",
    ],
)
def test_anything_else_is_refused_in_one_line(raw: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        parse_object(raw, "config.json")
    assert "config.json" in caught.value.message
    assert caught.value.message.isprintable() and len(caught.value.message) < 250


def test_words_of_strangers_are_shown_on_one_line() -> None:
    assert shown("a\nb\x1b[31m\u202ec\x00") == "a b?[31m?c?"
    assert shown("x" * 100, 10) == "x" * 9 + "…"
    assert shown("x" * 10, 10) == "x" * 10
