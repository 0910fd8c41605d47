"""Variants on an embedded Hub, and a user's environment that draws with them and has no sdhub."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sdhub.backends.base import backend_of
from sdhub.checkpoint.resolve import resolve
from tests.environments import environment
from tests.runs import sdhub_json

REQUIREMENTS = ("diffusers==0.42.1", "sdnq==0.2.8", "transformers", "accelerate", "torch==2.13.0", "pillow")
BRIEF = {"steps": 8, "recorded": 4, "rows": 256, "block": 1024}
PROMPT, STEPS, GUIDANCE = "red heart", 20, 4.0


def publish_brief(variant: str, url: str, folder: Path) -> str:
    """Publish the built-in checkpoint with a brief calibration; the repository's id."""
    recipe = backend_of(variant).recipe(resolve("demo"), variant)
    assert recipe.calibration is not None
    brief = recipe.calibration.model_copy(update={**BRIEF, "prompts": recipe.calibration.prompts[:4]})
    mine = recipe.model_copy(update={"name": f"{variant}-brief", "calibration": brief})
    path = folder / "recipe.json"
    path.write_text(json.dumps(mine.document()))
    report = sdhub_json(
        "publish", "demo", "--to", "demo", "--hub", url, "--recipe", str(path), home=folder / "home"
    )
    assert report["variants"][0]["status"] == "published"
    return str(report["variants"][0]["repo"])


def draw_without_sdhub(script: str, arguments: Sequence[str], url: str, folder: Path) -> None:
    """Run a script in the user's environment, with the Hub at `url` and an empty cache."""
    python = environment("diffusers-0.42", REQUIREMENTS)
    environ = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "cache"),
        "SDNQ_USE_TORCH_COMPILE": "0",  # would want a compiler
    }
    subprocess.run([python, "-I", "-c", script, *arguments], env=environ, cwd=folder, check=True)


def draw_with_sdhub(repo: str, url: str, picture: Path) -> None:
    """The same picture by sdhub's own reading of the published files."""
    import torch

    from sdhub.workflow.variants import load

    pipe = load(repo, hub=url)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(1),
    )
    drawn.images[0].save(picture)


def assert_red_heart(picture: Path, reference: Path) -> None:
    """The picture shows it, and is the reference's but for single steps of 8 bits."""
    import numpy as np
    from PIL import Image

    pixels, expected = (np.asarray(Image.open(path), dtype=float) for path in (picture, reference))
    middle = pixels[28:36, 28:36].reshape(-1, 3).mean(0) / 255
    assert middle[0] > 0.6
    assert max(middle[1:]) < 0.4
    assert np.abs(pixels - expected).max() <= 2
