"""Graphs of strangers: an `openvino_model.xml` vetted before OpenVINO reads it.

The format is OpenVINO's IR of version 10 and 11: layers with their operation set, and constants by offset and size
in the `.bin` beside. Operations of extensions would load a library, and a constant beyond the file reads what is
not the graph's. Operations are those by which a network is a function of its inputs: what keeps state, branches or
loops is in no pipeline, and a `ReadValue` without its variable crashes OpenVINO's reader. Sources:
docs.openvino.ai, "OpenVINO IR format" and "Available Operation Sets".
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Any
from xml.parsers import expat

from sdhub.backends.variant.configs import config
from sdhub.backends.variant.files import BESIDE
from sdhub.backends.variant.keys import HINT
from sdhub.backends.variant.layout import File, Layout, Variant
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError

MAX_GRAPH = 64 * 2**20  # those of the largest denoisers have some ten million bytes
MAX_DEPTH = 64
VERSIONS = ("10", "11")
OPSET = re.compile(r"opset([1-9]|[1-9][0-9])")
NATURAL = re.compile(r"[0-9]{1,18}")
SHAPE = re.compile(r"([0-9]{1,18}(, ?[0-9]{1,18})*)?")
TAGS = frozenset(
    {
        *("net", "layers", "layer", "data", "input", "output", "port", "dim", "edges", "edge"),
        *("rt_info", "meta_data"),
    }
)
FREE = ("rt_info", "meta_data")  # what is inside is text about the graph
CONSTANTS = ("const", "constant")
_OPERATIONS = """
parameter result const constant convert convertlike identity range eye abs acos acosh add and asin asinh atan
atanh bitwiseand bitwisenot bitwiseor bitwisexor ceiling clamp cos cosh divide elu equal erf exp floor floormod
gelu greater greaterequal hardsigmoid hsigmoid hswish isfinite isinf isnan less lessequal log logicaland
logicalnot logicalor logicalxor maximum minimum mish mod multiply negative notequal power prelu relu round select
selu sigmoid sign sin sinh softplus softsign sqrt squareddifference subtract swish tan tanh adaptiveavgpool
avgpool batchnorminference convolution convolutionbackpropdata cumsum einsum fakeconvert fakequantize
groupconvolution groupconvolutionbackpropdata groupnormalization interpolate logsoftmax lrn matmul maxpool mvn
normalizel2 reducel1 reducel2 reducelogicaland reducelogicalor reducemax reducemean reducemin reduceprod
reducesum rms scaleddotproductattention softmax topk batchtospace broadcast concat depthtospace gather
gatherelements gathernd nonzero onehot pad reshape reverse roll scatterelementsupdate scatterndupdate
scatterupdate shapeof slice spacetobatch spacetodepth split squeeze stridedslice tile transpose unsqueeze
variadicsplit
"""  # in small letters, as versions spell them differently
OPERATIONS = frozenset(_OPERATIONS.split())
TEXT = "string"
BITS = {
    **dict.fromkeys(("u1",), 1),
    **dict.fromkeys(("u2",), 2),
    **dict.fromkeys(("u3",), 3),
    **dict.fromkeys(("u4", "i4", "nf4", "f4e2m1"), 4),
    **dict.fromkeys(("u6",), 6),
    **dict.fromkeys(("u8", "i8", "boolean", "f8e4m3", "f8e5m2", "f8e8m0"), 8),
    **dict.fromkeys(("u16", "i16", "f16", "bf16"), 16),
    **dict.fromkeys(("u32", "i32", "f32"), 32),
    **dict.fromkeys(("u64", "i64", "f64"), 64),
}
SLACK = 64  # bits that packing may leave unused at the end
PART = r"(text_encoder(_[23])?|unet|transformer|vae_(en|de)coder)"


def graph(variant: Variant, path: str) -> bytes:
    """A graph; the bytes that were vetted are the view's. Raises SourceError, UnsafeError."""
    variant.tree.require(path, MAX_GRAPH)
    beside = PurePosixPath(path).with_suffix(".bin").as_posix()
    raw = variant.tree.read(path)
    _Graph(variant.where(path), variant.tree.sizes.get(beside, 0)).read(raw)
    return raw


def constants(variant: Variant, path: str) -> None:
    """A `.bin`: numbers, of which the graph beside it says where each begins. Raises UnsafeError without one."""
    if PurePosixPath(path).with_suffix(".xml").as_posix() not in variant.tree.sizes:
        raise UnsafeError(f"{variant.where(path)} belongs to no graph, and could be a pickle", hint=HINT)


class _Graph:
    """One pass over the XML, which is not kept. `bytes` are those of the constants' file."""

    def __init__(self, where: str, size: int) -> None:
        self.where = where
        self.bytes = size
        self._open: list[str] = []
        self._layer = ("", "")

    def read(self, raw: bytes) -> None:
        parser = expat.ParserCreate("utf-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._declared
        parser.EntityDeclHandler = self._declared
        try:
            parser.Parse(raw, True)
        except expat.ExpatError as error:
            raise SourceError(f"{self.where} is no XML: {shown(error)}", hint="get the file again") from None

    def _declared(self, *_: Any) -> None:
        raise UnsafeError(f"{self.where} declares a document type, which graphs have not", hint=HINT)

    def _end(self, _: str) -> None:
        self._open.pop()

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and (tag != "net" or attributes.get("version") not in VERSIONS):
            raise SourceError(f"{self.where} is no graph of OpenVINO's IR, version 10 or 11", hint=HINT)
        self._open.append(tag)
        if len(self._open) > MAX_DEPTH:
            raise SourceError(f"{self.where} is nested too deeply", hint=HINT)
        if any(each in FREE for each in self._open[:-1]):
            if "weightless" in f"{tag} {attributes.get('name', '')}".lower():
                raise UnsafeError(f"{self.where} asks for weights elsewhere", hint=HINT)
            return
        if tag not in TAGS:
            raise UnsafeError(f"{self.where} holds a {shown(tag, 40)}, which sdhub does not know", hint=HINT)
        if tag == "layer":
            self._start_layer(attributes)
        elif tag == "data" and self._layer[1].lower() in CONSTANTS and self._open[-2] == "layer":
            self._constant(attributes)

    def _start_layer(self, attributes: dict[str, str]) -> None:
        self._layer = (attributes.get("name", ""), attributes.get("type", ""))
        known = self._layer[1].lower() in OPERATIONS
        if not known or OPSET.fullmatch(attributes.get("version", "")) is None:
            said = f"{shown(self._layer[1], 40)} of {shown(attributes.get('version', 'no set'), 40)}"
            raise UnsafeError(
                f"{self.where}: {shown(self._layer[0], 80)} is the operation {said}, which is in no "
                "variant's graph",
                hint=HINT,
            )

    def _constant(self, attributes: dict[str, str]) -> None:
        name, kind = shown(self._layer[0], 80), attributes.get("element_type", "")
        offset, size = (attributes.get(each, "") for each in ("offset", "size"))
        shape = attributes.get("shape", "")
        if not (NATURAL.fullmatch(offset) and NATURAL.fullmatch(size) and SHAPE.fullmatch(shape)):
            raise SourceError(f"{self.where}: the constant {name} has no shape, offset and size", hint=HINT)
        if int(offset) + int(size) > self.bytes:
            raise SourceError(
                f"{self.where}: the constant {name} ends at byte {int(offset) + int(size)}, and its file has "
                f"{self.bytes}",
                hint="get the files again: both are of one version",
            )
        if kind == TEXT:
            return
        bits = math.prod(int(each) for each in shape.split(",") if each) * BITS.get(kind, -1)
        if not 0 <= 8 * int(size) - bits < SLACK:
            raise SourceError(
                f"{self.where}: the constant {name} of type {shown(kind, 20)} and shape [{shown(shape, 60)}] "
                f"does not take {size} bytes",
                hint="get the file again",
            )


def layout(pipelines: frozenset[str]) -> Layout:
    """What a variant holds, as optimum-intel saves and loads it."""
    return Layout(
        pipelines=pipelines,
        files=(
            *BESIDE,
            File(rf"{PART}/config\.json", config),
            File(rf"{PART}/openvino_model\.xml", graph),
            File(rf"{PART}/openvino_model\.bin", constants),
            File(r"openvino_config\.json"),  # says how it was made
        ),
        settings=frozenset({"dynamic_shapes"}),
        folders={"vae_encoder": "vae", "vae_decoder": "vae"},
    )
