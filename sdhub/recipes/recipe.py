"""The recipe: a declarative, versioned JSON document that says what is done to which component and layer.

Components and layers carry the checkpoint's own names (`unet`, `mid_block.resnets.0.conv1`), so that a recipe
serves every backend and every fine-tune of the same architecture. Its identity is the SHA-256 of its
canonical form: all fields present but `analysis`, keys sorted, no spaces, UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdhub.core import nextsteps
from sdhub.core.errors import RecipeError
from sdhub.core.work import canonical, digest
from sdhub.recipes.version1 import upgraded

SCHEMA_ID = "https://huggingface.co/schemas/sdhub/recipe-2.json"
MAX_BYTES = 16 * 2**20


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),  # pydantic before 2.10 warns of `model_bits`
    )


Rounding = Literal["round_to_nearest", "gptq"]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Attention = Literal["original", "split_einsum", "split_einsum_v2"]


class Float(_Strict):
    """Kept in floating point."""

    scheme: Literal["float"] = "float"
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"


class Affine(_Strict):
    """Integer grid with a scale, and with a zero point where it is not symmetric. All but plain weights need a
    calibration.
    """

    scheme: Literal["affine"] = "affine"
    bits: Annotated[int, Field(ge=2, le=8)]
    symmetric: bool = False
    group_size: Annotated[int, Field(ge=0, le=65536)] = 0
    """Input channels that share a scale; 0: one scale per output channel."""
    activations: Literal["float", "int8", "hybrid"] = "float"
    """With "int8" inputs are rounded too, and the layer computes in integers; with "hybrid" convolutions do."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The exponent α with which the range of activations that are rounded is first moved into the weights of
    matrix products (SmoothQuant); 0: not at all."""
    rounding: Rounding = "round_to_nearest"
    """With "gptq" the codes are chosen by the inputs' Gram matrix (GPTQ)."""
    higher_precision: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of the component that is treated more gently, 8-bit weights and float activations, taken from the
    layers that cost the output most; of the weights, or of the multiplications where activations are rounded."""


class Palette(_Strict):
    """Indices into a table of 2^`bits` values found by k-means."""

    scheme: Literal["palette"] = "palette"
    bits: Literal[1, 2, 3, 4, 6, 8]
    group_size: Annotated[int, Field(ge=0, le=65536)] = 0
    """Output channels that share a table; 0: one table for the whole weight."""
    rounding: Rounding = "round_to_nearest"
    """With "gptq" the codes are chosen by the inputs' Gram matrix (GPTQ)."""


class LowRank(_Strict):
    """A 16-bit branch beside a residual in few bits (SVDQuant)."""

    scheme: Literal["low_rank"] = "low_rank"
    rank: Annotated[int, Field(ge=0, le=1024)]
    """Of the branch."""
    residual: Literal["int4", "uint4", "int8", "uint8", "nvfp4"]
    """The residual's type."""
    group_size: Annotated[int, Field(ge=0, le=65536)] = 0
    """Inputs of the residual that share a scale; 0: an output channel does."""
    activations: Literal["float", "int4", "int8", "nvfp4"] = "float"
    """What the residual's inputs are rounded to, token by token; "float" leaves them."""
    smoothing: bool = False
    """Whether outliers of the inputs are first moved into the weights."""
    rounding: Rounding = "round_to_nearest"


Treatment = Annotated[Float | Affine | Palette | LowRank, Field(discriminator="scheme")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}$")]
Side = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]


class ComponentRecipe(_Strict):
    """How one component is treated."""

    default: Treatment
    """Of all weights that `layers` does not name."""
    layers: Annotated[dict[Name, Treatment], Field(max_length=100_000)] = {}
    """Of single layers, by module path."""
    token_merging: Annotated[float, Field(ge=0, lt=0.75)] = 0.0
    """The share of tokens that self-attention at the highest resolution merges."""

    @property
    def treatments(self) -> dict[str, Treatment]:
        """All of them, by layer, "default" first."""
        return {"default": self.default, **self.layers}


class Calibration(_Strict):
    """What the denoiser is run on to see its layers' inputs."""

    prompts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=512)]
    seed: Annotated[int, Field(ge=0, lt=2**62)]
    """Prompt n starts from the noise of `seed` + n."""
    steps: Annotated[int, Field(ge=1, le=1000)]
    """Of each trajectory."""
    recorded: Annotated[int, Field(ge=1, le=1000)]
    """Steps that are looked at, evenly spread."""
    guidance: Annotated[float, Field(ge=0, le=100)]
    width: Side
    """In pixels."""
    height: Side
    """In pixels."""
    rows: Annotated[int, Field(ge=1, le=65536)] = 1024
    """Of a call, at most so many enter the Gram matrices."""
    block: Annotated[int, Field(ge=64, le=65536)] = 4096
    """Width of the diagonal blocks of the Gram matrices, at most."""

    @property
    def calls(self) -> int:
        """Calls of the denoiser that are looked at."""
        return len(self.prompts) * min(self.recorded, self.steps)


class Checked(_Strict):
    """Latent PSNR in dB of one choice of treatments, `bits` per weight: as predicted, and as measured."""

    bits: float
    predicted_db: float
    measured_db: float


class AnalysisRecord(_Strict):
    """How an analysis found the treatments of a component. PSNR in dB of the final latents, pooled over all
    trajectories.
    """

    component: Name
    source: Text
    """The checkpoint."""
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The hash that identifies the checkpoint's bytes."""
    trajectories: Calibration
    """What was sampled to measure responses."""
    timesteps: Annotated[tuple[float, ...], Field(max_length=1000)]
    """Those that were passed."""
    calls: Annotated[int, Field(ge=0)]
    """Of the denoiser: one per trajectory and step, each backward pass counted as one more."""
    checks: Annotated[tuple[Checked, ...], Field(max_length=64)] = ()
    """The choices that were sampled as a whole; the predictions are corrected by them."""
    bits: float
    """Per weight of the layers that were chosen among."""
    model_bits: float
    """Per parameter of the whole component."""
    bytes: Annotated[int, Field(ge=0)]
    """Of the whole component."""
    predicted_db: float
    measured_db: float | None = None
    """None: this very choice was not sampled."""
    start: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the recipe that it was repaired from."""
    repaired: Annotated[tuple[Name, ...], Field(max_length=100_000)] = ()
    """The layers that were not kept of that recipe."""
    versions: Annotated[dict[Name, Text], Field(max_length=32)]
    """Of the packages that decide the figures."""


class Recipe(_Strict):
    """What makes a variant of a checkpoint."""

    version: Literal[2] = 2
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9.]+)+$", max_length=64)]
    """The variant's; it begins with the backend's."""
    backend: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=32)]
    components: Annotated[dict[Name, ComponentRecipe], Field(min_length=1, max_length=64)]
    calibration: Calibration | None = None
    """None: nothing is calibrated."""
    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(max_length=16)] = ()
    """(width, height) in pixels, for backends whose graphs have fixed shapes; empty: the checkpoint's own."""
    attention: Annotated[tuple[Attention, ...], Field(max_length=3)] = ()
    """Implementations, for backends that have a choice."""
    chunked: bool = False
    """With the denoiser in two halves as well, for devices that cannot load the whole."""
    batch: Annotated[int, Field(ge=0, le=1)] = 0
    """Pictures at a time that fixed shapes are for; 0: any number, where a backend can leave that free."""
    analysis: AnalysisRecord | None = None
    """How an analysis found it; it changes nothing of the variant, and is no part of the identity."""

    @property
    def keeps_higher_precision(self) -> bool:
        """Whether a component keeps a share of its layers from what is done to the others."""
        defaults = (each.default for each in self.components.values())
        return any(isinstance(each, Affine) and each.higher_precision > 0 for each in defaults)

    def uncalibrated(self) -> Recipe:
        """The same formats without calibration: everything rounded to the nearest value."""

        def plain(treatment: Treatment) -> Treatment:
            if isinstance(treatment, Float):
                return treatment
            update: dict[str, object] = {"rounding": "round_to_nearest"}
            if isinstance(treatment, LowRank):
                update["smoothing"] = False
            if isinstance(treatment, Affine) and treatment.activations == "float":
                update["higher_precision"] = 0.0  # which layers, only calibration could tell
            return treatment.model_copy(update=update)

        components = {
            name: each.model_copy(
                update={
                    "default": plain(each.default),
                    "layers": {layer: plain(treatment) for layer, treatment in each.layers.items()},
                }
            )
            for name, each in self.components.items()
        }
        update = {"name": f"{self.name}-fast", "components": components, "calibration": None, "analysis": None}
        return self if components == self.components else self.model_copy(update=update)

    def document(self) -> dict[str, Any]:
        """The JSON form, every field present."""
        return self.model_dump(mode="json")

    def canonical(self) -> bytes:
        """The bytes that are hashed."""
        return canonical(_identifying(self.document()))

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical form, 64 hex digits."""
        return identity(self.document())


def identity(document: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's document with all fields, 64 hex digits; of version 1 as it was published then."""
    return digest(_identifying(document))


def _identifying(document: Mapping[str, Any]) -> dict[str, Any]:
    found_by = "evidence" if document.get("version") == 1 else "analysis"
    return {key: value for key, value in document.items() if key != found_by}


def parse_recipe(text: str | bytes, *, origin: str = "recipe") -> Recipe:
    """A recipe from JSON text.

    Documents of version 1 are converted. Raises RecipeError in one line that names the field: unknown, missing, or
    with an impossible value.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{origin}: {len(text)} bytes is too large", hint="16 MiB is the limit")
    try:
        return Recipe.model_validate_json(upgraded(text))
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_first_fault(error)}", hint=f"see: {nextsteps.schema()}") from None


def load_recipe(path: str | Path) -> Recipe:
    """A recipe from a file. Raises RecipeError."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    return parse_recipe(text, origin=str(path))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a recipe."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **_closed(Recipe.model_json_schema()),
    }


def _closed(schema: Any) -> Any:
    """Close the objects whose keys have a pattern: pydantic leaves other keys open in the schema."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    return {**closed, "additionalProperties": False} if "patternProperties" in closed else closed


def _first_fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) for part in faults[0]["loc"]) or "the document"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if faults[0]["type"] == "extra_forbidden":
        return f"unknown field {where}{more}"
    return f"{where}: {faults[0]['msg']}{more}"
