from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdhub.checkpoint import lora
from sdhub.checkpoint.fetch import fetch, fingerprint
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.load import load
from sdhub.checkpoint.source import parse_lora, parse_source
from sdhub.core.errors import SourceError, UnsupportedError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT

torch = pytest.importorskip("torch")

UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
SHAPES = {UNET: (256, 256), TEXT: (128, 128)}
RANK = 4


def pair(module: str, seed: int = 0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = SHAPES[module]
    up = torch.randn(rows, RANK, generator=generator) * 0.1
    return up, torch.randn(RANK, columns, generator=generator) * 0.1


def save(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    from safetensors.torch import save_file

    save_file({key: value.clone() for key, value in tensors.items()}, path, metadata=metadata)
    return str(path)


def peft(path: Path, seed: int = 0) -> str:
    up, down = pair(UNET, seed)
    text_up, text_down = pair(TEXT, seed)
    return save(
        path,
        {
            f"unet.{UNET}.lora_A.weight": down,
            f"unet.{UNET}.lora_B.weight": up,
            f"text_encoder.{TEXT}.lora_A.weight": text_down,
            f"text_encoder.{TEXT}.lora_B.weight": text_up,
        },
    )


def kohya(path: Path, alpha: float) -> str:
    up, down = pair(UNET)
    name = f"lora_unet_{UNET.replace('.', '_')}"
    return save(
        path,
        {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(alpha)},
    )


@pytest.fixture(scope="module")
def pipeline() -> Any:
    checkpoint = inspect(parse_source("demo"))
    return load(checkpoint, fetch(checkpoint))


def state(pipeline: Any) -> dict[str, Any]:
    modules = {"unet": pipeline.unet, "text": pipeline.text_encoder}
    return {
        f"{part}.{key}": value for part, module in modules.items() for key, value in module.state_dict().items()
    }


@pytest.fixture
def weights(pipeline: Any) -> Callable[..., dict[str, Any]]:
    """The weights of a copy of the demo after LoRAs were fused, as `load` does it."""

    def fused(loras: list[str]) -> dict[str, Any]:
        pinned = [lora.pin(parse_lora(text), Hub()) for text in loras]
        copied = copy.deepcopy(pipeline)
        lora.fuse(copied, [(each, lora.local(each, Hub())) for each in pinned], SILENT)
        return state(copied)

    return fused


def text_key(weights: dict[str, Any]) -> str:
    return next(key for key in weights if key.endswith(f"{TEXT.removeprefix('text_model.')}.weight"))


@pytest.fixture(scope="module")
def base(pipeline: Any) -> dict[str, Any]:
    return {key: value.clone() for key, value in state(pipeline).items()}


def changed(base: dict[str, Any], fused: dict[str, Any]) -> set[str]:
    assert set(fused) == set(base)
    return {key for key, value in base.items() if not torch.equal(value, fused[key])}


def test_weights_become_w_plus_scale_times_up_down(base: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = inspect(parse_source("demo", [f"{peft(tmp_path / 'x.safetensors')}:0.5"]))
    fused = state(load(checkpoint, fetch(checkpoint)))
    assert changed(base, fused) == {f"unet.{UNET}.weight", text_key(base)}
    for key, module in ((f"unet.{UNET}.weight", UNET), (text_key(base), TEXT)):
        up, down = pair(module)
        expected = base[key] + 0.5 * up @ down
        assert torch.allclose(fused[key], expected, rtol=0, atol=1e-6)
        assert (fused[key] - base[key]).abs().max() > 1e-3


def test_alpha_over_rank_scales_too(
    weights: Callable[..., dict[str, Any]], base: dict[str, Any], tmp_path: Path
) -> None:
    fused = weights([f"{kohya(tmp_path / 'x.safetensors', alpha=2.0)}:-1.5"])
    up, down = pair(UNET)
    key = f"unet.{UNET}.weight"
    assert changed(base, fused) == {key}
    assert torch.allclose(fused[key], base[key] - 1.5 * (2.0 / RANK) * up @ down, rtol=0, atol=1e-6)


def test_alpha_in_the_metadata_of_diffusers_is_used(
    weights: Callable[..., dict[str, Any]], pipeline: Any, base: dict[str, Any], tmp_path: Path
) -> None:
    """A file as `save_lora_weights` writes it: the alpha is in the metadata only."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    unet = copy.deepcopy(pipeline.unet)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=8, target_modules=[UNET], init_lora_weights=False))
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers,
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    fused = weights([str(tmp_path / "pytorch_lora_weights.safetensors")])
    up, down = (layers[f"{UNET}.lora_{letter}.weight"] for letter in "BA")
    key = f"unet.{UNET}.weight"
    assert changed(base, fused) == {key}
    assert torch.allclose(fused[key], base[key] + 8 / RANK * up @ down, rtol=0, atol=1e-5)


def test_two_loras_add_up(weights: Callable[..., dict[str, Any]], base: dict[str, Any], tmp_path: Path) -> None:
    loras = [f"{peft(tmp_path / 'a.safetensors', 1)}:0.5", f"{peft(tmp_path / 'b.safetensors', 2)}:2"]
    fused = weights(loras)
    (up, down), (up_2, down_2) = pair(UNET, 1), pair(UNET, 2)
    key = f"unet.{UNET}.weight"
    assert torch.allclose(fused[key], base[key] + 0.5 * up @ down + 2 * up_2 @ down_2, rtol=0, atol=2e-6)


def test_a_lora_that_matches_nothing_is_an_error(weights: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    up, down = pair(UNET)
    for name in ("unet.down_blocks.7.attentions.0.proj_in", "transformer.blocks.0.attn.to_q"):
        file = save(tmp_path / "x.safetensors", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
        with pytest.raises(SourceError, match=r"matches no layer|does not fit") as caught:
            weights([file])
        assert "another family" in caught.value.hint


def test_a_lora_of_other_sizes_is_an_error(weights: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = save(
        tmp_path / "x.safetensors",
        {f"unet.{UNET}.lora_A.weight": torch.zeros(4, 320), f"unet.{UNET}.lora_B.weight": torch.zeros(320, 4)},
    )
    with pytest.raises(SourceError, match="does not fit"):
        weights([file])


def test_a_layer_that_is_not_there_is_refused_by_name(
    weights: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    up, down = pair(UNET)
    file = save(
        tmp_path / "x.safetensors",
        {
            f"unet.{UNET}.lora_A.weight": down,
            f"unet.{UNET}.lora_B.weight": up,
            "unet.down_blocks.7.attentions.0.proj_in.lora_A.weight": down,
            "unet.down_blocks.7.attentions.0.proj_in.lora_B.weight": up,
        },
    )
    with pytest.raises(SourceError, match=r"down_blocks\.7\.attentions\.0\.proj_in"):
        weights([file])


Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
CONV = "down_blocks.0.resnets.0.conv1"
TE = "text_model.encoder.layers.1"
ATTN = "text_model_encoder_layers_1_self_attn"
NORM = "down_blocks.0.attentions.0.norm"
# A name as a tool writes it, the layer, shapes of up and down, and its alpha (None: not in the file).
NAMED = [
    (f"lora_unet_{Q.replace('.', '_')}_to_q", f"unet.{Q}.to_q", (256, 4), (4, 256), 1.0),
    (f"lora_unet_{Q.replace('.', '_')}_to_out_0", f"unet.{Q}.to_out.0", (256, 8), (8, 256), 2.0),
    (f"lora_unet_{Q.replace('.', '_')}_to_v", f"unet.{Q}.to_v", (256, 2), (2, 256), None),
    ("lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_k", f"unet.{Q}.to_k", (256, 4), (4, 256), 8.0),
    (f"lora_unet_{CONV.replace('.', '_')}", f"unet.{CONV}", (128, 4, 1, 1), (4, 128, 3, 3), 2.0),
    ("lora_te_text_model_encoder_layers_1_mlp_fc1", f"text.{TE}.mlp.fc1", (512, 4), (4, 128), 3.0),
    (
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
        f"text.{TE}.self_attn.q_proj",
        (128, 4),
        (4, 128),
        1.0,
    ),
    ("lora_te_encoder_layers_1_self_attn_k_proj", f"text.{TE}.self_attn.k_proj", (128, 4), (4, 128), None),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_layer_has_its_own_alpha_and_rank(
    weights: Callable[..., dict[str, Any]], base: dict[str, Any], tmp_path: Path, dtype: str
) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors, wanted = {}, {}
    for name, layer, up_shape, down_shape, alpha in NAMED:
        up, down = (
            (torch.randn(shape, generator=generator) * 0.1).to(getattr(torch, dtype))
            for shape in (up_shape, down_shape)
        )
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        rank = down_shape[0]
        product = torch.einsum("or,r...->o...", up.float().flatten(1), down.float())
        wanted[f"{layer}.weight"] = (rank if alpha is None else alpha) / rank * product
    norm = torch.randn(128, generator=generator)
    tensors |= {f"lora_unet_{NORM.replace('.', '_')}.w_norm": norm, f"unet.{CONV}.diff_b": -norm}
    wanted |= {f"unet.{NORM}.weight": norm}
    bias = tensors.pop(f"unet.{CONV}.diff_b")
    tensors[f"lora_unet_{CONV.replace('.', '_')}.diff_b"] = bias
    wanted[f"unet.{CONV}.bias"] = bias
    fused = weights([f"{save(tmp_path / 'ünï (v1).safetensors', tensors)}:0.5"])
    assert changed(base, fused) == set(wanted)
    for key, delta in wanted.items():
        assert torch.allclose(fused[key] - base[key], 0.5 * delta, rtol=1e-5, atol=2e-6)


def test_half_precision_weights_take_the_sum_rounded_once(pipeline: Any, tmp_path: Path) -> None:
    copied = copy.deepcopy(pipeline)
    copied.unet.to(torch.float16)
    before = copied.unet.get_submodule(UNET).weight.detach().clone()
    files = [peft(tmp_path / "a.safetensors", 1), peft(tmp_path / "b.safetensors", 2)]
    pinned = [lora.pin(parse_lora(file), Hub()) for file in files]
    lora.fuse(copied, [(each, Path(each.file)) for each in pinned], SILENT)
    (up, down), (up_2, down_2) = pair(UNET, 1), pair(UNET, 2)
    expected = (before.float() + up @ down + up_2 @ down_2).half()
    assert torch.allclose(copied.unet.get_submodule(UNET).weight.float(), expected.float(), rtol=1e-3, atol=0)
    assert not any("lora" in name for name, _ in copied.unet.named_modules())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.dora_scale", "DoRA"),
        ("lora_unet_x.lora_mid.weight", "lora_mid"),
        ("bundle_emb.x.string_to_param.*", "no tensor of a plain LoRA"),
        ("lora_unet_x.alpha", "nothing to go with it"),
        ("lora_unet_x.lora_up.weight", "lacks its down"),
    ],
)
def test_what_cannot_be_added_is_named(name: str, said: str, tmp_path: Path) -> None:
    up, down = pair(UNET)
    tensors = {f"unet.{UNET}.lora_A.weight": down, f"unet.{UNET}.lora_B.weight": up, name: torch.ones(1)}
    with pytest.raises((SourceError, UnsupportedError), match=said) as caught:
        lora.pin(parse_lora(save(tmp_path / "x.safetensors", tensors)), Hub())
    assert name.partition(".")[0] in caught.value.message


def test_a_peft_folder_has_its_alpha_in_its_config(
    weights: Callable[..., dict[str, Any]], base: dict[str, Any], tmp_path: Path
) -> None:
    up, down = pair(UNET)
    prefix = f"base_model.model.{UNET}"
    save(tmp_path / "adapter_model.safetensors", {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up})
    with pytest.raises(SourceError, match=r"adapter_config\.json"):
        lora.pin(parse_lora(str(tmp_path)), Hub())
    key = f"unet.{UNET}.weight"
    for settings, factor in (
        ({"r": RANK, "lora_alpha": 6, "init_lora_weights": "gaussian"}, 6 / RANK),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
        ({"r": 9, "rank_pattern": {"attn1.to_q": RANK}, "lora_alpha": 1, "alpha_pattern": {"to_q": 2}}, 2 / RANK),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
        fused = weights([str(tmp_path)])
        assert changed(base, fused) == {key}
        assert torch.allclose(fused[key], base[key] + factor * up @ down, rtol=0, atol=2e-6)
    for settings in ({"use_dora": True}, {"fan_in_fan_out": True}, {"r": 8}, {"novel": 1}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises((SourceError, UnsupportedError)):
            weights([str(tmp_path)])


def test_names_of_original_flux_lead_to_rows(tmp_path: Path) -> None:
    """Rows of `qkv` are q, k and v one above the other, those of the last norm shift before scale."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=6,
        pooled_projection_dim=5, in_channels=4, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = {
        "double_blocks_0_img_attn_qkv": [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"],
        "single_blocks_0_linear1": [
            *(f"single_transformer_blocks.0.attn.to_{each}" for each in "qkv"),
            "single_transformer_blocks.0.proj_mlp",
        ],
        "single_blocks_0_linear2": ["single_transformer_blocks.0.proj_out"],
        "final_layer_adaLN_modulation_1": ["norm_out.linear"],
    }
    tensors, wanted = {}, {}
    for name, layers in rows.items():
        parts = [before[f"{layer}.weight"] for layer in layers]
        up, down = torch.randn(sum(map(len, parts)), 3), torch.randn(3, parts[0].shape[1])
        tensors |= {f"lora_unet_{name}.lora_up.weight": up, f"lora_unet_{name}.lora_down.weight": down}
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(1.5)
        deltas = (0.5 * up @ down).split([len(part) for part in parts])
        wanted |= dict(zip((f"{layer}.weight" for layer in layers), deltas, strict=True))
    shift, scale = wanted["norm_out.linear.weight"].chunk(2)
    wanted["norm_out.linear.weight"] = torch.cat([scale, shift])
    pinned = lora.pin(parse_lora(save(tmp_path / "x.safetensors", tensors)), Hub())
    lora.fuse(SimpleNamespace(transformer=model), [(pinned, Path(pinned.file))], SILENT)
    for name, value in model.state_dict().items():
        assert torch.allclose(value - before[name], wanted.get(name, torch.zeros(())), atol=1e-5), name


def test_fingerprint_has_loras_and_scales(tmp_path: Path) -> None:
    file = peft(tmp_path / "a.safetensors", 1)
    other = peft(tmp_path / "b.safetensors", 2)
    same = save(tmp_path / "c.safetensors", {}) and str(
        Path(tmp_path / "c.safetensors").write_bytes(Path(file).read_bytes()) and tmp_path / "c.safetensors"
    )
    marks = [fingerprint(inspect(parse_source("demo", loras))) for loras in ([], [file], [f"{file}:0.5"], [other])]
    assert len(set(marks)) == 4
    assert fingerprint(inspect(parse_source("demo", [same]))) == marks[1]


def test_a_lora_that_changed_since_is_told(tmp_path: Path) -> None:
    file = Path(peft(tmp_path / "a.safetensors"))
    checkpoint = inspect(parse_source("demo", [str(file)]))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(SourceError, match="changed since"):
        fetch(checkpoint)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_lora_of_the_same_size_that_changed_is_told(name: str, tmp_path: Path) -> None:
    """In its file or in its settings, before it is fused or while that goes on."""
    peft(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    checkpoint = inspect(parse_source("demo", [str(tmp_path / "adapter_model.safetensors")]))
    assert set(checkpoint.loras[0].stamps) == {"adapter_model.safetensors", "adapter_config.json"}
    path = fetch(checkpoint)
    load(checkpoint, path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    for use in (fetch, fingerprint, lambda each: load(each, path)):
        with pytest.raises(SourceError, match=f"{name} changed since it was inspected"):
            use(checkpoint)


@pytest.mark.parametrize(
    ("scale", "name"),
    [
        ("", "emoji-sd-style"),
        (":1.0", "emoji-sd-style"),
        (":0.5", "emoji-sd-style-x0.5"),
        (":2", "emoji-sd-style-x2"),
        (":-0.25", "emoji-sd-style-x-0.25"),
        (":1e-05", "emoji-sd-style-x1e-05"),
        (":1.0000001", "emoji-sd-style-x1.0000001"),
    ],
)
def test_each_scale_has_a_name_of_its_own(scale: str, name: str, tmp_path: Path) -> None:
    from huggingface_hub.utils import validate_repo_id

    file = peft(tmp_path / "style.safetensors")
    made = inspect(parse_source("demo", [f"{file}{scale}"])).name
    assert made == name
    validate_repo_id(f"acme/{made}-openvino-int8")


def test_a_name_that_is_cut_still_tells_scales_apart(tmp_path: Path) -> None:
    file = peft(tmp_path / f"{'long-' * 20}.safetensors")
    names = {inspect(parse_source("demo", [f"{file}:{scale}"])).name for scale in (0.5, 0.75, 1)}
    assert len(names) == 3
    assert all(len(name) <= 80 and name.startswith("emoji-sd-long-") for name in names)


# Of the true Stable Diffusion XL: generative-models' names, and diffusers' (two layers a stage, three stages).
BLOCK = "transformer_blocks"
SGM = {
    "time_embed.0": "time_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks.4.1.proj_in": "down_blocks.1.attentions.0.proj_in",
    f"input_blocks.4.1.{BLOCK}.0.attn1.to_q": f"down_blocks.1.attentions.0.{BLOCK}.0.attn1.to_q",
    f"input_blocks.5.1.{BLOCK}.1.ff.net.0.proj": f"down_blocks.1.attentions.1.{BLOCK}.1.ff.net.0.proj",
    f"input_blocks.8.1.{BLOCK}.2.attn2.to_k": f"down_blocks.2.attentions.1.{BLOCK}.2.attn2.to_k",
    f"middle_block.1.{BLOCK}.0.attn1.to_out.0": f"mid_block.attentions.0.{BLOCK}.0.attn1.to_out.0",
    "middle_block.2.emb_layers.1": "mid_block.resnets.1.time_emb_proj",
    f"output_blocks.0.1.{BLOCK}.0.attn2.to_v": f"up_blocks.0.attentions.0.{BLOCK}.0.attn2.to_v",
    "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.5.1.proj_out": "up_blocks.1.attentions.2.proj_out",
    "output_blocks.8.0.out_layers.3": "up_blocks.2.resnets.2.conv2",
    "out.2": "conv_out",
}
# Of Stable Diffusion 3: the names of its own code, and diffusers'.
SD3 = {
    "joint_blocks.0.x_block.attn.qkv": [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"],
    "joint_blocks.0.x_block.attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "joint_blocks.0.x_block.mlp.fc1": ["transformer_blocks.0.ff.net.0.proj"],
    "joint_blocks.1.x_block.mlp.fc2": ["transformer_blocks.1.ff.net.2"],
    "joint_blocks.0.context_block.attn.qkv": [f"transformer_blocks.0.attn.add_{each}_proj" for each in "qkv"],
    "joint_blocks.0.context_block.attn.proj": ["transformer_blocks.0.attn.to_add_out"],
    "joint_blocks.0.context_block.mlp.fc1": ["transformer_blocks.0.ff_context.net.0.proj"],
    "joint_blocks.1.context_block.attn.qkv": [f"transformer_blocks.1.attn.add_{each}_proj" for each in "qkv"],
}


def spelled(spelling: str, name: str, up: Any, down: Any, alpha: float) -> dict[str, Any]:
    """A layer's tensors as a tool would write them."""
    flat = f"lora_unet_{name.replace('.', '_')}"
    if spelling == "kohya":
        return {
            f"{flat}.lora_up.weight": up,
            f"{flat}.lora_down.weight": down,
            f"{flat}.alpha": torch.tensor(alpha),
        }
    return {
        f"{spelling}.{name}.lora_B.weight": up,
        f"{spelling}.{name}.lora_A.weight": down,
        f"{spelling}.{name}.alpha": torch.tensor(alpha),
    }


def fused_as_named(component: str, module: Any, names: dict[str, list[str]], spelling: str, root: Path) -> None:
    """Write a LoRA of these layers, each of its own rank and alpha, fuse it, and hold every parameter against
    alpha / rank * up * down computed here."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    generator, tensors, wanted = torch.Generator().manual_seed(0), {}, {}
    for number, (name, paths) in enumerate(names.items()):
        rank, alpha = number % 3 + 1, 0.5 + number
        weights = [before[f"{path}.weight"] for path in paths]
        up = torch.randn(sum(len(each) for each in weights), rank, generator=generator)
        down = torch.randn(rank, *weights[0].shape[1:], generator=generator)
        delta = (0.7 * alpha / rank) * (up @ down.flatten(1))
        for path, part in zip(paths, delta.split([len(each) for each in weights]), strict=True):
            wanted[f"{path}.weight"] = part.reshape(before[f"{path}.weight"].shape)
        up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
        tensors |= spelled(spelling, name, up, down, alpha)
    pinned = lora.pin(parse_lora(f"{save(root / 'x.safetensors', tensors)}:0.7"), Hub())
    lora.fuse(SimpleNamespace(**{component: module}), [(pinned, Path(pinned.file))], SILENT)
    assert sum(len(each) for each in names.values()) == len(wanted)
    for name, value in module.state_dict().items():
        off = (value - before[name] - wanted.get(name, 0)).abs().max()
        assert off < 1e-4, name


@pytest.mark.parametrize("spelling", ["kohya", "diffusion_model", "model.diffusion_model"])
def test_names_of_original_xl_lead_to_its_layers(spelling: str, tmp_path: Path) -> None:
    from tests.checkpoint.tiny import tiny_unet_xl

    unet = tiny_unet_xl(6, 80, layers_per_block=2)
    fused_as_named("unet", unet, {name: [path] for name, path in SGM.items()}, spelling, tmp_path)


def sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=20,
        caption_projection_dim=24,
        pooled_projection_dim=28,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


@pytest.mark.parametrize("spelling", ["kohya", "diffusion_model", "model.diffusion_model"])
def test_names_of_original_sd3_lead_to_rows(spelling: str, tmp_path: Path) -> None:
    fused_as_named("transformer", sd3(), SD3, spelling, tmp_path)


def original_sd3(width: int = 24, blocks: int = 2) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights in the code of Stable Diffusion 3 (MMDiT), for the model of `sd3`."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (width, 4, 2, 2),
        "context_embedder": (width, 20),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, 28),
        "y_embedder.mlp.2": (width, width),
        "final_layer.linear": (16, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for block in range(blocks):
        for side in ("x_block", "context_block"):
            last, dual = block == blocks - 1 and side == "context_block", block == 0 and side == "x_block"
            own = {"adaLN_modulation.1": (width * (2 if last else 9 if dual else 6), width)}
            for attention in ("attn", "attn2") if dual else ("attn",):
                own |= {f"{attention}.qkv": (3 * width, width)}
                own |= {f"{attention}.{norm}": (8,) for norm in ("ln_q", "ln_k")}
                own |= {} if last else {f"{attention}.proj": (width, width)}
            own |= {} if last else {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            shapes |= {f"joint_blocks.{block}.{side}.{name}": shape for name, shape in own.items()}
    return shapes


@pytest.mark.parametrize("spelling", ["kohya", "model.diffusion_model"])
def test_every_layer_of_original_sd3_goes_where_diffusers_conversion_puts_it(
    spelling: str, tmp_path: Path
) -> None:
    """What is added to W, converted as diffusers converts W: it turns the last norms' halves, and nothing else."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    generator, tensors, added = torch.Generator().manual_seed(0), {}, {}
    for number, (name, shape) in enumerate(original_sd3().items()):
        rank, alpha = number % 3 + 1, 0.5 + number % 7
        added[f"{name}.bias"] = torch.zeros(shape[0])
        if len(shape) == 1:
            added[f"{name}.weight"] = torch.randn(shape, generator=generator)
            flat = f"lora_unet_{name.replace('.', '_')}" if spelling == "kohya" else f"{spelling}.{name}"
            tensors[f"{flat}.w_norm"] = added[f"{name}.weight"]
            continue
        up = torch.randn(shape[0], rank, generator=generator)
        down = torch.randn(rank, *shape[1:], generator=generator)
        added[f"{name}.weight"] = (alpha / rank * up @ down.flatten(1)).reshape(shape)
        up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
        tensors |= spelled(spelling, name, up, down, alpha)
    model = sd3()
    wanted = convert_sd3_transformer_checkpoint_to_diffusers({**added, "pos_embed": torch.zeros(1)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pinned = lora.pin(parse_lora(f"{save(tmp_path / 'x.safetensors', tensors)}:0.7"), Hub())
    lora.fuse(SimpleNamespace(transformer=model), [(pinned, Path(pinned.file))], SILENT)
    for name, value in model.state_dict().items():
        assert (value - before[name] - 0.7 * wanted[name]).abs().max() < 1e-4, name
        assert name.endswith((".bias", "pos_embed")) or not torch.equal(value, before[name]), name


@pytest.mark.parametrize("spelling", ["transformer", "base_model.model"])
def test_pefts_names_of_sd3(spelling: str, tmp_path: Path) -> None:
    model = sd3()
    paths = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    assert len(paths) > 20
    fused_as_named("transformer", model, {path: [path] for path in paths}, spelling, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "joint_blocks.1.context_block.attn.proj",  # which the last block lacks
        "joint_blocks.2.x_block.attn.qkv",
        "final_layer.linear_2",
    ],
)
def test_what_sd3_lacks_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors = spelled("kohya", "joint_blocks.0.x_block.attn.qkv", torch.ones(72, 1), torch.ones(1, 24), 1.0)
    tensors |= spelled("kohya", name, torch.ones(24, 1), torch.ones(1, 24), 1.0)
    pinned = lora.pin(parse_lora(save(tmp_path / "x.safetensors", tensors)), Hub())
    model = sd3()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SourceError, match=name.replace(".", "_")):
        lora.fuse(SimpleNamespace(transformer=model), [(pinned, Path(pinned.file))], SILENT)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
