"""Nunchaku's own single files: what its loaders want of them, and what comes back."""

import copy
import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdhub.backends.svdquant import NUNCHAKU, single
from sdhub.backends.svdquant.lite import Format
from sdhub.checkpoint.headers import read_header
from sdhub.core.errors import BuildError
from sdhub.core.progress import SILENT
from tests.downstream import kernels_stand_in as kernels

GROUP = {"int4": 64, "nvfp4": 16}
SHIFT = 0.171875
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


def layout(precision, rank=16):
    return Format("svdq_w4a4", precision, rank)


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(1, 2),
        cross_attention_dim=128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    ).eval()


@pytest.fixture(scope="module")
def transformer():
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        in_channels=16,
        axes_dims_rope=(16, 24, 24),
        guidance_embeds=True,
    ).eval()
    for name, each in model.named_parameters():
        if each.ndim > 1:  # as wide as those of trained ones, so that every part counts
            torch.nn.init.normal_(each, std=1.5 * each.shape[1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(each, std=0.3)
    return model


def written(model, precision, folder):
    path = folder / single.file_name(layout(precision), "tiny")
    single.write(model, layout(precision), {}, path, torch.bfloat16, SILENT)
    with safe_open(str(path), framework="pt") as file:
        return path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def opened(model, tensors, said):
    made = copy.deepcopy(model)
    state = single.decode(made, json.loads(said["quantization_config"]), tensors)
    made.load_state_dict({name: each.float() for name, each in state.items()}, strict=False)
    return made.eval()


def w4a4(rows, columns, precision, *, bias=True):
    """Tensors of a layer as Nunchaku's modules have them: names, shapes, types."""
    half = torch.bfloat16
    own = {
        "qweight": ((rows, columns // 2), torch.int8),
        "wscales": (
            (columns // GROUP[precision], rows),
            half if precision == "int4" else torch.float8_e4m3fn,
        ),
        "smooth": ((columns,), half),
        "smooth_orig": ((columns,), half),
        "lora_down": ((columns, 16), half),
        "lora_up": ((rows, 16), half),
    }
    if bias:
        own["bias"] = ((rows,), half)
    if precision == "nvfp4":
        own["wcscales"] = ((rows,), half)
    return own


def w4a16(rows, columns):
    half = torch.bfloat16
    scales = ((columns // 64, rows), half)
    return {
        "qweight": ((rows // 4, columns // 2), torch.int32),
        "wscales": scales,
        "wzeros": scales,
        "bias": ((rows,), half),
    }


def shapes(tensors):
    return {name: (tuple(each.shape), each.dtype) for name, each in tensors.items()}


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_sdxl_has_the_tensors_of_nunchakus_unet(unet, precision, tmp_path):
    path, tensors, said = written(unet, precision, tmp_path)
    assert path.name == f"svdq-{'int4' if precision == 'int4' else 'fp4'}_r16-tiny.safetensors"
    wanted = {name: (tuple(each.shape), torch.bfloat16) for name, each in unet.state_dict().items()}
    blocks = [name for name, part in unet.named_modules() if type(part).__name__ == "BasicTransformerBlock"]
    assert BLOCK in blocks
    for block in blocks:
        for gone in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
            del wanted[f"{block}.{gone}.weight"]
        layers = {
            "attn1.to_qkv": w4a4(384, 128, precision, bias=False),
            "attn1.to_out.0": w4a4(128, 128, precision),
            "attn2.to_q": w4a4(128, 128, precision, bias=False),
            "attn2.to_out.0": w4a4(128, 128, precision),
            "ff.net.0.proj": w4a4(1024, 128, precision),
            "ff.net.2": w4a4(128, 512, precision),
        }
        for name, own in layers.items():
            for each in ("weight", "bias"):
                wanted.pop(f"{block}.{name}.{each}", None)
            wanted |= {f"{block}.{name}.{key}": value for key, value in own.items()}
    assert shapes(tensors) == wanted
    assert said["model_class"] == "NunchakuSDXLUNet2DConditionModel"
    assert type(unet).from_config(json.loads(said["config"])).config.cross_attention_dim == 128
    comfy = json.loads(said["comfy_config"])
    assert comfy["model_class"] == "SDXL"
    assert comfy["model_config"]["transformer_depth"] == [0, 1]


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_flux_has_the_tensors_of_nunchakus_transformer(transformer, precision, tmp_path):
    _, tensors, said = written(transformer, precision, tmp_path)
    half = torch.bfloat16
    layers = {
        "transformer_blocks.0.qkv_proj": (384, 128),
        "transformer_blocks.0.qkv_proj_context": (384, 128),
        "transformer_blocks.0.out_proj": (128, 128),
        "transformer_blocks.0.out_proj_context": (128, 128),
        "transformer_blocks.0.mlp_fc1": (512, 128),
        "transformer_blocks.0.mlp_fc2": (128, 512),
        "transformer_blocks.0.mlp_context_fc1": (512, 128),
        "transformer_blocks.0.mlp_context_fc2": (128, 512),
        "single_transformer_blocks.0.qkv_proj": (384, 128),
        "single_transformer_blocks.0.out_proj": (128, 128),
        "single_transformer_blocks.0.mlp_fc1": (512, 128),
        "single_transformer_blocks.0.mlp_fc2": (128, 512),
    }
    wanted = {
        f"{name}.{key}": value for name, size in layers.items() for key, value in w4a4(*size, precision).items()
    }
    for name, rows in {
        "transformer_blocks.0.norm1.linear": 768,
        "transformer_blocks.0.norm1_context.linear": 768,
        "single_transformer_blocks.0.norm.linear": 384,
    }.items():
        wanted |= {f"{name}.{key}": value for key, value in w4a16(rows, 128).items()}
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        wanted[f"transformer_blocks.0.{name}.weight"] = ((64,), half)
    for name in ("norm_q", "norm_k"):
        wanted[f"single_transformer_blocks.0.{name}.weight"] = ((64,), half)
    rest = {name: each for name, each in transformer.state_dict().items() if "_blocks." not in name}
    assert shapes(tensors) == wanted | {name: (tuple(each.shape), half) for name, each in rest.items()}
    quantization = json.loads(said["quantization_config"])
    kind = "int4" if precision == "int4" else "fp4_e2m1_all"
    assert quantization["weight"]["dtype"] == quantization["activation"]["dtype"] == kind
    assert quantization["rank"] == 16
    comfy = json.loads(said["comfy_config"])
    assert comfy["model_class"] == "Flux"
    assert comfy["model_config"]["hidden_size"] == 128
    assert comfy["model_config"]["in_channels"] == 4


def test_true_flux_gets_comfyuis_own_config():
    """As ComfyUI finds it for FLUX.1-dev."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=0, num_single_layers=0, guidance_embeds=True)
    found = single.comfy_config(model)["model_config"]
    known = {"hidden_size": 3072, "num_heads": 24, "vec_in_dim": 768, "context_in_dim": 4096, "in_channels": 16}
    assert found.items() >= known.items()
    assert found["axes_dim"] == [16, 56, 56]


@pytest.mark.parametrize(("precision", "least"), [("int4", 0.35), ("nvfp4", 0.25)])
def test_what_is_read_back_predicts_nearly_the_same(unet, transformer, precision, least, tmp_path):
    generator = torch.Generator().manual_seed(1)

    def random(*size):
        return torch.randn(*size, generator=generator)

    time = {"text_embeds": random(1, 16), "time_ids": torch.zeros(1, 6)}
    calls = {
        "unet": (unet, (random(1, 4, 8, 8), 500, random(1, 5, 128)), {"added_cond_kwargs": time}),
        "transformer": (
            transformer,
            (),
            {
                "hidden_states": random(1, 16, 16),
                "encoder_hidden_states": random(1, 5, 64),
                "pooled_projections": random(1, 32),
                "timestep": torch.tensor([0.5]),
                "img_ids": torch.zeros(16, 3),
                "txt_ids": torch.zeros(5, 3),
                "guidance": torch.tensor([3.5]),
            },
        ),
    }
    for name, (model, arguments, named) in calls.items():
        (tmp_path / name).mkdir()
        _, tensors, said = written(model, precision, tmp_path / name)
        again = opened(model, tensors, said)
        with torch.no_grad():
            wanted, given = (each(*arguments, **named)[0] for each in (model, again))
        assert float((given - wanted).norm() / wanted.norm()) < least, name


def test_shifted_inputs_are_what_the_fused_kernel_makes_of_them(transformer, tmp_path):
    """A feed-forward layer after GELU by the format's description: codes 0 to 15 of inputs that are shifted."""
    _, tensors, said = written(transformer, "int4", tmp_path)
    name = "transformer_blocks.0.mlp_fc2"
    own = {key: tensors[f"{name}.{key}"] for key in w4a4(128, 512, "int4")}
    layer = opened(transformer, tensors, said).get_submodule("transformer_blocks.0.ff.net.2")
    inputs = torch.nn.functional.gelu(torch.randn(9, 512, generator=torch.Generator().manual_seed(2)))
    given = inputs.bfloat16()
    moved = (given.float() + SHIFT).bfloat16().float() / kernels.scales(own["smooth"], 512).T
    groups = moved.bfloat16().float().view(9, 8, 64)
    scale = groups.amax(2, keepdim=True) / 15
    codes = (groups / scale).round()
    assert 0 <= float(codes.min()) <= float(codes.max()) == 15
    weights = (kernels.weight_codes(own["qweight"]).long() ^ 8) - 8.0
    matrix = weights.view(128, 8, 64) * kernels.scales(own["wscales"], 128)[..., None]
    expected = (codes * scale.bfloat16().float()).flatten(1) @ matrix.flatten(1).T
    low = (given.float() @ kernels.factor(own["lora_down"], down=True).T).bfloat16().float()
    expected += low @ kernels.factor(own["lora_up"], down=False).T + kernels.scales(own["bias"], 128).T
    torch.testing.assert_close(layer(inputs), expected, atol=0.05, rtol=0.02)
    original = transformer.transformer_blocks[0].ff.net[2](inputs).detach()
    assert float((expected - original).norm() / original.norm()) < 0.25


def test_modulations_are_interleaved_and_scales_get_one(transformer, tmp_path):
    _, tensors, _ = written(transformer, "int4", tmp_path)
    source = transformer.transformer_blocks[0].norm1.linear.bias.detach().view(6, 128)
    bias = tensors["transformer_blocks.0.norm1.linear.bias"].float().view(128, 6)
    added = torch.tensor([0.0, 1, 0, 0, 1, 0])
    torch.testing.assert_close(bias, source.T + added, atol=0.02, rtol=0.01)


def test_a_broken_file_is_told(unet, tmp_path):
    path, tensors, said = written(unet, "int4", tmp_path)
    assert read_header(path).metadata["model_class"] == said["model_class"]
    quantization = json.loads(said["quantization_config"])
    del tensors[f"{BLOCK}.attn2.to_q.wscales"]
    with pytest.raises(BuildError, match=r"attn2\.to_q is broken"):
        single.decode(copy.deepcopy(unet), quantization, tensors)
    with pytest.raises(BuildError, match="none of Nunchaku's"):
        single.decode(copy.deepcopy(unet), {"method": "svdquant"}, tensors)
    with pytest.raises(BuildError, match="no Linear"):
        single.write(torch.nn.Linear(2, 2), layout("int4"), {}, path, torch.bfloat16, SILENT)


def test_it_is_made_only_when_asked_for():
    assert NUNCHAKU.usual == ""
    assert set(NUNCHAKU.variants) == {"nunchaku-int4", "nunchaku-nvfp4"}


def broken(path, change):
    """The file again, with its tensors and metadata as `change` leaves them."""
    with safe_open(str(path), framework="pt") as file:
        tensors, said = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, said)
    save_file(tensors, path, metadata=said)


FAULTS = {
    "conv_in.weight was not written as it is": lambda tensors, said: tensors["conv_in.weight"].view(-1)[3].neg_(),
    "conv_in.bias is missing": lambda tensors, said: tensors.pop("conv_in.bias"),
    "extra.weight is not of its config": lambda tensors, said: tensors.update({"extra.weight": torch.zeros(2)}),
    "to_qkv was not written whole": lambda tensors, said: tensors.pop(f"{BLOCK}.attn1.to_qkv.lora_up"),
    "attn2.to_q was not written whole": lambda tensors, said: tensors.update(
        {f"{BLOCK}.attn2.to_q.qweight": tensors[f"{BLOCK}.attn2.to_q.qweight"][:64].clone()}
    ),
    "to_out.0 was not written whole: its bias": lambda tensors, said: tensors.pop(f"{BLOCK}.attn1.to_out.0.bias"),
    "smooth_orig is another": lambda tensors, said: tensors[f"{BLOCK}.ff.net.2.smooth_orig"].mul_(2),
    "was not written whole: proj_down": lambda tensors, said: said.update(
        quantization_config=said["quantization_config"].replace('"rank": 16', '"rank": 32')
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_written_file_is_held_against_its_config_and_the_model(unet, fault, tmp_path):
    path, _, _ = written(unet, "int4", tmp_path)
    source = unet.state_dict().__getitem__
    single.prove(path, type(unet), source, torch.bfloat16)
    broken(path, FAULTS[fault])
    with pytest.raises(BuildError, match=re.escape(fault)):
        single.prove(path, type(unet), source, torch.bfloat16)


def test_writing_proves_what_it_wrote(transformer, tmp_path, monkeypatch):
    """Norms of two layers exchanged between reading and writing."""
    monkeypatch.setattr(single.Parts, "join", exchanging(single.Parts.join))
    with pytest.raises(BuildError, match="was not written as it is"):
        written(transformer, "int4", tmp_path)


def exchanging(join):
    def joined(self, folder, stem, **settings):
        (path,) = join(self, folder, stem, **settings)
        one, other = (f"transformer_blocks.0.norm_{each}.weight" for each in ("q", "added_q"))

        def change(tensors, said):
            tensors[one] = tensors[other].clone() + 1

        broken(path, change)
        return [path]

    return joined
