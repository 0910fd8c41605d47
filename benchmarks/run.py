"""Run all benchmarks and write RESULTS.md: `python benchmarks/run.py [--quick] [NAME…]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
PACKAGES = ("torch", "openvino", "nncf", "optimum-intel", "coremltools", "diffusers", "numpy")
NOT_BENCHMARKS = {"run", "shapes", "true_shapes", "mixed_peer", "openvino_unet"}


def main() -> None:
    """Each benchmark in a process of its own; a failed one fails the run, after the others."""
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="sizes that finish in a minute")
    chosen = parser.parse_args()
    failed = []
    for name in chosen.names or names:
        try:
            rows = run(name, quick=chosen.quick)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name} (exit code {error.returncode})")
            continue
        keep(name, rows, quick=chosen.quick)
    write()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, *, quick: bool) -> list[dict[str, Any]]:
    """The figures of one benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(out), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True)
        rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows


def keep(name: str, rows: list[dict[str, Any]], *, quick: bool) -> None:
    """Figures of single runs are kept, so that RESULTS.md always holds the newest of each."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    document = {"quick": quick, "machine": machine(), "figures": rows}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write() -> None:
    """RESULTS.md from what is kept."""
    parts = [
        "# Results",
        "",
        "Written by `make bench`. A ratio is ours to the peer's; a noisy machine moves both.",
    ]
    for path in sorted((HERE / "results").glob("*.json")):
        document = json.loads(path.read_text())
        parts += ["", f"## {path.stem}{' (quick)' if document['quick'] else ''}", "", document["machine"], ""]
        parts += ["| figure | ours | peer | ratio | target | met |", "|---|---:|---:|---:|---:|---|"]
        parts += [row(figure) for figure in document["figures"]]
    RESULTS.write_text("\n".join(parts) + "\n")


def row(figure: dict[str, Any]) -> str:
    """One line of the table."""
    unit = figure.get("unit") or ""
    cells = [
        show(figure.get(name), unit if name != "ratio" else "") for name in ("ours", "peer", "ratio", "target")
    ]
    met = {True: "yes", False: "**no**", None: ""}[figure.get("met")]
    return f"| {figure['figure']} | {' | '.join(cells)} | {met} |"


def show(value: Any, unit: str) -> str:
    """A number to four digits with its unit."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".strip() if isinstance(value, (int, float)) else text


def machine() -> str:
    """The machine and the versions, in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := version(name)))
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}; {versions}"


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
