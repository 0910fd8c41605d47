"""Takes every case of the corpus in one process under a limit of memory; prints what came of each, as JSON.

`python -m tests.hostile.run FOLDER` with `SDHUB_CANARY` naming a file that has to stay absent. Sources go through
inspect, plan and build, as long as they are taken; what they do beside what a sound one does is reported. Memory
is that of this process and of the largest that it started, above what the sound one took.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.errors import SdhubError
from sdhub.core.progress import Progress
from tests.checkpoint.tiny import copy_demo
from tests.hostile.corpus import CASES, SOURCES, Case
from tests.hostile.watch import SECRET, Watch, peak

MORE = 2 * 2**30
SECONDS = 300
FRESH = "sitecustomize"  # built in a process of its own, as users do; the others in this one, which is faster


def main() -> None:
    root = Path(sys.argv[1])
    for name in ("tmp", "cases", "out"):
        (root / name).mkdir()
    (root / "cases" / SECRET).write_text("nobody reads this")
    tempfile.tempdir = str(root / "tmp")
    watch = Watch(root)
    watch.start()
    watch.on = True
    _sound(root)
    watch.on = False
    watch.learn()
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MORE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    before = peak()
    results = []
    sources = {case.name for case in SOURCES}
    for number, case in enumerate(CASES):
        folder = root / "cases" / str(number)
        folder.mkdir()
        call = case.make(folder)
        there = _files(folder)
        watch.on = case.name in sources
        said = _taken(call, case, folder, root / "out" / str(number), watch)
        watch.on = False
        said["events"] = watch.events()
        said["left"] = sorted(_files(folder) - there)
        said["more_mib"] = peak() - before
        results.append({"name": case.name, "harmless": case.harmless, **said})
    subprocess.run(["rm", "-rf", str(root / "cases")], check=True)  # deeper than Python removes
    json.dump(results, sys.stdout)


def _sound(root: Path) -> None:
    """What a sound checkpoint does is nothing out of the ordinary."""
    from sdhub.checkpoint.resolve import resolve

    found = resolve(str(copy_demo(root / "sound")))
    plan(found)
    build(found, root / "out" / "sound", fresh=True)
    build(found, root / "out" / "again", fresh=False)


def plan(checkpoint: Checkpoint) -> None:
    """`sdhub plan`."""
    from sdhub.workflow.options import Options
    from sdhub.workflow.plan import make_plan, possible

    possible(checkpoint)
    make_plan(checkpoint, Options(namespace="someone")).document()


def build(checkpoint: Checkpoint, place: Path, *, fresh: bool) -> None:
    """`sdhub build`, of the variant that takes least: `place` gets its work folder and what is built."""
    from sdhub.core.isolated import run_isolated
    from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, Recipe
    from sdhub.workflow import build as building
    from sdhub.workflow import stages

    components = {name: ComponentRecipe(default=Float()) for name in ("text_encoder", "vae")}
    components["unet"] = ComponentRecipe(default=Float(), layers={"time_embedding.linear_2": Affine(bits=8)})
    recipe = place / "asked.json"
    place.mkdir()
    recipe.write_text(json.dumps(Recipe(name="sdnq-x", backend="sdnq", components=components).document()))
    os.environ["SDHUB_HOME"] = str(place / "home")
    stages.run_isolated = run_isolated if fresh else _here
    building.build(checkpoint, recipe=recipe, output=place / "built")


def _here(function: Callable[..., None], *arguments: Any, progress: Progress) -> None:
    function(*arguments, progress)


def _files(folder: Path) -> set[str]:
    """All paths but those of very deep folders."""
    found = set()
    for place, folders, files in os.walk(folder):
        found |= {f"{place}/{name}" for name in (*folders, *files)}
        if place.count("/d/d/d"):
            folders.clear()
    return found


def _taken(call: Callable[[], Any], case: Case, folder: Path, place: Path, watch: Watch) -> dict[str, Any]:
    """What came of the call, and where it gave a checkpoint, of what follows."""
    given: list[Any] = []
    started = sum(os.times()[:4])  # of the processor: other work on the machine is no fault of a case
    said = _outcome(lambda: given.append(call()))
    said["seconds"] = sum(os.times()[:4]) - started
    checkpoint = given[0] if given else None
    if isinstance(checkpoint, Checkpoint) and checkpoint.source.kind == "folder":
        if case.later is not None:
            watch.on = False
            case.later(folder / "model")
            watch.on = True
        said["plan"] = _outcome(lambda: plan(checkpoint))
        said["build"] = _outcome(lambda: build(checkpoint, place, fresh=case.name == FRESH))
        said["build"]["made"] = sorted(_made(place))
    return said


def _made(place: Path) -> set[str]:
    """The files that a build left, but for its recipe and the locks of the work folder."""
    found = {str(each.relative_to(place)) for each in place.rglob("*") if not each.is_dir()}
    return {each for each in found if each != "asked.json" and not each.endswith(".lock")}


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
