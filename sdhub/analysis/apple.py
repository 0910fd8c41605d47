"""Apple's mixed-bit recipes: the JSON that `mixed_bit_compression_pre_analysis` of ml-stable-diffusion writes.

One file holds several recipes, `recipes[key][module] = bits` (16: left as it is) with torch's module names, and
under `baselines` the PSNR in dB that was measured of each, of the original and of linear 8 bit. There, a recipe
is applied to any weight whose first number and size are those of the model that was analyzed; here, to the module
of the name it carries, and only to a weight that such a recipe can mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdhub.core.errors import RecipeError
from sdhub.core.nearly import meant
from sdhub.recipes.recipe import MAX_BYTES, ComponentRecipe, Float, Palette, Recipe, Rounding, Treatment

BITS = (1, 2, 4, 6, 8)
FLOAT = 16
MAX_RECIPES, MAX_LAYERS, MAX_NAME = 256, 20_000, 256
MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
DIMENSIONS = (2, 4)  # of the weights of Linear and Conv2d


@dataclass(frozen=True)
class AppleRecipe:
    """Bits of each module, under its key in the file; `psnr_db` where the file states it."""

    key: str
    bits: Mapping[str, int]
    psnr_db: float | None = None

    def as_recipe(self, backend: str, component: str = "unet") -> Recipe:
        """A recipe of ours for `backend` that says the same of `component`, to start an analysis from."""
        layers = {name: _treatment(bits, "gptq") for name, bits in self.bits.items()}
        parts = {component: ComponentRecipe(default=Float(), layers=layers)}
        return Recipe(name=f"{backend}-imported", backend=backend, components=parts)


@dataclass(frozen=True)
class AppleFile:
    """A file: the model that was analyzed, its recipes, PSNR in dB of the original and of linear 8 bit."""

    model: str
    recipes: tuple[AppleRecipe, ...]
    original_db: float | None = None
    linear_8bit_db: float | None = None

    def recipe(self, key: str | None = None) -> AppleRecipe:
        """The recipe called `key`, which may be left away where there is one only. Raises RecipeError."""
        for each in self.recipes:
            if each.key == key or (key is None and len(self.recipes) == 1):
                return each
        known = [each.key for each in self.recipes]
        raise RecipeError(
            f"no recipe is called {key[:80]!r}" if key else f"{len(self.recipes)} recipes, and none is chosen",
            hint=meant(key or "", known, f"there are: {', '.join(known[:6])}, …"),
        )


@dataclass(frozen=True)
class Applied:
    """Treatments by layer, and what of the recipe was not applied: each layer with the reason."""

    layers: Mapping[str, Treatment]
    unmatched: Mapping[str, str]


def load_apple(path: str | Path) -> AppleFile:
    """The recipes of a file. Raises RecipeError, naming what is wrong."""
    try:
        with Path(path).open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    return parse_apple(text, origin=str(path))


def parse_apple(text: str | bytes, *, origin: str = "recipes") -> AppleFile:
    """The recipes of JSON text. Raises RecipeError, naming what is wrong."""
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{origin}: too large", hint="16 MiB is the limit")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{origin}: not JSON: {error}") from None
    recipes = document.get("recipes") if isinstance(document, dict) else None
    if not isinstance(recipes, dict) or not 1 <= len(recipes) <= MAX_RECIPES:
        raise RecipeError(f"{origin}: 1 to {MAX_RECIPES} recipes are wanted under the key recipes")
    baselines = document.get("baselines", {})
    if not isinstance(baselines, dict):
        raise RecipeError(f"{origin}: baselines is no object")
    return AppleFile(
        model=str(document.get("model_version", ""))[:MAX_NAME],
        recipes=tuple(
            AppleRecipe(_name(key, origin), _layers(key, layers, origin), _figure(baselines.get(key)))
            for key, layers in recipes.items()
        ),
        original_db=_figure(baselines.get("original")),
        linear_8bit_db=_figure(baselines.get("linear_8bit")),
    )


def write_apple(file: AppleFile) -> str:
    """The JSON of a file, as ml-stable-diffusion reads it; the same recipes give the same text."""
    figures = {"original": file.original_db, "linear_8bit": file.linear_8bit_db}
    figures.update({each.key: each.psnr_db for each in file.recipes})
    document = {
        "model_version": file.model,
        "baselines": {name: value for name, value in figures.items() if value is not None},
        "recipes": {each.key: dict(each.bits) for each in file.recipes},
        "single_layer": {},
        "cumulative": {},
    }
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def exported(
    layers: Mapping[str, Treatment], weights: Mapping[str, int], psnr_db: float | None = None
) -> AppleRecipe:
    """A recipe in Apple's form, with the key that tells its bits per weight (`weights` of each layer).

    Raises RecipeError for a treatment that it has no number for: 3 bits, groups, and all but palettes.
    """
    bits = {}
    for name, treatment in layers.items():
        if isinstance(treatment, Float):
            bits[name] = FLOAT
        elif isinstance(treatment, Palette) and treatment.bits in BITS and not treatment.group_size:
            bits[name] = int(treatment.bits)
        else:
            raise RecipeError(
                f"{name}: Apple's recipes have no {_treatment_label(treatment)}",
                hint="they have one palette of 1, 2, 4, 6 or 8 bits for each weight",
            )
    mean = sum(bits[name] * weights[name] for name in bits) / max(sum(weights[name] for name in bits), 1)
    return AppleRecipe(f"recipe_{mean:.2f}_bit_mixedpalette", bits, psnr_db)


def applied(
    recipe: AppleRecipe,
    shapes: Mapping[str, Sequence[int]],
    *,
    base: Mapping[str, Sequence[int]] | None = None,
    rounding: Rounding = "gptq",
) -> Applied:
    """The recipe for a denoiser whose layers' weights have these `shapes`, by module name.

    `base`: shapes in the model that was analyzed, where they are known; a layer whose shape differs is not applied
    (a Linear and a 1 x 1 convolution of the same numbers are the same: ml-stable-diffusion makes the one of the
    other). Nothing is guessed: what is missing, or is neither Linear nor Conv2d, is listed.
    """
    layers: dict[str, Treatment] = {}
    unmatched = {}
    for name, bits in recipe.bits.items():
        reason = _mismatch(name, shapes, base)
        if reason:
            unmatched[name] = reason
        else:
            layers[name] = _treatment(bits, rounding)
    return Applied(layers, unmatched)


def _treatment(bits: int, rounding: Rounding) -> Treatment:
    return Float() if bits == FLOAT else Palette.model_validate({"bits": bits, "rounding": rounding})


def _mismatch(
    name: str, shapes: Mapping[str, Sequence[int]], base: Mapping[str, Sequence[int]] | None
) -> str | None:
    shape = shapes.get(name)
    if shape is None:
        return "no such layer"
    if len(shape) not in DIMENSIONS:
        return f"its weight has {len(shape)} dimensions"
    if base is None:
        return None
    if name not in base:
        return "not in the model that was analyzed"
    if _squeezed(shape) != _squeezed(base[name]):
        return f"its weight is {_dimensions(shape)}, and was {_dimensions(base[name])}"
    return None


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    found = tuple(shape)
    return found[:2] if len(found) == 4 and found[2:] == (1, 1) else found


def _dimensions(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _layers(key: str, layers: Any, origin: str) -> dict[str, int]:
    if not isinstance(layers, dict) or not 1 <= len(layers) <= MAX_LAYERS:
        raise RecipeError(f"{origin}: {key[:80]!r} is no object of 1 to {MAX_LAYERS} layers")
    for name, bits in layers.items():
        if not MODULE.fullmatch(name):
            raise RecipeError(f"{origin}: {name[:40]!r} is no module of torch")
        if isinstance(bits, bool) or bits not in (*BITS, FLOAT):
            raise RecipeError(
                f"{origin}: {key[:80]}.{name} has {str(bits)[:20]!r} bits", hint="1, 2, 4, 6, 8, or 16 for none"
            )
    return {name: int(bits) for name, bits in layers.items()}


def _name(name: str, origin: str) -> str:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise RecipeError(f"{origin}: {name[:40]!r} is no name")
    return name


def _figure(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _treatment_label(treatment: Treatment) -> str:
    if isinstance(treatment, Palette):
        return f"palettes of {treatment.bits} bits" + (" in groups" if treatment.group_size else "")
    return f"weights of scheme {treatment.scheme}"
