"""OpenVINO variants beside torch, OpenVINO in 16 bits, and optimum-intel's own hybrid quantization.

python benchmarks/openvino.py [--quick] [--sdxl] [--work FOLDER] [--json FILE]

Everything is timed in alternation, in one process, after a warm-up; the median of the rounds counts. First the
UNet of SD 1.5 with random weights, 64 × 64 latents, batch 1, in every precision that the processor has; then the
built-in checkpoint. `--quick` takes the latter alone, with two prompts; `--sdxl` also looks whether the
UNet of SDXL is quantized within 24 GiB. The UNets that were made are kept in `--work`, so that a run that was cut
off goes on there; each figure is in `--json` as soon as it is known.

How fast a processor can be at best is measured too: seconds of a UNet's products at the best rates at which
OpenVINO multiplies floats and integers here. AVX-512 VNNI multiplies four times as many integers as floats,
AVX2 alone needs three instructions for as many as four of floats take, and AMX is far beyond both.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

# In place of the folder of the script, whose name would hide the package openvino.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import openvino_unet as unets
from benchmarks.openvino_unet import PEER
from sdhub.backends.base import backends
from sdhub.backends.openvino import graph, telemetry
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import SILENT
from sdhub.core.quiet import quiet
from sdhub.evidence import compare, latency
from sdhub.evidence.subject import pixels, subject_kept
from sdhub.workflow import measure, stages
from sdhub.workflow.plan import sampling_for

VARIANTS = (
    "fp16",
    "int8",
    "int8-hybrid",
    "int8-full",
    "int4",
    "fp16-tome0.4",
    "int8-tome0.4",
    "int8-hybrid-tome0.4",
    "int8-full-tome0.4",
    "int4-tome0.4",
)
QUICK_VARIANTS = ("fp16", "int8", "int8-full", "int8-full-tome0.4")
TOGETHER = (("fp16",), ("int8",), ("int8-hybrid",), ("int8-full", "int8-full-tome0.4", PEER))  # timed in turns
TARGETS = {"int8-full": 5.5, "int8-full-tome0.4": 8.0}
PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # hints, and what the processor has to be able to
ROUNDS = 5
CHANNELS, SIDE = 640, 48  # of products that the processor's rates are taken from
SECONDS, GIB, SIZE, SDXL_GIB = 90, 10, 0.26, 24


class Figures:
    """Rows, printed and written as they come."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """A line with the minutes since the start."""
        print(f"[{(time.monotonic() - self.started) / 60:5.1f} min] {text}", flush=True)

    def add(
        self,
        name: str,
        ours: float,
        unit: str = "",
        *,
        peer: float | None = None,
        ratio: float | None = None,
        target: float | None = None,
        most: bool = False,
    ) -> None:
        """One row. The ratio is judged where there is one, else ours; `most`: the target is an upper bound."""
        judged = ours if ratio is None else ratio
        met = None if target is None else judged <= target if most else judged >= target
        bound = None if target is None else f"{'<=' if most else '>='} {target:g}"
        row = {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": bound, "met": met}
        self.rows.append({**row, "unit": unit})
        shown = f"{ours:.4g} {unit}".strip() + (f", {ratio:.2f} times" if ratio is not None else "")
        verdict = "" if met is None else f" (target {target:g}: {'met' if met else 'not met'})"
        self.say(f"{name}: {shown}{verdict}")
        if self.path:
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """All of it, or what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="the built-in checkpoint alone, two prompts")
    parser.add_argument("--sdxl", action="store_true", help="the memory that the UNet of SDXL takes, too")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep the UNets here, some 8 GB")
    chosen = parser.parse_args()
    telemetry.off()
    figures = Figures(chosen.json)
    with tempfile.TemporaryDirectory() as place:
        work = chosen.work or Path(place) / "unets"
        if not chosen.quick:
            sd15(work / "sd15", figures)
        if chosen.sdxl:
            sdxl(work / "sdxl", figures)
        built_in(Path(place) / "demo", figures, quick=chosen.quick)


def sd15(place: Path, figures: Figures) -> None:
    """The UNet of SD 1.5: what quantizing takes, speed of every treatment, and what is possible here."""
    import openvino

    for name in (*unets.TREATMENTS, PEER):
        figures.say(f"making the SD 1.5 UNet, {name}")
        took = unets.part("sd15", name, place)
        if name == "int8-full":
            size = unets.weights_bytes(place / name) / (4 * unets.parameters("sd15"))
            figures.add("SD 1.5 UNet, int8-full: quantizing", took["seconds"], "s", target=SECONDS, most=True)
            figures.add("SD 1.5 UNet, int8-full: peak of it", took["peak_gib"], "GiB", target=GIB, most=True)
            figures.add("SD 1.5 UNet, int8-full: bytes, of 32-bit ones", size, target=SIZE, most=True)
    core = openvino.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    figures.say(f"the processor can: {', '.join(able)}; torch has {torch.get_num_threads()} threads")
    unet, inputs = unets.unet("sd15"), unets.example_inputs("sd15")
    products = multiplications(unet, inputs)
    for hint, needed in PRECISIONS.items():
        if needed in able:
            speeds(place, unet, inputs, products, hint, figures)


def speeds(
    place: Path,
    unet: Any,
    inputs: Mapping[str, torch.Tensor],
    products: Mapping[str, float],
    hint: str,
    figures: Figures,
) -> None:
    """Every treatment beside torch, with a precision hint; the peer beside the one it is compared with."""
    settings = {"INFERENCE_PRECISION_HINT": hint}
    torch_run = torch_call(unet, inputs)
    slowest = []
    for names in TOGETHER:
        runs = {"torch": torch_run}
        for name in names:
            figures.say(f"compiling and timing {name}, {hint}")
            runs[name] = openvino_call(graph.read(place / name), inputs, settings)
        times = alternate(runs)
        slowest.append(times["torch"])
        for name in names:
            figures.add(
                f"SD 1.5 UNet, {name}, {hint}: beside torch float32",
                times[name],
                "s",
                peer=times["torch"],
                ratio=times["torch"] / times[name],
                target=TARGETS.get(name),
            )
        if PEER in times:
            ours, peer = times["int8-full"], times[PEER]
            name = f"SD 1.5 UNet, int8-full, {hint}: beside {PEER}"
            figures.add(name, ours, "s", peer=peer, ratio=peer / ours, target=1)
        del runs
        gc.collect()
    rates = {kind: rate(kind == "integers", hint) for kind in ("floats", "integers")}
    figures.say(", ".join(f"{kind}: {each / 1e9:.0f} G multiplications a second" for kind, each in rates.items()))
    least = products["layers"] / rates["integers"] + products["attention"] / rates["floats"]
    seconds = statistics.median(slowest)
    figures.add(
        f"SD 1.5 UNet, int8-full, {hint}: the most that this processor can give",
        least,
        "s",
        peer=seconds,
        ratio=seconds / least,
    )


def multiplications(unet: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Of one call, in its weighted layers and in its attention."""
    found = {"layers": 0.0, "attention": 0.0}

    def layer(module: Any, _: Any, output: torch.Tensor) -> None:
        found["layers"] += output.numel() * module.weight[0].numel()

    def attention(module: Any, args: Any, given: Mapping[str, Any], _: Any) -> None:
        tokens = args[0].shape[1]
        context = given.get("encoder_hidden_states")
        keys = tokens if context is None else context.shape[1]
        found["attention"] += 2 * args[0].shape[0] * tokens * keys * module.to_q.out_features

    hooks = []
    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            hooks.append(module.register_forward_hook(layer))
        elif name.endswith(("attn1", "attn2")):
            hooks.append(module.register_forward_hook(attention, with_kwargs=True))
    torch_call(unet, inputs)()
    for hook in hooks:
        hook.remove()
    return found


def rate(integers: bool, hint: str) -> float:
    """Multiplications a second as OpenVINO does them here, in the best of matrices and convolutions."""
    from openvino import opset13 as ops

    def convolution(values: Any, weight: Any) -> Any:
        around = [weight.get_shape()[2] // 2] * 2
        return ops.convolution(values, weight, [1, 1], around, around, [1, 1])

    pixels = [1, CHANNELS, SIDE, SIDE]
    products = [([SIDE**2, CHANNELS], [CHANNELS] * 2, lambda *given: ops.matmul(*given, False, True))]
    products += [(pixels, [CHANNELS, CHANNELS, kernel, kernel], convolution) for kernel in (1, 3)]
    return max(
        SIDE**2 * math.prod(weight) / product_seconds(values, weight, product, hint, integers=integers)
        for values, weight, product in products
    )


def product_seconds(
    shape: list[int], weight: list[int], product: Callable[[Any, Any], Any], hint: str, *, integers: bool
) -> float:
    """What OpenVINO takes for one product of values of `shape` and a constant weight."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    generator = np.random.default_rng(0)
    given = ops.parameter(shape, np.float32)
    left = given.output(0)
    codes = generator.integers(-64, 64, weight)
    right = ops.constant(codes.astype(np.float32)).output(0)
    if integers:
        ends = [np.float32(0), np.float32(255 / 256)]
        left = ops.fake_quantize(left, *ends, *ends, 256).output(0)
        scale = np.full([weight[0]] + [1] * (len(weight) - 1), 1 / 64, np.float32)
        right = ops.multiply(ops.convert(ops.constant(codes.astype(np.int8)), "f32"), scale).output(0)
    model = openvino.Model([product(left, right)], [given], "product")
    request = (
        openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
    )
    values = generator.uniform(0, 1, shape).astype(np.float32)
    return alternate({"product": lambda: request.infer({0: values})})["product"]


def torch_call(unet: Any, inputs: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    """One call of the UNet by torch."""

    def call() -> Any:
        with torch.no_grad():
            return unet(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])

    return call


def openvino_call(
    model: Any, inputs: Mapping[str, torch.Tensor], settings: Mapping[str, str]
) -> Callable[[], Any]:
    """One call of the UNet by OpenVINO."""
    import openvino

    # By number: inputs of compiled models may have other names.
    given = {number: inputs[each.get_any_name()].numpy() for number, each in enumerate(model.inputs)}
    request = openvino.Core().compile_model(model, "CPU", dict(settings)).create_infer_request()
    return lambda: request.infer(given)


def alternate(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, in alternation, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def sdxl(place: Path, figures: Figures) -> None:
    """The UNet of SDXL: peak memory of converting it, and of quantizing it."""
    for name in ("fp16", "int8-full"):
        figures.say(f"making the SDXL UNet, {name}")
        took = unets.part("sdxl", name, place)
        figures.add(f"SDXL UNet, {name}: peak memory", took["peak_gib"], "GiB", target=SDXL_GIB, most=True)
        figures.add(f"SDXL UNet, {name}: made in", took["seconds"], "s")


def built_in(place: Path, figures: Figures, *, quick: bool) -> None:
    """The built-in checkpoint: fidelity, bytes and speed of every variant, and of the peer's."""
    place.mkdir()
    bench = Bench(place, figures, prompts=2 if quick else 8)
    for name in (*(QUICK_VARIANTS if quick else VARIANTS), PEER):
        bench.variant(name)
    full, stored, peer = (bench.psnr[name] for name in ("int8-full", "int8", PEER))
    figures.add("emoji-sd, int8-full: image PSNR below weight-only int8", stored - full, "dB")
    name = f"emoji-sd, int8-full: image PSNR beside {PEER}"
    figures.add(name, full, "dB", peer=peer, ratio=full / peer, target=1)
    bench.quality_target((full + stored) / 2)


class Bench:
    """Variants of the built-in checkpoint, drawn and timed beside it."""

    def __init__(self, place: Path, figures: Figures, *, prompts: int) -> None:
        self.place, self.figures = place, figures
        self.checkpoint, self.backend = resolve("demo"), backends()["openvino"]
        known = sampling_for(self.checkpoint)
        self.sampling = replace(known, prompts=known.prompts[:prompts])
        self.base = measure.load_base(self.checkpoint, endpoint(None), SILENT)
        self.reference = measure.draw_all(self.base, self.sampling, SILENT)
        self.psnr: dict[str, float] = {}
        self.ratio: dict[str, float] = {}

    def variant(self, name: str) -> None:
        """One preset's, or the peer's."""
        folder = self.place / name.replace(" ", "-")
        if name == PEER:
            prompts = self.backend.recipe(self.checkpoint, "openvino-int8-full").calibration.prompts
            peer_variant(self.place / "fp16", folder, prompts)
        else:
            self.build(self.backend.recipe(self.checkpoint, f"openvino-{name}"), folder)
        self.show(name, folder)

    def build(self, recipe: Any, folder: Path) -> None:
        """As publishing does."""
        folder.mkdir()
        hub = endpoint(None)
        run_isolated(
            stages.build_variant, self.checkpoint, hub, self.backend.name, recipe, "cpu", folder, progress=SILENT
        )

    def quality_target(self, wanted: float) -> None:
        """int8-full with `wanted` dB: which share it takes, and what that costs in speed."""
        self.figures.say(f"looking for int8-full with {wanted:.1f} dB")
        recipe = self.backend.recipe(self.checkpoint, "openvino-int8-full")
        pipeline = measure.load_base(self.checkpoint, endpoint(None), SILENT)
        found = self.backend.meet_target(self.checkpoint, pipeline, recipe, wanted, self.fidelity, SILENT)
        name, share = "int8-full, half of that distance", found.components["unet"].default.higher_precision
        self.build(found, self.place / "target")
        self.show(name, self.place / "target")
        self.figures.add("emoji-sd, half of that distance: share of multiplications spared", share)
        kept = self.ratio[name] / self.ratio["int8-full"]
        self.figures.add("emoji-sd, half of that distance: speed that is kept", kept)

    def fidelity(self, folder: Path) -> float:
        """Image PSNR of a variant in dB."""
        with quiet():
            pipe = self.backend.open(folder)
        drawn = measure.draw_all(pipe, self.sampling, SILENT)
        return compare.compare(self.reference, drawn, self.sampling).psnr_db

    def show(self, name: str, folder: Path) -> None:
        """One line of the table."""
        with quiet():
            pipe = self.backend.open(folder)
        drawn = measure.draw_all(pipe, self.sampling, SILENT)
        found = compare.compare(self.reference, drawn, self.sampling)
        timed = latency.alternate(self.base, pipe, self.sampling, budget=10)
        self.psnr[name], self.ratio[name] = found.psnr_db, timed.ratio
        images = ([each.image for each in some] for some in (self.reference, drawn))
        kept = subject_kept(*images, pixels, name="pixels")
        unet = graph.read(folder / "unet")
        size = compare.folder_bytes(folder)
        self.figures.say(
            f"emoji-sd {name:34} {found.psnr_db:6.2f} dB  SSIM {found.ssim:.4f}"
            f"  latents {found.latent_psnr_db:6.2f} dB  {kept.kept} of {len(drawn)} subjects kept"
            f"  {size / 2**20:5.1f} MiB  {timed.ratio:.2f} times torch"
            f"  {dict(graph.weight_types(unet))}"
        )
        self.figures.add(f"emoji-sd, {name}: image PSNR", found.psnr_db, "dB")
        self.figures.add(f"emoji-sd, {name}: SSIM", found.ssim)
        self.figures.add(f"emoji-sd, {name}: subjects kept", kept.kept / len(drawn))
        self.figures.add(f"emoji-sd, {name}: size", size / 2**20, "MiB")
        self.figures.add(f"emoji-sd, {name}: times as fast as torch float32", timed.ratio)


def peer_variant(plain: Path, folder: Path, prompts: Iterable[str]) -> None:
    """optimum-intel's hybrid quantization of the 16-bit variant, with the same prompts."""
    from optimum.intel import OVStableDiffusionPipeline, OVWeightQuantizationConfig

    shutil.rmtree(folder, ignore_errors=True)
    config = OVWeightQuantizationConfig(bits=8, dataset=list(prompts), num_samples=200, quant_method="hybrid")
    with quiet():
        OVStableDiffusionPipeline.from_pretrained(plain, quantization_config=config).save_pretrained(folder)


if __name__ == "__main__":
    main()
