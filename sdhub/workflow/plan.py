"""What publish would do, known before it does anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdhub.backends.base import Backend, Forecast, backend_of, backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.cost import call_seconds, decoding_seconds, drawing_bytes, passes
from sdhub.checkpoint.resolve import checkpoint_of
from sdhub.checkpoint.sampling import most_steps, sampling_defaults
from sdhub.core import nextsteps
from sdhub.core.errors import RecipeError, UnsupportedError, UsageError
from sdhub.core.nearly import meant
from sdhub.evidence.budget import Cost, Scope, afforded
from sdhub.evidence.sampling import MAX_GUIDANCE, MAX_STEPS, Prompt, Sampling, general_prompts, load_prompts
from sdhub.recipes.adjust import AS_IT_IS, Adjustment
from sdhub.recipes.calibration import at_level, is_large
from sdhub.recipes.presets import mixed_bits
from sdhub.recipes.recipe import Recipe, load_recipe
from sdhub.workflow.options import NAMESPACE, Options, options_for

LARGE_PROMPTS, SMALL_PROMPTS = 4, 8


@dataclass(frozen=True)
class PlannedVariant:
    """A variant to make: its recipe, its backend's forecast, and where it goes."""

    name: str
    backend: Backend
    recipe: Recipe
    repo_id: str
    forecast: Forecast
    branch: str = "main"


@dataclass(frozen=True)
class Plan:
    """What will be made of a checkpoint, and how it will be measured."""

    checkpoint: Checkpoint
    variants: tuple[PlannedVariant, ...]
    usual: Sampling
    """How users draw, and all that evidence could show."""
    scope: Scope
    """What the budget buys of it."""

    @property
    def sampling(self) -> Sampling:
        """How the evidence is drawn."""
        return self.scope.sampling

    def minutes(self, variant: PlannedVariant) -> float:
        """Forecast of making a variant, with its share of the evidence."""
        return (variant.forecast.seconds + self.scope.seconds / len(self.variants)) / 60

    def peak_bytes(self, variant: PlannedVariant) -> int:
        """Forecast of the most memory that making a variant, or measuring it beside its base, takes."""
        size = self.sampling.width, self.sampling.height
        measuring = drawing_bytes(self.checkpoint, *size) + 3 * variant.forecast.bytes // 2
        return max(variant.forecast.peak_bytes, measuring)

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "source": self.checkpoint.id,
            "sha": self.checkpoint.sha,
            "download": {"files": len(self.checkpoint.files), "bytes": self.checkpoint.bytes},
            "evidence": self.sampling.document(),
            "budget": self.scope.document(),
            "variants": [
                {
                    "name": each.name,
                    "repo": each.repo_id,
                    "branch": None if each.branch == "main" else each.branch,
                    "recipe_sha256": each.recipe.sha256,
                    "bytes": each.forecast.bytes,
                    "peak_bytes": self.peak_bytes(each),
                    "minutes": round(self.minutes(each), 1),
                }
                for each in self.variants
            ],
        }


def possible(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Every variant that an installed backend offers, with the reason where this checkpoint cannot have it."""
    rows = []
    for backend in backends().values():
        for name in backend.variants:
            reason = _why_not(checkpoint, backend, name)
            rows.append({"name": name, "possible": reason is None, "reason": reason})
    return rows


def choose(
    checkpoint: Checkpoint, names: Sequence[str], recipe: Path | None, adjustment: Adjustment = AS_IT_IS
) -> list[tuple[Backend, Recipe]]:
    """The recipes asked for: presets by variant name, or one from a file; by default each backend's usual one.

    Presets are adjusted; a recipe from a file is followed to the letter.

    Raises UnsupportedError for a variant that the checkpoint cannot have, RecipeError for a bad recipe.
    """
    if recipe is not None:
        if adjustment != AS_IT_IS:
            raise UsageError(
                "a recipe is followed to the letter", hint="leave away --fast, --size, --min-psnr and their like"
            )
        document = load_recipe(recipe)
        backend = backends().get(document.backend)
        if backend is None:
            raise UnsupportedError(
                f"{recipe}: no backend is called {document.backend}", hint=meant(document.backend, backends())
            )
        _fit(checkpoint, backend, document.name)
        preset = backend.knows(document.name) and mixed_bits(document.name) is None
        if preset and not _alike(document, backend.recipe(checkpoint, document.name)):
            raise RecipeError(
                f"{recipe} is called {document.name} and is not that preset",
                hint=f"give it a name of its own, such as {document.name}-mine",
            )
        return [(backend, document)]
    wanted = list(dict.fromkeys(names)) or _usual(checkpoint)
    chosen = []
    for name in wanted:
        backend = _fit(checkpoint, backend_of(name), name)
        made = at_level(backend.recipe(checkpoint, name), checkpoint, adjustment.calibration)
        chosen.append((backend, adjustment.apply(made)))
    return chosen


def _alike(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes of one name differ in nothing but what an adjustment sets."""
    return one.components == other.components


def plan(
    source: str | Path | Checkpoint, variants: str | Sequence[str] = (), options: Options | None = None
) -> Plan:
    """What `publish` would do, known before it does anything: repositories, bytes, memory, minutes.

    Raises what `inspect` and `make_plan` raise.
    """
    return make_plan(checkpoint_of(source), options_for(variants, options))


def make_plan(checkpoint: Checkpoint, options: Options, *, namespace: str | None = None) -> Plan:
    """The plan for a checkpoint; `namespace` stands for the one that `options` leave open.

    Raises what `choose` raises, and UsageError where two variants would go to one place.
    """
    namespace = options.namespace or namespace or NAMESPACE
    planned = []
    for backend, each in choose(checkpoint, options.variants, options.recipe, options.adjustment):
        backend.accept(checkpoint, each)
        repo_id, branch = _place(checkpoint, backend, each, namespace, options)
        forecast = backend.forecast(checkpoint, each)
        planned.append(PlannedVariant(each.name, backend, each, repo_id, forecast, branch))
    places = {(each.repo_id.lower(), each.branch) for each in planned}
    if len(places) < len(planned):
        raise UsageError(
            f"{options.template!r} gives several variants one repository", hint="put {treatment} into the template"
        )
    usual = options.sampling or sampling_for(checkpoint, guidance=options.guidance)
    usual = fitting(usual, [each.recipe for each in planned])
    return Plan(checkpoint, tuple(planned), usual, _scope(checkpoint, options, usual, planned))


def _scope(checkpoint: Checkpoint, options: Options, usual: Sampling, planned: Sequence[PlannedVariant]) -> Scope:
    guided = passes(checkpoint, usual.guidance)
    cost = Cost(
        step=lambda width, height: guided * call_seconds(checkpoint, width, height),
        decode=lambda width, height: decoding_seconds(checkpoint, width, height),
        relative=tuple(each.backend.relative_seconds for each in planned),
    )
    fixed = any(each.backend.fixed_sizes or each.recipe.sizes for each in planned)
    exact = options.sampling is not None
    return afforded(usual, options.budget, cost, fixed=fixed, exact=exact)


def fitting(sampling: Sampling, recipes: Sequence[Recipe]) -> Sampling:
    """The sampling at the fixed size that recipes have, where it has another. Raises UsageError for several."""
    own = (sampling.width, sampling.height)
    fixed = {each.sizes[0] for each in recipes if each.sizes and own not in each.sizes}
    if not fixed:
        return sampling
    (width, height), *others = sorted(fixed)
    if others or any(each.sizes and (width, height) not in each.sizes for each in recipes):
        raise UsageError("variants of different fixed sizes are not drawn alike", hint="one size in a run")
    return replace(sampling, width=width, height=height)


def _place(
    checkpoint: Checkpoint, backend: Backend, recipe: Recipe, namespace: str, options: Options
) -> tuple[str, str]:
    """Repository and branch of a variant."""
    from sdhub.publishing.names import repository_id, repository_name

    treatment = recipe.name.removeprefix(f"{backend.name}-")
    pattern = options.template or backend.repository
    if options.branches:
        pattern = pattern.replace("{treatment}", "")
    name = repository_name(pattern, model=checkpoint.name, treatment=treatment)
    return repository_id(namespace, name), treatment if options.branches else "main"


def _fit(checkpoint: Checkpoint, backend: Backend, name: str) -> Backend:
    reason = _why_not(checkpoint, backend, name)
    if reason is not None:
        raise UnsupportedError(
            f"{checkpoint.id} cannot become {name}: {reason}",
            hint=f"see: {nextsteps.inspect(checkpoint.source.text)}",
        )
    return backend


def _why_not(checkpoint: Checkpoint, backend: Backend, name: str) -> str | None:
    if checkpoint.companions and not backend.companions:
        return "it has no room for ControlNets or a safety checker, Core ML variants have"
    return backend.why_not(checkpoint, name)


def _usual(checkpoint: Checkpoint) -> list[str]:
    offered = [each for each in backends().values() if each.usual]
    usual = [each.usual for each in offered if _why_not(checkpoint, each, each.usual) is None]
    if not usual:
        reasons = "; ".join(sorted({str(row["reason"]) for row in possible(checkpoint)}))
        way = nextsteps.inspect(checkpoint.source.text)
        raise UnsupportedError(f"no variant can be made of {checkpoint.id}: {reasons}", hint=f"see: {way}")
    return usual


def drawn_as(
    options: Options, checkpoint: Checkpoint, prompts: Path | None, steps: int | None, guidance: float | None
) -> Options:
    """The options with the evidence that a user asks for: named prompts or steps are drawn to the letter.

    Raises what `sampling_for` raises.
    """
    sampling = sampling_for(checkpoint, prompts=prompts, steps=steps, guidance=guidance)
    return replace(options, sampling=sampling) if prompts or steps else replace(options, guidance=guidance)


def sampling_for(
    checkpoint: Checkpoint,
    *,
    prompts: Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Sampling:
    """How the evidence of a checkpoint is drawn: what the user says, else what the checkpoint's card shows
    (widget prompts, inference parameters), else the general prompts and `sampling_defaults`.

    Fewer pictures where each takes long. Raises UsageError for steps or guidance that no picture is drawn with.
    """
    trained = min(most_steps(checkpoint), MAX_STEPS)
    for name, value, least, most in (("steps", steps, 1, trained), ("guidance", guidance, 0, MAX_GUIDANCE)):
        if value is not None and not least <= value <= most:
            raise UsageError(f"{name} of {value:g} draw nothing", hint=f"from {least} to {most}")
    most = LARGE_PROMPTS if is_large(checkpoint) else SMALL_PROMPTS
    defaults = sampling_defaults(checkpoint)
    drawn = load_prompts(prompts) if prompts else _card_prompts(checkpoint) or general_prompts()
    return Sampling(
        prompts=drawn if prompts else drawn[:most],
        steps=steps or defaults.steps,
        guidance=defaults.guidance if guidance is None else guidance,
        width=defaults.side,
        height=defaults.side,
    )


def _card_prompts(checkpoint: Checkpoint) -> tuple[Prompt, ...]:
    return tuple(Prompt(text, seed) for seed, text in enumerate(checkpoint.prompts, start=1))
