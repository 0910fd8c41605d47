"""The OpenVINO backend: counts of what was compressed, read from the graphs; sizes; refusals; same bytes twice."""

import dataclasses
import hashlib
import json
import math
import shutil
from types import SimpleNamespace

import pytest

from sdhub.backends.base import backend_of, backends
from sdhub.backends.openvino import graph, quality_target, shapes
from sdhub.backends.openvino.export import vet_layers
from sdhub.backends.openvino.graph import MODEL
from sdhub.checkpoint.cost import stays_half
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import RecipeError, UnsupportedError
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import SILENT
from sdhub.evidence.compare import compare
from sdhub.evidence.sampling import Prompt, Sampling
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, Palette, Recipe
from sdhub.workflow import measure, stages
from tests.backends.flux import flux_folder
from tests.backends.openvino_graphs import integer_products
from tests.exact import EXACT

DRAWN = Sampling((Prompt("red heart", 3), Prompt("pizza", 1)), steps=20, guidance=4.0, width=64, height=64)
LAYERS = 119  # of the UNet, with weights
PARTS = ("unet", "text_encoder", "vae_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def checkpoint():
    return resolve("demo")


@pytest.fixture(scope="module")
def backend():
    return backends()["openvino"]


def build(backend, checkpoint, recipe, out):
    out.mkdir()
    run_isolated(
        stages.build_variant, checkpoint, endpoint(None), backend.name, recipe, "cpu", out, progress=SILENT
    )
    return out


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def recipe(backend, checkpoint):
    """The preset, but for two layers that stay in float16."""
    preset = backend.recipe(checkpoint, "openvino-int8")
    layers = {"conv_out": Float(), "mid_block.resnets.0.conv1": Float()}
    unet = ComponentRecipe(default=preset.components["unet"].default, layers=layers)
    return preset.model_copy(update={"components": {**preset.components, "unet": unet}})


@pytest.fixture(scope="module")
def int8(backend, checkpoint, recipe, tmp_path_factory):
    return build(backend, checkpoint, recipe, tmp_path_factory.mktemp("ov") / "int8")


def compressed_weights(folder):
    """How many constants hold 8-bit weights."""
    import openvino

    model = openvino.Core().read_model(folder / "openvino_model.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    integers = [op for op in constants if op.get_output_element_type(0).get_type_name() == "u8"]
    return sum(not op.get_friendly_name().endswith("/zero_point") for op in integers)


def test_counts_of_compressed_weights_per_component(int8):
    counts = {
        folder.name: compressed_weights(folder) for folder in sorted(int8.iterdir()) if (folder / MODEL).exists()
    }
    # The UNet has 119 weighted layers, of which the recipe keeps two in float16.
    assert counts == {"text_encoder": 20, "unet": 117, "vae_decoder": 0, "vae_encoder": 0}


def test_layout_is_optimum_intels(int8):
    names = {path.relative_to(int8).as_posix() for path in int8.rglob("*") if path.is_file()}
    for part in ("unet", "text_encoder", "vae_encoder", "vae_decoder"):
        assert {f"{part}/openvino_model.xml", f"{part}/openvino_model.bin", f"{part}/config.json"} <= names
    assert {"model_index.json", "openvino_config.json", "scheduler/scheduler_config.json"} <= names
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json"} <= names
    assert not any("safety_checker" in name or name.endswith(".safetensors") for name in names)


def test_no_local_path_is_left_in_the_configs(int8, checkpoint):
    for path in int8.rglob("*.json"):
        assert checkpoint.source.ref not in path.read_text()
    assert json.loads((int8 / "model_index.json").read_text())["_name_or_path"] == "emoji-sd"


def test_every_part_says_its_precision(int8):
    config = json.loads((int8 / "openvino_config.json").read_text())
    parts = config["quantization_config"]["quantization_configs"]
    assert {part: each["bits"] for part, each in parts.items()} == {"unet": 8, "text_encoder": 8}


def test_the_forecast_is_near_the_truth(backend, checkpoint, int8):
    forecast = backend.forecast(checkpoint, backend.recipe(checkpoint, "openvino-int8"))
    actual = sum(path.stat().st_size for path in int8.rglob("*") if path.is_file())
    assert 0.8 < forecast.bytes / actual < 1.25


def shortly(recipe):
    """The recipe with a calibration that takes seconds."""
    short = {"prompts": recipe.calibration.prompts[:4], "recorded": 5, "rows": 128}
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update=short)})


@pytest.fixture(scope="module")
def base(checkpoint):
    return measure.draw_all(measure.load_base(checkpoint, endpoint(None), SILENT), DRAWN, SILENT)


def fidelity(backend, folder, base):
    return compare(base, measure.draw_all(backend.open(folder), DRAWN, SILENT), DRAWN)


@pytest.fixture(scope="module")
def full_recipe(backend, checkpoint):
    return shortly(backend.recipe(checkpoint, "openvino-int8-full"))


@pytest.fixture(scope="module")
def full(backend, checkpoint, full_recipe, tmp_path_factory):
    return build(backend, checkpoint, full_recipe, tmp_path_factory.mktemp("ov") / "full")


def test_all_but_the_spared_layers_compute_in_integers(full):
    unet = graph.read(full / "unet")
    integers = integer_products(unet)
    higher_precision = set(graph.layers(unet)) - integers
    assert graph.weight_types(unet) == {"i8": len(integers), "u8": len(higher_precision)}
    assert len(integers) + len(higher_precision) == LAYERS
    assert len(integers) == 106
    # The latents themselves, and the way past the last blocks, go straight into the output.
    assert {"conv_in", "conv_out", "up_blocks.1.resnets.1.conv_shortcut"} <= higher_precision
    assert graph.weight_types(graph.read(full / "text_encoder")) == {"u8": 18}
    assert graph.weight_types(graph.read(full / "vae_decoder")) == {"f16": 26}
    assert graph.weight_types(graph.read(full / "vae_encoder")) == {"f16": 20}


def test_integer_arithmetic_keeps_the_pictures(backend, full, int8, base):
    computed, stored = fidelity(backend, full, base), fidelity(backend, int8, base)
    assert computed.psnr_db > 33
    assert computed.ssim > 0.98
    assert stored.psnr_db > computed.psnr_db


def test_the_same_inputs_give_the_same_bytes(backend, checkpoint, full_recipe, full, tmp_path):
    assert hashes(build(backend, checkpoint, full_recipe, tmp_path / "again")) == hashes(full)


def test_four_bits_where_they_do_and_eight_where_not(backend, checkpoint, base, tmp_path):
    recipe = shortly(backend.recipe(checkpoint, "openvino-int4"))
    folder = build(backend, checkpoint, recipe, tmp_path / "int4")
    unet = graph.read(folder / "unet")
    kinds = graph.weight_types(unet)
    assert set(kinds) == {"u4", "u8"} and kinds.total() == LAYERS
    weights = {
        layer: math.prod(graph.constant_of(each).get_output_shape(0)) for layer, each in graph.layers(unet).items()
    }
    eight = {
        layer
        for layer, each in graph.layers(unet).items()
        if graph.constant_of(each).get_output_element_type(0).get_type_name() == "u8"
    }
    assert 0 < sum(weights[layer] for layer in eight) <= 0.1 * sum(weights.values())
    assert fidelity(backend, folder, base).psnr_db > 27
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0.8 < backend.forecast(checkpoint, recipe).bytes / size < 1.25


@pytest.fixture(scope="module")
def merged(backend, checkpoint, tmp_path_factory):
    recipe = backend.recipe(checkpoint, "openvino-fp16-tome0.4")
    return build(backend, checkpoint, recipe, tmp_path_factory.mktemp("ov") / "merged")


def test_token_merging_in_the_graph_is_that_of_the_model(backend, checkpoint, merged):
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    assert shapes.merge_tokens(pipeline.unet, 0.4, (16, 16)) == 3  # one attention going down, two coming up
    expected = measure.draw_all(pipeline, DRAWN, SILENT)
    assert fidelity(backend, merged, expected).psnr_db > 40


def test_fixed_shapes_stay_fixed_for_every_pipeline(merged):
    from optimum.intel import OVStableDiffusionImg2ImgPipeline, OVStableDiffusionPipeline

    for kind in (OVStableDiffusionPipeline, OVStableDiffusionImg2ImgPipeline):
        pipe = kind.from_pretrained(merged, compile=False)
        assert str(pipe.unet.model.input("sample").get_partial_shape()) == "[?,4,16,16]"
        assert (pipe.width, pipe.height) == (64, 64)


def test_a_fixed_size_has_its_width_and_its_height_in_the_right_places(merged, tmp_path):
    """(width, height) in recipes, (height, width) in graphs."""
    for part, expected in (
        ("unet", "[?,4,16,16]"),
        ("vae_encoder", "[?,3,96,48]"),
        ("vae_decoder", "[?,4,24,12]"),
    ):
        folder = shutil.copytree(merged / part, tmp_path / part)
        if part != "unet":  # its tokens are those of one size
            shapes.fix(folder, shapes.Extent((48, 96), scale=4))
        name = shapes.SCALED[part]
        assert str(graph.read(folder).input(name).get_partial_shape()) == expected


def test_a_fixed_batch_is_in_every_graph_and_draws(int8, tmp_path):
    """As optimum-intel's own `reshape`: the denoiser has two rows for each picture, for guidance."""
    from optimum.intel import OVStableDiffusionPipeline

    folder = shutil.copytree(int8, tmp_path / "static")
    extent = shapes.Extent((64, 64), scale=4, batch=1, tokens=77)
    for part in PARTS:
        shapes.fix(folder / part, extent)
        assert not graph.read(folder / part).is_dynamic()
    shapes.keep_fixed(folder)
    assert str(graph.read(folder / "unet").input("encoder_hidden_states").get_partial_shape())[:6] == "[2,77,"
    pipe = OVStableDiffusionPipeline.from_pretrained(folder)
    assert pipe("red heart", num_inference_steps=2, guidance_scale=4.0).images[0].size == (64, 64)


def test_the_same_runtime_without_compression_stands_beside(backend, checkpoint, int8, merged, tmp_path):
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    assert backend.plain(checkpoint, pipeline, int8, tmp_path) == "openvino-fp16"
    unet = graph.read(tmp_path / "unet")
    assert graph.weight_types(unet) == {"f16": LAYERS}
    pipe = backend.open(tmp_path)
    measure.draw_all(pipe, dataclasses.replace(DRAWN, steps=1), SILENT)
    assert backend.settings(pipe)["precision"] in {"f32", "f16", "bf16"}
    assert int(backend.settings(pipe)["threads"]) >= 1


@pytest.mark.parametrize("beside", [False, True])
def test_a_large_denoiser_of_16_bits_is_timed(checkpoint, int8, tmp_path, monkeypatch, beside):
    """As if it were large: its layers are widened one at a time, which no converter follows."""
    monkeypatch.setattr("sdhub.checkpoint.cost.KEPT_BYTES", 0)
    assert stays_half(checkpoint)
    drawn = dataclasses.replace(DRAWN, prompts=DRAWN.prompts[:1], steps=2)
    measure.time_variant(
        checkpoint, endpoint(None), "openvino", int8, ("cpu", None), drawn, beside, tmp_path, SILENT
    )
    timed = json.loads((tmp_path / measure.LATENCY).read_text())
    assert timed["base_seconds_per_step"] > 0
    assert timed["reference"] == ("openvino-fp16" if beside else None)


def test_a_large_denoiser_of_16_bits_draws_what_its_float32_draws(checkpoint, base, monkeypatch):
    monkeypatch.setattr("sdhub.checkpoint.cost.KEPT_BYTES", 0)
    pipe = measure.load_to_draw(checkpoint, endpoint(None), "cpu", SILENT)
    assert str(pipe.unet.conv_in.weight.dtype) == "torch.float16"
    assert compare(base, measure.draw_all(pipe, DRAWN, SILENT), DRAWN).psnr_db == float("inf")


def test_flux_is_converted_without_losing_its_timesteps(backend, tmp_path):
    """With timesteps and guidance in 16 bits this would be 39 dB."""
    from optimum.intel import OVDiffusionPipeline

    checkpoint = resolve(str(flux_folder(tmp_path / "flux")))
    assert "UNets" in backend.why_not(checkpoint, "openvino-int8-tome0.4")
    recipe = backend.recipe(checkpoint, "openvino-fp16")
    backend.accept(checkpoint, recipe)
    sampling = Sampling((Prompt("a cat", 1),), steps=3, guidance=3.0, width=64, height=64)
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    base = measure.draw_all(pipeline, sampling, SILENT)
    out = tmp_path / "fp16"
    out.mkdir()
    backend.build(checkpoint, pipeline, recipe, out, SILENT)
    pipe = OVDiffusionPipeline.from_pretrained(out, ov_config=EXACT)
    assert type(pipe).__name__ == "OVFluxPipeline"
    assert compare(base, measure.draw_all(pipe, sampling, SILENT), sampling).psnr_db > 60


@pytest.fixture
def judged(monkeypatch):
    """Shares that were tried, without a checkpoint."""
    shares = []

    def compress(_, recipe, folder, *rest):
        shares.append(recipe.components["unet"].default.higher_precision)
        folder.mkdir(exist_ok=True)

    def convert(_, __, ___, out, ____):
        (out / "unet").mkdir()
        return ["unet"]

    monkeypatch.setattr(quality_target, "prepare", lambda *_: None)
    monkeypatch.setattr(quality_target, "convert", convert)
    monkeypatch.setattr(quality_target, "compress_part", compress)
    return shares


@pytest.mark.parametrize(("wanted", "share"), [(30.0, 0.0), (30.1, 0.01), (30.4, 0.06), (40.0, 1.0)])
def test_a_floor_takes_the_least_share_that_reaches_it(backend, checkpoint, judged, wanted, share):
    recipe = backend.recipe(checkpoint, "openvino-int8-full")

    def judge(_):
        return 30 + 10 * judged[-1]

    found = backend.meet_target(checkpoint, None, recipe, wanted, judge, SILENT)
    assert found.components["unet"].default.higher_precision == share
    assert found.name == recipe.name and found.calibration == recipe.calibration
    assert share in judged and len(judged) <= quality_target.TRIES


def test_a_floor_out_of_reach_says_what_is(backend, checkpoint, judged):
    recipe = backend.recipe(checkpoint, "openvino-int8-full")
    with pytest.raises(UnsupportedError, match=r"reaches 35\.0 dB and not 36"):
        backend.meet_target(checkpoint, None, recipe, 36.0, lambda _: 35.0, SILENT)
    with pytest.raises(UnsupportedError, match="calibrated"):
        backend.meet_target(
            checkpoint, None, backend.recipe(checkpoint, "openvino-int8"), 36.0, lambda _: 35.0, SILENT
        )


def test_variants_have_names_with_ratios(backend, checkpoint):
    assert backend_of("openvino-int8-full-tome0.4") is backend
    recipe = backend.recipe(checkpoint, "openvino-int8-tome0.25")
    assert (recipe.name, recipe.sizes) == ("openvino-int8-tome0.25", ((64, 64),))
    assert recipe.components["unet"].token_merging == 0.25
    assert "25% of the tokens" in backend.describe("openvino-int8-tome0.25")
    for wrong in (
        "openvino-int8-tome0.8",
        "openvino-int8-tome0",
        "openvino-int8-tome0.40",
        "openvino-int3-tome0.4",
    ):
        assert not backend.knows(wrong)


def test_every_preset_is_accepted(backend, checkpoint):
    for variant in (*backend.variants, "openvino-int4-tome0.5"):
        recipe = backend.recipe(checkpoint, variant)
        backend.accept(checkpoint, recipe)
        assert backend.forecast(checkpoint, recipe).bytes > 0


def test_pictures_can_be_the_start(backend, int8):
    """Image-to-image and inpainting load from the same folder."""
    from optimum.intel import OVStableDiffusionImg2ImgPipeline, OVStableDiffusionInpaintPipeline
    from PIL import Image

    picture = Image.new("RGB", (64, 64), "red")
    again = {"num_inference_steps": 4, "strength": 0.5, "width": 64, "height": 64}
    pipe = OVStableDiffusionImg2ImgPipeline.from_pretrained(int8)
    del again["width"], again["height"]
    assert pipe("red heart", image=picture, **again).images[0].size == (64, 64)
    pipe = OVStableDiffusionInpaintPipeline.from_pretrained(int8)
    mask = Image.new("L", (64, 64), 255)
    made = pipe("red heart", image=picture, mask_image=mask, width=64, height=64, **again)
    assert made.images[0].size == (64, 64)


def test_a_layer_that_is_not_there_is_named(recipe):
    import torch

    unet = torch.nn.Module()
    unet.conv_out = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(RecipeError, match=r"unet has no layer mid_block\.resnets\.0\.conv1"):
        vet_layers(SimpleNamespace(unet=unet), recipe)


@pytest.mark.parametrize(
    ("treatment", "said"),
    [
        (Affine(bits=3), "4 or 8 bits"),
        (Float(dtype="bfloat16"), "float16"),
        (Palette(bits=4), "palette"),
        (Affine(bits=8, smoothing=0.5), "smooth"),
        (Affine(bits=4, activations="int8"), "8-bit weights"),
    ],
)
def test_treatments_that_it_does_not_follow_are_refused_before_work(backend, checkpoint, treatment, said):
    recipe = backend.recipe(checkpoint, "openvino-int8")
    wrong = recipe.model_copy(
        update={"components": {**recipe.components, "unet": ComponentRecipe(default=treatment)}}
    )
    with pytest.raises(UnsupportedError, match=said):
        backend.accept(checkpoint, wrong)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("unet", {"default": Affine(bits=8, activations="int8")}, "needs a calibration"),
        ("text_encoder", {"default": Affine(bits=8, higher_precision=0.1)}, "only the denoiser"),
        ("unet", {"default": Affine(bits=8), "token_merging": 0.4}, "one fixed size"),
        (
            "unet",
            {"default": Affine(bits=8), "layers": {"conv_in": Affine(bits=8, higher_precision=0.1)}},
            "single layer",
        ),
    ],
)
def test_what_needs_something_else_says_so(backend, checkpoint, part, changes, said):
    recipe = backend.recipe(checkpoint, "openvino-int8")
    wrong = recipe.model_copy(update={"components": {**recipe.components, part: ComponentRecipe(**changes)}})
    with pytest.raises((UnsupportedError, RecipeError), match=said):
        backend.accept(checkpoint, wrong)


def test_components_must_match_the_checkpoint(backend, checkpoint):
    recipe = backend.recipe(checkpoint, "openvino-int8")
    parts = dict(recipe.components)
    parts["text_encoder_2"] = parts.pop("text_encoder")
    wrong = Recipe(name="openvino-x", backend="openvino", components=parts)
    with pytest.raises(RecipeError, match="text_encoder"):
        backend.accept(checkpoint, wrong)


def test_families_it_cannot_build_say_why(backend, checkpoint):
    from sdhub.checkpoint.families import FAMILIES

    qwen = dataclasses.replace(checkpoint, family=FAMILIES["qwen-image"], pipeline="QwenImagePipeline")
    unknown = dataclasses.replace(checkpoint, pipeline="KandinskyPipeline")
    pixart = dataclasses.replace(checkpoint, family=FAMILIES["pixart"], pipeline="PixArtSigmaPipeline")
    flux = dataclasses.replace(checkpoint, family=FAMILIES["flux"], pipeline="FluxPipeline")
    assert "Qwen-Image" in backend.why_not(qwen, "openvino-int8")
    assert "PixArt" in backend.why_not(pixart, "openvino-int8")
    assert "T5EncoderModel" in backend.why_not(flux, "openvino-int8")
    assert "KandinskyPipeline" in backend.why_not(unknown, "openvino-int8")
    assert backend.why_not(checkpoint, "openvino-int8") is None


def test_unknown_variants_name_the_known_ones():
    with pytest.raises(UnsupportedError) as refusal:
        backend_of("openvino-int3")
    assert "openvino-int8" in refusal.value.hint
