"""The variants that this Space shows: what their repositories say of themselves.

Everything read here was written by strangers: sizes are bounded, texts are shown as texts, and what is missing or
malformed is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
MOST_VARIANTS, MOST_PAIRS = 12, 8
MAX_FILE = 8 * 2**20
SIDES = (32, 1024)


@dataclass(frozen=True)
class Pair:
    """What base and variant drew of one prompt with one seed."""

    prompt: str
    base: Path
    variant: Path
    psnr_db: float | None


@dataclass(frozen=True)
class Variant:
    """A published variant: `speed` is times the base's; `steps` to `height` are how it is drawn best."""

    repo: str
    commit: str
    name: str
    source: str
    bytes: int | None
    base_bytes: int | None
    speed: float | None
    ssim: float | None
    steps: int
    guidance: float
    width: int
    height: int
    prompts: tuple[str, ...]
    pairs: tuple[Pair, ...]
    usage: str

    @property
    def label(self) -> str:
        """For the picker: name, size, speed."""
        facts = [size_words(self.bytes)] if self.bytes else []
        if self.speed:
            facts.append(f"{self.speed:.1f}× the base’s speed")
        return " · ".join([self.name, *facts])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Widths and heights to choose from: the published one, wider, taller."""
        long = [min(SIDES[1], round(side * 1.5 / 8) * 8) for side in (self.width, self.height)]
        found = [(self.width, self.height), (long[0], self.height), (self.width, long[1])]
        return list(dict.fromkeys(found))


def read_catalog(file: Path) -> list[Variant]:
    """The variants that `variants.json` names. Raises ValueError where there is none to show."""
    document = json.loads(file.read_text(encoding="utf-8"))
    names = [name for name in document["variants"] if isinstance(name, str) and REPOSITORY.fullmatch(name)]
    found = [read_variant(name) for name in names[:MOST_VARIANTS]]
    if not found:
        raise ValueError("variants.json names no variant")
    return found


def read_variant(repo: str) -> Variant:
    """A variant from the small files of its repository."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(repo, files_metadata=True)
    wanted = {"README.md", "sdhub.json"}
    small = [
        each.rfilename
        for each in info.siblings or ()
        if (each.size or 0) <= MAX_FILE and (each.rfilename in wanted or each.rfilename.startswith("evidence/"))
    ]
    folder = Path(snapshot_download(repo, revision=info.sha, allow_patterns=small))
    return parse_variant(repo, str(info.sha), folder)


def parse_variant(repo: str, commit: str, folder: Path) -> Variant:
    """A variant from a folder with `sdhub.json`, `README.md` and `evidence/`."""
    manifest, evidence = _object(folder / "sdhub.json"), _object(folder / "evidence" / "evidence.json")
    sampling = _mapping(evidence.get("usual")) or _mapping(evidence.get("sampling"))
    latency = _mapping(evidence.get("latency"))
    pairs = _pairs(folder / "evidence", evidence)
    return Variant(
        repo=repo,
        commit=commit,
        name=_text(manifest.get("variant"), repo.partition("/")[2]),
        source=_text(_mapping(manifest.get("source")).get("id"), repo),
        bytes=_count(evidence.get("bytes")),
        base_bytes=_count(evidence.get("base_bytes")),
        speed=_number(latency.get("ratio")),
        ssim=_number(evidence.get("ssim")),
        steps=min(50, max(1, _count(sampling.get("steps")) or 20)),
        guidance=min(20.0, max(0.0, _number(sampling.get("guidance")) or 0.0)),
        width=_side(sampling.get("width")),
        height=_side(sampling.get("height")),
        prompts=tuple(pair.prompt for pair in pairs),
        pairs=pairs,
        usage=_usage(folder / "README.md"),
    )


def _pairs(folder: Path, evidence: Mapping[str, Any]) -> tuple[Pair, ...]:
    rows = evidence.get("prompts")
    pairs = []
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        base, variant = folder / f"base-{number:02}.png", folder / f"variant-{number:02}.png"
        row = _mapping(row)
        if base.is_file() and variant.is_file():
            pairs.append(
                Pair(_text(row.get("text"), f"prompt {number + 1}"), base, variant, _number(row.get("psnr_db")))
            )
    return tuple(pairs[:MOST_PAIRS])


def _usage(card: Path) -> str:
    """The Python lines under "Use it" of a card."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r"^## Use it$.*?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found[1][:4000] if found else ""


def _object(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any, default: str) -> str:
    text = " ".join(value.split())[:200] if isinstance(value, str) else ""
    return text or default


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if known else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _side(value: Any) -> int:
    return min(SIDES[1], max(SIDES[0], (_count(value) or 512) // 8 * 8))


def size_words(count: float) -> str:
    """Bytes for people, in powers of 1000 as the Hub shows them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
