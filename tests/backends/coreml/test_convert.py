"""Packages against coremltools' own converter, loader and decompression."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdhub.backends.coreml import specs
from sdhub.backends.coreml.constants import Codes, least_target
from sdhub.backends.coreml.convert import convert_component
from sdhub.backends.coreml.interpreter import open_package
from sdhub.backends.coreml.specs import ComponentSpec, Feature, Shape, WrapOptions
from sdhub.compression.affine import Grid, quantize
from sdhub.compression.palettize import Palette, palettize
from sdhub.core.errors import BuildError, RecipeError, UnsupportedError
from tests.backends.coreml import models

SMALL = Shape(64, 64)


class Pair(nn.Module):
    """A convolution and a Linear, of sizes that groups divide."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.line = nn.Conv2d(8, 32, 3), nn.Linear(32, 160)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.conv(x).mean(dim=(2, 3)))


PAIR = ComponentSpec(
    "pair",
    "pair",
    "Pair",
    wrap=lambda module, _: module,
    inputs=lambda *_: {"x": Feature((1, 8, 6, 6), "float16", "")},
    outputs=lambda _: {"y": ""},
)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loaded(path: Path) -> Any:
    """The operations of a package as coremltools' own loader reads them."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    return list(program.functions["main"].operations)


def signature(path: Path) -> list[tuple[Any, ...]]:
    """All computing operations in order, each with its constants and the shape of what it makes."""
    return [
        (
            operation.op_type,
            tuple(operation.outputs[0].shape),
            tuple(_value(name, each) for name, each in sorted(operation.inputs.items())),
        )
        for operation in loaded(path)
        if operation.op_type != "const"
    ]


def _value(name: str, inputs: Any) -> Any:
    variables = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    values = [None if each is None else each.val for each in variables]
    if all(isinstance(each, np.ndarray) for each in values):
        return name, tuple((each.dtype.name, each.shape, each.tobytes()) for each in values)
    return name, tuple(str(each) for each in values)


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (lambda: models.shallow(), specs.unet()),
        (models.text, specs.text_encoder("text_encoder", "", wide=False)),
        (models.vae, specs.vae_decoder()),
    ],
    ids=["unet", "text encoder", "vae"],
)
def test_same_operations_and_constants_as_coremltools_alone(
    make: Any, spec: ComponentSpec, tmp_path: Path
) -> None:
    import coremltools as ct

    model = make()
    shape = Shape(64, 64, scale=2) if spec.part == "vae" else SMALL
    convert_component(spec, model, tmp_path / "ours.mlpackage", shape=shape)
    inputs = spec.inputs(model, shape)
    given = tuple(torch.ones(each.shape) for each in inputs.values())
    with torch.no_grad():
        traced = torch.jit.trace(spec.wrap(model, WrapOptions()).eval(), given, check_trace=False)
    waves = ("sin", "cos")
    alone = ct.convert(
        traced,
        inputs=[
            ct.TensorType(name=name, shape=it.shape, dtype=np.dtype(it.scalar)) for name, it in inputs.items()
        ],
        outputs=[ct.TensorType(name=name, dtype=np.float32) for name in spec.outputs(model)],
        minimum_deployment_target=ct.target.iOS16,
        # The one thing that is asked for: waves of timesteps in 32 bits.
        compute_precision=ct.transform.FP16ComputePrecision(
            lambda op: (
                op.op_type not in waves and not any(each.op_type in waves for each in op.outputs[0].child_ops)
            )
        ),
        skip_model_load=True,
    )
    alone.save(str(tmp_path / "theirs.mlpackage"))
    ours, theirs = signature(tmp_path / "ours.mlpackage"), signature(tmp_path / "theirs.mlpackage")
    assert [each[:2] for each in ours] == [each[:2] for each in theirs]
    assert ours == theirs


def _codes(kind: str, weight: Tensor) -> Codes:
    made = {
        **{f"{bits} bits": lambda bits=bits: palettize(weight, bits) for bits in (1, 2, 3, 4, 6, 8)},
        "grouped": lambda: palettize(weight, 4, group_size=16),
        "vectors": lambda: palettize(weight, 4, cluster_dim=2),
        "table in 8 bits": lambda: palettize(weight, 6, group_size=16, lut_dtype=torch.int8),
        "int8": lambda: quantize(weight, 8, symmetric=True),
        "uint8": lambda: quantize(weight, 8),
        "int8 per tensor": lambda: quantize(weight, 8, symmetric=True, per="tensor"),
        "int4 blocks": lambda: quantize(weight, 4, symmetric=True, group_size=weight[0].numel() // 4),
        "uint4 blocks": lambda: quantize(weight, 4, group_size=weight[0].numel() // 4),
    }
    return made[kind]()


EARLY = ("1 bits", "2 bits", "4 bits", "6 bits", "8 bits", "int8", "uint8", "int8 per tensor")
LATE = ("3 bits", "grouped", "vectors", "table in 8 bits", "int4 blocks", "uint4 blocks")


@pytest.mark.parametrize(
    ("kind", "target"),
    [*((kind, None) for kind in (*EARLY, *LATE)), ("6 bits", "iOS18"), ("int8", "iOS18"), ("4 bits", "iOS17")],
)
def test_codes_arrive(kind: str, target: Any, tmp_path: Path) -> None:
    model = Pair().eval()
    codes = {name: _codes(kind, getattr(model, name).weight.detach()) for name in ("conv", "line")}
    built = convert_component(PAIR, model, tmp_path / "a.mlpackage", codes=codes, target=target)
    assert built.target == (target or ("iOS16" if kind in EARLY else "iOS18"))
    assert all(least_target(each) == ("iOS16" if kind in EARLY else "iOS18") for each in codes.values())
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(1)).half()
    found = open_package(*built.paths).run({"x": x})["y"]
    with torch.no_grad():
        for name, each in codes.items():
            getattr(model, name).weight.data = each.dequantize()
        assert models.snr(found, model(x.float())) > 55
    # Each in its operation, and small: what coremltools reads are the same tables and indices.
    operations = [each for each in loaded(built.paths[0]) if each.op_type.startswith("constexpr_")]
    assert len(operations) == (4 if kind == "table in 8 bits" else 2)
    if target is None and kind in EARLY:
        decompressed = {tuple(each.outputs[0].shape): each.materialized_val_inference() for each in operations}
        for each in codes.values():
            wanted = each.dequantize().numpy()
            assert np.allclose(decompressed[wanted.shape], wanted, rtol=2e-3, atol=1e-4)


def test_names_of_parameters_are_those_of_constants(tmp_path: Path) -> None:
    model = models.shallow()
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = model.get_submodule(layer).weight.detach()
    codes = {layer: palettize(weight, 4), "mid_block.resnets.0.conv1": _conv(model, "mid_block.resnets.0.conv1")}
    built = convert_component(specs.unet(), model, tmp_path / "a.mlpackage", shape=SMALL, codes=codes)
    by_name = {each.outputs[0].name: each for each in loaded(built.paths[0])}
    name = f"{layer.replace('.', '_')}_weight_to_fp16_palettized"
    found = by_name[name].materialized_val_inference()
    assert np.array_equal(found[:, :, 0, 0], codes[layer].dequantize().half().numpy())
    assert "mid_block_resnets_0_conv1_weight_to_fp16_quantized" in by_name
    plain = by_name["down_blocks_0_resnets_0_conv1_weight_to_fp16"].outputs[0].val
    assert np.array_equal(plain, model.down_blocks[0].resnets[0].conv1.weight.detach().half().numpy())
    # Their layers do what they did: nothing else is compressed.
    assert sum(each.op_type.startswith("constexpr_") for each in by_name.values()) == 2


def _conv(model: Any, layer: str) -> Grid:
    return quantize(model.get_submodule(layer).weight.detach(), 8, symmetric=True)


def test_codes_are_looked_up_one_by_one_and_weights_may_be_gone(tmp_path: Path) -> None:
    model = Pair().eval()
    alive = {name: palettize(getattr(model, name).weight.detach(), 6) for name in ("conv", "line")}
    for name in alive:
        getattr(model, name).weight = nn.Parameter(getattr(model, name).weight.to("meta"), requires_grad=False)
    asked: list[str] = []

    class Lazy(Mapping[str, Palette]):
        def __getitem__(self, name: str) -> Palette:
            asked.append(name)
            return alive[name]

        def __iter__(self) -> Iterator[str]:
            return iter(alive)

        def __len__(self) -> int:
            return len(alive)

    convert_component(PAIR, model, tmp_path / "a.mlpackage", codes=Lazy(), target="iOS16")
    assert asked == ["conv", "line"]
    with pytest.raises(BuildError, match=r"conv_weight.*neither numbers nor codes"):
        convert_component(PAIR, model, tmp_path / "b.mlpackage")


def test_the_guidance_of_a_consistency_model_is_found_in_its_codes(tmp_path: Path) -> None:
    model = models.shallow(time_cond_proj_dim=24)
    layer = model.time_embedding.cond_proj
    codes = {"time_embedding.cond_proj": quantize(layer.weight.detach(), 8)}
    layer.weight = nn.Parameter(codes["time_embedding.cond_proj"].dequantize(), requires_grad=False)
    whole = convert_component(specs.unet(), model, tmp_path / "a.mlpackage", shape=SMALL)
    layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)
    gone = convert_component(specs.unet(), model, tmp_path / "b.mlpackage", shape=SMALL, codes=codes)
    assert layer.weight.is_meta
    assert open_package(*gone.paths).metadata["guidance_scale_embedded"] == "8.5"
    assert tree(gone.paths[0]) == tree(whole.paths[0])


def test_two_halves_do_what_the_whole_does(tmp_path: Path) -> None:
    model = models.unet_xl(6)
    spec = specs.unet(6)
    whole = open_package(convert_component(spec, model, tmp_path / "a.mlpackage", shape=SMALL).paths[0])
    built = convert_component(spec, model, tmp_path / "b.mlpackage", shape=SMALL, chunked=True)
    halves = built.paths[1:]
    assert [path.name for path in built.paths] == ["b.mlpackage", "b_chunk1.mlpackage", "b_chunk2.mlpackage"]
    assert tree(built.paths[0]) == tree(tmp_path / "a.mlpackage")
    first, second = (open_package(path) for path in halves)
    given = models.draw({name: (it.shape, getattr(torch, it.dtype)) for name, it in whole.inputs.items()})
    crossed = first.run({name: given[name] for name in first.inputs})
    assert all(it.dtype == "float32" for it in first.outputs.values())
    assert set(second.inputs) <= {*given, *crossed}
    assert set(crossed) <= set(second.inputs)
    found = second.run({name: crossed.get(name, given.get(name)) for name in second.inputs})
    assert list(found) == ["noise_pred"]
    assert torch.equal(found["noise_pred"], whole.run(given)["noise_pred"])
    sizes = [(path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for path in halves]
    assert 0.4 < sizes[0] / sum(sizes) < 0.6


def test_metadata(tmp_path: Path) -> None:
    texts = {"author": "A", "license": "mit", "version": "1", "prediction_type": "v_prediction"}
    built = convert_component(PAIR, Pair(), tmp_path / "a.mlpackage", metadata=texts)
    assert open_package(*built.paths).metadata.items() >= texts.items()
    with pytest.raises(BuildError, match=r"a\.mlpackage is already there"):
        convert_component(PAIR, Pair(), tmp_path / "a.mlpackage")


SCRIPT = """
import sys
from pathlib import Path
from sdhub.backends.coreml import specs
from sdhub.backends.coreml.convert import convert_component
from sdhub.compression.palettize import palettize
from tests.backends.coreml import models

model = models.shallow()
codes = {"conv_out": palettize(model.conv_out.weight.detach(), 6)}
convert_component(specs.unet(), model, Path(sys.argv[1]), shape=specs.Shape(64, 64), codes=codes)
"""


def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / f"{name}.mlpackage")],
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
            cwd=Path(__file__).parents[3],
        )
    assert tree(tmp_path / "a.mlpackage") == tree(tmp_path / "b.mlpackage")
    manifest = json.loads((tmp_path / "a.mlpackage" / "Manifest.json").read_text(encoding="utf-8"))
    assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]


def test_modules_stay_as_they_are(tmp_path: Path) -> None:
    model = models.text()
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    convert_component(specs.text_encoder("text_encoder", "", wide=True), model, tmp_path / "a.mlpackage")
    after = model.state_dict(keep_vars=True)
    assert all(
        id(after[name]) == each and torch.equal(after[name], value) for name, (each, value) in before.items()
    )


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    grid = quantize(torch.randn(8, 8), 8)
    with pytest.raises(RecipeError, match=r"vae has no layer decoder\.nowhere"):
        convert_component(specs.vae_decoder(), models.vae(), tmp_path / "a", codes={"decoder.nowhere": grid})
    with pytest.raises(UnsupportedError, match=r"line_weight.*8 output channels, not 160"):
        convert_component(PAIR, Pair(), tmp_path / "b.mlpackage", codes={"line": grid})


def test_the_other_half_of_a_vae_is_left_out(tmp_path: Path) -> None:
    model = models.vae()
    codes = {"encoder.conv_in": quantize(model.encoder.conv_in.weight.detach(), 8)}
    shape = Shape(64, 64, scale=2)
    built = convert_component(specs.vae_decoder(), model, tmp_path / "a.mlpackage", shape=shape, codes=codes)
    assert not any(each.op_type.startswith("constexpr_") for each in loaded(built.paths[0]))


def test_codes_that_core_ml_has_not(tmp_path: Path) -> None:
    uneven = {"line": palettize(Pair().line.weight.detach(), 4, group_size=48)}
    with pytest.raises(UnsupportedError, match="groups of one size"):
        _hinted(uneven, tmp_path)
    late = {"line": palettize(Pair().line.weight.detach(), 4, group_size=16)}
    with pytest.raises(UnsupportedError, match="iOS 18"):
        convert_component(PAIR, Pair(), tmp_path / "b.mlpackage", codes=late, target="iOS16")
    huge = Pair()
    huge.line = nn.Linear(32, 256)  # large enough for a place of its own
    huge.line.weight.data[0, 0] = 1e6
    with pytest.raises(BuildError, match="line_weight_to_fp16: 1 numbers are not finite"):
        convert_component(PAIR, huge, tmp_path / "c.mlpackage", codes={"conv": quantize(huge.conv.weight, 8)})


def _hinted(codes: Mapping[str, Codes], tmp_path: Path) -> None:
    try:
        convert_component(PAIR, Pair(), tmp_path / "a.mlpackage", codes=codes)
    except UnsupportedError as error:
        raise UnsupportedError(error.hint) from error


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type is timestep"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"mid_block_type": "UNetMidBlock2D"}, "UNetMidBlock2D"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "AttnDownBlock2D"),
    ],
)
def test_other_architectures_are_refused(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=match):
        convert_component(specs.unet(), models.unet(**changes), tmp_path / "a.mlpackage", shape=SMALL)
