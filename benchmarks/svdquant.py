"""SVDQuant and SDNQ: fidelity on the built-in checkpoint, and time, memory and size on the shapes of large ones.

On the built-in checkpoint, with prompts, seeds and a step count that calibration did not see: error of noise
predictions and PSNR of pictures; `svdquant-int4` beside plain INT4 W4A4 without a low-rank part (both in the
kernels' arithmetic), `sdnq-uint4` beside the package sdnq itself with `use_svd` at the same group size and rank.

On random weights of the true shapes: seconds, peak memory of the process, and bytes. UNets of SD 1.5 and SDXL with
16-bit weights, calibrated on two calls; FLUX transformers of three and of six blocks of the true width, streamed
from shards without calibration, with the forecast for all 57. Each in a process of its own.

`--quick` takes a brief calibration, two prompts and narrow shapes, `--only PART` (fidelity, sd15, sdxl, flux) some
of it. Each figure is printed and written to `--json FILE` as soon as it is known, beside those of an earlier run's
parts; what is going on is told on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sdhub.backends import sdnq, svdquant
from sdhub.backends.sdnq.build import layers_of as sdnq_layers
from sdhub.backends.sdnq.presets import PRESETS as SDNQ
from sdhub.backends.svdquant.presets import PRESETS
from sdhub.backends.svdquant.targets import layers_of as lite_layers
from sdhub.checkpoint.half_precision import compute_in_float32
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.isolated import MEMORY
from sdhub.core.progress import Progress, Task
from sdhub.core.work import write_atomic
from sdhub.evidence.memory import peak_mib
from sdhub.evidence.metrics import psnr
from sdhub.evidence.sampling import Prompt, Sampling
from sdhub.recipes.recipe import ComponentRecipe, Recipe
from sdhub.workflow import measure
from tests.environments import environment

UNSEEN = ("cat face", "taco", "green apple", "basketball", "bear", "pear", "fish", "strawberry")
STEPS, GUIDANCE, SEED = 15, 4.0, 7000
PEER = ("diffusers==0.42.1", "sdnq==0.2.8", "transformers", "accelerate", "torch==2.13.0", "pillow")
PEER_SCRIPT = """
import sys, torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from sdnq import SDNQConfig, sdnq_post_load_quant
from sdnq.dequantizer import dequantize_sdnq_model
source, out, names = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
torch.manual_seed(0)
unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=torch.float32)
kept = [f"{name}.weight" for name in names if name]
unet = sdnq_post_load_quant(unet, weights_dtype="uint4", group_size=64, use_svd=True, svd_rank=32, quant_conv=True,
                            add_skip_keys=False, modules_to_not_convert=kept, torch_dtype=torch.float32)
save_file({name: each.contiguous() for name, each in dequantize_sdnq_model(unet).state_dict().items()}, out)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=list(PARTS))
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.shape:
        measured = streamed if given.shape.startswith("flux") else shaped
        print(json.dumps(measured(given.shape, quick=given.quick)))
        return
    rows = known(given.json)
    for row in figures(given.only or list(PARTS), quick=given.quick):
        rows = {**rows, row["figure"]: row}
        if given.json:
            write_atomic(given.json, (json.dumps(list(rows.values()), indent=1) + "\n").encode())
        peer = "" if row["peer"] is None else f"{row['peer']:9.4f}"
        print(f"{row['figure']:76} {row['ours']:9.4f} {peer:9} {row['target']:12}", end="", flush=True)
        print("" if row["met"] else "MISSED", flush=True)


def known(path: Path | None) -> dict[str, dict[str, Any]]:
    """Figures of an earlier run."""
    if path is None or not path.exists():
        return {}
    return {row["figure"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def figures(parts: Sequence[str], *, quick: bool) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from PARTS[part](quick=quick)


class Told(Progress):
    """Lines on standard error: what begins, and each tenth of it that is done."""

    def note(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    @contextmanager
    def task(self, label: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        self.note(label)
        yield ToldTask(self, label, total)


class ToldTask(Task):
    def __init__(self, told: Told, label: str, total: float | None) -> None:
        self.told, self.label, self.whole, self.done = told, label, total, 0.0

    def advance(self, amount: float = 1.0) -> None:
        before, self.done = self.done, self.done + amount
        if self.whole and int(10 * self.done / self.whole) > int(10 * before / self.whole):
            self.told.note(f"{self.label}: {self.done / self.whole:.0%}")


def fidelity(*, quick: bool) -> Iterator[dict[str, Any]]:
    judge = Judge(quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        for variant, least, peer_name, peer in (
            ("svdquant-int4", 10 ** (-3 / 20), "plain INT4 W4A4", plain_w4a4),
            ("sdnq-uint4", 0.5, "sdnq's own use_svd", sdnq_own),
        ):
            backend = {"svdquant": svdquant, "sdnq": sdnq}[variant.partition("-")[0]].BACKEND
            out = Path(folder) / variant
            out.mkdir()
            recipe = backend.recipe(judge.checkpoint, variant)
            if quick and recipe.calibration is not None:
                brief = {"prompts": recipe.calibration.prompts[:3], "steps": 8, "recorded": 3, "rows": 256}
                recipe = recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update=brief)})
            start = time.perf_counter()
            backend.build(judge.checkpoint, judge.base(), recipe, out, TOLD)
            seconds = time.perf_counter() - start
            mine = judge(backend.open(out))
            theirs = judge(peer(judge.base(), recipe))
            name = f"emoji-sd, {variant} beside {peer_name}"
            ratio = mine["error"] / theirs["error"]
            yield figure(
                f"{name}: noise prediction", mine["error"], theirs["error"], f"<= {least:.3g}", ratio <= least
            )
            yield figure(f"{name}: pictures", mine["psnr"], theirs["psnr"], "", True, unit="dB PSNR")
            yield figure(f"emoji-sd, {variant}: calibrating and building", seconds, None, "", True, unit="s")


class Judge:
    """Noise predictions and pictures of a pipeline, against those of the base in float32."""

    def __init__(self, *, quick: bool) -> None:
        self.checkpoint = resolve("demo")
        texts = UNSEEN[:2] if quick else UNSEEN
        self.sampling = Sampling(
            tuple(Prompt(text, SEED + n) for n, text in enumerate(texts)), STEPS, GUIDANCE, 64, 64
        )
        base = self.base()
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        handle = base.unet.register_forward_hook(self._keep, with_kwargs=True)
        self.pictures = [sample.image for sample in measure.draw_all(base, self.sampling, TOLD)]
        handle.remove()

    def base(self) -> Any:
        return measure.load_base(self.checkpoint, endpoint(None), TOLD)

    def __call__(self, pipe: Any) -> dict[str, float]:
        off = whole = 0.0
        with torch.no_grad():
            for latents, step, text, wanted in self.calls:
                given = pipe.unet(latents, step, encoder_hidden_states=text)[0]
                off += float((given - wanted).square().sum())
                whole += float(wanted.square().sum())
        drawn = [sample.image for sample in measure.draw_all(pipe, self.sampling, TOLD)]
        likeness = [psnr(base, mine, peak=1.0) for base, mine in zip(self.pictures, drawn, strict=True)]
        return {"error": (off / whole) ** 0.5, "psnr": sum(likeness) / len(likeness)}

    def _keep(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        self.calls.append((args[0].clone(), args[1], kwargs["encoder_hidden_states"].clone(), output[0].clone()))


def plain_w4a4(pipe: Any, recipe: Recipe) -> Any:
    """The same layers, weights and inputs rounded to the nearest, nothing else."""
    from sdhub.compression.w4a4 import rounded_inputs, rounded_weight

    class Plain(torch.nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.nn.functional.linear(rounded_inputs(inputs, "int4"), self.weight, self.bias)

    for name in lite_layers(pipe.unet, recipe.components["unet"]):
        layer = pipe.unet.get_submodule(name)
        layer.weight.data = rounded_weight(layer.weight.data, "int4", search=0).dequantize()
        layer.__class__ = Plain
    return pipe


def sdnq_own(pipe: Any, recipe: Recipe) -> Any:
    """What the package itself makes of the same layers, from an environment of its own."""
    from safetensors.torch import load_file

    from sdhub.demo import emoji_sd

    layers = sdnq_layers(pipe.unet, recipe.components["unet"])
    kept = [name for name, part in pipe.unet.named_modules() if hasattr(part, "weight") and name not in layers]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "unet.safetensors"
        python = environment("diffusers-0.42", PEER)
        command = [str(python), "-I", "-c", PEER_SCRIPT, str(emoji_sd()), str(out), ",".join(kept)]
        subprocess.run(command, check=True, env={"SDNQ_USE_TORCH_COMPILE": "0", "PATH": "/usr/bin:/bin"})
        pipe.unet.load_state_dict(load_file(out))
    return pipe


# Name, seconds and GiB allowed (on two cores), and bytes of the denoiser, None where the issue sets no bound.
SHAPES: Mapping[str, tuple[str, float | None, float | None, float | None]] = {
    "sd15": ("sdnq-uint4", 240, 6, None),
    "sdxl": ("svdquant-int4", 900, 8, 2.10e9),
}


def shape_figures(shape: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    variant, seconds, memory, size = SHAPES[shape]
    found = apart(shape, quick=quick)
    name = f"{shape} shape, {variant}{' (narrow)' if quick else ''}"
    for what, unit, limit in (("seconds", "s", seconds), ("gib", "GiB peak", memory), ("bytes", "bytes", size)):
        met = quick or limit is None or found[what] <= limit
        yield figure(f"{name}: {what}", found[what], None, f"<= {limit:g}" if limit else "", met, unit=unit)
    yield figure(f"{name}: bytes of the original in 16 bits", found["original"], None, "", True, unit="bytes")


def apart(shape: str, *, quick: bool) -> dict[str, float]:
    """`shaped` or `streamed` in a process of its own, whose peak memory is its own."""
    command = [sys.executable, str(Path(__file__)), "--shape", shape, *(["--quick"] if quick else [])]
    given = {**MEMORY, **os.environ}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=given)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def flux_figures(*, quick: bool) -> Iterator[dict[str, Any]]:
    few, more = apart("flux-1", quick=quick), apart("flux-2", quick=quick)
    name = f"FLUX shape streamed, svdquant-int4{' (narrow)' if quick else ''}"
    growth = more["gib"] / few["gib"]
    yield figure(f"{name}: peak of six blocks over that of three", growth, None, "<= 1.1", growth <= 1.1, unit="")
    yield figure(f"{name}: peak memory", more["gib"], None, "", True, unit="GiB")
    whole = more["seconds"] * more["all"] / more["original"]
    yield figure(f"{name}: forecast of the time for all 57 blocks", whole / 60, None, "", True, unit="min")
    size, full = more["forecast"], more["all"]
    yield figure(
        f"{name}: forecast of the size of all 57 blocks", size, full, "<= 6.8e9", size <= 6.8e9, unit="bytes"
    )


def streamed(shape: str, *, quick: bool) -> dict[str, float]:
    """Quantize a FLUX transformer of `flux-<n>` (n blocks with two streams, 2 n with one) from its shards."""
    from sdhub.backends.streaming import stream
    from sdhub.backends.svdquant.build import write

    depth = int(shape.partition("-")[2])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_flux(root, flux(depth, 2 * depth, quick=quick))
        module, read = stream(root, "transformer")
        layers = lite_layers(module, flux_component(module))
        start = time.perf_counter()
        write(module, layers, {}, root / "out", torch.bfloat16, TOLD, read=read)
        seconds = time.perf_counter() - start
    whole = flux(19, 38, quick=False)
    return {
        "seconds": seconds,
        "gib": (peak_mib() or 0) / 1024,
        "original": 2.0 * sum(each.numel() for each in module.parameters()),
        "all": 2.0 * sum(each.numel() for each in whole.parameters()),
        "forecast": forecast(whole),
    }


def flux(double: int, single: int, *, quick: bool) -> Any:
    """FLUX.1-dev with fewer blocks, on the meta device."""
    from diffusers import FluxTransformer2DModel

    narrow = {"num_attention_heads": 2, "joint_attention_dim": 256} if quick else {}
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True, **narrow)


def flux_component(module: Any) -> ComponentRecipe:
    """W4A4 for the blocks, W4A16 for what modulates them, as Nunchaku has it."""
    from sdhub.recipes.recipe import Affine

    modulations = [
        name
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and "blocks." in name and ".norm" in name
    ]
    return ComponentRecipe(
        default=PRESETS["svdquant-int4"].weights,
        layers=dict.fromkeys(modulations, Affine(bits=4, group_size=64)),
    )


def forecast(module: Any) -> float:
    """Bytes of the weights of a whole transformer."""
    size: float
    layers = lite_layers(module, flux_component(module))
    size = 2.0 * sum(each.numel() for each in module.parameters())
    for name, layout in layers.items():
        layer = module.get_submodule(name)
        size += layout.bits(layer.out_features, layer.in_features) / 8 - 2 * layer.weight.numel()
    return size


def write_flux(root: Path, module: Any) -> None:
    """Random weights in shards, a tensor in memory at a time."""
    from benchmarks.shapes import weight_of
    from sdhub.backends.parts import Parts

    folder = root / "transformer"
    parts = Parts(folder / ".parts")
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        value = weight_of(name, shape) if len(shape) > 1 else torch.full(shape, float(name.endswith("weight")))
        parts.put(name, {name: value.bfloat16()})
    parts.join(folder, "diffusion_pytorch_model", metadata={"format": "pt"}, shard=500_000_000)
    module.save_config(folder)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (root / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def shaped(shape: str, *, quick: bool) -> dict[str, float]:
    """Quantize a UNet of random weights, calibrated on two calls of random inputs."""
    from sdhub.backends.sdnq.build import write as write_sdnq
    from sdhub.backends.svdquant.build import TOKENS
    from sdhub.backends.svdquant.build import write as write_lite

    variant = SHAPES[shape][0]
    unet = random_unet(shape, quick=quick)
    component = ComponentRecipe(default={**PRESETS, **SDNQ}[variant].weights)
    lite = variant.startswith("svdquant")
    layers: Mapping[str, Any] = lite_layers(unet, component) if lite else sdnq_layers(unet, component)
    original = 2.0 * sum(each.numel() for each in unet.parameters())
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        statistics = two_calls(unet, list(layers), tokens=TOKENS if lite else 0)
        write: Callable[..., Any] = write_lite if lite else write_sdnq
        write(unet, layers, statistics, Path(folder) / "unet", torch.float16, TOLD)
        size = sum(path.stat().st_size for path in (Path(folder) / "unet").iterdir())
    return {
        "seconds": time.perf_counter() - start,
        "gib": (peak_mib() or 0) / 1024,
        "bytes": float(size),
        "original": original,
    }


def two_calls(unet: Any, layers: list[str], *, tokens: int) -> Mapping[str, Any]:
    from sdhub.backends.input_statistics import BUDGET, shared_inputs
    from sdhub.compression.calibration import collect, fitting_block

    leaders = shared_inputs(unet, layers)
    watched = sorted(set(leaders.values()))
    side = int(unet.config.sample_size)
    generator = torch.Generator().manual_seed(0)

    def drive(_: Any) -> None:
        for step in (800, 200):
            latents = torch.randn(1, 4, side, side, generator=generator).to(unet.dtype)
            text = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator).to(unet.dtype)
            added = None
            if unet.config.addition_embed_type == "text_time":
                pooled = torch.randn(1, 1280, generator=generator).to(unet.dtype)
                added = {
                    "text_embeds": pooled,
                    "time_ids": torch.tensor([[512, 512, 0, 0, 512, 512]]).to(unet.dtype),
                }
            unet(latents, step, text, added_cond_kwargs=added)

    block = min(1280, fitting_block(unet, BUDGET, watched))
    found = collect(
        unet, drive, watched, gram=True, gram_rows=1024, block=block, tokens=tokens, dtype=torch.bfloat16
    )
    return {name: found[leader] for name, leader in leaders.items()}


def random_unet(shape: str, *, quick: bool) -> Any:
    from diffusers import UNet2DConditionModel

    from benchmarks.shapes import SD15, weight_of

    settings: dict[str, Any] = dict(SD15) if shape == "sd15" else {**SD15, **SDXL}
    if quick:
        settings |= {"block_out_channels": [128] * len(settings["block_out_channels"]), "sample_size": 16}
        settings["transformer_layers_per_block"] = 1
        settings["attention_head_dim"] = 8
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    for name, parameter in list(unet.named_parameters()):
        owner, _, own = name.rpartition(".")
        shape_of = tuple(parameter.shape)
        if len(shape_of) > 1:
            value = weight_of(name, shape_of).bfloat16()
        else:
            value = torch.full(shape_of, float(own == "weight"), dtype=torch.bfloat16)
        setattr(unet.get_submodule(owner), own, torch.nn.Parameter(value, requires_grad=False))
    compute_in_float32(unet)
    return unet.eval()


SDXL: Mapping[str, Any] = {
    "sample_size": 64,  # 512 pixels: calibration of 1024 takes five times as long and tells the same
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def figure(
    name: str, ours: float, peer: float | None, target: str, met: bool, *, unit: str = "relative error"
) -> dict[str, Any]:
    ratio = None if peer is None else ours / peer
    return {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met, "unit": unit}


TOLD = Told()
PARTS: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "fidelity": fidelity,
    "sd15": partial(shape_figures, "sd15"),
    "sdxl": partial(shape_figures, "sdxl"),
    "flux": flux_figures,
}


if __name__ == "__main__":
    main()
