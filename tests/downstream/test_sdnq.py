"""SDNQ variants as a user has them: diffusers 0.42 and the package sdnq, without sdhub."""

import textwrap

import pytest

from tests.downstream.published import assert_red_heart, draw_with_sdhub, draw_without_sdhub, publish_brief
from tests.hubs import running_hub

pytestmark = pytest.mark.downstream

SCRIPT = """
import importlib.util, sys
import torch
from diffusers import DiffusionPipeline
import sdnq
assert importlib.util.find_spec("sdhub") is None
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
assert type(layer).__name__ == "SDNQLinear", type(layer)
generator = torch.Generator().manual_seed(1)
pipe("red heart", num_inference_steps=20, guidance_scale=4.0, generator=generator).images[0].save(sys.argv[2])
"""


@pytest.mark.parametrize("variant", ["sdnq-uint4", "sdnq-int8"])
def test_plain_from_pretrained_draws_what_sdhub_draws(variant, tmp_path):
    theirs, ours = tmp_path / "theirs.png", tmp_path / "ours.png"
    with running_hub(tmp_path / "hub") as url:
        repo = publish_brief(variant, url, tmp_path)
        draw_without_sdhub(textwrap.dedent(SCRIPT), [repo, str(theirs)], url, tmp_path)
        draw_with_sdhub(repo, url, ours)
    assert_red_heart(theirs, ours)
