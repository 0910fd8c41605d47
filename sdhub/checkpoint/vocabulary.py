"""`vocab.json` and `merges.txt` from a `tokenizer.json`.

transformers 5 writes `tokenizer.json` alone; transformers 4's slow tokenizers and Apple's Swift code read the
other two.
"""

from __future__ import annotations

import json
from pathlib import Path

VERSION = "#version: 0.2"


def write_bpe_files(folder: Path) -> None:
    """Write the two files beside a byte-pair `tokenizer.json` that lacks them; do nothing for other kinds."""
    source = folder / "tokenizer.json"
    if not source.is_file():
        return
    model = json.loads(source.read_text(encoding="utf-8")).get("model", {})
    if model.get("type") != "BPE":
        return
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocab.exists():
        vocab.write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if not merges.exists():
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        merges.write_text("\n".join([VERSION, *pairs]) + "\n", encoding="utf-8")
