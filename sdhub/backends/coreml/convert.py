"""A component of a loaded checkpoint as a Core ML package, compressed with sdhub's own codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdhub.backends.coreml.chunks import halves
from sdhub.backends.coreml.constants import Codes, Target, least_target
from sdhub.backends.coreml.package import write_package
from sdhub.backends.coreml.program import operations
from sdhub.backends.coreml.skeleton import Weights, converting, number_of, trace
from sdhub.backends.coreml.specs import ComponentSpec, Features, Shape, WrapOptions
from sdhub.core.errors import BuildError, MissingExtraError, RecipeError
from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.core.scratch import temporary

# Passes of coremltools for what these models have not. Each looks at every operation, and checks the program
# afterwards, which is what conversion spends most of its time with.
UNNEEDED = (
    # complex numbers, states, images, control flow, symbolic shapes
    *("lower_complex_dialect_ops", "canonicalize_inplace_pattern", "prefer_state_in_downstream"),
    *("image_input_preprocess", "loop_invariant_elimination", "remove_symbolic_reshape"),
    *("expand_high_rank_reshape_and_transpose", "select_optimization"),
    # quantized activations
    *("int_op_canonicalization", "nullify_redundant_quantization_zero_point"),
    *("dequantize_quantize_pair_elimination", "distributive_quantized_binary_op_scale_normalization"),
    *("dequantize_to_constexpr", "canonicalize_quantized_lut_pattern"),
    "merge_affine_dequantize_with_consecutive_ops",
    # other layers
    *("add_conv_transpose_output_shape", "compose_conv1d", "fuse_dilated_conv", "use_reflection_padding"),
    *("merge_consecutive_paddings", "fuse_leaky_relu", "fuse_prelu", "prelu_to_lrelu", "merge_consecutive_relus"),
    *("replace_stack_reshape", "fuse_stack_split", "detect_concat_interleave", "concat_to_pixel_shuffle"),
    *("fuse_onehot_matmul_to_gather", "fuse_gelu_tanh_approximation"),
    # what would change weights after their codes were chosen
    *("fuse_conv_scale", "fuse_conv_bias", "fuse_conv_batchnorm"),
)
READ = ("time_embedding.cond_proj",)  # layers whose weights become something else than constants


@dataclass(frozen=True)
class Built:
    """What was made: the package, its halves if they were asked for, and the first system that reads them."""

    paths: tuple[Path, ...]
    target: Target


def convert_component(
    spec: ComponentSpec,
    module: Any,
    out: Path,
    *,
    shape: Shape | None = None,
    options: WrapOptions | None = None,
    codes: Mapping[str, Codes] | None = None,
    target: Target | None = None,
    metadata: Mapping[str, str] | None = None,
    chunked: bool = False,
    progress: Progress = SILENT,
) -> Built:
    """Write the package `out`, a new folder `….mlpackage`; `chunked`: its halves `…_chunk1` and `…_chunk2` too.

    `module`: the component as diffusers or transformers loads it, float32, on the CPU, and left as it is; weights
    that have codes may be on the meta device. `codes`: palettes and grids of weights by the paths of their layers
    in `module` (`mid_block.resnets.0.conv1`); those of layers that this model has no use for (a VAE's other half)
    are left out. They are looked up one by one, so that with a `target` a mapping may make them when asked. All
    other weights have 16 bits, or the component's own 32. `target`: the first system that must read the package,
    else the least that the codes allow. `metadata`: entries of the author's, and `description`, `author`,
    `license`, `version` for the fields of these names.

    The same arguments give the same bytes. Raises RecipeError for a layer that is not there, UnsupportedError for
    an architecture or codes that cannot be had, BuildError where conversion fails, MissingExtraError.
    """
    shape, options, codes = shape or Shape(), options or WrapOptions(), codes or {}
    _vet(spec, module, codes)
    inputs, outputs = spec.inputs(module, shape), spec.outputs(module)
    by_parameter = _Parameters(codes)
    with _present(module, codes):
        weights = Weights(spec.wrap(module, options).eval(), frozenset(by_parameter))
    target = target or _least(codes)
    with temporary() as place:
        skeleton = place / "skeleton.mlpackage"
        with progress.task(f"converting {spec.name}"):
            model = _skeleton(spec, weights, inputs, outputs, target, skeleton)
            _describe(model, spec, inputs, outputs, {**_embedded(module, options), **(metadata or {})})
            models = (model, *halves(model, weights.count)) if chunked else (model,)
        paths = (out, *_chunk_paths(out)) if chunked else (out,)
        for path, each in zip(paths, models, strict=True):
            count = sum(number_of(step.outputs[0].name) is not None for step in operations(each))
            with progress.task(f"writing {path.name}", total=count, unit="weights") as task:
                for _ in write_package(each, skeleton, path, weights.all, by_parameter, target):
                    task.advance()
    return Built(paths, target)


def _chunk_paths(out: Path) -> tuple[Path, ...]:
    return tuple(out.with_name(f"{out.stem}_chunk{number}{out.suffix}") for number in (1, 2))


class _Parameters(Mapping[str, Codes]):
    """Codes by the names of parameters rather than of layers."""

    def __init__(self, codes: Mapping[str, Codes]) -> None:
        self._codes = codes

    def __getitem__(self, name: str) -> Codes:
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight":
            raise KeyError(name)
        return self._codes[layer]

    def __iter__(self) -> Iterator[str]:
        return (f"{name}.weight" for name in self._codes)

    def __len__(self) -> int:
        return len(self._codes)


def _vet(spec: ComponentSpec, module: Any, codes: Mapping[str, Codes]) -> None:
    for layer in codes:
        try:
            module.get_submodule(layer)
        except AttributeError:
            raise RecipeError(f"{spec.part} has no layer {layer}") from None


def _embedded(module: Any, options: WrapOptions) -> dict[str, str]:
    """What a program computes with and does not take: the guidance scale of a latent consistency model."""
    conditioned = getattr(module.config, "time_cond_proj_dim", None) if hasattr(module, "config") else None
    return {"guidance_scale_embedded": str(options.guidance)} if conditioned else {}


@contextmanager
def _present(module: Any, codes: Mapping[str, Codes]) -> Iterator[None]:
    """For a while, layers whose numbers a wrapper computes with have them, also where only codes are left."""
    from torch import nn

    gone = [name for name in READ if name in list(codes) and module.get_submodule(name).weight.is_meta]
    before = {name: module.get_submodule(name).weight for name in gone}
    try:
        for name in gone:
            module.get_submodule(name).weight = nn.Parameter(codes[name].dequantize(), requires_grad=False)
        yield
    finally:
        for name, weight in before.items():
            module.get_submodule(name).weight = weight


def _least(codes: Mapping[str, Codes]) -> Target:
    late = any(least_target(each) == "iOS18" for each in codes.values())
    return "iOS18" if late else "iOS16"


def _skeleton(
    spec: ComponentSpec, weights: Weights, inputs: Features, outputs: Mapping[str, str], target: Target, out: Path
) -> Any:
    """The converted program without weights, a Model message; its small constants are in the package `out`."""
    with quiet():
        try:
            import coremltools as ct
        except ImportError as error:
            raise MissingExtraError("coreml", error.name or "coremltools") from None
        try:
            traced = trace(weights, [each.shape for each in inputs.values()])
            with converting(weights):
                return ct.convert(
                    traced,
                    source="pytorch",
                    convert_to="mlprogram",
                    inputs=[
                        ct.TensorType(name=name, shape=each.shape, dtype=np.dtype(each.scalar).type)
                        for name, each in inputs.items()
                    ],
                    outputs=[ct.TensorType(name=name, dtype=np.float32) for name in outputs],
                    minimum_deployment_target=getattr(ct.target, target),
                    compute_precision=_precision(ct, spec),
                    pass_pipeline=_passes(ct),
                    skip_model_load=True,
                    package_dir=str(out),
                ).get_spec()
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
            raise BuildError(f"coremltools could not convert {spec.name}: {_one_line(error)}") from error


def _precision(ct: Any, spec: ComponentSpec) -> Any:
    if spec.scalar == "float32":
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=_halved)


def _passes(ct: Any) -> Any:
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes({f"common::{name}" for name in UNNEEDED})
    return pipeline


def _halved(operation: Any) -> bool:
    """All but the waves of timesteps: in 16 bits the angle of timestep 999 is wrong by up to a quarter."""
    waves = ("sin", "cos")
    if operation.op_type in waves:
        return False
    after = [child.op_type for output in operation.outputs for child in output.child_ops]
    return not (after and all(kind in waves for kind in after))


def _describe(
    model: Any, spec: ComponentSpec, inputs: Features, outputs: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    found = model.description.metadata
    found.shortDescription = metadata.get("description", spec.description)
    found.author = metadata.get("author", "")
    found.license = metadata.get("license", "")
    found.versionString = metadata.get("version", "")
    for name, value in metadata.items():
        if name not in ("description", "author", "license", "version"):
            found.userDefined[name] = value
    texts = {name: each.text for name, each in inputs.items()} | dict(outputs)
    for feature in (*model.description.input, *model.description.output):
        feature.shortDescription = texts.get(feature.name, "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
