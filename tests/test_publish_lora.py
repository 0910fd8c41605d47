"""A checkpoint with a LoRA, published to a real Hub server and downloaded: its weights are what the files say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdhub.backends.base import backend_of
from sdhub.demo import emoji_sd
from tests.hubs import running_hub
from tests.runs import sdhub_json

UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.v_proj"
SCALE, ALPHA = 0.5, {"unet": 6.0, "te": 2.0}
RANK = {"unet": 4, "te": 3}


def own(part, file, name):
    weights = load_file(emoji_sd() / part / file)
    (key,) = (each for each in weights if each.endswith(f"{name}.weight"))
    return weights[key].float()


@pytest.fixture(scope="module")
def weights():
    """Of the layers that the LoRA changes, before it does."""
    return {
        "unet": own("unet", "diffusion_pytorch_model.safetensors", UNET),
        "te": own("text_encoder", "model.safetensors", TEXT.removeprefix("text_model.")),
    }


@pytest.fixture(scope="module")
def published(weights, tmp_path_factory):
    """The report, the repository as a stranger downloads it, and what is added to each layer."""
    from huggingface_hub import snapshot_download

    root = tmp_path_factory.mktemp("lora")
    tensors, added, generator = {}, {}, torch.Generator().manual_seed(4)
    for part, path in (("unet", UNET), ("te", TEXT)):
        weight, rank, name = weights[part], RANK[part], f"lora_{part}_{path.replace('.', '_')}"
        up = torch.randn(len(weight), rank, generator=generator) * weight.std()
        down = torch.randn(rank, weight.shape[1], generator=generator)
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA[part])
        added[part] = SCALE * ALPHA[part] / rank * up @ down
    save_file(tensors, root / "style.safetensors")
    (root / "prompts.json").write_text(json.dumps(["pizza"]))
    with running_hub(root / "data") as hub:
        report = sdhub_json(
            *("publish", "demo", "--lora", f"{root / 'style.safetensors'}:{SCALE}", "--to", "acme", "--hub", hub),
            *("--prompts", str(root / "prompts.json"), "--variant", "sdnq-int8"),
            home=root / "home",
        )
        repo = report["variants"][0]["repo"]
        folder = Path(snapshot_download(repo, endpoint=hub, local_dir=root / "download", token=False))
    return report, folder, added


def test_the_scale_is_in_the_name(published):
    report, _, _ = published
    assert report["variants"][0]["status"] == "published"
    assert report["variants"][0]["repo"] == "acme/emoji-sd-style-x0.5-sdnq-int8"


def test_published_weights_are_the_files_formula(published, weights):
    _, folder, added = published
    wanted = {part: weight + added[part] for part, weight in weights.items()}
    saved = load_file(folder / "text_encoder" / "model.safetensors")
    (key,) = (name for name in saved if name.endswith(f"{TEXT.removeprefix('text_model.')}.weight"))
    assert (saved[key].float() - wanted["te"]).abs().max() <= 2**-11 * wanted["te"].abs().max()
    found = backend_of("sdnq-int8").open(folder).unet.get_submodule(UNET).weight
    off = float((found - wanted["unet"]).norm() / added["unet"].norm())
    assert off < 0.03


def test_nothing_else_of_the_text_encoder_changed(published):
    _, folder, _ = published
    saved = load_file(folder / "text_encoder" / "model.safetensors")
    before = load_file(emoji_sd() / "text_encoder" / "model.safetensors")
    assert set(saved) == set(before)
    changed = [name for name in saved if not torch.equal(saved[name], before[name].half())]
    assert [name.endswith(f"{TEXT.removeprefix('text_model.')}.weight") for name in changed] == [True]
