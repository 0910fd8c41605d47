"""A backend that takes no time: variants of plain files with made-up evidence, to publish in tests."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from unittest import mock

import numpy as np
from PIL import Image

from sdhub.backends.base import Backend, Forecast
from sdhub.backends.variant.layout import Layout
from sdhub.core.errors import BuildError
from sdhub.recipes.recipe import ComponentRecipe, Float, Recipe
from sdhub.workflow import plan, run, stages
from tests.publishing.publications import evidence

FAILS = "fake-broken"
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


class Fake(Backend):
    name = "fake"
    extra = "fake"
    packages = ()
    variants = MappingProxyType({"fake-one": "one", "fake-two": "two", FAILS: "cannot be built"})
    usual = "fake-one"
    tags = ("fake",)
    library = "diffusers"
    repository = "{model}-fake-{treatment}"
    install = "pip install nothing"
    checks = "sdhub"

    def why_not(self, checkpoint, variant):
        return None

    def recipe(self, checkpoint, variant):
        return Recipe(name=variant, backend="fake", components={"unet": ComponentRecipe(default=Float())})

    def accept(self, checkpoint, recipe):
        pass

    def forecast(self, checkpoint, recipe):
        return Forecast(1000, 10**9, 1.0)

    def build(self, checkpoint, pipeline, recipe, out, progress):
        raise NotImplementedError

    def recognizes(self, folder):
        return False

    def layout(self):
        return Layout((), ())

    def load(self, folder):
        raise NotImplementedError

    def usage(self, pipeline, repo_id, revision=None):
        return (f"pipe = load({repo_id!r}, revision={revision!r})",)


def _build(self) -> Path:
    if self.recipe.name == FAILS:
        raise BuildError("it cannot be built")

    def make(out: Path) -> None:
        (out / "unet").mkdir()
        (out / "unet" / "weights.bin").write_bytes(self.recipe.name.encode() * 1000)
        (out / "model_index.json").write_text("{}")

    return self.base.work.stage("variant", self.key, make)


def _evidence(self) -> Path:
    def make(out: Path) -> None:
        size = sum(path.stat().st_size for path in self.build().rglob("*") if path.is_file())
        document = {**evidence(), "bytes": size, "psnr_db": 30.0 + len(self.recipe.name)}
        (out / "evidence.json").write_text(json.dumps(document))
        for side in ("base", "variant"):
            (out / side).mkdir()
            for position in range(2):
                Image.fromarray(PIXELS).save(out / side / f"{position:02d}.png")
        Image.fromarray(PIXELS).save(out / "contact_sheet.png")

    return self.base.work.stage("evidence", {"variant": self.key}, make)


@contextmanager
def fake_backend(home: Path, monkeypatch):
    """Nothing is built, measured or drawn in the block; all the rest is real."""
    monkeypatch.setenv("SDHUB_HOME", str(home))
    found, checked = {"fake": Fake()}, home / "checked"
    checked.mkdir(parents=True)
    with (
        mock.patch.object(plan, "backends", lambda: found),
        mock.patch.object(plan, "backend_of", lambda name: found["fake"]),
        mock.patch.object(stages.VariantStages, "build", _build),
        mock.patch.object(stages.VariantStages, "evidence", _evidence),
        mock.patch.object(run.Run, "_check", lambda *_: checked),
    ):
        yield


def gated(checkpoint):
    """The same, as if the Hub gated it."""
    return replace(checkpoint, gated=True, gate={"extra_gated_prompt": "Be kind.\n---\nevil: true"})
