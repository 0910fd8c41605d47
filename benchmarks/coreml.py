"""A UNet as a Core ML package with 6-bit palettes, beside coremltools doing the same: seconds and peak memory.

Ours: `sdhub.recipes.weights.compress`, then `convert_component`. The peer, as its guides say: the module
traced, `coremltools.convert`, `palettize_weights` in mode kmeans. Each in a process of its own; making the random
weights is not timed, but their memory counts. SD 1.5's shape for both; SD XL's for ours, where the peer would need
more memory than most machines have. `--quick` takes a narrow UNet of SD 1.5's structure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import shapes

BITS, TEXT = 6, 77
SDXL = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CONFIGS = {
    "sd15": shapes.SD15,
    "sdxl": SDXL,
    "narrow": {**shapes.SD15, "sample_size": 16, "block_out_channels": (64, 128, 256, 256)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("sd15", "sdxl"))
    parser.add_argument("--without-peer", action="store_true", help="where memory is short of 16 GiB")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "SHAPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    chosen = ["narrow"] if given.quick else [given.only] if given.only else ["sd15", "sdxl"]
    rows = [row for shape in chosen for row in figures(shape, peer=not given.without_peer and shape != "sdxl")]
    for row in rows:
        cells = ["" if row[each] is None else f"{row[each]:.4g}" for each in ("ours", "peer", "ratio")]
        print(f"{row['figure']:76} {cells[0]:>8} {cells[1]:>8} {cells[2]:>8}  {row['target']}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def figures(shape: str, *, peer: bool) -> list[dict[str, Any]]:
    """Seconds, peak memory and bytes of one shape."""
    ours = apart("ours", shape)
    theirs = apart("peer", shape) if peer else {}
    limits = {"sd15": (90, 8), "sdxl": (None, 18)}.get(shape, (None, None))
    name = f"UNet of {ours['parameters'] / 1e6:.1f} M parameters, {BITS} bit"
    rows = []
    for what, key, limit, unit in (
        ("converted and compressed", "seconds", limits[0], "s"),
        ("peak memory with the float32 weights", "gib", limits[1], "GiB"),
        ("package", "mb", None, "MB"),
    ):
        mine, other = ours[key], theirs.get(key)
        rows.append(
            {
                "figure": f"{name}: {what}",
                "ours": mine,
                "peer": other,
                "ratio": other / mine if other else None,
                "target": "" if limit is None else f"<= {limit}",
                "met": None if limit is None else mine <= limit,
                "unit": unit,
            }
        )
    return rows


def apart(who: str, shape: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", who, shape]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(who: str, shape: str) -> dict[str, float]:
    unet = random_unet(CONFIGS[shape])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "unet.mlpackage"
        start = time.perf_counter()
        {"ours": ours, "peer": peer}[who](unet, out, shape)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "seconds": seconds,
        "gib": peak_bytes() / 2**30,
        "mb": size / 1e6,
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
    }


def random_unet(config: dict[str, Any]) -> Any:
    """A float32 UNet with the benchmark's heavy-tailed weights."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    for name, parameter in list(unet.named_parameters()):
        shape = tuple(parameter.shape)
        value = shapes.weight_of(name, shape).float() if len(shape) > 1 else torch.full(shape, 0.5)
        owner = unet.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(value, requires_grad=False))
    return unet.eval()


def ours(unet: Any, out: Path, shape: str) -> None:
    import torch

    from sdhub.backends.coreml.convert import convert_component
    from sdhub.backends.coreml.specs import Shape, WrapOptions
    from sdhub.backends.coreml.specs import unet as spec
    from sdhub.recipes.recipe import ComponentRecipe, Palette
    from sdhub.recipes.weights import compress

    weights = {
        name.removesuffix(".weight"): parameter.detach()
        for name, parameter in unet.named_parameters()
        if name.endswith(".weight") and parameter.ndim > 1
    }
    codes = {}
    for name, found in compress(weights, ComponentRecipe(default=Palette(bits=BITS))):
        codes[name] = found
        unet.get_submodule(name).weight = torch.nn.Parameter(weights.pop(name).to("meta"), requires_grad=False)
    side = 8 * CONFIGS[shape]["sample_size"]
    convert_component(
        spec(6 if shape == "sdxl" else 0), unet, out, shape=Shape(side, side), options=WrapOptions(), codes=codes
    )


def peer(unet: Any, out: Path, shape: str) -> None:
    import coremltools as ct
    import coremltools.optimize.coreml as optimize
    import numpy as np
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, sample: Any, timestep: Any, states: Any) -> Any:
            return self.unet(sample, timestep, states, return_dict=False)[0]

    side, width = CONFIGS[shape]["sample_size"], CONFIGS[shape]["cross_attention_dim"]
    inputs = {"sample": (2, 4, side, side), "timestep": (2,), "encoder_hidden_states": (2, TEXT, width)}
    with torch.no_grad():
        traced = torch.jit.trace(Plain(), tuple(torch.zeros(each) for each in inputs.values()), check_trace=False)
    model = ct.convert(
        traced,
        convert_to="mlprogram",
        inputs=[ct.TensorType(name=name, shape=each, dtype=np.float16) for name, each in inputs.items()],
        outputs=[ct.TensorType(name="noise_pred", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    config = optimize.OptimizationConfig(optimize.OpPalettizerConfig(mode="kmeans", nbits=BITS))
    optimize.palettize_weights(model, config).save(str(out))


def peak_bytes() -> int:
    """The most memory that this process had, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
