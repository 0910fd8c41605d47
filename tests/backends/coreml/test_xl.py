"""Stable Diffusion XL as Core ML packages: two text encoders of different widths, told apart as diffusers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sdhub.backends.coreml.backend import BACKEND
from sdhub.backends.coreml.interpreter import open_package
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.progress import SILENT
from sdhub.evidence.metrics import psnr
from sdhub.evidence.sampling import Prompt, Sampling, draw
from sdhub.workflow import measure
from tests.backends.coreml import models
from tests.checkpoint.test_load import sdxl
from tests.checkpoint.tiny import PROJECTION_2, WIDTH, WIDTH_2

SAMPLING = Sampling((Prompt("pizza", 1),), steps=2, guidance=4.0, width=64, height=64)
HALF, FULL = "float16", "float32"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    pipeline = sdxl()
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        models.randomize(part)
    pipeline.unet.register_to_config(sample_size=32)
    root = tmp_path_factory.mktemp("sources") / "xl"
    pipeline.save_pretrained(root)
    return resolve(str(root))


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coreml")
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    made = BACKEND.recipe(checkpoint, "coreml-fp16")
    BACKEND.accept(checkpoint, made)
    BACKEND.build(checkpoint, pipeline, made, out, SILENT)
    return out


def features(folder: Path, part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    package = open_package(folder / "split_einsum" / "packages" / f"Stable_Diffusion_version_xl_{part}.mlpackage")
    inputs, outputs = package.inputs, package.outputs
    return tuple({name: (each.dtype, each.shape) for name, each in side.items()} for side in (inputs, outputs))


def test_shapes_are_those_of_the_contract(folder: Path) -> None:
    ids = {"input_ids": (FULL, (1, 77))}
    for part, width, pooled in (("text_encoder", WIDTH, WIDTH), ("text_encoder_2", WIDTH_2, PROJECTION_2)):
        outputs = {"hidden_embeds": (FULL, (1, 77, width)), "pooled_outputs": (FULL, (1, pooled))}
        assert features(folder, part) == (ids, outputs)
    assert features(folder, "unet") == (
        {
            "sample": (HALF, (2, 4, 32, 32)),
            "timestep": (HALF, (2,)),
            "encoder_hidden_states": (HALF, (2, WIDTH + WIDTH_2, 1, 77)),
            "time_ids": (HALF, (2, 6)),
            "text_embeds": (HALF, (2, PROJECTION_2)),
        },
        {"noise_pred": (FULL, (2, 4, 32, 32))},
    )


@pytest.mark.parametrize("zeros", [True, False])
def test_pictures_and_states_are_the_bases(folder: Path, checkpoint: Checkpoint, zeros: bool) -> None:
    base, variant = measure.load_base(checkpoint, endpoint(None), SILENT), BACKEND.open(folder)
    for pipeline in (base, variant):
        assert pipeline.config.force_zeros_for_empty_prompt
        pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    with torch.no_grad():
        wanted, got = (
            each.encode_prompt("pizza", device="cpu", do_classifier_free_guidance=True) for each in (base, variant)
        )
    shapes = [(1, 77, WIDTH + WIDTH_2)] * 2 + [(1, PROJECTION_2)] * 2
    assert [tuple(each.shape) for each in got] == shapes
    for want, found in zip(wanted, got, strict=True):
        assert float((want - found).norm()) <= 0.002 * float(want.norm())
    assert (float(got[1].abs().max()) == 0) == zeros
    pictures = [draw(each, SAMPLING.prompts[0], SAMPLING).image for each in (base, variant)]
    assert pictures[0].std() > 0.01
    assert psnr(pictures[0], pictures[1], peak=1.0) >= 50


def test_the_settings_of_the_empty_prompt_are_the_variants(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["force_zeros_for_empty_prompt"] is True
