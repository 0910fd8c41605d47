"""Configs with one value changed, by seed; what came of a share of the cases is printed as JSON.

`python -m tests.hostile.fuzz FOLDER FIRST END` takes the cases of these seeds: each through inspect, plan and the
view that libraries read, every `SHARE`th of them also through the libraries themselves. Beside the families there
are whole checkpoints, which load: a folder, a single file with `--config`, and what goes along with one.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import json
import random
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sdhub
from sdhub.checkpoint.checkpoint import Source
from sdhub.checkpoint.configs import CONFIGS
from sdhub.core.errors import SdhubError
from tests.backends.coreml.models import checker
from tests.checkpoint.ldm import write_ldm
from tests.checkpoint.test_families import CASES as FAMILIES
from tests.checkpoint.test_published import COMPONENTS, TOKENS
from tests.checkpoint.tiny import copy_demo, skeleton, write

SHARE = 20
FAMILY = ("SD 1.5", "SD 2.1", "SDXL", "SD 3", "FLUX", "PixArt", "Sana", "Qwen-Image")
FILE = "full.safetensors"
BESIDE = {"ControlNet": "controlnet", "safety checker": "safety_checker"}
WHOLE = ("demo", "single file", *BESIDE)
ARGUMENTS = json.loads((Path(sdhub.__path__[0]) / "checkpoint" / "arguments.json").read_text())
DEEP: Any = 1
for _ in range(28):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, 7, 64, 1_000, -1, -7, 10**9, 2**31, 2**63, 2**64, 10**39, -(2**63)),
    *(0.5, -0.5, 1e-300, 1e308, -1e308, 1e39, True, False, None),
    *(
        "",
        "x",
        "1",
        "default",
        "../../etc/passwd",
        "/etc/passwd",
        "a b",
        "x" * 5_000,
        "\u202eevil\x00\n\x1b[2J",
        "é",
    ),
    *([], [0], [1], [-1], [1, 2], [1, 2, 3, 4], [64] * 5, [1] * 100, [2**63], [1e308], [None], [True], ["x"]),
    *([[]], [[1]], [[1], [2, 3]], [[[1, 2]]], DEEP, [{}], [{"a": 1}]),
    *({}, {"a": 1}, {"a": {"b": [1]}}, {"content": 1}, {"type": "x"}, {"type": ["x"]}, {"0": {"content": "a"}}),
)
UNKNOWN = (
    "shape",
    "model_max",
    "self",
    "cls",
    "config",
    "kwargs",
    "dtype",
    "device",
    "__init__",
    "a.b",
    "",
    "\u202e",
)


@dataclass(frozen=True)
class Change:
    """One case: the file, the keys down to the value, and what it is now."""

    path: str
    keys: tuple[str | int, ...]
    value: Any


def documents(root: Path, family: str) -> dict[str, dict[str, Any]]:
    """Every JSON file of a skeleton with all keys that its class takes, those of published configs among them."""
    pipeline, entries, configs, *_ = FAMILIES[family]
    more = {"feature_extractor": ["transformers", "CLIPImageProcessor"], "force_zeros_for_empty_prompt": True}
    skeleton(
        root, pipeline, {**entries, "feature_extractor": more["feature_extractor"]}, configs, is_distilled=True
    )
    published = {class_name: config for _, class_name, config, _ in reversed(COMPONENTS)}
    published |= {class_name: config for title, class_name, config, _ in COMPONENTS if title == family}
    index = json.loads((root / "model_index.json").read_text())
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[0] is None:
            continue
        folder, class_name = root / name, entry[1]
        if "Tokenizer" in class_name:
            for _, file, document in TOKENS:
                write(folder / file, {**document, "chat_template": "{{ x }}"} if "config" in file else document)
            continue
        path = next(folder.glob("*config.json"))
        write(path, {**published.get(class_name, {}), **json.loads(path.read_text())})
    found = sorted(path for path in root.rglob("*.json"))
    return {str(path.relative_to(root)): json.loads(path.read_text()) for path in found}


def arguments(path: str, files: Mapping[str, dict[str, Any]]) -> list[str]:
    """The keys that the class of a config takes."""
    entry = files["model_index.json"].get(path.partition("/")[0], ["diffusers", files[path].get("_class_name")])
    if not path.endswith("config.json") or not isinstance(entry, list) or path.endswith("tokenizer_config.json"):
        return []
    if path.endswith("scheduler_config.json"):
        return list(ARGUMENTS["scheduler"])
    return list(ARGUMENTS.get(CONFIGS.get(entry[1], (entry[1],))[0], ()))


def pick(rng: random.Random, files: Mapping[str, dict[str, Any]]) -> Change:
    """A file, a key of it at any depth or one that its class takes, and another value."""
    path = rng.choice(sorted(files))
    document = files[path]
    keys = [*sorted({*document, *arguments(path, files)}), rng.choice(UNKNOWN)]
    key: str | int = rng.choice(keys)
    old, trail = document.get(key), [key]
    while isinstance(old, dict | list) and old and rng.random() < 0.5:
        key = rng.choice(sorted(old)) if isinstance(old, dict) else rng.randrange(len(old))
        old, trail = old[key], [*trail, key]
    return Change(
        path, tuple(trail), rng.choice([*VALUES, *near(old)] if rng.random() < 0.6 else near(old) or VALUES)
    )


def near(old: Any) -> list[Any]:
    """Values that are nearly what stood there."""
    if isinstance(old, bool) or old is None:
        return []
    if isinstance(old, int | float):
        return [old + 1, old - 1, -old, old * 2, old * 10**6, old / 3, str(old), [old], [[old]]]
    if isinstance(old, str):
        return [old.upper(), old + "x", old[:-1], [old], {old: old}]
    if isinstance(old, list):
        return [old[:-1], old + old[-1:], [old], old[::-1], old * 20]
    return [{**old, "x": 1}, dict(list(old.items())[:-1]), [old]]


def changed(document: dict[str, Any], change: Change) -> dict[str, Any]:
    """The document with the change."""
    made = copy.deepcopy(document)
    place: Any = made
    for key in change.keys[:-1]:
        place = place[key]
    place[change.keys[-1]] = copy.deepcopy(change.value)
    return made


def source(root: Path) -> Source:
    """The checkpoint of a subject: it lies in `root`, or its configs do."""
    if root.name == "single file":
        return Source("file", str(root.parent / FILE), config=str(root))
    if root.name == "ControlNet":
        return Source("folder", str(root), controlnets=(str(root / "controlnet"),))
    return Source("folder", str(root), safety_checker=root.name == "safety checker")


def take(root: Path, *, libraries: bool) -> None:
    """What sdhub does with a checkpoint before it builds."""
    from sdhub.checkpoint.companions import load_all
    from sdhub.checkpoint.inspect import inspect
    from sdhub.checkpoint.load import load, vetted
    from sdhub.checkpoint.remote import Hub
    from sdhub.core.errors import UnsupportedError
    from sdhub.workflow.options import Options
    from sdhub.workflow.plan import make_plan, possible, sampling_for

    checkpoint = inspect(source(root))
    possible(checkpoint)
    try:
        make_plan(checkpoint, Options(namespace="someone")).document()
    except UnsupportedError:
        if checkpoint.family.buildable:
            raise
    with vetted(checkpoint, root):
        pass
    if libraries:
        pipeline = load(checkpoint, Path(checkpoint.source.ref))
        load_all(checkpoint, pipeline, Hub())
        pipeline.scheduler.set_timesteps(sampling_for(checkpoint).steps)
        pipeline.tokenizer("a cat", padding="max_length", truncation=True)


def outcome(root: Path, *, libraries: bool) -> dict[str, Any]:
    """What came of one case."""
    try:
        take(root, libraries=libraries)
    except SdhubError as error:
        return {"became": "refused", "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    except BaseException as error:  # noqa: BLE001 — a case must not end the others
        import traceback

        return {"became": f"{type(error).__name__}: {str(error)[:300]} {traceback.format_exc()[-600:]}"}
    return {"became": "taken"}


def whole_documents(root: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of the built-in checkpoint, which loads, or of what goes along with it."""
    copy_demo(root)
    if root.name == "single file":
        write_ldm(root.parent / FILE)
    elif root.name == "ControlNet":
        from diffusers import ControlNetModel, UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(root / "unet")
        ControlNetModel.from_unet(unet).save_pretrained(root / "controlnet")
    elif root.name == "safety checker":
        checker().save_pretrained(root / "safety_checker")
        index = json.loads((root / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        write(root / "model_index.json", index)
    found = sorted(root.rglob("*.json"))
    documents = {str(path.relative_to(root)): json.loads(path.read_text()) for path in found}
    wanted = ("model_index.json", f"{BESIDE.get(root.name, '')}/config.json")
    return {path: each for path, each in documents.items() if root.name not in BESIDE or path in wanted}


def main() -> None:
    folder, first, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    importlib.metadata.entry_points = functools.cache(
        importlib.metadata.entry_points
    )  # what is installed stays the same
    sound = {family: documents(folder / family, family) for family in FAMILY}
    sound |= {name: whole_documents(folder / name) for name in WHOLE}
    for family in sound:
        found = outcome(folder / family, libraries=family in WHOLE)
        assert found["became"] == "taken", (family, found)
    results = []
    for seed in range(first, end):
        rng = random.Random(seed)
        libraries = seed % SHARE == 0
        family = rng.choice(WHOLE if libraries else (*FAMILY, *WHOLE[1:]))
        files = sound[family]
        change = pick(rng, files)
        path = folder / family / change.path
        write(path, changed(files[change.path], change))
        found = outcome(folder / family, libraries=libraries)
        write(path, files[change.path])
        said = {"path": change.path, "keys": list(change.keys), "value": repr(change.value)[:80]}
        results.append({"seed": seed, "family": family, **said, **found})
    json.dump(results, sys.stdout)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
