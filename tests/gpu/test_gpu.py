"""What only a GPU can show (docs/gpu.md): the CPU's results within the rounding of another order of sums."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdhub.analysis import sensitivity
from sdhub.compression import affine, gptq, lowrank, svdquant
from sdhub.core import device as devices
from sdhub.core import placement
from sdhub.evidence.sampling import Prompt, Sampling, draw
from sdhub.recipes.calibration import calibrate
from tests.backends.built import CALIBRATION
from tests.runs import sdhub_json

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SAMPLING = Sampling((Prompt("red heart", 3),), 8, 4.0, 64, 64)


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    return devices.resolve("cuda")


def load(device: str, *, drawing: bool = False) -> Any:
    from sdhub.checkpoint.resolve import resolve
    from sdhub.core.endpoint import endpoint
    from sdhub.core.progress import SILENT
    from sdhub.workflow import measure

    return measure.load_base(resolve("demo"), endpoint(None), SILENT, device=device, drawing=drawing)


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, inputs, and their Gram matrix."""
    generator = torch.Generator().manual_seed(0)
    weight, tokens = torch.randn(512, 640, generator=generator), torch.randn(2000, 640, generator=generator)
    tokens *= torch.linspace(0.1, 3, 640)
    return weight, tokens, tokens.T @ tokens


def test_layers_are_solved_as_well_as_on_the_cpu(gpu):
    weight, tokens, gram = layer()
    grid = affine.quantize(weight, 4, group_size=64, search=4)
    found = affine.quantize(weight.to(gpu), 4, group_size=64, search=4)
    assert found.codes.device.type == "cuda"
    assert (found.codes.cpu() != grid.codes).float().mean() < 1e-3
    errors = [
        gptq.output_error(where, gptq.gptq(where, each, gram, passes=2).dequantize(), gram)
        for where, each in ((weight, grid), (weight.to(gpu), found))
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)
    lows = [
        lowrank.decompose(where, 32, lambda w: affine.quantize(w, 4).dequantize(), gram=gram).error
        for where in (weight, weight.to(gpu))
    ]
    assert lows[1] == pytest.approx(lows[0], rel=0.01)
    inputs = svdquant.Inputs([gram], len(tokens), tokens[:256], tokens.abs().amax(0), tokens.sum(0))
    for precision in ("int4", "nvfp4"):
        splits = [svdquant.split(each, 32, precision, inputs).error for each in (weight, weight.to(gpu))]
        assert splits[1] == pytest.approx(splits[0], rel=0.02)


def test_calibration_sees_what_it_sees_on_the_cpu():
    wanted, found = (calibrate(load(name), CALIBRATION, "unet", tokens=16) for name in ("cpu", "cuda"))
    assert set(found) == set(wanted)
    for name, each in found.items():
        assert each.vectors == wanted[name].vectors
        for ours, theirs in zip(each.gram or (), wanted[name].gram or (), strict=True):
            assert ours.device.type == "cpu"
            assert (ours - theirs).norm() < 0.01 * theirs.norm(), name


def test_gradients_of_an_analysis_point_the_same_way():
    traces = []
    for name in ("cpu", "cuda"):
        pipe = load(name)
        layers = sensitivity.candidates(pipe.unet, 2**14)
        traces.append(sensitivity.trace(pipe, CALIBRATION, 0, "unet", layers))
    for name, gradient in traces[0].gradients.items():
        both = gradient.float().flatten(), traces[1].gradients[name].float().flatten()
        assert torch.nn.functional.cosine_similarity(*both, dim=0) > 0.99, name


def test_pictures_are_those_of_the_cpu_whole_and_offloaded(gpu, monkeypatch):
    base = draw(load("cpu"), SAMPLING.prompts[0], SAMPLING)
    drawn = {"whole": load("cuda"), "precision": load("cuda", drawing=True)}
    assert drawn["precision"].unet.dtype == getattr(torch, devices.precision(gpu))
    parts = [placement._bytes(each) for each in placement._modules(load("cpu"))]
    for name, free in (("model", max(parts) / placement.ROOM + 1), ("sequential", min(parts))):
        monkeypatch.setattr(placement, "free_bytes", lambda _, free=free: int(free))
        drawn[name] = load("cuda")
    for name, pipe in drawn.items():
        found = draw(pipe, SAMPLING.prompts[0], SAMPLING)
        least = 20 if name == "precision" else 30  # convolutions take float32 in TF32's ten bits by default
        off = np.mean((found.image - base.image) ** 2)
        assert -10 * np.log10(off + 1e-12) > least, name


def test_what_is_offloaded_comes_home_whole(monkeypatch):
    wanted = load("cpu").unet.state_dict()
    monkeypatch.setattr(placement, "free_bytes", lambda _: 1)
    pipe = load("cuda")
    assert placement.take_home(pipe).type == "cuda"
    found = pipe.unet.state_dict()
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_a_variant_is_built_drawn_and_published(tmp_path: Path):
    folder, picture = tmp_path / "variant", tmp_path / "heart.png"
    sdhub_json("build", "demo", "--variant", "sdnq-int8", "--device", "cuda", "-o", str(folder), home=tmp_path)
    said = sdhub_json("generate", str(folder), "red heart", "--device", "cuda", "-o", str(picture), home=tmp_path)
    assert said["device"].startswith("cuda:0, ") and picture.is_file()
    report = sdhub_json(
        "publish", "demo", "--variant", "sdnq-int8", "--to", "me", "--dry-run", "--device", "cuda", home=tmp_path
    )
    evidence = report["variants"][0]["evidence"]
    assert all(each.startswith("cuda:0, ") for each in evidence["device"].values())
    assert evidence["precision"]["base"] in ("bfloat16", "float16")
    assert (evidence["kernels"] is None) == (find_spec("sdnq") is None)
    assert (evidence["latency_ratio"] is None) == (evidence["kernels"] is None)
    assert evidence["psnr_db"] > 20, json.dumps(evidence)


@pytest.mark.skipif(find_spec("sdnq") is None, reason="sdnq is not installed")
def test_sdnqs_kernels_draw_what_the_stand_in_draws(tmp_path: Path, monkeypatch):
    from sdhub.backends.sdnq.backend import BACKEND

    folder = tmp_path / "variant"
    sdhub_json("build", "demo", "--variant", "sdnq-uint4", "--device", "cuda", "-o", str(folder), home=tmp_path)
    native = draw(BACKEND.open(folder, "cuda"), SAMPLING.prompts[0], SAMPLING)
    monkeypatch.setattr(type(BACKEND), "kernels", lambda *_: None)
    stood_in = draw(BACKEND.open(folder, "cuda"), SAMPLING.prompts[0], SAMPLING)
    assert -10 * np.log10(np.mean((native.image - stood_in.image) ** 2) + 1e-12) > 20
