from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdhub.core.errors import UsageError
from sdhub.evidence.sampling import Prompt, general_prompts, load_prompts, parse_sampling
from tests.evidence.fakes import sampling


def written(folder: Path, entries: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_texts_get_their_number_as_seed(tmp_path: Path) -> None:
    found = load_prompts(written(tmp_path, ["a cat", {"text": "a dog", "seed": 9}, {"text": "朝の湖"}]))
    assert found == (Prompt("a cat", 1), Prompt("a dog", 9), Prompt("朝の湖", 3))


def test_general_prompts_are_eight_different_ones() -> None:
    prompts = general_prompts()
    assert len({prompt.text for prompt in prompts}) == len({prompt.seed for prompt in prompts}) == 8


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"text": "a cat"}, "a JSON list of 1 to 64"),
        ([], "a JSON list of 1 to 64"),
        (["a cat"] * 65, "a JSON list of 1 to 64"),
        (["a cat", ""], "prompt 2 is not a text"),
        (["   "], "prompt 1 is not a text"),
        ([7], "prompt 1 is not a text"),
        ([None], "prompt 1 is not a text"),
        ([["a cat"]], "prompt 1 is not a text"),
        (["x" * 1001], "prompt 1 is not a text"),
        (["a \ud800 cat"], "prompt 1 has half of a surrogate pair"),
        ([{"seed": 1}], "prompt 1 is not a text"),
        ([{"text": "a cat", "seeds": 1}], "unknown field 'seeds'"),
        ([{"text": "a cat", "seed": -1}], "seed of prompt 1"),
        ([{"text": "a cat", "seed": 1.5}], "seed of prompt 1"),
        ([{"text": "a cat", "seed": True}], "seed of prompt 1"),
        ([{"text": "a cat", "seed": None}], "seed of prompt 1"),
        ([{"text": "a cat", "seed": 2**63}], "seed of prompt 1"),
    ],
)
def test_refuses_naming_the_entry(tmp_path: Path, entries: Any, reason: str) -> None:
    path = written(tmp_path, entries)
    with pytest.raises(UsageError) as refusal:
        load_prompts(path)
    assert reason in refusal.value.message
    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1e999999, " + b"9" * 10_000])
def test_refuses_what_is_not_json(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="not JSON"):
        load_prompts(path)


def test_refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_prompts(tmp_path / "none.json")
    with pytest.raises(UsageError, match="directory"):
        load_prompts(tmp_path)


def test_sampling_survives_json() -> None:
    made = sampling("a cat", "朝の湖")
    assert parse_sampling(json.loads(json.dumps(made.document()))) == made
