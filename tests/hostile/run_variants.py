"""Takes every hostile variant through every door in one process; prints what came of each, as JSON.

`python -m tests.hostile.run_variants FOLDER` with `SDHUB_CANARY` naming a file that has to stay absent. FOLDER
gets the sound variants (`sound/<kind>`), those made from them, and what the doors leave. After a clean run through
the doors an audit hook reports whatever a hostile variant does that the clean run did not.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sdhub.core.errors import SdhubError
from tests.hostile.variants import CASES, skeletons
from tests.hostile.watch import SECRET, Watch, peak

MANIFEST = json.dumps({"variant": "x", "recipe_sha256": "0" * 64, "files": {}})
LAYER = "time_embedding.linear_2"


def make_sound(root: Path) -> None:
    """A sound variant of every kind: those of OpenVINO and SDNQ are built, the others are skeletons."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from sdhub.backends.base import backends
    from sdhub.checkpoint.resolve import resolve
    from sdhub.core.endpoint import endpoint
    from sdhub.core.progress import SILENT
    from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, Recipe
    from sdhub.workflow import measure
    from tests.checkpoint.tiny import tiny_text_encoder, tiny_unet, tiny_vae, tokenizer

    skeletons(root)
    tiny = root.parent / "tiny"
    StableDiffusionPipeline(
        unet=tiny_unet(),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tiny)
    checkpoint = resolve(str(tiny))
    for kind, layers in (("openvino", {}), ("sdnq", {LAYER: Affine(bits=8)})):
        backend = backends()[kind]
        components = {name: ComponentRecipe(default=Float()) for name in ("text_encoder", "vae")}
        components["unet"] = ComponentRecipe(default=Float(), layers=layers)
        recipe = Recipe(name=f"{kind}-x", backend=kind, components=components)
        (root / kind).mkdir()
        pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
        backend.build(checkpoint, pipeline, recipe, root / kind, SILENT)


def generate(folder: Path, out: Path) -> None:
    """`sdhub generate`."""
    from sdhub.workflow.variants import generate

    generate(folder, "x", out / "picture.png", steps=1)


def verify(folder: Path, out: Path) -> None:
    """`sdhub verify`, where every file is as stated and all but the gate and the drawing has passed."""
    from sdhub.core.progress import SILENT
    from sdhub.publishing.verify import verify_folder
    from sdhub.workflow.variants import vet_folder
    from sdhub.workflow.verify import draw_again

    code = next(each for each in verify_folder(folder, gate=vet_folder) if each.name == "code")
    if code.status == "failed":
        raise SdhubError(code.detail)
    draw_again(folder, 1, ("cpu", None), out, SILENT)


def space(folder: Path, out: Path) -> None:
    """The demo Space's loader."""
    from tests.spaces.sources import space_module

    space_module("demo", "drawing").open_vetted(folder)


def gate(folder: Path, out: Path) -> None:
    """What every door begins with."""
    from sdhub.workflow.variants import vet_folder

    vet_folder(folder)


DOORS: dict[str, Callable[[Path, Path], None]] = {"generate": generate, "verify": verify, "space": space}


def outcome(door: Callable[[Path, Path], None], folder: Path, out: Path) -> dict[str, Any]:
    """What came of one variant at one door."""
    out.mkdir(parents=True)
    started = sum(os.times()[:4])
    try:
        door(folder, out)
        said: dict[str, Any] = {"became": "harmless"}
    except SdhubError as error:
        said = {"became": "refused", "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    except BaseException as error:  # noqa: BLE001 — a case must not end the others
        said = {"became": f"{type(error).__name__}: {str(error)[:300]}"}
    return {**said, "seconds": sum(os.times()[:4]) - started}


def main() -> None:
    root = Path(sys.argv[1])
    for name in ("tmp", "cases", "sound", "out"):
        (root / name).mkdir()
    tempfile.tempdir = str(root / "tmp")
    (root / SECRET).write_text("nobody reads this")
    watch = Watch(root)
    make_sound(root / "sound")
    evidence = {"prompts": [{"text": "a", "seed": 0}], "steps": 1, "guidance": 5.0, "width": 16, "height": 16}
    for kind in ("openvino", "sdnq"):
        path = root / "sound" / kind / "evidence" / "evidence.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"sampling": evidence}))
    sys.modules["sdnq"] = ModuleType("sdnq")  # its kernels are not on every machine
    for kind in (root / "sound").iterdir():
        (kind / "sdhub.json").write_text(MANIFEST)
    clean = {
        kind.name: {
            name: outcome(door, kind, root / "out" / f"clean-{kind.name}-{name}")
            for name, door in {"gate": gate, **DOORS}.items()
        }
        for kind in sorted((root / "sound").iterdir())
    }
    before = peak()
    watch.start()
    results = []
    for number, case in enumerate(CASES):
        folder = root / "cases" / str(number)
        found: dict[str, Any] = {}
        for name, door in DOORS.items():
            shutil.copytree(root / "sound" / case.kind, folder, symlinks=True)
            case.change(folder)
            (folder / "sdhub.json").write_text(MANIFEST)
            watch.on = True
            found[name] = outcome(door, folder, root / "out" / f"{number}-{name}")
            watch.on = False
            found[name]["events"] = watch.events()
            shutil.rmtree(folder)
        results.append({"name": case.name, "by": case.by, "doors": found})
    json.dump({"clean": clean, "results": results, "more_mib": peak() - before}, sys.stdout)


if __name__ == "__main__":
    main()
