"""nunchaku_lite repositories by diffusers' own loader and modules, on the CPU with a stand-in for the kernels."""

import textwrap
from pathlib import Path

import pytest

from tests.downstream.published import assert_red_heart, draw_with_sdhub, draw_without_sdhub, publish_brief
from tests.hubs import running_hub

pytestmark = pytest.mark.downstream

# Only the check of the machine is told of a GPU. Names, shapes and types of all tensors are compared with those of
# diffusers' modules, which from_pretrained itself does not do.
SCRIPT = """
import importlib.util, os, sys
from unittest import mock
repo, site, capability, picture = sys.argv[1:]
sys.path.insert(0, site)
os.environ["DIFFUSERS_TRUST_REMOTE_KERNELS"] = "true"
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.quantizers.nunchaku.nunchaku_quantizer import NunchakuLiteQuantizer
from diffusers.quantizers.nunchaku.utils import replace_with_nunchaku_linear
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
assert importlib.util.find_spec("sdhub") is None

original = NunchakuLiteQuantizer.validate_environment
def validate(self, *args, **kwargs):
    with (
        mock.patch("torch.cuda.is_available", lambda: True),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (int(capability[:-1]), int(capability[-1]))),
    ):
        return original(self, *args, **kwargs)
NunchakuLiteQuantizer.validate_environment = validate

config = UNet2DConditionModel.load_config(repo, subfolder="unet")
model = UNet2DConditionModel.from_config(config).half()
replace_with_nunchaku_linear(model, config["quantization_config"], torch.float16)
wanted = {name: (each.shape, each.dtype) for name, each in model.state_dict().items()}
held = load_file(hf_hub_download(repo, "unet/diffusion_pytorch_model.safetensors"))
assert {name: (each.shape, each.dtype) for name, each in held.items()} == wanted

pipe = DiffusionPipeline.from_pretrained(repo, torch_dtype=torch.float32)
layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
assert type(layer).__name__ == "SVDQW4A4Linear", type(layer)
generator = torch.Generator().manual_seed(1)
pipe("red heart", num_inference_steps=20, guidance_scale=4.0, generator=generator).images[0].save(picture)
"""


def stand_in(folder):
    """A package `kernels` of the given name and version, as diffusers looks for one."""
    package, known = folder / "kernels", folder / "kernels-0.13.0.dist-info"
    package.mkdir(parents=True)
    known.mkdir()
    source = Path(__file__).with_name("kernels_stand_in.py").read_text()
    (package / "__init__.py").write_text(source)
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.13.0\n")
    return folder


@pytest.mark.parametrize(("variant", "capability"), [("svdquant-int4", "89"), ("svdquant-nvfp4", "120")])
def test_diffusers_own_modules_draw_what_sdhub_draws(variant, capability, tmp_path):
    theirs, ours = tmp_path / "theirs.png", tmp_path / "ours.png"
    site = stand_in(tmp_path / "site")
    with running_hub(tmp_path / "hub") as url:
        repo = publish_brief(variant, url, tmp_path)
        arguments = [repo, str(site), capability, str(theirs)]
        draw_without_sdhub(textwrap.dedent(SCRIPT), arguments, url, tmp_path)
        draw_with_sdhub(repo, url, ours)
    assert_red_heart(theirs, ours)
