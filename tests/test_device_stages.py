"""A variant's way through the stages on a stand-in for a GPU."""

from __future__ import annotations

import json

from sdhub.backends.sdnq.backend import BACKEND as SDNQ
from sdhub.checkpoint.resolve import resolve
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT
from sdhub.core.work import Work
from sdhub.evidence.budget import Scope
from sdhub.evidence.sampling import Prompt, Sampling
from sdhub.recipes.recipe import Affine
from sdhub.workflow import stages
from sdhub.workflow.measure import DRAWING, NOISE
from tests.backends.built import recipe_for
from tests.far import NAME, far_device


def test_a_variant_is_built_and_drawn_on_a_device(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "run_isolated", lambda function, *given, progress: function(*given, SILENT))
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    recipe = recipe_for(SDNQ, {layer: Affine(bits=8, symmetric=True)}, calibrated=False)
    sampling = Sampling((Prompt("pizza", 3),), 2, 4.0, 64, 64)
    ran = {}
    for device in ("cpu", "cuda:0"):
        with far_device():
            scope, work = Scope(sampling, whole=True, seconds=0), Work(tmp_path)
            base = stages.Base(resolve("demo"), "0" * 64, scope, sampling, Hub(), work, SILENT, device=device)
            variant = stages.VariantStages(base, SDNQ, recipe)
            drawn = {"base": base.samples({}), "variant": variant.samples()}
        snr = json.loads((drawn["variant"] / NOISE).read_text())
        ran[device] = {side: json.loads((place / DRAWING).read_text())["ran"] for side, place in drawn.items()}
        assert snr["median_db"] > 25
    gpu = {"device": f"cuda:0, {NAME}", "precision": "bfloat16"}
    assert ran["cuda:0"] == {"base": gpu, "variant": {**gpu, "kernels": None}}
    assert ran["cpu"]["variant"] == {"device": "cpu", "precision": "float32", "kernels": None}
    built = [each for each in (tmp_path / "variant").iterdir() if (each / "model_index.json").is_file()]
    assert len(built) == 2  # each device has its own
