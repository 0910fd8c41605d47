"""Subject kept: pictures that differ a lot and show the same, and some that differ less and do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdhub.core.errors import EvidenceError, UsageError
from sdhub.evidence.metrics import psnr
from sdhub.evidence.subject import encoder, pixels, subject_kept


def scene(*discs: tuple[float, float, tuple[float, float, float]], shade: float = 1.0) -> np.ndarray:
    """64 x 64 pixels: coloured discs of radius 9 on grey."""
    y, x = np.mgrid[0:64, 0:64]
    picture = np.full((64, 64, 3), 0.6 * shade, np.float32)
    for row, column, color in discs:
        picture[(y - row) ** 2 + (x - column) ** 2 < 81] = color
    return picture


RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.9)
BASE = [scene((20, 20, RED), (44, 44, GREEN)), scene((20, 20, RED)), scene((44, 20, BLUE)), scene((10, 50, BLUE))]


def test_a_shifted_shade_keeps_every_subject() -> None:
    variant = [np.clip(each * 0.7 + 0.05, 0, 1) for each in BASE]
    found = subject_kept(BASE, variant, pixels, name="pixels")
    assert (found.kept, found.among) == (4, 4)
    assert found.document()["of"] == 4


def test_a_lost_subject_is_seen_where_psnr_prefers_it() -> None:
    lost = [BASE[1], *BASE[1:]]
    shaded = [np.clip(each * 0.6, 0, 1) for each in BASE]
    assert psnr(BASE[0], lost[0], 1.0) > psnr(BASE[0], shaded[0], 1.0)
    found = subject_kept(BASE, lost, pixels, name="pixels")
    assert [each.kept for each in found.prompts] == [False, True, True, True]
    assert subject_kept(BASE, shaded, pixels, name="pixels").kept == 4


def test_other_pictures_of_the_base_make_the_judge_stricter() -> None:
    variant = [scene((20, 20, RED), (40, 48, BLUE)), *BASE[1:]]
    assert subject_kept(BASE[:1] + BASE[2:], variant[:1] + variant[2:], pixels, name="pixels").prompts[0].kept
    found = subject_kept(
        BASE[:1], variant[:1], pixels, name="pixels", others=[scene((20, 20, RED), (40, 48, BLUE))]
    )
    assert not found.prompts[0].kept and found.among == 2


def test_similarity_is_the_cosine_of_the_encoder_s_vectors() -> None:
    vectors = iter([np.array([[1.0, 0], [0, 2.0]], np.float32), np.array([[3.0, 4.0], [0, 1.0]], np.float32)])
    found = subject_kept(BASE[:2], BASE[:2], lambda _: next(vectors), name="given")
    assert [(each.similarity, each.runner_up) for each in found.prompts] == [
        pytest.approx((0.6, 0.8)),
        pytest.approx((1.0, 0.0)),
    ]
    assert found.kept == 1


def test_one_picture_alone_tells_nothing() -> None:
    with pytest.raises(EvidenceError):
        subject_kept(BASE[:1], BASE[:1], pixels, name="pixels")


def test_pixels_of_any_size_are_means_over_squares() -> None:
    picture = np.random.default_rng(0).random((48, 32, 3)).astype(np.float32)
    blocks = picture.reshape(16, 3, 16, 2, 3).mean(axis=(1, 3))
    wanted = blocks - blocks.mean(axis=(0, 1))
    assert np.allclose(pixels([picture])[0], wanted.ravel(), atol=1e-6)
    assert pixels([picture[:7, :9]]).shape == (1, 7 * 9 * 3)


def test_a_clip_model_from_a_folder(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=sizes, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    vectors = encoder(str(tmp_path))(BASE)
    assert vectors.shape == (4, 8)
    assert subject_kept(BASE, BASE, encoder(str(tmp_path)), name="tiny").kept == 4


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no judge"):
        encoder(str(tmp_path))
