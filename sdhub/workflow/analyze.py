"""The analysis of a checkpoint, from its name to recipes: measure, choose, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdhub.analysis.allocation import Choice, total
from sdhub.analysis.analysis import Analysis, parse_budget
from sdhub.analysis.analyzer import SensitivityAnalyzer, trajectories_for
from sdhub.analysis.apple import AppleFile, exported, load_apple
from sdhub.backends.base import Backend, backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.fetch import fingerprint
from sdhub.checkpoint.resolve import checkpoint_of
from sdhub.core import nextsteps
from sdhub.core.device import AUTO, CPU, resolve, vet_word
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import EvidenceError, RecipeError, UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.nearly import meant
from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.core.work import Work, home
from sdhub.evidence.curve import Series, draw_curve
from sdhub.recipes.calibration import at_level
from sdhub.recipes.presets import mixed_bits
from sdhub.recipes.recipe import Affine, Float, Palette, Recipe, Rounding, Treatment, load_recipe
from sdhub.workflow import measure

CURVE_CHECKS = ("2.5bits", "4bits", "6bits")
CURVE_POINTS = 64
MOST_CHECKS = 5
USUAL_BUDGET = "4.5bits"
MOST_DB = 200  # float32 latents agree no better
EVERYWHERE = (1, 2, 4, 6, 8)  # widths of palettes that every system reads


@dataclass(frozen=True)
class Wanted:
    """What is asked of an analysis; a recipe of `USUAL_BUDGET` where nothing is. Raises UsageError."""

    backend: str | None = None
    """Whose treatments are chosen among; None: those of the backend that is `analyzed_first`."""
    budgets: tuple[str, ...] = ()
    """A recipe for each: "4.5bits" for each weight, or "1.4GB" for the denoiser."""
    min_psnr: float | None = None
    """The smallest recipe of at least this PSNR, in dB."""
    start: Recipe | None = None
    """A recipe to repair."""
    curve: bool = False
    """Whether the whole range of sizes is checked."""
    device: str = AUTO
    """Where the denoiser runs: a word of `sdhub.core.device`."""
    widths: tuple[int, ...] = ()
    """The bits that palettes may have, where not all (Core ML has 3 bits from iOS 18 and macOS 15 on)."""
    rounding: Rounding = "gptq"
    """Of palettes."""
    template: Recipe | None = None
    """What other components get; None: a preset of the backend's."""

    def __post_init__(self) -> None:
        vet_word(self.device)
        for budget in self.budgets:
            parse_budget(budget)
        if self.min_psnr is not None and not 0 < self.min_psnr <= MOST_DB:
            raise UsageError(f"a PSNR of {self.min_psnr:g} dB means nothing", hint=f"above 0, up to {MOST_DB}")
        if not (self.budgets or self.min_psnr is not None or self.start):
            object.__setattr__(self, "budgets", (USUAL_BUDGET,))

    @classmethod
    def of(cls, recipe: Recipe) -> Wanted:
        """What a recipe of mixed bits asks for that says no layers yet, with a curve."""
        calibrated: Rounding = "gptq" if recipe.calibration else "round_to_nearest"
        budget = f"{mixed_bits(recipe.name):g}bits"
        return cls(recipe.backend, (budget,), curve=True, widths=EVERYWHERE, rounding=calibrated, template=recipe)


@dataclass(frozen=True)
class Analyzed:
    """The analysis and the recipes, in the order in which they were asked for."""

    checkpoint: Checkpoint
    analysis: Analysis
    recipes: tuple[Recipe, ...]

    def document(self) -> dict[str, Any]:
        """The JSON form: recipes with their evidence, and the curve."""
        return {
            "source": self.checkpoint.id,
            "sha": self.checkpoint.sha,
            "calls": self.analysis.calls,
            "recipes": [each.document() for each in self.recipes],
            "curve": curve_document(self.analysis),
        }

    def apple(self) -> AppleFile:
        """The recipes in Apple's form. Raises RecipeError for treatments that it has no number for."""
        component = self.analysis.subject.component
        found = []
        for recipe in self.recipes:
            layers = {name: recipe.components[component].layers[name] for name in self.analysis.weights}
            measured = recipe.analysis.measured_db if recipe.analysis else None
            found.append(exported(layers, self.analysis.weights, measured))
        return AppleFile(self.checkpoint.id, tuple(found))

    def draw(self, path: Path) -> None:
        """The curve, as .svg or .png."""
        draw(self.analysis, path, self.checkpoint.name)


def analyze(
    source: str | Path | Checkpoint,
    wanted: Wanted,
    progress: Progress = SILENT,
    *,
    source_hub: Hub | None = None,
) -> Analyzed:
    """Recipes of mixed treatments for a checkpoint's denoiser; its other components are treated as in the
    backend's preset.

    What of the source is not here yet comes from `source_hub` (None: `HF_ENDPOINT` or huggingface.co).
    Raises UsageError for a budget that cannot be kept, UnsupportedError for a checkpoint that the backend does not
    take, EvidenceError where no recipe is as good as asked for.
    """
    device = str(resolve(wanted.device))
    backend = analyzable(wanted.backend)
    on_offer = _offers(backend, wanted)
    checkpoint = checkpoint_of(source)
    template = wanted.template or _template(checkpoint, backend)
    hub, handful = source_hub or endpoint(None), wanted.start is not None
    analyzer = sensitivity_analyzer(checkpoint, hub, device=device, handful=handful, progress=progress)
    analysis = analyzer.analysis(on_offer)
    choices: list[tuple[Choice, str | None]] = [
        (analysis.within(analysis.size(budget)), _label(budget)) for budget in wanted.budgets
    ]
    repaired: tuple[str, ...] = ()
    if wanted.start is not None:
        choice, repaired = repair(analysis, wanted.start)
        choices.insert(0, (choice, None))
    for choice, _ in choices:
        analysis = analyzer.check(analysis, choice)
    if wanted.curve:
        for budget in CURVE_CHECKS:
            analysis = _checked_within(analyzer, analysis, analysis.size(budget))
    if wanted.min_psnr is not None:
        choice, analysis = least(analyzer, analysis, wanted.min_psnr)
        choices.append((choice, None))
    recipes = []
    for number, (choice, label) in enumerate(choices):
        first = number == 0 and wanted.start is not None
        name = (
            wanted.template.name
            if wanted.template
            else f"{backend.name}-mixed-{label or f'{analysis.bits(choice):.2f}'.rstrip('0').rstrip('.')}bit"
        )
        recipes.append(
            analysis.recipe(choice, template, name, wanted.start if first else None, repaired if first else ())
        )
    return Analyzed(checkpoint, analysis, tuple(recipes))


def starting_recipe(file: Path | None, key: str | None = None, backend: str | None = None) -> Recipe | None:
    """What a recipe's file starts an analysis with: ours, or, called `key` in it, one of Apple's as
    ours for `backend` (None: the one that is `analyzed_first`).

    Raises RecipeError for a file that is neither, UsageError for a `key` of no file.
    """
    if file is None:
        if key is not None:
            raise UsageError("--key names a recipe of an Apple file: none is given", hint="add --start-from FILE")
        return None
    try:
        return load_recipe(file)
    except RecipeError as ours:
        try:
            return load_apple(file).recipe(key).as_recipe(analyzable(backend).name)
        except RecipeError as theirs:
            raise (theirs if key else ours) from None


def parse_widths(text: str | None) -> tuple[int, ...]:
    """Bits in ascending order, of "1,2,4,6,8". Raises UsageError."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text else ()
    except ValueError:
        raise UsageError(f"{text!r} are no widths", hint="such as 1,2,4,6,8") from None


def sensitivity_analyzer(
    checkpoint: Checkpoint, hub: Hub, *, device: str = CPU, handful: bool = False, progress: Progress = SILENT
) -> SensitivityAnalyzer:
    """Where a checkpoint's denoiser is measured; with `handful`, on one trajectory."""
    setting = trajectories_for(checkpoint)
    if handful:
        setting = setting.model_copy(update={"prompts": setting.prompts[:1]})

    def load() -> Any:
        return measure.load_base(checkpoint, hub, progress)

    with quiet():
        identity = fingerprint(checkpoint, hub, progress=progress)
    return SensitivityAnalyzer(
        load=load,
        source=checkpoint.id,
        fingerprint=identity,
        setting=setting,
        work=Work(home() / "work"),
        component=checkpoint.family.denoiser,
        device=device,
        progress=progress,
    )


def repair(analysis: Analysis, start: Recipe) -> tuple[Choice, tuple[str, ...]]:
    """`start`'s choice in its own size, changed where another treatment is at least twice as good here; the layers
    that were changed. Raises RecipeError where it names no layer that this component has."""
    former = analysis.former(start)
    if not former:
        raise RecipeError(f"{start.name} has no layer of this {analysis.subject.component} in a format on offer")
    whole = {name: former.get(name, len(options) - 1) for name, options in analysis.options.items()}
    size = total(analysis.options, whole).size
    choice = analysis.within(size, former)
    changed = tuple(sorted(name for name, option in choice.chosen.items() if former.get(name) != option))
    return choice, changed


def least(analyzer: SensitivityAnalyzer, analysis: Analysis, goal: float) -> tuple[Choice, Analysis]:
    """The smallest choice that is measured to have at least `goal` dB. Raises EvidenceError."""
    for _ in range(MOST_CHECKS):
        found = next((each for each in analysis.path if analysis.predicted_db(each) >= goal), None)
        if found is None:
            break
        if analysis.measured_db(found) is None:
            analysis = analyzer.check(analysis, found)
        measured = analysis.measured_db(found)
        if measured is not None and measured >= goal:
            return found, analysis
    raise EvidenceError(f"no recipe was found to have {goal:g} dB", hint="ask for less, or give a budget")


def draw(analysis: Analysis, path: Path, name: str) -> None:
    """The curve of an analysis beside uniform treatments, as .svg or .png."""
    curve = curve_document(analysis)
    weights, parameters = sum(analysis.weights.values()), analysis.parameters

    def whole(bits: float) -> float:
        return (bits * weights + 16 * (parameters - weights)) / parameters

    draw_curve(
        path,
        [
            Series("mixed, predicted", [(row["bits"], row["predicted_db"]) for row in curve["mixed"]]),
            Series(
                "one width for all, predicted",
                [(row["bits"], row["predicted_db"]) for row in curve["uniform"]],
                line=False,
                labels=[row["treatment"] for row in curve["uniform"]],
            ),
            Series("measured", [(row["bits"], row["measured_db"]) for row in curve["checks"]], line=False),
        ],
        title=f"{name}: mixed bits",
        bottom=f"effective bits per weight of the {len(analysis.weights)} layers that are chosen among",
        top="effective bits per parameter of the whole denoiser",
        side="PSNR of the final latents, dB",
        other=whole,
    )


def curve_document(analysis: Analysis) -> dict[str, Any]:
    """Figures of the curve: mixed choices, uniform ones, and the checks."""
    steps = analysis.path
    shown = [choice for choice in steps if analysis.raw_db(choice) < 100] or steps
    thinned = [shown[round(n * (len(shown) - 1) / (CURVE_POINTS - 1))] for n in range(CURVE_POINTS)]
    rows = analysis.rows(_distinct(thinned))
    uniform = [treatment for treatment in analysis.treatments if not isinstance(treatment, Float)]
    uniform_rows = [
        {"treatment": _treatment_label(treatment), **row}
        for treatment, row in zip(
            uniform, analysis.rows(analysis.uniform(treatment) for treatment in uniform), strict=True
        )
    ]
    checks = [{"bits": round(each.bits, 4), "measured_db": round(each.measured_db, 2)} for each in analysis.checks]
    return {"mixed": rows, "uniform": uniform_rows, "checks": checks, "layers": len(analysis.weights)}


def _distinct(choices: Sequence[Choice]) -> list[Choice]:
    return list({choice.size: choice for choice in choices}.values())


def _checked_within(analyzer: SensitivityAnalyzer, analysis: Analysis, size: int) -> Analysis:
    """With a check within `size`, where anything is that small."""
    return analyzer.check(analysis, analysis.within(size)) if analysis.path[0].size <= size else analysis


def _offers(backend: Backend, wanted: Wanted) -> tuple[Treatment, ...]:
    known = backend.choices(wanted.rounding)
    if not wanted.widths:
        return known
    found = tuple(each for each in known if isinstance(each, Float) or getattr(each, "bits", 0) in wanted.widths)
    if len(found) < len(set(wanted.widths)) + 1:
        raise UsageError(f"{backend.name} has no such widths", hint=", ".join(map(_treatment_label, known[:-1])))
    return found


def analyzable(name: str | None = None) -> Backend:
    """The backend of this name, by default the one that is `analyzed_first`. Raises UnsupportedError where no
    analysis is made for it."""
    known = {each.name: each for each in backends().values() if each.analyzed_as}
    if name is None:
        return next(each for each in known.values() if each.analyzed_first)
    if name not in known:
        raise UnsupportedError(f"no analysis is made for {name}", hint=meant(name, known))
    return known[name]


def _template(checkpoint: Checkpoint, backend: Backend) -> Recipe:
    variant = backend.analyzed_as
    reason = backend.why_not(checkpoint, variant)
    if reason is not None:
        raise UnsupportedError(
            f"{checkpoint.id} cannot become {variant}: {reason}",
            hint=f"see: {nextsteps.inspect(checkpoint.source.text)}",
        )
    return at_level(backend.recipe(checkpoint, variant), checkpoint, "standard")


def _treatment_label(treatment: Treatment) -> str:
    if isinstance(treatment, (Palette, Affine)):
        return f"{treatment.bits} bit"
    return "float" if isinstance(treatment, Float) else f"rank {treatment.rank}"


def _label(budget: str) -> str | None:
    """The number of a budget in bits; None of one in bytes."""
    number, _, unit = budget.strip().lower().replace("bit", " bit", 1).partition(" ")
    return f"{float(number):g}" if unit.strip().startswith("bit") else None
