"""Publishing through a Hub that fails: seeded runs with the real client, each compared byte for byte.

python benchmarks/faults.py [--quick] [--runs N] [--first SEED] [--json FILE]

Every run publishes a folder through random 429, 5xx, delays, hanging and cut connections and answers that are
lost or cut short, then once more without faults. A repository that is neither whole nor as it was ends the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.publishing.faults import runs

RUNS, QUICK = 200, 20


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} runs")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures = measure(chosen.first, QUICK if chosen.quick else chosen.runs)
    for each in figures:
        print(f"{each['figure']:64} {each['ours']:>6} target {each['target']} met {each['met']}")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))


def measure(first: int, count: int) -> list[dict[str, Any]]:
    """What came of `count` runs; a run that fails an assertion is a corrupt or partial repository."""
    became: Counter[str] = Counter()
    try:
        for seed, outcome in runs(range(first, first + count)):
            became[outcome.became] += 1
            print(f"{seed:4d}  {outcome.became:10s}  {(outcome.said or '')[:100]}", file=sys.stderr)
    except AssertionError as error:
        print(error, file=sys.stderr)
        became["corrupt"] += 1
    whole = sum(became.values()) - became["corrupt"]
    return [
        figure("runs that ended whole or as they were, and whose retry published", whole, count),
        figure("corrupt or partial repositories", became["corrupt"], 0),
        figure("published through the faults", became["published"]),
        figure("failed and left the repository as it was", became["as it was"]),
        figure("failed in a lasting outage, new repository left without files", became["left empty"]),
    ]


def figure(name: str, ours: int, target: int | None = None) -> dict[str, Any]:
    """One row."""
    return {
        "figure": name,
        "ours": ours,
        "peer": None,
        "ratio": None,
        "target": target,
        "met": None if target is None else ours == target,
        "unit": "",
    }


if __name__ == "__main__":
    main()
