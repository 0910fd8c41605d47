"""Variants in one sentence."""

from __future__ import annotations

from sdhub.backends.base import backends


def test_presets_without_calibration_are_told_as_such():
    for backend in backends().values():
        for name in backend.variants:
            told = backend.describe(f"{name}-fast")
            assert told is not None
            assert name in told
            assert "without calibration" in told
        assert backend.describe("something-fast") is None
