"""Takes every case of the corpus in one process under a limit of memory; prints what came of each, as JSON.

`python -m tests.hostile.run FOLDER` with `SDHUB_CANARY` naming a file that has to stay absent.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from sdhub.core.errors import SdhubError
from sdhub.evidence.memory import peak_mib
from tests.hostile.corpus import CASES

LIMIT = 2 * 2**30
SECONDS = 300


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    results = []
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
            call = case.make(Path(folder))
            before = set(Path(folder).rglob("*"))
            started = time.process_time()
            results.append({"name": case.name, "harmless": case.harmless, **_outcome(call)})
            results[-1]["seconds"] = time.process_time() - started
            results[-1]["left"] = [str(path) for path in set(Path(folder).rglob("*")) - before]
    json.dump({"results": results, "peak_mib": peak_mib()}, sys.stdout)


def _outcome(call) -> dict:
    try:
        call()
    except SdhubError as error:
        return {
            "became": "refused",
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
    except BaseException as error:  # noqa: BLE001 — a case must not end the others
        return {"became": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"became": "harmless"}


if __name__ == "__main__":
    main()
