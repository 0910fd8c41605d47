"""Running the program as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def environment(home: Path, endpoint: str | None = None) -> dict[str, str]:
    """Of a user with an empty home and no token; `endpoint` is where Hub ids are looked up."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SDHUB_"))}
    kept |= {"SDHUB_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_TOKEN": "a-token-nobody-may-see"}
    return kept | ({"HF_ENDPOINT": endpoint} if endpoint else {})


def sdhub(
    *arguments: str, home: Path, endpoint: str | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run `sdhub` and require its exit code; the token must not be in what it says."""
    command = [sys.executable, "-m", "sdhub", *arguments]
    done = subprocess.run(command, env=environment(home, endpoint), capture_output=True, text=True, check=False)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "a-token-nobody-may-see" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def sdhub_json(*arguments: str, home: Path, endpoint: str | None = None, code: int = 0) -> Any:
    """The one JSON document that `--json` prints."""
    return json.loads(sdhub(*arguments, "--json", home=home, endpoint=endpoint, code=code).stdout)
