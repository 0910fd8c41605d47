"""What a checkpoint says of its noise and its latents, in configs or by a file's markers, arrives in variants.

They are held against plain diffusers, opened by plain optimum-intel.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdhub.backends.base import backend_of
from sdhub.checkpoint.checkpoint import Source
from sdhub.checkpoint.fetch import fetch
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.load import load
from sdhub.checkpoint.source import parse_source
from sdhub.core.endpoint import endpoint
from sdhub.core.progress import SILENT
from sdhub.demo import emoji_sd
from sdhub.evidence.metrics import psnr
from sdhub.workflow import stages
from tests.backends.coreml import models
from tests.checkpoint.ldm import sdxl_tensors, write_ldm
from tests.checkpoint.test_load import sdxl
from tests.exact import EXACT

MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]  # Playground v2.5's own
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

COSXL = {  # as diffusers' documentation draws with CosXL, but for sigma_min, which is the file's here
    "sigma_min": 0.004,
    "sigma_max": 120.0,
    "sigma_data": 1.0,
    "prediction_type": "v_prediction",
    "sigma_schedule": "exponential",
}


def picture(pipeline: Any) -> Any:
    """(64, 64, 3) in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "width": 64, "height": 64, "output_type": "np"}
    return pipeline("pizza", generator=torch.Generator().manual_seed(0), **asked).images[0]


def built(checkpoint: Any, variant: str, out: Path) -> Path:
    backend = backend_of(variant)
    assert backend.why_not(checkpoint, variant) is None
    recipe = backend.recipe(checkpoint, variant).uncalibrated()
    backend.accept(checkpoint, recipe)
    out.mkdir()
    stages.build_variant(checkpoint, endpoint(None), backend.name, recipe, "cpu", out, SILENT)
    return out


def scheduler(folder: Path) -> dict[str, Any]:
    """Its config but for where it came from."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {name: value for name, value in config.items() if name != "_name_or_path"}


def statistics(folder: Path) -> tuple[Any, ...]:
    (path,) = (*folder.glob("vae/config.json"), *folder.glob("vae_decoder/config.json"))
    config = json.loads(path.read_text())
    return config["latents_mean"], config["latents_std"], config["scaling_factor"]


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Stable Diffusion XL as a folder and as one file, and the same as Playground has it, in both forms."""
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

    root = tmp_path_factory.mktemp("xl")
    pipeline = sdxl()
    for name in NETWORKS:
        models.randomize(getattr(pipeline, name))
    pipeline.unet.register_to_config(sample_size=32)
    pipeline.save_pretrained(root / "plain")
    tensors = sdxl_tensors(pipeline)
    save_file(tensors, root / "plain.safetensors")
    marks = {"edm_mean": torch.tensor(MEAN).view(1, 4, 1, 1), "edm_std": torch.tensor(STD).view(1, 4, 1, 1)}
    save_file({**tensors, **marks}, root / "edm.safetensors")
    levels = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.004)}
    save_file({**tensors, **levels}, root / "cosxl.safetensors")
    plain = pipeline.scheduler
    pipeline.scheduler = EDMEulerScheduler(**COSXL)
    pipeline.save_pretrained(root / "cosxl")
    pipeline.scheduler = plain
    pipeline.vae.register_to_config(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5)
    for kind in (EDMDPMSolverMultistepScheduler, EDMEulerScheduler):
        pipeline.scheduler = kind(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type="epsilon")
        pipeline.save_pretrained(root / kind.__name__)
    return SimpleNamespace(root=root, tensors=tensors)


def test_one_file_is_what_the_folder_is(xl: Any, tmp_path: Path) -> None:
    """Every weight of both text encoders, the UNet and the VAE, and every byte of a variant's."""
    folder = inspect(Source("folder", str(xl.root / "plain")))
    file = inspect(parse_source(str(xl.root / "plain.safetensors"), config=str(xl.root / "plain")))
    assert (file.family, file.pipeline) == (folder.family, folder.pipeline)
    assert [file.component(name).parameters for name in NETWORKS[:3]] == [
        folder.component(name).parameters for name in NETWORKS[:3]
    ]
    whole, single = (load(each, fetch(each)) for each in (folder, file))
    for name in NETWORKS:
        wanted, given = (getattr(each, name).state_dict() for each in (whole, single))
        assert set(wanted) == set(given)
        assert all(torch.equal(wanted[key], given[key]) for key in wanted), name
    assert whole.text_encoder.config.hidden_size != whole.text_encoder_2.config.hidden_size
    one, other = (built(each, "sdnq-int8", tmp_path / each.source.kind) for each in (folder, file))
    names = [path.relative_to(one) for path in sorted(one.rglob("*.safetensors"))]
    assert len(names) == 4
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    assert scheduler(one) == scheduler(other)


@pytest.mark.parametrize(
    ("source", "kind", "variant"),
    [
        ("EDMDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "openvino-fp16"),
        ("EDMDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "coreml-fp16"),
        ("EDMEulerScheduler", "EDMEulerScheduler", "openvino-fp16"),
        ("EDMEulerScheduler", "EDMEulerScheduler", "coreml-fp16"),
        ("edm.safetensors", "EDMEulerScheduler", "openvino-fp16"),
        ("edm.safetensors", "EDMEulerScheduler", "coreml-fp16"),
    ],
)
def test_edm_is_drawn_with_its_noise_levels_and_latents(
    xl: Any, source: str, kind: str, variant: str, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline
    from optimum.intel import OVDiffusionPipeline

    single = source.endswith(".safetensors")
    config = {"config": str(xl.root / "plain")} if single else {}
    checkpoint = inspect(parse_source(str(xl.root / source), **config))
    plain = picture(DiffusionPipeline.from_pretrained(xl.root / kind, torch_dtype=torch.float32))
    assert plain.std() > 0.01
    assert psnr(plain, picture(load(checkpoint, fetch(checkpoint))), peak=1.0) > 100
    out = built(checkpoint, variant, tmp_path / "variant")
    said = scheduler(out)
    assert said["_class_name"] == kind
    assert (said["sigma_min"], said["sigma_max"], said["sigma_data"]) == (0.002, 80.0, 0.5)
    assert statistics(out) == (pytest.approx(MEAN), pytest.approx(STD), 0.5)
    ours = backend_of(variant)
    opened = OVDiffusionPipeline.from_pretrained(out, ov_config=EXACT) if "openvino" in variant else ours.open(out)
    assert psnr(plain, picture(opened), peak=1.0) > 40
    if variant.startswith("coreml"):
        assert any("latents_mean" in note for note in ours.notes(checkpoint, ours.recipe(checkpoint, variant)))


@pytest.mark.parametrize("variant", ["openvino-fp16", "coreml-fp16"])
def test_a_cosxl_file_is_drawn_with_the_noise_levels_in_it(xl: Any, variant: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline
    from optimum.intel import OVDiffusionPipeline

    checkpoint = inspect(parse_source(str(xl.root / "cosxl.safetensors"), config=str(xl.root / "plain")))
    usual = picture(DiffusionPipeline.from_pretrained(xl.root / "plain", torch_dtype=torch.float32))
    plain = picture(DiffusionPipeline.from_pretrained(xl.root / "cosxl", torch_dtype=torch.float32))
    assert psnr(plain, usual, peak=1.0) < 30
    assert psnr(plain, picture(load(checkpoint, fetch(checkpoint))), peak=1.0) > 100
    out = built(checkpoint, variant, tmp_path / "variant")
    assert {key: scheduler(out)[key] for key in COSXL} == pytest.approx(COSXL)
    ours = backend_of(variant)
    opened = OVDiffusionPipeline.from_pretrained(out, ov_config=EXACT) if "openvino" in variant else ours.open(out)
    assert psnr(plain, picture(opened), peak=1.0) > 40


@pytest.mark.parametrize("variant", ["openvino-fp16", "coreml-fp16"])
def test_v_and_zero_snr_are_the_variants(variant: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline
    from optimum.intel import OVDiffusionPipeline

    path = write_ldm(tmp_path / "noob.safetensors")
    save_file({**load_file(path), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    checkpoint = inspect(parse_source(str(path), config=str(emoji_sd())))
    assert checkpoint.prediction_type == "v_prediction"
    truth = DiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32, safety_checker=None)
    usual = picture(truth)
    truth.scheduler = type(truth.scheduler).from_config(truth.scheduler.config, **V)
    wanted = picture(truth)
    out = built(checkpoint, variant, tmp_path / "variant")
    assert scheduler(out).items() >= V.items()
    ours = backend_of(variant)
    opened = OVDiffusionPipeline.from_pretrained(out, ov_config=EXACT) if "openvino" in variant else ours.open(out)
    assert opened.scheduler.config.prediction_type == "v_prediction"
    assert psnr(wanted, picture(opened), peak=1.0) > 40
    assert psnr(usual, wanted, peak=1.0) < 20
