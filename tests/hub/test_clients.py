"""Unmodified clients: huggingface_hub of this environment and 2.x, each with and without Xet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments import environment

SCRIPT = Path(__file__).with_name("roundtrip.py")


@pytest.mark.parametrize("xet", ["xet", "lfs"])
@pytest.mark.parametrize("client", ["here", "2.4.0"])
def test_round_trip(hub_url: str, tmp_path: Path, client: str, xet: str) -> None:
    python = Path(sys.executable)
    if client != "here":
        python = environment("hub2", [f"huggingface_hub=={client}"])
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    variables |= {"HF_ENDPOINT": hub_url, "HF_TOKEN": "any", "HF_HOME": str(tmp_path / "home")}
    if xet == "lfs":
        variables["HF_HUB_DISABLE_XET"] = "1"
    namespace = f"{client.replace('.', '-')}-{xet}"
    done = subprocess.run(
        [str(python), str(SCRIPT), namespace],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "round trip done" in done.stdout
    used_xet = (tmp_path / "home" / "xet").is_dir()
    assert used_xet == (xet == "xet")
