"""What goes along: ControlNets, halves, the safety checker; and checkpoints that draw from a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdhub.backends.coreml.backend import BACKEND
from sdhub.backends.coreml.interpreter import open_package
from sdhub.checkpoint import companions
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.companions import load_all
from sdhub.checkpoint.fetch import fetch, fingerprint
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import SourceError, UnsupportedError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT
from sdhub.evidence.metrics import psnr
from sdhub.evidence.sampling import Prompt, Sampling, draw
from sdhub.recipes.adjust import Adjustment
from sdhub.workflow import measure
from sdhub.workflow.plan import choose
from tests.backends.coreml import models
from tests.checkpoint.tiny import copy_demo, tokenizer

SAMPLING = Sampling((Prompt("pizza", 1),), steps=3, guidance=4.0, width=64, height=64)
NET = "ControlNet_canny.mlpackage"


def package(place: Path, name: str) -> Any:
    return open_package(place / f"Stable_Diffusion_version_sd_{name}.mlpackage")


def built(checkpoint: Checkpoint, out: Path, adjustment: Adjustment) -> Path:
    """`coreml-fp16`, as the program builds it."""
    made = adjustment.apply(BACKEND.recipe(checkpoint, "coreml-fp16"))
    BACKEND.accept(checkpoint, made)
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    out.mkdir()
    BACKEND.build_with_companions(checkpoint, pipeline, load_all(checkpoint, pipeline, Hub()), made, out, SILENT)
    return out / "original" / "packages"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a safety checker, and a ControlNet of it."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    root = tmp_path_factory.mktemp("sources")
    unet = UNet2DConditionModel.from_pretrained(copy_demo(root / "sd") / "unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in net.named_parameters():
        if name.startswith(("controlnet_", "controlnet_cond")):
            parameter.data.normal_(0, 0.05, generator=generator)
    net.save_pretrained(root / "canny")
    models.checker().save_pretrained(root / "sd" / "safety_checker")
    index = json.loads((root / "sd" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (root / "sd" / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return resolve(str(folder / "sd"), controlnets=[str(folder / "canny")], safety_checker=True)


@pytest.fixture(scope="module")
def place(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adjustment = Adjustment(attention=("original",), chunked=True)
    return built(checkpoint, tmp_path_factory.mktemp("out") / "variant", adjustment)


def test_all_packages_are_there_by_apples_names(place: Path) -> None:
    own = {"text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker", "control-unet"}
    own |= {f"{name}_{half}" for name in ("unet", "control-unet") for half in ("chunk1", "chunk2")}
    assert {path.name for path in place.glob("*.mlpackage")} == {
        NET,
        *(f"Stable_Diffusion_version_sd_{name}.mlpackage" for name in own),
    }


def test_the_controlled_unet_is_what_diffusers_computes(place: Path, checkpoint: Checkpoint) -> None:
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    (net,) = [each.module for each in load_all(checkpoint, pipeline, Hub()) if each.companion.kind == "controlnet"]
    control, unet = open_package(place / NET), package(place, "control-unet")
    shapes = {name: (each.shape, getattr(torch, each.dtype)) for name, each in control.inputs.items()}
    given = models.draw(shapes)
    residuals = control.run(given)
    assert set(unet.inputs) == {*shapes, *residuals} - {"controlnet_cond"}
    got = unet.run({name: {**given, **residuals}[name].to(torch.float16) for name in unet.inputs})["noise_pred"]
    with torch.no_grad():
        exact = {name: value.float() for name, value in given.items()}
        wanted = models.run_control_net(net, exact)
        named = {f"additional_residual_{index}": each for index, each in enumerate(wanted)}
        (noise,) = models.run_unet(pipeline.unet, {**exact, **named})
        (free,) = models.run_unet(pipeline.unet, exact)
    assert float((noise - free).norm() / free.norm()) > 0.01  # the ControlNet does something
    assert float((noise - got).norm() / noise.norm()) < 0.0056  # 45 dB


def test_halves_of_the_controlled_unet(place: Path) -> None:
    whole, first, second = (package(place, f"control-unet{part}") for part in ("", "_chunk1", "_chunk2"))
    given = models.draw({name: (each.shape, getattr(torch, each.dtype)) for name, each in whole.inputs.items()})
    crossed = first.run({name: given[name] for name in first.inputs})
    got = second.run({name: crossed.get(name, given.get(name)) for name in second.inputs})
    assert torch.equal(got["noise_pred"], whole.run(given)["noise_pred"])


def test_the_card_says_what_goes_along(checkpoint: Checkpoint) -> None:
    recipe = Adjustment(chunked=True).apply(BACKEND.recipe(checkpoint, "coreml-fp16"))
    said = " ".join(BACKEND.notes(checkpoint, recipe))
    assert "The ControlNet canny (its licence is not stated) goes along" in said
    assert "safety checker goes along" in said
    assert "two halves" in said


def test_what_has_no_room_for_companions_says_so(checkpoint: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match=r"openvino-int8.*no room for ControlNets"):
        choose(checkpoint, ["openvino-int8"], None)


def test_a_controlnet_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    models.control_net(models.unet()).save_pretrained(tmp_path / "other")
    found = resolve(str(folder / "sd"), controlnets=[str(tmp_path / "other")])
    pipeline = measure.load_base(found, endpoint(None), SILENT)
    with pytest.raises(SourceError, match="other was made for another model: block_out_channels"):
        load_all(found, pipeline, Hub())


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        (None, SourceError, "has no config.json"),
        ({"_class_name": "UNet2DConditionModel"}, UnsupportedError, "no ControlNetModel"),
        ({"_class_name": ["net.py", "ControlNetModel"]}, Exception, "Python file"),
    ],
)
def test_what_is_no_controlnet_is_refused(
    folder: Path, tmp_path: Path, config: Any, error: type[Exception], said: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=said):
        resolve(str(folder / "sd"), controlnets=[str(tmp_path)])


def inpainting(root: Path) -> None:
    """Nine channels: those of the mask and the masked picture have some weight."""
    config = json.loads((root / "unet" / "config.json").read_text())
    (root / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    (path,) = (root / "unet").glob("*.safetensors")
    weights = load_file(path)
    first = weights["conv_in.weight"]
    added = 0.02 * torch.randn(len(first), 5, 3, 3, generator=torch.Generator().manual_seed(3))
    weights["conv_in.weight"] = torch.cat([first, added.to(first)], 1).contiguous()
    save_file(weights, path, metadata={"format": "pt"})


def test_inpainting(tmp_path: Path) -> None:
    root = copy_demo(tmp_path / "sd")
    inpainting(root)
    index = json.loads((root / "model_index.json").read_text())
    named = {**index, "_class_name": "StableDiffusionInpaintPipeline"}
    (root / "model_index.json").write_text(json.dumps(named))
    alike(resolve(str(root)), tmp_path / "variant")


def test_a_refiner(tmp_path: Path) -> None:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    torch.manual_seed(0)
    text = models.text_2(hidden_size=48)
    StableDiffusionXLImg2ImgPipeline(
        vae=models.vae(),
        text_encoder=None,
        text_encoder_2=text,
        tokenizer=None,
        tokenizer_2=tokenizer(),
        unet=models.unet_xl(5, sample_size=32),
        scheduler=EulerDiscreteScheduler(),
        requires_aesthetics_score=True,
    ).save_pretrained(tmp_path / "sd")
    found = resolve(str(tmp_path / "sd"))
    assert found.family.name == "sdxl-refiner"
    alike(found, tmp_path / "variant")


def alike(checkpoint: Checkpoint, out: Path) -> None:
    assert BACKEND.why_not(checkpoint, "coreml-fp16") is None
    built(checkpoint, out, Adjustment(attention=("original",)))
    base = measure.load_base(checkpoint, endpoint(None), SILENT)
    wanted = draw(base, SAMPLING.prompts[0], SAMPLING)
    got = draw(BACKEND.open(out), SAMPLING.prompts[0], SAMPLING)
    assert wanted.image.std() > 0.01
    assert psnr(wanted.image, got.image, peak=1.0) >= 35


@pytest.mark.parametrize(
    "name",
    ["canny/diffusion_pytorch_model.safetensors", "canny/config.json", "sd/safety_checker/model.safetensors"],
)
def test_a_companion_of_the_same_size_that_changed_is_told(folder: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "sources")
    root = tmp_path / "sources"
    checkpoint = resolve(str(root / "sd"), controlnets=[str(root / "canny")], safety_checker=True)
    content = bytearray((root / name).read_bytes())
    content[-2] ^= 1
    (root / name).write_bytes(content)
    changed = next(each for each in checkpoint.companions if Path(each.ref).name == name.partition("/")[0])
    for use in (fetch, fingerprint, lambda _: companions.local(changed, Hub())):
        with pytest.raises(SourceError, match="changed since it was inspected"):
            use(checkpoint)
