"""Integer variants of every family that optimum-intel loads: no layer of a denoiser escapes, pictures come out.

The converter wraps modules whose arguments it has to reorder, and names their layers differently then.
"""

import pytest

from sdhub.backends.base import backends
from sdhub.backends.openvino import graph
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.progress import SILENT
from sdhub.evidence.compare import compare
from sdhub.evidence.sampling import Prompt, Sampling
from sdhub.workflow import measure
from tests.backends.flux import flux_folder
from tests.backends.openvino_graphs import integer_products
from tests.checkpoint.test_load import inpainting, lcm, refiner, sd2, sdxl
from tests.exact import EXACT

FAMILIES = {"sd2": sd2, "sdxl": sdxl, "refiner": refiner, "lcm": lcm, "inpainting": inpainting}
SIDE = 64


def shortly(recipe):
    calibration = recipe.calibration
    short = {"prompts": calibration.prompts[:1], "steps": 2, "recorded": 2, "width": SIDE, "height": SIDE}
    return recipe.model_copy(update={"calibration": calibration.model_copy(update=short)})


@pytest.mark.parametrize("name", [*FAMILIES, "flux"])
def test_all_layers_are_found_and_compute_in_integers_but_for_the_spared(name, tmp_path):
    import torch
    from optimum.intel import OVDiffusionPipeline

    folder = tmp_path / "source"
    if name == "flux":
        flux_folder(folder)
    else:
        torch.manual_seed(0)
        made = FAMILIES[name]()
        made.unet.register_to_config(sample_size=SIDE // made.vae_scale_factor)
        made.save_pretrained(folder)
    checkpoint, backend = resolve(str(folder)), backends()["openvino"]
    recipe = shortly(backend.recipe(checkpoint, "openvino-int8-full"))
    backend.accept(checkpoint, recipe)
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    denoiser = getattr(pipeline, checkpoint.family.denoiser)
    weighted = {
        layer for layer, each in denoiser.named_modules() if isinstance(each, (torch.nn.Linear, torch.nn.Conv2d))
    }
    sampling = Sampling(
        (Prompt("a cat", 1),), steps=2, guidance=recipe.calibration.guidance, width=SIDE, height=SIDE
    )
    base = measure.draw_all(pipeline, sampling, SILENT)
    out = tmp_path / "int8"
    out.mkdir()
    backend.build(checkpoint, pipeline, recipe, out, SILENT)
    model = graph.read(out / checkpoint.family.denoiser)
    assert {each.get_any_name(): each.element_type.get_type_name() for each in model.inputs}["timestep"] == "f32"
    integers = integer_products(model)
    assert set(graph.layers(model)) == weighted
    assert 0 < len(weighted - integers) < 0.5 * len(weighted)
    assert graph.weight_types(model) == {"i8": len(integers), "u8": len(weighted - integers)}
    # Weights of random numbers make more of bfloat16's error, where a machine computes in it, than of rounding.
    opened = OVDiffusionPipeline.from_pretrained(out, ov_config=EXACT)
    # What 8 bits leave of random weights is 29 dB and more; a layer that is read wrongly draws something else.
    assert compare(base, measure.draw_all(opened, sampling, SILENT), sampling).psnr_db > 27
