from __future__ import annotations

import getpass
import json
import math
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdhub.core.errors import EvidenceError
from sdhub.evidence.compare import Evidence, compare, folder_bytes, machine
from sdhub.evidence.latency import Latency
from sdhub.evidence.sampling import Sample, parse_sampling
from tests.evidence.fakes import noisy, sampling

LATENCY = Latency(0.123456789, 0.0411522, 3.00000123, rounds=12, threads=2)


def offset(sample: Sample, image: float, latents: float) -> Sample:
    return Sample(sample.image + np.float32(image), sample.latents + np.float32(latents))


def evidence(base: list[Sample], variant: list[Sample]) -> Evidence:
    texts = [f"prompt {number}" for number in range(len(base))]
    drawn = sampling(*texts, size=64)
    return Evidence(
        fidelity=compare(base, variant, drawn),
        latency=LATENCY,
        bytes=10,
        base_bytes=40,
        peak_mib=123.4,
        base_peak_mib=2100.0,
        sampling=drawn,
        machine=machine(),
        versions={"torch": "2.0"},
    )


def test_pools_the_squared_error_and_averages_ssim() -> None:
    base = [noisy(1), noisy(2)]
    found = compare(base, [offset(base[0], 0.1, 0.3), offset(base[1], 0.3, 0.4)], sampling("a", "b"))
    assert [row.psnr_db for row in found.prompts] == pytest.approx([20.0, 10.4576], abs=1e-3)
    assert found.psnr_db == pytest.approx(10 * math.log10(1 / ((0.01 + 0.09) / 2)), abs=1e-3)
    peak = max(np.abs(each.latents).max() for each in base)
    assert found.latent_psnr_db == pytest.approx(10 * math.log10(peak**2 / ((0.09 + 0.16) / 2)), abs=1e-3)
    assert found.ssim == pytest.approx(np.mean([row.ssim for row in found.prompts]))
    assert [(row.text, row.seed) for row in found.prompts] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_refuses_pictures_of_different_shapes(size: tuple[int, int]) -> None:
    with pytest.raises(EvidenceError, match="different shapes"):
        compare([noisy(1, size[0])], [noisy(1, size[1])], sampling("a"))


def test_refuses_other_counts() -> None:
    with pytest.raises(EvidenceError, match="1 and 2 pictures of 1 prompts"):
        compare([noisy(1)], [noisy(1), noisy(2)], sampling("a"))


def test_document_is_plain_json_in_a_fixed_order() -> None:
    base = [noisy(1), noisy(2)]
    made = evidence(base, [offset(each, 0.012345, 0.1) for each in base])
    text = json.dumps(made.document(), allow_nan=False)
    assert text == json.dumps(evidence(base, [offset(each, 0.012345, 0.1) for each in base]).document())
    document = json.loads(text)
    assert document["psnr_db"] == 38.17
    assert document["identical"] is False
    assert document["latency"] == {
        "base_seconds_per_step": 0.1235,
        "variant_seconds_per_step": 0.04115,
        "ratio": 3.0,
        "rounds": 12,
        "threads": 2,
        "reference": None,
        "reference_seconds_per_step": None,
        "reference_ratio": None,
        "settings": {},
    }
    assert (document["bytes"], document["base_bytes"], document["peak_mib"]) == (10, 40, 123.4)
    assert parse_sampling(document["sampling"]) == made.sampling
    assert [row["text"] for row in document["prompts"]] == ["prompt 0", "prompt 1"]


def test_no_difference_is_null_and_said_to_be_identical() -> None:
    base = [noisy(1), noisy(2)]
    document = evidence(base, [base[0], offset(base[1], 0.1, 0.1)]).document()
    assert [row["identical"] for row in document["prompts"]] == [True, False]
    assert document["prompts"][0]["psnr_db"] is None
    assert document["identical"] is False
    alike = evidence(base, base).document()
    assert (alike["identical"], alike["psnr_db"], alike["latent_psnr_db"], alike["ssim"]) == (
        True,
        None,
        None,
        1.0,
    )
    json.dumps(alike, allow_nan=False)


def test_unmeasured_memory_is_null() -> None:
    base = [noisy(1)]
    assert replace(evidence(base, base), peak_mib=None).document()["peak_mib"] is None


def test_machine_names_neither_host_nor_user() -> None:
    described = machine()
    assert described == machine()
    assert described["cpu"]
    assert described["cores"] >= 1
    words = json.dumps(described).split('"')
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words


def test_folder_bytes_counts_nested_files(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "a.bin").write_bytes(b"x" * 100)
    (tmp_path / "b.json").write_bytes(b"{}")
    assert folder_bytes(tmp_path) == 102
