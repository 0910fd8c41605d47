"""What publishing takes at the size people have, beside its forecast: minutes and memory, from nothing to checked.

python benchmarks/real_size.py [--quick] [--shape sd15|sdxl] [--variant NAME…] [--evidence LEVEL] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.true_shapes import make
from tests.hubs import running_hub
from tests.runs import environment

GIB = 2**30
# Minutes that a publish may take, by shape and number of variants; and memory in GiB.
MINUTES = {("sd15", 1): 30, ("sd15", 3): 60, ("sdxl", 1): 60}
QUICK_MINUTES = {("sdxl", 1): 25}
MEMORY = {"sdxl": 14}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the SD 1.5 shape with quick evidence")
    parser.add_argument("--shape", action="append", choices=("sd15", "sdxl"))
    parser.add_argument("--variant", action="append")
    parser.add_argument("--evidence", default="standard")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    level = "quick" if chosen.quick else chosen.evidence
    figures = []
    for shape in chosen.shape or (["sd15"] if chosen.quick else ["sd15", "sdxl"]):
        with tempfile.TemporaryDirectory() as folder:
            figures += measure(shape, chosen.variant or ["openvino-int8-full"], level, Path(folder))
    for each in figures:
        print(
            f"{each['figure']:72} {each['ours']:>9.4g} {each['unit']:5} target {each['target']} met {each['met']}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))


def measure(shape: str, variants: list[str], level: str, folder: Path) -> list[dict[str, Any]]:
    """Publish and forecast; the peak is of all processes together, the embedded Hub's left out."""
    source, home = make(shape, folder / f"true-{shape}"), folder / "home"
    asked = [word for name in variants for word in ("--variant", name)]
    words = [str(source), *asked, "--evidence", level]
    plan = json.loads(run(["plan", *words, "--json"], home))
    with running_hub(folder / "hub") as url:
        started = time.perf_counter()
        process = subprocess.Popen(
            command("publish", *words, "--to", "bench", "--hub", url, "--json"),
            env=environment(home),
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        peak = Peak(process.pid)
        said, _ = process.communicate()
        minutes = (time.perf_counter() - started) / 60
    report = json.loads(said)
    statuses = {each["status"] for each in report["variants"]}
    if statuses != {"published"}:
        raise SystemExit(f"not published: {[each['reason'] for each in report['variants']]}")
    print(json.dumps({"budget": plan["budget"], "stages": stages(home)}, indent=1))
    name = f"{shape}, {' + '.join(variants)}, {level} evidence"
    forecast_minutes = sum(each["minutes"] for each in plan["variants"])
    forecast_gib = max(each["peak_bytes"] for each in plan["variants"]) / GIB
    targets = QUICK_MINUTES if level == "quick" else MINUTES
    return [
        figure(f"{name}: all in", minutes, "min", targets.get((shape, len(variants)))),
        figure(f"{name}: peak memory", peak.bytes / GIB, "GiB", MEMORY.get(shape)),
        figure(f"{name}: minutes, peer: forecast", minutes, "min", peer=forecast_minutes, within=0.30),
        figure(f"{name}: memory, peer: forecast", peak.bytes / GIB, "GiB", peer=forecast_gib, within=0.15),
    ]


def figure(
    name: str, ours: float, unit: str, target: float | None = None, *, peer: float | None = None, within: float = 0
) -> dict[str, Any]:
    """A row of the results."""
    ratio = None if peer is None else peer / ours
    if ratio is not None:
        wanted, met = f"within {within:.0%}", abs(ratio - 1) <= within
    else:
        wanted, met = None if target is None else f"<= {target:g}", None if target is None else ours <= target
    return {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": wanted, "met": met, "unit": unit}


class Peak:
    """The most memory that a process and its descendants hold together, looked at twice a second."""

    def __init__(self, root: int) -> None:
        self.bytes = 0
        self._root = root
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while Path(f"/proc/{self._root}").exists():
            self.bytes = max(self.bytes, sum(map(_held, _session(self._root))))
            time.sleep(0.5)


def _session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == leader or _ancestor(int(entry.name), leader):
                    found.append(int(entry.name))
            except (OSError, ValueError):
                continue
    return found


def _ancestor(process: int, wanted: int) -> bool:
    while process > 1:
        if process == wanted:
            return True
        stat = Path(f"/proc/{process}/stat").read_text()
        process = int(stat.rpartition(")")[2].split()[1])
    return False


def _held(process: int) -> int:
    """Bytes that a process holds, its part of what it shares; files that are mapped can be given back."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def stages(home: Path) -> dict[str, float]:
    """Minutes at which the first result of each stage was kept, from the first."""
    times = {path.parent.name: path.stat().st_mtime for path in sorted((home / "work").glob("*/*.json"))}
    first = min(times.values(), default=0.0)
    return {name: round((at - first) / 60, 1) for name, at in sorted(times.items(), key=lambda each: each[1])}


def command(*words: str) -> list[str]:
    """sdhub, as it is called."""
    return [sys.executable, "-m", "sdhub", *words]


def run(words: list[str], home: Path) -> str:
    """What a command prints."""
    done = subprocess.run(command(*words), env=environment(home), check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
