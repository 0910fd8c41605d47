"""As a user who never heard of sdhub: an environment with optimum-intel alone draws with what was published.

Slow, as it installs that environment the first time (`make downstream`).
"""

import os
import subprocess
import textwrap

import pytest

from tests.environments import environment
from tests.hubs import running_hub
from tests.runs import sdhub_json

pytestmark = pytest.mark.downstream

VARIANTS = ("fp16", "int8", "int8-hybrid", "int8-full", "int8-full-tome0.4", "int4")
SCRIPT = """
import importlib.util, sys
from optimum.intel import OVStableDiffusionPipeline
assert importlib.util.find_spec("sdhub") is None
for variant in sys.argv[2:]:
    pipe = OVStableDiffusionPipeline.from_pretrained(f"demo/emoji-sd-openvino-{variant}")
    picture = pipe("red heart", num_inference_steps=20, guidance_scale=4.0).images[0]
    picture.save(f"{sys.argv[1]}/{variant}.png")
"""


def test_a_fresh_environment_draws_a_red_heart_with_every_variant(tmp_path):
    import numpy as np
    from PIL import Image

    python = environment("optimum-intel", ["optimum-intel[openvino]", "diffusers"])
    with running_hub(tmp_path / "hub") as url:
        wanted = [word for variant in VARIANTS for word in ("--variant", f"openvino-{variant}")]
        report = sdhub_json("publish", "demo", *wanted, "--to", "demo", "--hub", url, home=tmp_path / "home")
        assert {each["status"] for each in report["variants"]} == {"published"}
        environ = {"PATH": os.environ["PATH"], "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache")}
        command = [python, "-I", "-c", textwrap.dedent(SCRIPT), str(tmp_path), *VARIANTS]
        subprocess.run(command, env=environ, cwd=tmp_path, check=True)
    for variant in VARIANTS:
        picture = np.asarray(Image.open(tmp_path / f"{variant}.png"), dtype=float)
        middle = picture[28:36, 28:36].reshape(-1, 3).mean(0) / 255
        assert middle[0] > 0.6, variant
        assert max(middle[1:]) < 0.4, variant
