"""Runs the cases in a process of its own, and says what a refusal is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.corpus import CANARY
from tests.hostile.watch import ROOT

MORE_MIB = 2_048
SECONDS = 10


def run(module: str, folder: Path, *arguments: str) -> Any:
    """The JSON that `tests.hostile.<module>` prints last; `folder` is empty, and gets the file `canary`."""
    variables = {
        **os.environ,
        CANARY: str(folder / "canary"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "SDHUB_HOME": str(folder / "tmp" / "home"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", f"tests.hostile.{module}", str(folder), *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def require_quiet(folder: Path) -> None:
    """Nothing was executed, and no passing folder stays."""
    assert not (folder / "canary").exists(), "something was executed"
    assert not list((folder / "tmp").glob("sdhub-*")), "views stay behind"


def require_one_line(result: Mapping[str, Any]) -> None:
    """Refused in one line, or taken."""
    assert result["became"] in {"harmless", "refused"}, result
    if result["became"] == "refused":
        message = result["message"]
        assert message and len(message) < 500 and message.isprintable(), result
        assert "sdhub-view-" not in message, result
        assert result["exit_code"] in {1, 2, 3}, result
