"""UNets of true shapes with random weights, treated as OpenVINO variants are, each in a process of its own.

python benchmarks/openvino_unet.py SHAPE TREATMENT FOLDER

writes FOLDER/TREATMENT and its `took.json`: seconds, and the peak memory in GiB.
"""

from __future__ import annotations

import gc
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# In place of the folder of the script, whose name would hide the package openvino.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import shapes
from sdhub.backends.openvino import graph, telemetry
from sdhub.backends.openvino.calls import run
from sdhub.backends.openvino.quantize import compress
from sdhub.backends.openvino.shapes import merge_tokens
from sdhub.compression.calibration import LayerStatistics, collect
from sdhub.core.quiet import quiet
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float

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
SHAPES: dict[str, dict[str, Any]] = {"sd15": shapes.SD15, "sdxl": SDXL}
CALLS = {"sd15": 4, "sdxl": 2}
TREATMENTS: dict[str, Float | Affine] = {
    "fp16": Float(),
    "int8": Affine(bits=8),
    "int8-hybrid": Affine(bits=8, activations="hybrid"),
    "int8-full": Affine(bits=8, activations="int8", smoothing=0.5),
    "int8-full-tome0.4": Affine(bits=8, activations="int8", smoothing=0.5),
}
PEER = "optimum-intel hybrid"
RATIO, TOKENS, POOLED = 0.4, 77, 1280
TOOK = "took.json"


def part(shape: str, name: str, place: Path) -> dict[str, float]:
    """The treated UNet in `place / name`, made in a process of its own unless it is there: what it took."""
    told = place / name / TOOK
    if not told.is_file():
        shutil.rmtree(place / name, ignore_errors=True)
        subprocess.run([sys.executable, __file__, shape, name, str(place)], check=True)
    took: dict[str, float] = json.loads(told.read_text())
    return took


def make(shape: str, name: str, place: Path) -> None:
    """Write `place / name`, from the 16-bit one in `place`, which is made first."""
    telemetry.off()
    folder = place / name
    plain = place / ("fp16-tome" if "tome" in name else "fp16")
    started = time.perf_counter()
    if not (plain / TOOK).is_file():
        shutil.rmtree(plain, ignore_errors=True)
        plain.mkdir(parents=True)
        convert(shape, plain, merging="tome" in name)
        _tell(plain, started)
    if folder == plain:
        return
    folder.mkdir()
    for path in plain.glob("openvino_model.*"):
        shutil.copyfile(path, folder / path.name)
    calls = [example_inputs(shape, seed) for seed in range(CALLS[shape])]
    if name == PEER:
        _peak_reset()
        started = time.perf_counter()
        _peer_hybrid(folder, calls)
    else:
        treatment = TREATMENTS[name]
        rounds = isinstance(treatment, Affine) and treatment.activations != "float"
        module = unet(shape, merging="tome" in name) if rounds else None
        _peak_reset()
        started = time.perf_counter()
        seen = _calibrated(module, calls) if module else None
        del module
        gc.collect()
        compress(folder, ComponentRecipe(default=treatment), higher_precision=_spared(shape), statistics=seen)
    _tell(folder, started)


def _calibrated(module: Any, calls: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, LayerStatistics]:
    """What publishing's calibration finds out on these calls."""

    def drive(_: Any) -> None:
        for call in calls:
            run(module, call)

    return collect(module, drive, tokens=0)


def unet(shape: str, *, merging: bool = False) -> Any:
    """With random weights, float32, the same each time."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        empty = UNet2DConditionModel(**SHAPES[shape])
    named = {name: tuple(each.shape) for name, each in empty.named_parameters()}
    state = {
        name: weight.float() if weight.ndim > 1 else torch.full(weight.shape, float(not name.endswith("bias")))
        for name, weight in shapes.weights(named)
    }
    empty.load_state_dict(state, assign=True)
    if merging:
        side = SHAPES[shape]["sample_size"]
        merge_tokens(empty, RATIO, (side, side))
    return empty.eval().requires_grad_(False)


def parameters(shape: str) -> int:
    """How many the UNet has."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return sum(each.numel() for each in UNet2DConditionModel(**SHAPES[shape]).parameters())


def weights_bytes(folder: Path) -> int:
    """Of the weights of a converted UNet."""
    return (folder / graph.MODEL).with_suffix(".bin").stat().st_size


def convert(shape: str, folder: Path, *, merging: bool) -> None:
    """Through optimum-intel's exporter, in 16 bits, for batch 1 and one size."""
    from optimum.exporters.openvino.convert import export_models
    from optimum.exporters.tasks import TasksManager
    from optimum.intel.openvino.configuration import OVConfig

    made = unet(shape, merging=merging)
    # What the exporter adds to the configurations of pipelines.
    made.register_to_config(text_encoder_projection_dim=POOLED, requires_aesthetics_score=False)
    if merging:
        # The exporter traces at one pixel less than the size, which merging cannot.
        made.register_to_config(sample_size=SHAPES[shape]["sample_size"] + 1)
    kind = TasksManager.get_exporter_config_constructor(
        model_type="unet", exporter="openvino", library_name="diffusers", task="semantic-segmentation"
    )
    config = kind(made.config)
    models = {"unet": (made, config)}
    with quiet():
        export_models(
            models,
            folder,
            output_names=[graph.MODEL],
            ov_config=OVConfig(dtype="fp16"),
            stateful=False,
            library_name="diffusers",
        )
    given = example_inputs(shape)
    model = graph.read(folder)
    names = [each.get_any_name() for each in model.inputs]
    model.reshape({name: list(given[name].shape) for name in names if name != "timestep"})
    graph.save(model, folder)


def example_inputs(shape: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of one call of batch 1."""
    generator = torch.Generator().manual_seed(seed)
    known = SHAPES[shape]
    side = known["sample_size"]
    inputs = {
        "sample": torch.randn(1, 4, side, side, generator=generator),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(1, TOKENS, known["cross_attention_dim"], generator=generator),
    }
    if known.get("addition_embed_type"):
        size = 8.0 * side
        inputs["text_embeds"] = torch.randn(1, POOLED, generator=generator)
        inputs["time_ids"] = torch.tensor([[size, size, 0.0, 0.0, size, size]])
    return inputs


def _spared(shape: str) -> tuple[str, ...]:
    """Random weights have no sensitivity: these are what analysis spares in trained ones."""
    last = len(SHAPES[shape]["block_out_channels"]) - 1
    return ("conv_in", "conv_out", *(f"up_blocks.{last}.resnets.{number}.conv_shortcut" for number in range(3)))


def _peer_hybrid(folder: Path, calls: Sequence[Mapping[str, torch.Tensor]]) -> None:
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


def _tell(folder: Path, started: float) -> None:
    took = {"seconds": time.perf_counter() - started, "peak_gib": _peak_gib()}
    (folder / TOOK).write_text(json.dumps(took))


def _peak_reset() -> None:
    """Count the peak from here on, where the system can."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _peak_gib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
