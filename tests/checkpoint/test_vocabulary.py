"""The vocabulary written from tokenizer.json against the one that the tokenizer's own trainer wrote."""

import json
import shutil

from sdhub.checkpoint.vocabulary import write_bpe_files
from sdhub.demo import emoji_sd


def test_the_files_equal_the_originals(tmp_path):
    original = emoji_sd() / "tokenizer"
    shutil.copy(original / "tokenizer.json", tmp_path)
    write_bpe_files(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((original / "vocab.json").read_text())
    assert (tmp_path / "merges.txt").read_text().split("\n")[1:] == (original / "merges.txt").read_text().split(
        "\n"
    )[1:]


def test_other_kinds_and_existing_files_are_left_alone(tmp_path):
    write_bpe_files(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}')
    write_bpe_files(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    (tmp_path / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}'
    )
    (tmp_path / "vocab.json").write_text("mine")
    write_bpe_files(tmp_path)
    assert (tmp_path / "vocab.json").read_text() == "mine"
    assert (tmp_path / "merges.txt").read_text() == "#version: 0.2\na b\n"
