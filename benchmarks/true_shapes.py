"""Checkpoints of the true shapes of SD 1.5 and SDXL, with random weights: nothing is downloaded.

python benchmarks/true_shapes.py sd15|sdxl FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shapes import SD15

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make(shape: str, folder: Path) -> Path:
    """A diffusers folder in float16."""
    folder.mkdir(parents=True)
    demo = Path(__file__).resolve().parent.parent / "sdhub" / "demo" / "emoji-sd"
    {"sd15": _sd15, "sdxl": _sdxl}[shape](folder, demo)
    (folder / "README.md").write_text("---\nlicense: openrail++\n---\n\nRandom weights of a true shape.\n")
    return folder


def _sd15(out: Path, demo: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    _model(out / "unet", UNet2DConditionModel, SD15)
    _model(out / "vae", AutoencoderKL, {**VAE, "sample_size": 512, "scaling_factor": 0.18215})
    _text(out / "text_encoder", CLIPTextModel, {**CLIP_L, "projection_dim": 768}, demo)
    _finish(out, demo, "StableDiffusionPipeline", "PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1})


def _sdxl(out: Path, demo: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    _model(out / "unet", UNet2DConditionModel, SDXL)
    _model(
        out / "vae", AutoencoderKL, {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
    )
    _text(out / "text_encoder", CLIPTextModel, {**CLIP_L, "projection_dim": 768}, demo)
    _text(
        out / "text_encoder_2",
        CLIPTextModelWithProjection,
        {**CLIP_G, "hidden_act": "gelu", "projection_dim": 1280},
        demo,
    )
    _finish(out, demo, "StableDiffusionXLPipeline", "EulerDiscreteScheduler", {"steps_offset": 1}, tokenizers=2)


def _finish(
    out: Path, demo: Path, pipeline: str, scheduler: str, settings: Mapping[str, Any], tokenizers: int = 1
) -> None:
    names = ["tokenizer", *(f"tokenizer_{number}" for number in range(2, tokenizers + 1))]
    for name in names:
        shutil.copytree(demo / "tokenizer", out / name)
    (out / "scheduler").mkdir()
    config = {"_class_name": scheduler, **SCHEDULE, "prediction_type": "epsilon", **settings}
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index: dict[str, Any] = {"_class_name": pipeline, "scheduler": ["diffusers", scheduler]}
    for path in sorted(out.iterdir()):
        if path.name.startswith("tokenizer"):
            index[path.name] = ["transformers", "CLIPTokenizer"]
        elif (path / "config.json").exists():
            known = json.loads((path / "config.json").read_text())
            kind = known.get("_class_name") or known["architectures"][0]
            index[path.name] = ["transformers" if path.name.startswith("text") else "diffusers", kind]
    (out / "model_index.json").write_text(json.dumps(index, indent=2))


def _text(out: Path, kind: Any, config: Mapping[str, Any], demo: Path) -> None:
    """A CLIP text encoder with the vocabulary of the built-in checkpoint's tokenizer among its own."""
    from transformers import CLIPTextConfig

    known = json.loads((demo / "text_encoder" / "config.json").read_text())
    ids = {name: known[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    made = CLIPTextConfig(**{"hidden_act": "quick_gelu", "vocab_size": 49408, **config, **ids})
    _save(out, lambda: kind(made))


def _model(out: Path, kind: Any, config: Mapping[str, Any]) -> None:
    _save(out, lambda: kind.from_config(config))


def _save(out: Path, build: Any) -> None:
    """Normal weights of a variance of one over their inputs, halved where a residual is added to; norms of one."""
    import torch

    with torch.device("meta"):
        model = build()
    model = model.half().to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                inputs = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7 * inputs**-0.5)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        for name, buffer in model.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    model.save_pretrained(out, safe_serialization=True)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
