"""The guides as programs: their commands and Python blocks, and a Hub on which the names that they use exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "cli.md"  # made from the program
GUIDES = (ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - {REFERENCE}))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image]
widget:
- text: red heart
inference:
  parameters:
    num_inference_steps: 2
    guidance_scale: 4.0
---
"""


UNET_XL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "sample_size": 128,
}


@dataclass(frozen=True)
class Piece:
    """A block of a guide, or one command of it: `language` is what the fence says, `line` where it begins."""

    guide: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.guide.name}:{self.line}"


def blocks(guide: Path) -> list[Piece]:
    """All fenced blocks."""
    text = guide.read_text(encoding="utf-8")
    return [
        Piece(guide, text[: found.start(2)].count("\n") + 1, found[1], found[2]) for found in BLOCK.finditer(text)
    ]


def commands(guide: Path) -> list[Piece]:
    """Each command of the `sh` blocks; one may go over several lines within quotes."""
    found = []
    for block in blocks(guide):
        begun = ""
        for number, line in enumerate(block.text.splitlines() if block.language == "sh" else ()):
            begun = f"{begun}\n{line}" if begun else line
            try:
                words = shlex.split(begun, comments=True)
            except ValueError:  # a quotation goes on
                continue
            if words:
                at = block.line + number - begun.count("\n")
                found.append(Piece(guide, at, "sh", begun))
            begun = ""
        assert not begun, f"{block}: a quotation without an end"
    return found


def calls(guide: str) -> list[list[str]]:
    """The commands of a guide that has none but sdhub's, as words without the program's name."""
    found = [shlex.split(each.text, comments=True) for each in commands(DOCS / guide)]
    assert found
    assert all(each[0] == "sdhub" for each in found)
    return [each[1:] for each in found]


def checkpoint(root: Path) -> Path:
    """A small Stable Diffusion checkpoint of random weights, with layers that are worth choosing among, a VAE of
    the usual factor 8, and a safety checker."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPImageProcessor

    from tests.backends.coreml.models import checker
    from tests.checkpoint.tiny import tiny_text_encoder, tiny_unet, tokenizer

    torch.manual_seed(0)
    pipeline: Any = StableDiffusionPipeline(
        unet=tiny_unet(block_out_channels=(32, 128), norm_num_groups=8),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            layers_per_block=1,
        ),
        text_encoder=tiny_text_encoder(),
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=checker(),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    pipeline.to(torch.float16).save_pretrained(root)
    (root / "README.md").write_text(CARD)
    return root


def furnish(url: str, folder: Path) -> None:
    """Upload to the Hub at `url` what the guides name, made in the empty `folder`."""
    from diffusers import ControlNetModel, UNet2DConditionModel
    from huggingface_hub import HfApi

    from tests.backends.flux import flux_folder
    from tests.checkpoint.tiny import ENTRIES, UNET, skeleton

    api = HfApi(url, token="local")

    def upload(repo: str, content: Path) -> None:
        api.create_repo(repo)
        api.upload_folder(repo_id=repo, folder_path=content)

    small = checkpoint(folder / "small")
    for repo in ("org/model", "org/my-fine-tune", "me/style"):
        upload(repo, small)
    net = ControlNetModel.from_unet(
        UNet2DConditionModel.from_pretrained(small / "unet"), conditioning_embedding_out_channels=(8, 8, 16, 16)
    )
    net.save_pretrained(folder / "canny")
    (folder / "canny" / "README.md").write_text("---\nlicense: openrail\n---\n")
    upload("lllyasviel/control_v11p_sd15_canny", folder / "canny")
    xl = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ENTRIES["tokenizer"]}
    configs = {"unet": {**UNET, **UNET_XL}}
    upload(
        "stabilityai/stable-diffusion-xl-base-1.0",
        skeleton(folder / "xl", "StableDiffusionXLPipeline", xl, configs),
    )
    flux = flux_folder(folder / "flux", levels=4)  # a factor of 8: fewer tokens at its usual size
    (flux / "README.md").write_text(CARD)
    upload("black-forest-labs/FLUX.1-schnell", flux)
