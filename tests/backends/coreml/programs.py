"""Small ML programs for the tests: built with coremltools, saved, and opened by the interpreter."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch

from sdhub.backends.coreml.interpreter import Package, open_package

_TYPES = {"float32": "fp32", "int32": "int32", "float16": "fp16"}


def save(folder: Path, build, inputs, opset="iOS16", *, name="program", precision="float32"):
    """A package of the program that `build` makes of its inputs (arrays, whose shapes and types count), saved."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    specs = [mb.TensorSpec(each.shape, dtype=types.string_to_builtin(_TYPES[str(each.dtype)])) for each in inputs]

    names = [f"x{index}" for index in range(len(specs))]
    scope = {"build": build}
    exec(
        f"def main({', '.join(names)}): return build({', '.join(names)})", scope
    )  # mb.program wants named parameters
    program = mb.program(input_specs=specs, opset_version=getattr(ct.target, opset))(scope["main"])
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, opset),
        compute_precision=getattr(ct.precision, precision.upper()),
        pass_pipeline=ct.PassPipeline.EMPTY if precision == "float32" else ct.PassPipeline.DEFAULT,
        skip_model_load=True,
    )
    path = folder / f"{name}.mlpackage"
    model.save(str(path))
    return model, path


def opened(folder: Path, build, inputs, opset="iOS16", **options) -> Package:
    return open_package(save(folder, build, inputs, opset)[1], **options)


def together(cases):
    """One program of many: `cases` has pairs of a build function and its inputs.

    Returns the build function, all inputs, and a function that takes all outputs apart again.
    """
    counts: list[int] = []

    def build(*inputs):
        results, left = [], list(inputs)
        counts.clear()
        for each, own in cases:
            given, left = left[: len(own)], left[len(own) :]
            result = each(*given)
            results += (found := list(result) if isinstance(result, tuple | list) else [result])
            counts.append(len(found))
        return tuple(results)

    def apart(outputs):
        ends = itertools.accumulate(counts)
        return [outputs[end - count : end] for end, count in zip(ends, counts, strict=True)]

    return build, [each for _, own in cases for each in own], apart


def own_values(build, inputs, opset="iOS16"):
    """What coremltools itself computes for the same program on constants (`value_inference` of each operation)."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    found: list[np.ndarray] = []

    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=getattr(ct.target, opset))
    def main(_unused):
        found.extend(np.asarray(each.val) for each in build(*[mb.const(val=each.copy()) for each in inputs]))
        return mb.identity(x=_unused)

    return found


def run(package: Package, inputs) -> list[np.ndarray]:
    given = dict(zip(package.inputs, inputs, strict=True))
    return [each.numpy() for each in package.run(given).values()]


def snr(have: torch.Tensor, want: torch.Tensor) -> float:
    """Signal to noise ratio in dB."""
    noise = (have.double() - want.double()).square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(want.double().square().sum().item() / noise)
