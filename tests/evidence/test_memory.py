from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from sdhub.evidence.memory import peak_mib


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_is_what_the_kernel_says() -> None:
    program = (
        "import resource\n"
        "from sdhub.evidence.memory import peak_mib\n"
        "before = peak_mib()\n"
        "block = bytearray(200 << 20)\n"
        "block[::4096] = b'x' * len(block[::4096])\n"
        "del block\n"
        "print(before, peak_mib())\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    before, after = map(float, said.split())
    assert 190 < after - before < 230


def test_peak_is_not_beyond_what_the_process_used() -> None:
    found = peak_mib()
    unit = 1024 if sys.platform == "linux" else 2**20
    assert found is not None
    assert 1 < found <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit + 64
