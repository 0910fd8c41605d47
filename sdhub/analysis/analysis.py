"""What an analysis knows: what each treatment of each layer costs; and the recipes that follow from it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sdhub.analysis.allocation import Choice, Option, allocate, loyal, path, total
from sdhub.core.errors import RecipeError, UsageError
from sdhub.recipes.recipe import AnalysisRecord, Calibration, Checked, Float, Recipe, Treatment
from sdhub.recipes.treatments import size_of

if TYPE_CHECKING:
    from torch import Tensor

MOST_DB = 150.0  # where nothing differs
BUDGET = re.compile(r"(\d{1,6}(?:\.\d{1,4})?) ?(bits?|GB|MB)", re.IGNORECASE)
BYTES = {"gb": 10**9, "mb": 10**6}
OTHERS = 16  # bits of parameters that are not chosen among


@dataclass(frozen=True)
class Subject:
    """What was analyzed, and how: the fields of `AnalysisRecord` that all its recipes share."""

    component: str
    source: str
    fingerprint: str
    trajectories: Calibration
    timesteps: tuple[float, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Analysis:
    """`treatments` are numbered; `options` has one of each that fits for every layer, under its number in
    `numbers`.

    Errors are mean squared changes of the final latents' elements, `peak` is the latents' largest magnitude.
    `weights`: of each layer. `parameters`: of the whole component. `calls` of the denoiser so far; `checks`: what
    was sampled as a whole, raw predictions beside it.
    """

    subject: Subject
    treatments: tuple[Treatment, ...]
    options: Mapping[str, tuple[Option, ...]]
    numbers: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, int]
    parameters: int
    peak: float
    calls: int
    checks: tuple[Checked, ...] = ()

    @cached_property
    def path(self) -> list[Choice]:
        """All choices worth making, the smallest first."""
        return path(self.options)

    def bits(self, choice: Choice) -> float:
        """Bits per weight of the layers that are chosen among."""
        return choice.size / sum(self.weights.values())

    def bytes(self, choice: Choice) -> int:
        """Bytes of the whole component."""
        return -(-(choice.size + self._other_bits) // 8)

    def model_bits(self, choice: Choice) -> float:
        """Bits per parameter of the whole component."""
        return (choice.size + self._other_bits) / self.parameters

    def raw_db(self, choice: Choice) -> float:
        """Latent PSNR that the sum of the layers' errors predicts."""
        if choice.error <= 0:
            return MOST_DB
        return min(20 * math.log10(self.peak) - 10 * math.log10(choice.error), MOST_DB)

    def predicted_db(self, choice: Choice) -> float:
        """Latent PSNR that is predicted, corrected by what the checks measured."""
        raw = self.raw_db(choice)
        known = sorted((check.predicted_db, check.measured_db - check.predicted_db) for check in self.checks)
        if not known or raw >= MOST_DB:
            return raw
        for (low, first), (high, second) in pairwise(known):
            if low <= raw < high:
                return raw + first + (second - first) * (raw - low) / (high - low)
        return raw + (known[0] if raw < known[0][0] else known[-1])[1]

    def measured_db(self, choice: Choice) -> float | None:
        """What a check of this very choice measured."""
        found = [check.measured_db for check in self.checks if check.bits == self.bits(choice)]
        return found[0] if found else None

    def checked(self, choice: Choice, measured_db: float, calls: int) -> Analysis:
        """The analysis with one more check."""
        check = Checked(bits=self.bits(choice), predicted_db=self.raw_db(choice), measured_db=measured_db)
        others = tuple(each for each in self.checks if each.bits != check.bits)
        return replace(self, checks=(*others, check), calls=self.calls + calls)

    def within(self, size: int, former: Mapping[str, int] | None = None) -> Choice:
        """The choice of least error within `size` bits; `former` choices stay where nothing is twice as good."""
        if former is None:
            return allocate(self.options, size)
        return total(self.options, allocate(loyal(self.options, former), size).chosen)

    def size(self, budget: str) -> int:
        """Bits for the layers that are chosen among, of "4.5bits" for each of their weights, or of "1.4GB" or
        "800MB" for the whole component. Raises UsageError."""
        number, unit = parse_budget(budget)
        if unit in BYTES:
            return int(number * BYTES[unit] * 8) - self._other_bits
        return int(number * sum(self.weights.values()))

    def treatments_of(self, choice: Choice) -> dict[str, Treatment]:
        """The treatment of each layer."""
        return {
            name: self.treatments[self.numbers[name][option]] for name, option in sorted(choice.chosen.items())
        }

    def uniform(self, treatment: Treatment) -> Choice:
        """One treatment for all layers; where it does not fit, the next larger one that does."""
        wanted = self.treatments.index(treatment)
        chosen = {}
        for name, numbers in self.numbers.items():
            fitting = [place for place, number in enumerate(numbers) if number >= wanted] or [len(numbers) - 1]
            chosen[name] = fitting[0]
        return total(self.options, chosen)

    def former(self, recipe: Recipe) -> dict[str, int]:
        """The options that a recipe chose for these layers, where it offers them.

        `rounding` is not looked at. Raises RecipeError where the recipe says nothing of the component.
        """
        component = recipe.components.get(self.subject.component)
        if component is None:
            raise RecipeError(f"{recipe.name} says nothing of the {self.subject.component}")
        found = {}
        for name, numbers in self.numbers.items():
            wanted = _format(component.layers.get(name, component.default))
            for place, number in enumerate(numbers):
                if _format(self.treatments[number]) == wanted:
                    found[name] = place
        return found

    def recipe(
        self,
        choice: Choice,
        template: Recipe,
        name: str,
        start: Recipe | None = None,
        repaired: Iterable[str] = (),
    ) -> Recipe:
        """`template` with this choice for the component, under `name`, with how it was found."""
        layers = self.treatments_of(choice)
        component = template.components[self.subject.component]
        share: Counter[Treatment] = Counter()
        for layer, treatment in layers.items():
            share[treatment] += self.weights[layer]
        default = max(share, key=lambda each: (share[each], self.treatments.index(each)))
        made = component.model_copy(update={"default": default, "layers": layers})
        return template.model_copy(
            update={
                "name": name,
                "components": {**template.components, self.subject.component: made},
                "analysis": self._record(choice, start, tuple(repaired)),
            }
        )

    def rows(self, choices: Iterable[Choice]) -> list[dict[str, Any]]:
        """Figures of choices, for curves and tables."""
        return [
            {
                "bits": round(self.bits(choice), 4),
                "model_bits": round(self.model_bits(choice), 4),
                "bytes": self.bytes(choice),
                "predicted_db": round(self.predicted_db(choice), 2),
                "measured_db": self.measured_db(choice),
            }
            for choice in choices
        ]

    def _record(self, choice: Choice, start: Recipe | None, repaired: tuple[str, ...]) -> AnalysisRecord:
        subject = self.subject
        return AnalysisRecord(
            component=subject.component,
            source=subject.source,
            fingerprint=subject.fingerprint,
            trajectories=subject.trajectories,
            timesteps=subject.timesteps,
            calls=self.calls,
            checks=tuple(
                Checked(
                    bits=round(each.bits, 4),
                    predicted_db=round(each.predicted_db, 2),
                    measured_db=round(each.measured_db, 2),
                )
                for each in self.checks
            ),
            bits=round(self.bits(choice), 4),
            model_bits=round(self.model_bits(choice), 4),
            bytes=self.bytes(choice),
            predicted_db=round(self.predicted_db(choice), 2),
            measured_db=_rounded(self.measured_db(choice)),
            start=start.sha256 if start else None,
            repaired=repaired,
            versions=dict(subject.versions),
        )

    @property
    def _other_bits(self) -> int:
        return (self.parameters - sum(self.weights.values())) * OTHERS


def analysis_of(
    subject: Subject,
    weights: Mapping[str, Tensor],
    errors: Mapping[str, Mapping[int, float]],
    treatments: Sequence[Treatment],
    *,
    parameters: int,
    peak: float,
    calls: int,
) -> Analysis:
    """From the layers' weights and the errors of their treatments, by number (see `sensitivity.errors`).

    Layers without any are left alone.
    """
    options: dict[str, tuple[Option, ...]] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    for name, found in errors.items():
        sizes = {number: _size(treatments[number], weights[name]) for number in sorted(found)}
        fitting = {number: size for number, size in sizes.items() if size is not None}
        if fitting:
            options[name] = tuple(Option(size, found[number]) for number, size in fitting.items())
            numbers[name] = tuple(fitting)
    return Analysis(
        subject=subject,
        treatments=tuple(treatments),
        options=options,
        numbers=numbers,
        weights={name: int(weights[name].numel()) for name in options},
        parameters=parameters,
        peak=peak,
        calls=calls,
    )


def _size(treatment: Treatment, weight: Tensor) -> int | None:
    """None where the treatment does not fit the layer."""
    try:
        return size_of(treatment, tuple(weight.shape))
    except UsageError:
        return None


def _format(treatment: Treatment) -> Treatment:
    return (
        treatment
        if isinstance(treatment, Float)
        else treatment.model_copy(update={"rounding": "round_to_nearest"})
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def parse_budget(budget: str) -> tuple[float, str]:
    """The number and the unit (lower case) of a budget. Raises UsageError."""
    found = BUDGET.fullmatch(budget.strip())
    if not found or not float(found[1]):
        raise UsageError(f"{budget[:40]!r} is no budget", hint="such as 4.5bits, 1.4GB or 800MB")
    return float(found[1]), found[2].lower()
