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

SCRIPT = """
import importlib.util, sys
from optimum.intel import OVStableDiffusionPipeline
assert importlib.util.find_spec("sdhub") is None
pipe = OVStableDiffusionPipeline.from_pretrained("demo/emoji-sd-openvino-int8")
pipe("red heart", num_inference_steps=20, guidance_scale=4.0).images[0].save(sys.argv[1])
"""


def test_a_fresh_environment_draws_a_red_heart(tmp_path):
    import numpy as np
    from PIL import Image

    python = environment("optimum-intel", ["optimum-intel[openvino]", "diffusers"])
    picture = tmp_path / "heart.png"
    with running_hub(tmp_path / "hub") as url:
        report = sdhub_json("publish", "demo", "--to", "demo", "--hub", url, home=tmp_path / "home")
        assert report["variants"][0]["status"] == "published"
        environ = {"PATH": os.environ["PATH"], "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache")}
        script = textwrap.dedent(SCRIPT)
        subprocess.run([python, "-I", "-c", script, str(picture)], env=environ, cwd=tmp_path, check=True)
    middle = np.asarray(Image.open(picture), dtype=float)[28:36, 28:36].reshape(-1, 3).mean(0) / 255
    assert middle[0] > 0.6
    assert max(middle[1:]) < 0.4
