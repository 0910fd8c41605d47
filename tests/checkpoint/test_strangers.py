"""Single files as strangers write them: each tensor, marker and scale is used as it says, or named in a refusal.

The truth is the file itself, the formula, or diffusers' own loader on the plain file.
"""

from __future__ import annotations

import inspect as python
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint.checkpoint import Checkpoint, Source
from sdhub.checkpoint.headers import Header, Tensor
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.known import SCHEDULERS
from sdhub.checkpoint.load import load
from sdhub.checkpoint.said import EDM, RESCALING, WITHOUT_PREDICTION, Said, said_by
from sdhub.core.errors import SourceError, UnsupportedError
from sdhub.demo import emoji_sd
from tests.checkpoint.ldm import write_ldm
from tests.checkpoint.test_single_file import SD1, SDXL, look
from tests.checkpoint.tiny import Entry, copy_demo

torch = pytest.importorskip("torch")
CLIP = "cond_stage_model.transformer."
LAYER = "model.diffusion_model.input_blocks.1.1.proj_in"
EMOJI = str(emoji_sd())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ldm(tmp_path_factory.mktemp("plain") / "full.safetensors")


@pytest.fixture(scope="module")
def tensors(plain: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(plain)


@pytest.fixture(scope="module")
def truth(plain: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_single_file(str(plain), config=EMOJI, torch_dtype=torch.float32)


def opened(path: Path, tensors: Mapping[str, Any], **metadata: str) -> tuple[Checkpoint, Any]:
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata=metadata or None)
    checkpoint = inspect(Source("file", str(path), config=EMOJI))
    return checkpoint, load(checkpoint, path)


def same(ours: Any, theirs: Any) -> bool:
    states = [each.state_dict() for each in (ours, theirs)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )


def test_keys_of_old_merges_and_averages_beside(tensors: Mapping[str, Any], truth: Any, tmp_path: Path) -> None:
    old = {key.replace(f"{CLIP}text_model.", CLIP): value for key, value in tensors.items()}
    old[f"{CLIP}embeddings.position_ids"] = torch.arange(77).reshape(1, 77).float()
    old |= {"model_ema.decay": torch.tensor(0.9999), "alphas_cumprod": torch.rand(1000), "betas": torch.rand(1000)}
    for key in [key for key in tensors if key.startswith("model.diffusion_model.input_blocks.1.")]:
        old["model_ema." + key.removeprefix("model.").replace(".", "")] = torch.zeros(2)
    checkpoint, pipeline = opened(tmp_path / "nai merge v1.0 (fp16) Ünïcode.safetensors", old)
    assert "ema" in checkpoint.traits and checkpoint.name == "nai-merge-v1.0-fp16-n-code"
    assert all(same(getattr(pipeline, part), getattr(truth, part)) for part in ("unet", "vae", "text_encoder"))


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.1.1.proj_in.extra",
        f"{CLIP}text_model.encoder.layers.99.mlp.fc1.weight",
        "first_stage_model.decoder.up.0.block.9.conv1.weight",
        "embedding_manager.initial_embeddings.x",
        "v_pred.weights",
    ],
)
def test_a_tensor_of_no_known_use_is_named(name: str, tensors: Mapping[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="of which sdhub knows no use") as caught:
        opened(tmp_path / "m.safetensors", {**tensors, name: torch.zeros(2)})
    assert name in caught.value.message


def test_a_tensor_that_is_missing_is_named_and_one_for_another_does_not_count(
    tensors: Mapping[str, Any], tmp_path: Path
) -> None:
    left = {key: value for key, value in tensors.items() if key != f"{LAYER}.bias"}
    with pytest.raises(SourceError, match=r"incomplete: down_blocks\.0\.attentions\.0\.proj_in\.bias is missing"):
        opened(tmp_path / "m.safetensors", {**left, f"{LAYER}.other": tensors[f"{LAYER}.bias"]})
    with pytest.raises(SourceError, match="twice"):
        opened(tmp_path / "t.safetensors", {**tensors, f"{CLIP}final_layer_norm.bias": torch.zeros(2)})


def test_a_folder_has_no_tensor_that_nothing_takes(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    root = copy_demo(tmp_path / "m")
    path = root / "unet/diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "mid_block.adapter.weight": torch.zeros(2)}, path)
    checkpoint = inspect(Source("folder", str(root)))
    with pytest.raises(UnsupportedError, match=r"unet of m holds the tensor mid_block\.adapter\.weight"):
        load(checkpoint, root)


def in_eight_bits(
    tensors: Mapping[str, Any], kind: Any, scale: str | None, *, by_row: bool = False
) -> dict[str, Any]:
    most = torch.finfo(kind).max
    made: dict[str, Any] = {}
    for key, value in tensors.items():
        if not key.startswith("model.diffusion_model.") or not key.endswith(".weight") or value.ndim < 2:
            made[key] = value
            continue
        wide = value.float()
        factor = torch.ones(())
        if scale:
            dims = tuple(range(1, wide.ndim))
            factor = (wide.abs().amax(dims) if by_row else wide.abs().max()) / most
            made[f"{key.removesuffix('.weight')}.{scale}"] = factor
        made[key] = (wide / factor.reshape(-1, *[1] * (wide.ndim - 1))).to(kind)
    return made


@pytest.mark.parametrize(
    ("kind", "scale", "by_row"),
    [
        ("float8_e4m3fn", None, False),
        ("float8_e4m3fn", "scale_weight", False),
        ("float8_e5m2", "scale_weight", False),
        ("float8_e4m3fn", "weight_scale", True),
    ],
)
def test_eight_bits(
    kind: str, scale: str | None, by_row: bool, tensors: Mapping[str, Any], truth: Any, tmp_path: Path
) -> None:
    made = in_eight_bits(tensors, getattr(torch, kind), scale, by_row=by_row)
    if scale == "scale_weight":
        made |= {
            "scaled_fp8": torch.empty(0, dtype=getattr(torch, kind)),
            f"{LAYER}.scale_input": torch.tensor(1.5),
        }
    if scale == "weight_scale":
        said = list(json.dumps({"format": kind}).encode())
        made[f"{LAYER}.comfy_quant"] = torch.tensor(said, dtype=torch.uint8)
    checkpoint, pipeline = opened(tmp_path / "m.safetensors", made)
    assert checkpoint.component("unet").dtype == kind
    assert same(pipeline.text_encoder, truth.text_encoder)
    # Half a unit in the last place: 3 (2) bits behind the leading one; below the normal numbers, of the largest.
    rounding, most = 2.0 ** -(4 if "e4m3" in kind else 3), torch.finfo(getattr(torch, kind)).max
    wanted = truth.unet.state_dict()
    for key, value in pipeline.unet.state_dict().items():
        unit = float(wanted[key].abs().max()) / most if scale else 1.0
        least = torch.finfo(getattr(torch, kind)).tiny * unit * rounding
        if wanted[key].ndim > 1:
            assert bool(((value - wanted[key]).abs() <= wanted[key].abs() * rounding * 1.01 + least).all()), key
        else:
            assert torch.equal(value, wanted[key])


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (f"{LAYER}.weight", ("I8", (4, 4))),
        (f"{LAYER}.scale_weight", ("F32", ())),
        (f"{LAYER}.comfy_quant", ("U8", (20,))),
        ("model.diffusion_model.out.2.scale_weight", ("F32", ())),
    ],
)
def test_scales_and_types_that_fit_no_weight_are_named(name: str, entry: Entry, tmp_path: Path) -> None:
    weight: dict[str, Entry] = {"model.diffusion_model.out.2.weight": ("F16", (4, 4))}
    with pytest.raises(UnsupportedError, match="quantized in a way") as caught:
        look(tmp_path, {**SD1, **weight, name: entry})
    assert name in caught.value.message


def test_formats_and_scales_that_cannot_be(tensors: Mapping[str, Any], tmp_path: Path) -> None:
    made = in_eight_bits(tensors, torch.float8_e4m3fn, "weight_scale")
    said = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    with pytest.raises(UnsupportedError, match="asks for the format nvfp4"):
        opened(tmp_path / "m.safetensors", {**made, f"{LAYER}.comfy_quant": said})
    with pytest.raises(SourceError, match=r"proj_in\.weight_scale is not finite"):
        opened(tmp_path / "n.safetensors", {**made, f"{LAYER}.weight_scale": torch.tensor(float("nan"))})


def test_folders_in_eight_bits(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    root = copy_demo(tmp_path / "m")
    kinds = {"unet/diffusion_pytorch_model": "float8_e4m3fn", "text_encoder/model": "float8_e5m2"}
    stored = {}
    for stem, kind in kinds.items():
        path = root / f"{stem}.safetensors"
        stored[stem] = {key: value.to(getattr(torch, kind)) for key, value in load_file(path).items()}
        path.unlink()
        save_file(stored[stem], path)
    pipeline = load(inspect(Source("folder", str(root))), root)
    for stem, module in zip(kinds, (pipeline.unet, pipeline.text_encoder), strict=True):
        state = module.state_dict()
        assert all(torch.equal(state[key], value.float()) for key, value in stored[stem].items())
    path.unlink()
    save_file({**stored[stem], "text_model.final_layer_norm.weight_scale": torch.ones(())}, path)
    with pytest.raises(UnsupportedError, match=r"final_layer_norm\.weight_scale"):
        inspect(Source("folder", str(root)))


def test_markers_go_before_the_config(tensors: Mapping[str, Any], truth: Any, tmp_path: Path) -> None:
    empty = torch.tensor([])
    checkpoint, pipeline = opened(tmp_path / "noob.safetensors", {**tensors, "v_pred": empty, "ztsnr": empty})
    assert checkpoint.prediction_type == "v_prediction"
    assert checkpoint.component("scheduler").config["rescale_betas_zero_snr"] is True
    scheduler = pipeline.scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.timestep_spacing == "trailing"
    # Lin et al. 2023, algorithm 1, from the betas of the config.
    square = truth.scheduler.alphas_cumprod.sqrt()
    rescaled = ((square - square[-1]) * square[0] / (square[0] - square[-1])) ** 2
    assert (
        torch.allclose(scheduler.alphas_cumprod, rescaled, atol=1e-6) and float(scheduler.alphas_cumprod[-1]) == 0
    )
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert same(pipeline.unet, truth.unet)
    scheduler.save_pretrained(tmp_path / "saved")
    again = type(scheduler).from_pretrained(tmp_path / "saved")
    assert again.config.rescale_betas_zero_snr is True and again.config.prediction_type == "v_prediction"


def header(*names: str, **metadata: str) -> Header:
    spelled = {key.replace("spec_", "spec."): value for key, value in metadata.items()}
    return Header({name: Tensor("float32", (0,), 0) for name in names}, spelled)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (header(), Said()),
        (header("v_pred"), Said("v_prediction")),
        (header("v_pred", "ztsnr"), Said("v_prediction", True)),
        (header("ztsnr", modelspec_prediction_type="v"), Said("v_prediction", True)),
        (header("v_pred", modelspec_prediction_type="V-Prediction"), Said("v_prediction")),
        (header(modelspec_prediction_type="epsilon"), Said("epsilon")),
        (header(ss_v_parameterization="True"), Said("v_prediction")),
        (header(ss_v_parameterization="False"), Said("epsilon")),
        (header("edm_mean", "edm_std"), Said("epsilon", edm="playground")),
        (header("edm_vpred.sigma_max"), Said("v_prediction", edm="cosxl")),
    ],
)
def test_what_a_file_says(given: Header, said: Said) -> None:
    assert said_by(given, "m") == said


def test_what_a_file_says_beside_its_prediction_is_shown() -> None:
    assert Said("v_prediction").words == ()
    assert Said("v_prediction", True).words == ("zero terminal SNR",)
    assert Said("v_prediction", edm="cosxl").words == ("noise levels of CosXL",)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (header("v_pred", modelspec_prediction_type="epsilon"), "contradicts itself: tensor v_pred"),
        (header("v_pred", ss_v_parameterization="False"), "contradicts itself: tensor v_pred"),
        (header("edm_vpred.sigma_max", ss_v_parameterization="False"), "contradicts itself: tensor edm_vpred"),
        (header(modelspec_prediction_type="v", ss_v_parameterization="False"), "epsilon by ss_v_parameterization"),
        (header("ztsnr", modelspec_prediction_type="epsilon"), "contradicts itself: ztsnr"),
        (header("edm_mean", "edm_std", "v_pred"), "contradicts itself: tensor edm_mean"),
        (header("edm_mean", "edm_std", "ztsnr"), "contradicts itself: tensor edm_mean"),
        (header("edm_mean", "edm_std", "edm_vpred.sigma_max"), "contradicts itself"),
        (header("edm_mean"), "edm_mean without edm_std"),
        (header("edm_vpred.sigma_min"), "without edm_vpred"),
        (header(modelspec_prediction_type="flow"), "says modelspec.prediction_type flow"),
    ],
)
def test_contradictions_are_refused_by_name(given: Header, match: str) -> None:
    with pytest.raises((SourceError, UnsupportedError), match=match):
        said_by(given, "m")


def test_markers_of_other_families(tmp_path: Path) -> None:
    marks: dict[str, Entry] = {"edm_mean": ("F32", (1, 4, 1, 1)), "edm_std": ("F32", (1, 4, 1, 1))}
    found = look(tmp_path, {**SDXL, **marks})
    assert found.said.edm == "playground" and "playground" in (found.config or "")
    with pytest.raises(UnsupportedError, match="markers of playground"):
        look(tmp_path, {**SD1, **marks})
    with pytest.raises(SourceError, match="ztsnr, and nothing says that it predicts v"):
        look(tmp_path, {**SDXL, "ztsnr": ("F32", (0,))})


def test_every_scheduler_takes_what_it_is_given() -> None:
    import diffusers

    for name in SCHEDULERS:
        kind: Any = getattr(diffusers, name)
        takes = set(python.signature(kind.__init__).parameters)
        if "kwargs" in takes:  # a stand-in: the package that it needs is not installed
            continue
        assert (name in RESCALING) == ({"rescale_betas_zero_snr", "timestep_spacing"} <= takes), name
        others = "prediction_type" not in takes or name == "SCMScheduler"  # which knows its own kind alone
        assert (name in WITHOUT_PREDICTION) == others, name
        assert (name in EDM) == ({"sigma_data", "sigma_schedule"} <= takes), name
        for said in (
            Said("v_prediction", True),
            Said("epsilon", edm="playground"),
            Said("v_prediction", edm="cosxl"),
        ):
            chosen, settings = said.scheduler(name)
            assert set(settings) <= set(python.signature(getattr(diffusers, chosen).__init__).parameters)
    assert Said().scheduler("PNDMScheduler") == ("PNDMScheduler", {})
    assert Said("v_prediction", True).scheduler("PNDMScheduler")[0] == "EulerDiscreteScheduler"


def minus_infinity(root: Path) -> Path:
    from diffusers import DPMSolverMultistepScheduler

    copy_demo(root)
    base = json.loads((root / "scheduler/scheduler_config.json").read_text())
    kept = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    made = DPMSolverMultistepScheduler(**{key: base[key] for key in kept})
    made.save_pretrained(root / "scheduler")
    index = json.loads((root / "model_index.json").read_text())
    (root / "model_index.json").write_text(
        json.dumps({**index, "scheduler": ["diffusers", "DPMSolverMultistepScheduler"]})
    )
    return root


def test_a_scheduler_that_clips_nothing(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    root = minus_infinity(tmp_path / "m")
    text = (root / "scheduler/scheduler_config.json").read_text()
    assert '"lambda_min_clipped": -Infinity' in text
    ours = load(inspect(Source("folder", str(root))), root)
    theirs = DiffusionPipeline.from_pretrained(root, torch_dtype=torch.float32)
    asked = {"num_inference_steps": 2, "output_type": "np"}
    drawn = [pipe("x", generator=torch.Generator().manual_seed(0), **asked).images for pipe in (ours, theirs)]
    assert (drawn[0] == drawn[1]).all()
    ours.scheduler.save_pretrained(tmp_path / "again")
    again = DPMSolverMultistepScheduler.from_pretrained(tmp_path / "again")
    assert again.config.lambda_min_clipped == -float("inf")
    for key, value in {"beta_start": "-Infinity", "lambda_min_clipped": "NaN", "solver_order": "Infinity"}.items():
        changed = json.loads(text) | {key: float(value)}
        (root / "scheduler/scheduler_config.json").write_text(json.dumps(changed))
        with pytest.raises(SourceError, match=f"{value} is no number of JSON"):
            inspect(Source("folder", str(root)))


def test_numbers_in_tensors(tmp_path: Path) -> None:
    from dataclasses import replace

    from safetensors import safe_open
    from safetensors.torch import save_file

    from sdhub.checkpoint.original import _set_statistics, noise_levels
    from tests.checkpoint.tiny import tiny_vae

    path, mean = tmp_path / "m.safetensors", [-1.5, 2.0, -1.25, 2.5]
    marks = {"edm_mean": torch.tensor(mean).reshape(1, 4, 1, 1), "edm_std": torch.full((1, 4, 1, 1), 8.0)}
    save_file({**marks, "edm_vpred.sigma_max": torch.tensor(120.0)}, path)
    vae = tiny_vae()
    with safe_open(str(path), framework="pt") as file:
        _set_statistics(vae, file, "m")
    assert (vae.config.latents_mean, vae.config.latents_std, vae.config.scaling_factor) == (mean, [8.0] * 4, 0.5)
    checkpoint = inspect(Source("folder", EMOJI))
    assert noise_levels(checkpoint, path) == {}
    checkpoint = replace(checkpoint, said=Said("v_prediction", edm="cosxl"))
    assert noise_levels(checkpoint, path) == {"sigma_max": 120.0}
    save_file({"edm_vpred.sigma_max": torch.tensor(float("nan"))}, path)
    with pytest.raises(SourceError, match="other than 1 finite"):
        noise_levels(checkpoint, path)


def test_the_second_encoder_of_xl(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from sdhub.checkpoint.original import _empty, _renaming, _trace
    from sdhub.checkpoint.single_file import CLIP_G_XL
    from tests.checkpoint.ldm import open_clip
    from tests.checkpoint.tiny import tiny_text_encoder

    made = tiny_text_encoder(projection=True, hidden_act="gelu", projection_dim=24)
    made.save_pretrained(tmp_path)
    tensors = open_clip(made, CLIP_G_XL)
    save_file(tensors, tmp_path / "m.safetensors")
    known = {name: Tensor("float32", tuple(each.shape), 0) for name, each in tensors.items()}
    own = [name for name in tensors if not name.endswith("logit_scale")]
    model = _empty("transformers", "CLIPTextModelWithProjection", tmp_path)
    rename = _renaming(model, CLIP_G_XL)
    _trace(model, rename, own, Header(known, {}), {name: name for name in own}, "m")
    model.load_state_dict(rename({name: tensors[name] for name in own}), assign=True)
    ids = torch.tensor([[2220, 5, 7, 2221]])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).text_embeds, made.eval()(ids).text_embeds)
    for name in (f"{CLIP_G_XL}transformer.resblocks.1.attn.in_proj_bias", f"{CLIP_G_XL}text_projection"):
        left = [each for each in own if each != name]
        with pytest.raises(SourceError, match="is missing"):
            _trace(model, rename, left, Header(known, {}), {each: each for each in left}, "m")
