"""The journey's figures: how fast the program answers, what a second publish costs, and twenty kills.

python benchmarks/journey.py [--quick] [--kills N] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.hubs import running_hub
from tests.runs import environment

REPO = "bench/emoji-sd-openvino-int8"
SHORT = ("--steps", "4")  # the stages are those of any publish, and so are the moments between them


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), kills=3 if chosen.quick else chosen.kills)
    for each in figures:
        print(
            f"{each['figure']:48} {each['ours']:>10.4g} {each['unit']:6} target {each['target']} met {each['met']}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))


def measure(folder: Path, *, kills: int) -> list[dict[str, Any]]:
    """All figures; peers are the programs that do the like."""
    home = folder / "home"
    peer_help = seconds([str(Path(sys.executable).with_name("hf")), "--help"], home)
    figures = [
        figure("sdhub --help", seconds(command("--help"), home), 0.3, peer=peer_help),
        figure("sdhub inspect demo", seconds(command("inspect", "demo", "--json"), home), 1.0),
    ]
    prompts = folder / "prompts.json"
    prompts.write_text('["pizza"]')
    with running_hub(folder / "hub") as url:
        publish = command(
            "publish", "demo", "--to", "bench", "--hub", url, *SHORT, "--prompts", str(prompts), "--json"
        )
        started = time.perf_counter()
        run(publish, home)
        length = time.perf_counter() - started
        again = json.loads(run(publish, home))["variants"][0]
        figures.append(figure("second publish", seconds(publish, home), 5.0))
        figures.append(figure("second publish, uploaded", again["uploaded_bytes"], 0, unit="B"))
        expected = contents(url, folder / "expected")
    same = 0
    for number in range(kills):
        same += resumed(folder / f"kill{number}", home, prompts, number, length) == expected
        print(f"kill {number + 1} of {kills}: {same} the same", flush=True)
    figures.append(
        {**figure(f"killed and resumed, same bytes of {kills}", same, kills, unit=""), "met": same == kills}
    )
    return figures


def resumed(folder: Path, home: Path, prompts: Path, seed: int, length: float) -> dict[str, str]:
    """What a publish leaves on a fresh Hub that was killed once, at a random moment, and run again.

    Only what was measured of speed and memory is kept from before, as it is by any resumed run.
    """
    other = folder / "home"
    (other / "work").mkdir(parents=True)
    shutil.copytree(home / "work" / "measured", other / "work" / "measured")
    with running_hub(folder / "hub") as url:
        publish = command(
            "publish", "demo", "--to", "bench", "--hub", url, *SHORT, "--prompts", str(prompts), "--json"
        )
        process = subprocess.Popen(
            publish, env=environment(other), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(random.Random(seed).uniform(0.5, length))
        process.send_signal(signal.SIGKILL)
        process.wait()
        run(publish, other)
        found = contents(url, folder / "download")
    shutil.rmtree(folder)
    return found


def contents(url: str, folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the repository, by path."""
    from huggingface_hub import snapshot_download

    snapshot_download(REPO, endpoint=url, local_dir=folder, token=False)
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(*arguments: str) -> list[str]:
    """The program, as installed."""
    return [str(Path(sys.executable).with_name("sdhub")), *arguments]


def run(arguments: list[str], home: Path) -> str:
    """Standard output of a run that succeeds."""
    return subprocess.run(arguments, env=environment(home), check=True, capture_output=True, text=True).stdout


def seconds(arguments: list[str], home: Path, rounds: int = 5) -> float:
    """Median wall time, after one warm-up."""
    home.mkdir(parents=True, exist_ok=True)
    run(arguments, home)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run(arguments, home)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def figure(name: str, ours: float, target: float, *, unit: str = "s", peer: float | None = None) -> dict[str, Any]:
    """One row; met where ours is at most the target."""
    ratio = ours / peer if peer else None
    return {
        "figure": name,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "target": target,
        "met": ours <= target,
        "unit": unit,
    }


if __name__ == "__main__":
    main()
