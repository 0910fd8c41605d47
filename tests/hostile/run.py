"""Takes every case of the corpus in one process under a limit of memory; prints what came of each, as JSON.

`python -m tests.hostile.run FOLDER` with `SDHUB_CANARY` naming a file that has to stay absent. Sources go through
inspect, plan, and all that comes before a build; an audit hook reports what is done out of the ordinary.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.errors import SdhubError
from sdhub.evidence.memory import peak_mib
from tests.checkpoint.tiny import copy_demo
from tests.hostile.corpus import CASES, SOURCES, Case
from tests.hostile.watch import SECRET, Watch

MORE = 2 * 2**30
SECONDS = 300


def main() -> None:
    root = Path(sys.argv[1])
    for name in ("tmp", "cases"):
        (root / name).mkdir()
    (root / "cases" / SECRET).write_text("nobody reads this")
    tempfile.tempdir = str(root / "tmp")
    _warm(root)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MORE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    before = peak_mib()
    watch = Watch(root, allowed=("os.fork",))  # of `sdhub.core.isolated.bounded`
    watch.start()
    results = []
    sources = {case.name for case in SOURCES}
    for number, case in enumerate(CASES):
        folder = root / "cases" / str(number)
        folder.mkdir()
        call = case.make(folder)
        there = _files(folder)
        watch.on = case.name in sources
        said = _taken(call, case, folder, watch)
        watch.on = False
        said["events"], watch.events = watch.events, []
        said["left"] = sorted(_files(folder) - there)
        results.append({"name": case.name, "harmless": case.harmless, **said})
    subprocess.run(["rm", "-rf", str(root / "cases")], check=True)  # deeper than Python removes
    json.dump({"results": results, "more_mib": peak_mib() - before}, sys.stdout)


def _warm(root: Path) -> None:
    """What a sound checkpoint imports is nothing out of the ordinary."""
    from sdhub.checkpoint.resolve import resolve

    found = resolve(str(copy_demo(root / "sound")))
    plan(found)
    build(found)


def plan(checkpoint: Checkpoint) -> None:
    """`sdhub plan`."""
    from sdhub.workflow.options import Options
    from sdhub.workflow.plan import make_plan, possible

    possible(checkpoint)
    make_plan(checkpoint, Options(namespace="someone")).document()


def build(checkpoint: Checkpoint) -> None:
    """All of a build that reads what strangers sent: the pipeline that backends convert."""
    from sdhub.checkpoint.load import load

    load(checkpoint, Path(checkpoint.source.ref))


def _files(folder: Path) -> set[str]:
    """All paths but those of very deep folders."""
    found = set()
    for place, folders, files in os.walk(folder):
        found |= {f"{place}/{name}" for name in (*folders, *files)}
        if place.count("/d/d/d"):
            folders.clear()
    return found


def _taken(call: Callable[[], Any], case: Case, folder: Path, watch: Watch) -> dict[str, Any]:
    """What came of the call, and where it gave a checkpoint, of what follows."""
    given: list[Any] = []
    started = time.process_time()
    said = _outcome(lambda: given.append(call()))
    said["seconds"] = time.process_time() - started
    checkpoint = given[0] if given else None
    if isinstance(checkpoint, Checkpoint) and checkpoint.source.kind == "folder":
        if case.later is not None:
            watch.on = False
            case.later(folder / "model")
            watch.on = True
        said["plan"] = _outcome(lambda: plan(checkpoint))
        said["build"] = _outcome(lambda: build(checkpoint))
    return said


def _outcome(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        call()
    except SdhubError as error:
        return {
            "became": "refused",
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
    except BaseException as error:  # noqa: BLE001 — a case must not end the others
        return {"became": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"became": "harmless"}


if __name__ == "__main__":
    main()
