"""Whether evidence within a small budget ranks variants as the whole of it does, on the built-in checkpoint.

python benchmarks/evidence.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sdhub.backends.base import backends
from sdhub.checkpoint.fetch import fingerprint
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.progress import SILENT
from sdhub.core.work import Work
from sdhub.evidence import compare, samples
from sdhub.evidence.budget import Scope
from sdhub.evidence.sampling import Sampling
from sdhub.workflow import measure
from sdhub.workflow.plan import possible, sampling_for
from sdhub.workflow.stages import Base, VariantStages

LEAST = 0.9  # Spearman's rank correlation
REDUCED = ((2, 4), (2, 8))  # prompts and steps
FEW = ("openvino-fp16", "openvino-int8", "openvino-int8-full", "openvino-int4", "sdnq-int8", "sdnq-uint4")


def main() -> None:
    """Print a table of all variants, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="six variants")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    names = [row["name"] for row in possible(resolve("demo")) if row["possible"]]
    with tempfile.TemporaryDirectory() as folder:
        figures = measured([name for name in names if not chosen.quick or name in FEW], Path(folder))
    for each in figures:
        print(f"{each['figure']:80} {each['ours']:.3f} target {each['target']} met {each['met']}")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))


def measured(names: list[str], folder: Path) -> list[dict[str, Any]]:
    """Spearman's correlation of the reduced figures with the whole picture PSNR."""
    full = sampling_for(resolve("demo"))
    reduced = {
        f"{prompts} prompts, {steps} steps": replace(full, prompts=full.prompts[:prompts], steps=steps)
        for prompts, steps in REDUCED
    }
    rows = {name: _row(name, full, reduced, folder) for name in names}
    columns = list(next(iter(rows.values())))
    print("| variant | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.1f}" for column in columns) + " |")
    whole = [row["PSNR"] for row in rows.values()]
    found = []
    for column in columns[1:]:
        rank = spearman(whole, [row[column] for row in rows.values()])
        found.append(
            {
                "figure": f"{len(rows)} variants ranked as by the PSNR of all pictures: {column}",
                "ours": rank,
                "peer": None,
                "ratio": None,
                "target": f">= {LEAST}",
                "met": rank >= LEAST,
                "unit": "",
            }
        )
    return found


def _row(name: str, full: Sampling, reduced: dict[str, Sampling], folder: Path) -> dict[str, float]:
    row: dict[str, float] = {}
    for label, sampling in {"": full, **reduced}.items():
        fidelity, snr = _figures(name, sampling, folder)
        said = f", {label}" if label else ""
        row |= {f"PSNR{said}": fidelity, f"noise SNR{said}": snr}
    return row


def _figures(name: str, sampling: Sampling, folder: Path) -> tuple[float, float]:
    """PSNR of the pictures, and median noise SNR, in dB."""
    checkpoint, hub = resolve("demo"), endpoint(None)
    backend = backends()[name.partition("-")[0]]
    base = Base(
        checkpoint, fingerprint(checkpoint, hub), Scope(sampling, True, 0), sampling, hub, Work(folder), SILENT
    )
    stages = VariantStages(base, backend, backend.recipe(checkpoint, name))
    drawn = stages.samples()
    reference = samples.load(base.samples(stages.versions))
    snr = json.loads((drawn / measure.NOISE).read_text())["median_db"]
    return compare.compare(reference, samples.load(drawn), sampling).psnr_db, float(snr)


def spearman(one: list[float], other: list[float]) -> float:
    """The correlation of ranks; ties get their mean."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


if __name__ == "__main__":
    main()
