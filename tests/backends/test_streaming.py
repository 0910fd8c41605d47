"""Streaming a transformer from shards: the same bytes as from memory, and a cut off run that goes on."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdhub.backends import components
from sdhub.backends.sdnq.build import layers_of as sdnq_layers
from sdhub.backends.sdnq.build import write as write_sdnq
from sdhub.backends.streaming import stream
from sdhub.backends.svdquant.build import write as write_lite
from sdhub.backends.svdquant.targets import layers_of as lite_layers
from sdhub.core.errors import SourceError, UnsupportedError
from sdhub.core.progress import SILENT
from sdhub.recipes.recipe import Affine, ComponentRecipe, LowRank

INT4 = LowRank(rank=16, residual="int4", group_size=64, activations="int4")
UINT4 = LowRank(rank=16, residual="uint4", group_size=64)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A FLUX transformer of one block of either kind, 256 wide, in several shards."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        in_channels=16,
        axes_dims_rope=(16, 24, 24),
        guidance_embeds=True,
    )
    root = tmp_path_factory.mktemp("flux")
    transformer.save_pretrained(root / "transformer", max_shard_size="4MB")
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (root / "model_index.json").write_text(json.dumps(index))
    return root, transformer


def component(module):
    """W4A4, and W4A16 for what modulates."""
    names = [
        name
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear)
        and name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear"))
        and "blocks" in name
    ]
    assert len(names) == 3
    return ComponentRecipe(default=INT4, layers=dict.fromkeys(names, Affine(bits=4, group_size=64)))


def test_streamed_and_loaded_give_the_same_bytes(flux, tmp_path):
    root, transformer = flux
    module, read = stream(root, "transformer")
    layers = lite_layers(module, component(module))
    assert all(parameter.is_meta for parameter in module.parameters())
    kinds = {name: each.kind for name, each in layers.items()}
    assert sum(kind == "svdq_w4a4" for kind in kinds.values()) == 12 + 5
    errors = write_lite(module, layers, {}, tmp_path / "streamed", torch.bfloat16, SILENT, read=read)
    assert max(errors.values()) < 0.15
    import copy

    write_lite(copy.deepcopy(transformer), layers, {}, tmp_path / "loaded", torch.bfloat16, SILENT)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        streamed, loaded = (tmp_path / each / name for each in ("streamed", "loaded"))
        if name == "config.json":
            assert (
                json.loads(streamed.read_text())["quantization_config"]
                == json.loads(loaded.read_text())["quantization_config"]
            )
        else:
            assert streamed.read_bytes() == loaded.read_bytes()


def test_a_run_that_was_cut_off_goes_on(flux, tmp_path, monkeypatch):
    root, _ = flux
    module, read = stream(root, "transformer")
    layers = sdnq_layers(module, ComponentRecipe(default=UINT4))
    begun = []

    def failing(name):
        begun.append(name)
        if len(begun) == 9:
            raise KeyboardInterrupt
        return read(name)

    with pytest.raises(KeyboardInterrupt):
        write_sdnq(module, layers, {}, tmp_path / "cut", torch.bfloat16, SILENT, read=failing)
    again = []
    monkeypatch.setattr(components, "MEMORY", 2**24)
    write_sdnq(
        module,
        layers,
        {},
        tmp_path / "cut",
        torch.bfloat16,
        SILENT,
        read=lambda name: again.append(name) or read(name),
    )
    write_sdnq(module, layers, {}, tmp_path / "whole", torch.bfloat16, SILENT, read=read)
    cut, whole = (load_file(tmp_path / each / "diffusion_pytorch_model.safetensors") for each in ("cut", "whole"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in cut)
    weights = [name for name in again if name.removesuffix(".weight") in layers]
    assert len(weights) < len(layers)


def test_missing_weights_are_named(flux, tmp_path):
    import shutil

    root, _ = flux
    copied = shutil.copytree(root, tmp_path / "copy")
    index = copied / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    document = json.loads(index.read_text())
    lost = document["weight_map"]["proj_out.weight"]
    document["weight_map"] = {name: file for name, file in document["weight_map"].items() if file != lost}
    index.write_text(json.dumps(document))
    with pytest.raises(SourceError, match="is missing"):
        stream(copied, "transformer")
    with pytest.raises(SourceError, match="no component vae"):
        stream(root, "vae")


def rewritten(root, copied, change):
    """A copy of the folder, its transformer in one file of tensors that `change` made of the original's."""
    import shutil

    shutil.copytree(root, copied)
    part = copied / "transformer"
    tensors = {}
    for path in sorted(part.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (part / "diffusion_pytorch_model.safetensors.index.json").unlink(missing_ok=True)
    save_file(change(tensors), part / "diffusion_pytorch_model.safetensors")
    return copied


def test_a_tensor_that_no_layer_takes_is_named(flux, tmp_path):
    surplus = "transformer_blocks.7.attn.to_q.weight"
    copied = rewritten(flux[0], tmp_path / "copy", lambda tensors: {**tensors, surplus: torch.zeros(4, 4)})
    with pytest.raises(UnsupportedError, match="no use") as caught:
        stream(copied, "transformer")
    assert surplus in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_8_bit_floats_are_widened(flux, tmp_path, kind):
    """The variant is that of the same numbers in 32 bits, byte for byte."""
    narrow = rewritten(
        flux[0], tmp_path / "narrow", lambda tensors: {name: each.to(kind) for name, each in tensors.items()}
    )
    wide = rewritten(
        narrow, tmp_path / "wide", lambda tensors: {name: each.float() for name, each in tensors.items()}
    )
    for write, layers_of, chosen in (
        (write_lite, lite_layers, component),
        (write_sdnq, sdnq_layers, lambda module: ComponentRecipe(default=UINT4)),
    ):
        made = []
        for root in (narrow, wide):
            module, read = stream(root, "transformer")
            out = tmp_path / f"{write.__module__}-{root.name}"
            write(module, layers_of(module, chosen(module)), {}, out, torch.bfloat16, SILENT, read=read)
            made.append((out / "diffusion_pytorch_model.safetensors").read_bytes())
        assert made[0] == made[1]
