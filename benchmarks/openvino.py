"""OpenVINO variants beside torch, OpenVINO in 16 bits, and optimum-intel's own hybrid quantization.

python benchmarks/openvino.py [--quick] [--json FILE]

Everything is timed in alternation, in one process, after a warm-up; the median of the rounds counts. `--quick`
takes the built-in checkpoint alone, else the UNet of SD 1.5 with random weights as well: 64 × 64 latents, batch 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import shapes
from sdhub import measure, stages
from sdhub.backends.base import backends
from sdhub.backends.openvino import graph
from sdhub.backends.openvino.calls import Calls
from sdhub.backends.openvino.quantize import compress
from sdhub.backends.openvino.shapes import merge_tokens
from sdhub.endpoint import endpoint
from sdhub.evidence import compare, latency
from sdhub.evidence.subject import pixels, subject_kept
from sdhub.isolate import apart
from sdhub.plan import sampling_for
from sdhub.progress import SILENT
from sdhub.quiet import quiet
from sdhub.recipes.recipe import Affine, Component
from sdhub.sources import resolve

VARIANTS = ("fp16", "int8", "int8-hybrid", "int8-full", "int8-full-tome0.4", "int4")
TREATMENTS = {
    "fp16": None,
    "int8-hybrid": Affine(bits=8, activations="hybrid"),
    "int8-full": Affine(bits=8, activations="int8", smoothing=0.5),
    "int8-full-tome0.4": Affine(bits=8, activations="int8", smoothing=0.5),
}
# Random weights have no sensitivity: these are what analysis spares in trained ones.
SPARED = ("conv_in", "conv_out", *(f"up_blocks.3.resnets.{number}.conv_shortcut" for number in range(3)))
TARGETS = {"int8-full": 5.5, "int8-full-tome0.4": 8.0}
RATIO, CALLS, ROUNDS = 0.4, 4, 5
SECONDS, GIB = 90, 10
PEER = "optimum-intel hybrid"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the built-in checkpoint, two prompts")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        make_part(chosen.part[0], Path(chosen.part[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        if not chosen.quick:
            rows += shape(Path(place) / "shape")
        rows += built_in(Path(place) / "demo", prompts=2 if chosen.quick else 8)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def shape(place: Path) -> list[dict[str, Any]]:
    """The UNet of SD 1.5: speed of every treatment, and what quantizing takes."""
    import openvino

    place.mkdir()
    rows = []
    for name in (*TREATMENTS, PEER):
        took = part(name, place)
        print(f"{name}: {took}", flush=True)
        if name == "int8-full":
            size = weights_bytes(place / name) / (4 * shapes_parameters())
            rows += [
                figure(
                    "SD 1.5 UNet, int8-full: seconds to quantize", took["seconds"], None, SECONDS, "s", most=True
                ),
                figure("SD 1.5 UNet, int8-full: peak of it", took["peak_gib"], None, GIB, "GiB", most=True),
                figure("SD 1.5 UNet, int8-full: bytes, of 32-bit ones", size, None, 0.26, "", most=True),
            ]
    unet = sd15()
    inputs = example_inputs()
    core = openvino.Core()
    runs: dict[str, Callable[[], Any]] = {"torch": torch_call(unet, inputs)}
    for name in (*TREATMENTS, PEER):
        model = core.compile_model(place / name / graph.MODEL, "CPU")
        runs[name] = openvino_call(model, inputs)
    times = alternate(runs)
    precision = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    threads = model.get_property("INFERENCE_NUM_THREADS")
    print(f"{threads} threads, precision {precision}, torch {torch.get_num_threads()} threads", flush=True)
    return rows + speeds("SD 1.5 UNet", times)


def speeds(what: str, times: Mapping[str, float]) -> list[dict[str, Any]]:
    rows = []
    for name in TREATMENTS:
        ratio = times["torch"] / times[name]
        print(f"{what}, {name}: {times[name]:.3f} s a call, {ratio:.2f} times torch", flush=True)
        rows.append(
            figure(
                f"{what}, {name}: times as fast as torch fp32", times[name], times["torch"], TARGETS.get(name), "s"
            )
        )
    ours, peer = times["int8-full"], times[PEER]
    print(f"{what}, {PEER}: {peer:.3f} s a call, {times['torch'] / peer:.2f} times torch", flush=True)
    rows.append(figure(f"{what}, int8-full: times as fast as {PEER}", ours, peer, 1.0, "s"))
    return rows


def part(name: str, place: Path) -> dict[str, float]:
    """Make a treated UNet in a process of its own: what it took."""
    command = [sys.executable, __file__, "--part", name, str(place)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return took


def make_part(name: str, place: Path) -> None:
    """Write `place / name`; the last line on standard output is what quantizing took."""
    folder = place / name
    folder.mkdir()
    plain = place / ("fp16-tome" if "tome" in name else "fp16")
    if not (plain / graph.MODEL).is_file():
        plain.mkdir(exist_ok=True)
        convert(plain, merging="tome" in name)
        peak_reset()
    if folder != plain:
        for path in plain.iterdir():
            shutil.copyfile(path, folder / path.name)
    started = time.perf_counter()
    calls = Calls(Path(tempfile.mkdtemp()))
    for seed in range(CALLS):
        calls.add(example_inputs(seed))
    if name == PEER:
        peer_hybrid(folder, calls)
    elif TREATMENTS[name] is not None:
        compress(folder, Component(default=TREATMENTS[name]), spared=SPARED, calls=calls)
    took = {"seconds": time.perf_counter() - started, "peak_gib": peak_gib()}
    shutil.rmtree(calls.folder)
    print("\n" + json.dumps(took))


def peer_hybrid(folder: Path, calls: Calls) -> None:
    """What `optimum-cli export openvino --quant-mode hybrid` does to the UNet, on the same calls."""
    import nncf
    from optimum.intel import OVWeightQuantizationConfig
    from optimum.intel.openvino.quantization import _get_hybrid_mixed_quantization_config, _mixed_quantization

    model = graph.read(folder)
    given = [{name: each.numpy() for name, each in call.items()} for call in calls]
    config = _get_hybrid_mixed_quantization_config(
        model, OVWeightQuantizationConfig(bits=8, num_samples=len(given))
    )
    with quiet():
        graph.save(_mixed_quantization(model, config, nncf.Dataset(given)), folder)


def sd15() -> Any:
    """The UNet with random weights, float32."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**shapes.SD15)
    state = {
        name: weight.float() if weight.ndim > 1 else torch.full(weight.shape, float(not name.endswith("bias")))
        for name, weight in shapes.weights(shapes.sd15_unet())
    }
    unet.load_state_dict(state, assign=True)
    return unet.eval().requires_grad_(False)


def shapes_parameters() -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.sd15_unet().values())


def convert(folder: Path, *, merging: bool) -> None:
    """The UNet through optimum-intel's exporter, in 16 bits; with token merging in fixed shapes."""
    from optimum.exporters.openvino.convert import export_models
    from optimum.exporters.tasks import TasksManager
    from optimum.intel.openvino.configuration import OVConfig

    unet = sd15()
    if merging:
        merge_tokens(unet, RATIO, (shapes.SD15["sample_size"],) * 2)
    kind = TasksManager.get_exporter_config_constructor(
        model=unet, exporter="openvino", library_name="diffusers", task="semantic-segmentation"
    )
    config = kind(unet.config)
    with quiet():
        export_models(
            {"unet": (unet, config)},
            folder,
            output_names=[graph.MODEL],
            ov_config=OVConfig(dtype="fp16"),
            stateful=False,
            library_name="diffusers",
        )
    model = graph.read(folder)
    side = shapes.SD15["sample_size"]
    model.reshape({"sample": [1, 4, side, side], "encoder_hidden_states": [1, 77, 768]})
    graph.save(model, folder)


def example_inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    side = shapes.SD15["sample_size"]
    return {
        "sample": torch.randn(1, 4, side, side, generator=generator),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(1, 77, 768, generator=generator),
    }


def torch_call(unet: Any, inputs: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return unet(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])

    return call


def openvino_call(model: Any, inputs: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    request = model.create_infer_request()
    given = {each.get_any_name(): inputs[each.get_any_name()].numpy() for each in model.inputs}
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


def built_in(place: Path, *, prompts: int) -> list[dict[str, Any]]:
    """The built-in checkpoint: fidelity, bytes and speed of every variant, and of the peer's."""
    place.mkdir()
    checkpoint, backend = resolve("demo"), backends()["openvino"]
    known = sampling_for(checkpoint)
    sampling = type(known)(known.prompts[:prompts], known.steps, known.guidance, known.width, known.height)
    base = measure.load_base(checkpoint, endpoint(None), SILENT)
    reference = measure.draw_all(base, sampling, SILENT)
    rows, psnr = [], {}
    for name in (*VARIANTS, PEER):
        folder = place / name.replace(" ", "-")
        if name == PEER:
            peer_variant(
                place / "fp16", folder, backend.recipe(checkpoint, "openvino-int8-full").calibration.prompts
            )
        else:
            folder.mkdir()
            recipe = backend.recipe(checkpoint, f"openvino-{name}")
            apart(stages.build, checkpoint, endpoint(None), backend.name, recipe, folder, progress=SILENT)
        with quiet():
            pipe = backend.open(folder)
        drawn = measure.draw_all(pipe, sampling, SILENT)
        found = compare.compare(reference, drawn, sampling)
        timed = latency.alternate(base, pipe, sampling, budget=10)
        psnr[name] = found.psnr_db
        kept = subject_kept(
            [each.image for each in reference], [each.image for each in drawn], pixels, name="pixels"
        )
        unet = graph.read(folder / "unet")
        print(
            f"emoji-sd {name:22} {found.psnr_db:6.2f} dB  SSIM {found.ssim:.4f}"
            f"  latents {found.latent_psnr_db:6.2f} dB"
            f"  {kept.kept} of {len(drawn)} subjects kept"
            f"  {compare.folder_bytes(folder) / 2**20:5.1f} MiB  {timed.ratio:.2f} times torch"
            f"  {dict(graph.weight_types(unet))}, {len(graph.integer_products(unet))} in integers",
            flush=True,
        )
        rows.append(figure(f"emoji-sd, {name}: image PSNR", found.psnr_db, None, None, "dB"))
        rows.append(figure(f"emoji-sd, {name}: times as fast as torch fp32", timed.ratio, None, None, ""))
    distance = psnr["int8"] - psnr["int8-full"]
    rows.append(figure("emoji-sd, int8-full: image PSNR below weight-only int8", distance, None, None, "dB"))
    ours, peer = psnr["int8-full"], psnr[PEER]
    row = figure(f"emoji-sd, int8-full beside {PEER}: image PSNR", ours, peer, 1.0, "dB")
    rows.append({**row, "ratio": ours / peer, "met": ours >= peer})
    return rows


def peer_variant(plain: Path, folder: Path, prompts: tuple[str, ...]) -> None:
    """optimum-intel's hybrid quantization of the 16-bit variant, with the same prompts."""
    from optimum.intel import OVStableDiffusionPipeline, OVWeightQuantizationConfig

    config = OVWeightQuantizationConfig(bits=8, dataset=list(prompts), num_samples=200, quant_method="hybrid")
    with quiet():
        OVStableDiffusionPipeline.from_pretrained(plain, quantization_config=config).save_pretrained(folder)


def weights_bytes(folder: Path) -> int:
    return (folder / graph.MODEL).with_suffix(".bin").stat().st_size


def peak_reset() -> None:
    """Count the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def figure(
    name: str, ours: float, peer: float | None, target: float | None, unit: str, *, most: bool = False
) -> dict[str, Any]:
    """One row; where there is a peer its time over ours is judged, else ours."""
    ratio = peer / ours if peer else None
    judged = ours if ratio is None else ratio
    met = None if target is None else judged <= target if most else judged >= target
    return {"figure": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "met": met, "unit": unit}


if __name__ == "__main__":
    main()
