"""sdhub with its libraries at the newest and the oldest allowed versions: tests of this suite, run there.

What a stranger's files may do depends on the libraries that load them, so the hostile corpus is among them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.environments import environment
from tests.matrix.requirements import ROOT, lowest, requirements

pytestmark = pytest.mark.matrix
TOOLS = ["pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.100", "scikit-image>=0.24"]
TORCH = (
    "tests/checkpoint/test_load.py",
    "tests/evidence/test_draw.py",
    "tests/evidence/test_noise.py",
    "tests/hostile/test_corpus.py",
    "tests/backends/sdnq/test_backend.py",
    "tests/backends/svdquant/test_backend.py",
)
ALL = (
    *TORCH,
    "tests/hostile/test_variants.py",
    "tests/backends/test_openvino.py",
    "tests/backends/coreml/test_backend.py",
)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "wanted", "files"),
    [
        # The newest that optimum-intel takes are what the suite itself runs with.
        ("torch-newest", requirements("svdquant"), TORCH),
        ("all-oldest", lowest("openvino", "coreml", "svdquant"), ALL),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_suite_passes_there(name, wanted, files):
    python = environment(name, [*wanted, *TOOLS])
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--force-reinstall",
        "--editable",
        str(ROOT),
    ]
    subprocess.run(install, check=True)
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *files],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout[-20_000:])
    assert done.returncode == 0, done.stdout[-3000:]
