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


FLUX = """
import importlib.util, sys
import torch
from diffusers import FluxPipeline
import sdnq
from safetensors.torch import save_file
assert importlib.util.find_spec("sdhub") is None
pipe = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
assert type(pipe.transformer.transformer_blocks[0].attn.to_q).__name__ == "SDNQLinear"
feed = pipe.text_encoder_2.encoder.block[0].layer[1].DenseReluDense
assert type(feed.wi_0).__name__ == type(feed.wo).__name__ == "SDNQLinear", type(feed.wo)
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(3)
latents = pipe("a red heart", num_inference_steps=2, guidance_scale=3.5, width=32, height=32,
               max_sequence_length=16, generator=generator, output_type="latent").images
save_file({"latents": latents.contiguous()}, sys.argv[2])
"""


def test_flux_and_its_t5_load_plainly(tmp_path):
    """Made from its shards, without calibration; the same latents as by sdhub's own reading."""
    import torch
    from safetensors.torch import load_file

    from sdhub.backends.sdnq import BACKEND
    from sdhub.checkpoint.inspect import inspect
    from sdhub.checkpoint.source import Source
    from sdhub.core.endpoint import endpoint
    from sdhub.core.progress import SILENT
    from sdhub.recipes.recipe import Affine, ComponentRecipe, LowRank
    from sdhub.workflow import stages
    from tests.backends.flux import draw, flux_folder

    checkpoint = inspect(Source("folder", str(flux_folder(tmp_path / "flux"))))
    recipe = BACKEND.recipe(checkpoint, "sdnq-uint4").uncalibrated()
    output = "encoder.block.{}.layer.1.DenseReluDense.wo"
    eight = dict.fromkeys([output.format(0), output.format(1)], Affine(bits=8, symmetric=True))
    small = ComponentRecipe(default=LowRank(rank=16, residual="uint4", group_size=64), layers=eight)
    recipe = recipe.model_copy(update={"components": {**recipe.components, "text_encoder_2": small}})
    out = tmp_path / "variant"
    out.mkdir()
    stages.build_variant(checkpoint, endpoint(None), "sdnq", recipe, "cpu", out, SILENT)
    draw_without_sdhub(
        textwrap.dedent(FLUX), [str(out), str(tmp_path / "latents")], "http://127.0.0.1:9", tmp_path
    )
    theirs, ours = load_file(tmp_path / "latents")["latents"], draw(BACKEND.open(out))
    torch.testing.assert_close(theirs, ours, atol=0.01, rtol=0.01)
