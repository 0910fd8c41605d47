"""A small publication made of plain files, for the tests of `sdhub.publishing`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdhub.checkpoint.checkpoint import Checkpoint, Component, License, Lora, PinnedLora, Source
from sdhub.checkpoint.families import Family
from sdhub.publishing.publication import Publication
from sdhub.recipes.recipe import parse_recipe

SHA = "0123456789abcdef0123456789abcdef01234567"
FAMILY = Family("sd1", "Stable Diffusion 1.x", "unet", ("unet", "text_encoder"), 512, 25, 7.5)
USAGE = """\
from huggingface_hub import hf_hub_download
from PIL import Image

path = hf_hub_download("local/emoji-sd-openvino-int8", "evidence/variant-0.png")
Image.open(path).save("picture.png")
"""


def checkpoint(**changes: Any) -> Checkpoint:
    made = Checkpoint(
        source=Source("hub", "someone/emoji-sd", loras=(Lora("someone/style@main", 0.8),)),
        loras=(PinnedLora("someone/style", 0.8, "style.safetensors", SHA),),
        id="someone/emoji-sd",
        name="emoji-sd",
        sha=SHA,
        family=FAMILY,
        pipeline="StableDiffusionPipeline",
        components=(
            Component("unet", "diffusers", "UNet2DConditionModel", bytes=4_000_000, parameters=2_000_000),
            Component("scheduler", "diffusers", "DDIMScheduler"),
        ),
        prediction_type="v_prediction",
        license=License("creativeml-openrail-m"),
        gated=False,
        private=False,
        traits=frozenset({"no-safety-checker"}),
        files=("unet/model.safetensors",),
    )
    return replace(made, **changes)


def recipe() -> dict[str, Any]:
    affine = {"scheme": "affine", "bits": 8, "symmetric": False, "group_size": 0}
    layers = {"mid_block.resnets.0.conv1": {"scheme": "float", "dtype": "float16"}}
    return {
        "version": 1,
        "name": "openvino-int8",
        "backend": "openvino",
        "components": {
            "unet": {"default": affine, "layers": layers},
            "text_encoder": {"default": {**affine, "bits": 4, "group_size": 64}, "layers": {}},
            "vae": {"default": {"scheme": "float", "dtype": "float16"}, "layers": {}},
        },
    }


def evidence() -> dict[str, Any]:
    prompts = [
        {"text": "pizza", "seed": 0, "psnr_db": 31.25, "ssim": 0.97, "latent_psnr_db": 28.5},
        {"text": "a red heart", "seed": 1, "psnr_db": 33.5, "ssim": 0.98, "latent_psnr_db": None},
    ]
    return {
        "psnr_db": 32.14,
        "ssim": 0.97512,
        "latent_psnr_db": 28.5,
        "noise_snr": {
            "median_db": 24.25,
            "worst_db": 17.5,
            "points": [{"prompt": number % 2, "timestep": 951.0, "snr_db": 24.25} for number in range(8)],
        },
        "prompts": prompts,
        "bytes": 12_300_000,
        "base_bytes": 45_600_000,
        "latency": {
            "base_seconds_per_step": 0.1204,
            "variant_seconds_per_step": 0.0613,
            "ratio": 1.964,
            "rounds": 5,
            "threads": 2,
        },
        "peak_mib": 812.5,
        "base_peak_mib": None,
        "sampling": {
            "prompts": [{"text": each["text"], "seed": each["seed"]} for each in prompts],
            "steps": 25,
            "guidance": 7.5,
            "width": 64,
            "height": 64,
        },
        "machine": {"cpu": "An Example CPU @ 2.00GHz", "cores": 2, "system": "Linux", "architecture": "x86_64"},
        "versions": {"torch": "2.15.0", "openvino": "2026.4.1"},
    }


def picture(path: Path, seed: int = 0, side: int = 64) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


INDEX = {"_class_name": "OVStableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}


def publication(root: Path, **changes: Any) -> Publication:
    """A publication whose files lie below `root`; `changes` replace its fields."""
    folder = root / "variant"
    for name, content in {
        "model_index.json": json.dumps(INDEX).encode(),
        "unet/openvino_model.xml": b'<net version="11"/>',
        "unet/openvino_model.bin": bytes(range(256)) * 2000,
        "scheduler/scheduler_config.json": b"{}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    terms = root / "source" / "LICENSE.txt"
    terms.parent.mkdir(exist_ok=True)
    terms.write_text("The terms.\n")
    made = Publication(
        repo_id="local/emoji-sd-openvino-int8",
        checkpoint=checkpoint(),
        identity=SHA,
        license=License("creativeml-openrail-m", file="LICENSE.txt"),
        variant="openvino-int8",
        description="8-bit weights, float activations.",
        folder=folder,
        library="openvino",
        tags=("openvino", "nncf"),
        install='pip install "optimum-intel[openvino]" diffusers',
        usage=USAGE,
        recipe=recipe(),
        evidence=evidence(),
        versions={"openvino": "2026.4.1", "nncf": "3.4.0", "sdhub": "0.1.0"},
        license_file=terms,
        contact_sheet=picture(root / "sheet.png", seed=5, side=320),
        pictures={
            "base-0.png": picture(root / "base-0.png", seed=1),
            "variant-0.png": picture(root / "variant-0.png", seed=2),
        },
    )
    return replace(made, **changes)


def honest(root: Path) -> Publication:
    """A publication whose figures are those of its pictures, computed by scikit-image and a closed form."""
    from skimage.metrics import structural_similarity

    source = np.random.default_rng(3)
    rows, errors, pictures = [], [], {}
    for position, level in enumerate((3, 12)):
        base = source.integers(30, 220, (64, 64, 3)).astype(np.uint8)
        variant = (base.astype(int) + source.integers(-level, level + 1, base.shape)).astype(np.uint8)
        for side, pixels in (("base", base), ("variant", variant)):
            path = root / f"{side}-{position:02d}.png"
            root.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
            pictures[path.name] = path
        error = float(np.mean((base / 255 - variant / 255) ** 2))
        likeness = structural_similarity(
            base / 255, variant / 255, channel_axis=2, data_range=1, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        errors.append(error)
        psnr = round(-10 * math.log10(error), 2)
        rows.append({"text": "x", "seed": position, "psnr_db": psnr, "ssim": round(likeness, 5)})
    figures = {
        **evidence(),
        "prompts": rows,
        "psnr_db": round(-10 * math.log10(sum(errors) / 2), 2),
        "ssim": round(sum(row["ssim"] for row in rows) / 2, 5),
    }
    full = parse_recipe(json.dumps(recipe())).document()
    made = publication(root, evidence=figures, pictures=pictures, recipe=full)
    size = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())
    return publication(root, evidence={**figures, "bytes": size}, pictures=pictures, recipe=full)
