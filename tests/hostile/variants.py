"""What strangers may publish as a variant, of every backend's kind: folders made to do harm.

A case changes a sound variant of its kind. Each must end in one line at every door (`run_variants.py`), or do
nothing: code would write the file that the variable `CANARY` of `corpus.py` names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkpoint.tiny import safetensors_bytes, skeleton, write
from tests.hostile.corpus import CODE, DEEP, PICKLE
from tests.hostile.watch import SECRET

KINDS = ("openvino", "sdnq", "svdquant", "nunchaku", "coreml")
INDEX = "model_index.json"
MANY = b"[" + b"[]," * (16 * 2**20) + b"[]]"  # small on the disk, gigabytes as values
XML, BIN = "unet/openvino_model.xml", "unet/openvino_model.bin"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PACKAGE = "split_einsum/packages/Stable_Diffusion_version_x_unet.mlpackage"
READ_VALUE = 'type="ReadValue" version="opset6"'  # without its variable it crashes OpenVINO 2026's reader
MODEL = f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One piece of mischief.

    `by` says who refuses it: the "gate", before a library sees anything; the "loader", a library whose words
    become one line; "sampling", where the variant itself is sound and what its evidence asks for is not; None
    where it is taken, and does nothing.
    """

    name: str
    kind: str
    change: Change
    by: str | None = "gate"


def skeletons(root: Path) -> None:
    """Variants of the kinds that are decided without their runtimes, of true structure, in `root/<kind>`."""
    svdquant = skeleton(root / "svdquant")
    section = {"precision": "int4", "group_size": 64, "rank": 32, "targets": ["down_blocks.0.attn.to_q"]}
    said = {"quant_method": "nunchaku_lite", "compute_dtype": "float16", "svdq_w4a4": section}
    edit(svdquant / "unet/config.json", quantization_config=said)
    nunchaku = skeleton(root / "nunchaku", "StableDiffusionXLPipeline")
    config = json.loads((nunchaku / "unet/config.json").read_text())
    shutil.rmtree(nunchaku / "unet")
    write(nunchaku / "svdq-int4_r32-x.safetensors", single_file(config))
    coreml = skeleton(root / "coreml")
    for weights in coreml.rglob("*.safetensors"):
        weights.unlink()
    items = {
        number: {
            "author": "com.apple.CoreML",
            "description": name,
            "name": name,
            "path": f"com.apple.CoreML/{name}",
        }
        for number, name in (("1", "model.mlmodel"), ("2", "weights"))
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": "1"}
    write(coreml / PACKAGE / "Manifest.json", manifest)
    write(coreml / MODEL, b"")
    write(coreml / PACKAGE / "Data/com.apple.CoreML/weights/weight.bin", bytes(64))


def single_file(of: Any, **changes: Any) -> bytes:
    """Nunchaku's own file with these metadata and a few zeros."""
    number = {"dtype": "int4", "scale_dtype": None, "group_size": 64}
    quantization = {"method": "svdquant", "weight": number, "activation": number, "rank": 32}
    said = {
        "model_class": "NunchakuSDXLUNet2DConditionModel",
        "config": json.dumps(of),
        "quantization_config": json.dumps(quantization),
        **changes,
    }
    return safetensors_bytes({"weight": ("F16", (4, 2))}, said)


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edited(path: str, **changes: Any) -> Change:
    return lambda root: edit(root / path, **changes)


def _raw(path: str, content: bytes | str) -> Change:
    """A file of other content, or one more."""
    return lambda root: write(root / path, content)


def _quantized(**changes: Any) -> Change:
    def change(root: Path) -> None:
        path = root / "unet/config.json"
        said = json.loads(path.read_text())["quantization_config"]
        edit(path, quantization_config={**said, **changes})

    return change


def _section(**changes: Any) -> Change:
    def change(root: Path) -> None:
        path = root / "unet/config.json"
        said = json.loads(path.read_text())["quantization_config"]
        edit(path, quantization_config={**said, "svdq_w4a4": {**said["svdq_w4a4"], **changes}})

    return change


def _single(**changes: Any) -> Change:
    def change(root: Path) -> None:
        config = json.loads((root / "vae/config.json").read_text())
        config = {**config, "_class_name": "UNet2DConditionModel"}
        write(root / "svdq-int4_r32-x.safetensors", single_file(config, **changes))

    return change


def _graph(pattern: str, replacement: str, count: int = 1) -> Change:
    def change(root: Path) -> None:
        text = (root / XML).read_text()
        changed = re.sub(pattern, replacement, text, count=count)
        assert changed != text, pattern
        (root / XML).write_text(changed)

    return change


def _cut(path: str, share: float) -> Change:
    def change(root: Path) -> None:
        raw = (root / path).read_bytes()
        (root / path).write_bytes(raw[: int(len(raw) * share)])

    return change


def _without(path: str) -> Change:
    return lambda root: (root / path).unlink()


def _link(path: str, target: str) -> Change:
    def change(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)

    return change


def _item(**changes: Any) -> Change:
    def change(root: Path) -> None:
        path = root / PACKAGE / "Manifest.json"
        document = json.loads(path.read_text())
        document["itemInfoEntries"]["2"] |= changes
        path.write_text(json.dumps(document))

    return change


def _evidence(content: Any) -> Change:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return _raw("evidence/evidence.json", raw)


def _asks(**changes: Any) -> Change:
    """Evidence that was drawn so."""
    sampling = {"prompts": [{"text": "a", "seed": 0}], "steps": 2, "guidance": 5.0, "width": 16, "height": 16}
    return _evidence({"sampling": {**sampling, **changes}})


def _specified(fill: Callable[[Any], object]) -> Change:
    """A model of Core ML's own message."""

    def change(root: Path) -> None:
        from coremltools.proto import Model_pb2

        model = Model_pb2.Model()
        model.specificationVersion = 8
        fill(model)
        write(root / MODEL, model.SerializeToString())

    return change


def _all(*changes: Change) -> Change:
    def change(root: Path) -> None:
        for each in changes:
            each(root)

    return change


def _custom_layer(model: Any) -> None:
    layer = model.neuralNetwork.layers.add()
    layer.name, layer.custom.className = "x", "EvilLayer"


def _unknown_operation(model: Any) -> None:
    block = model.mlProgram.functions["main"]
    block.opset = "CoreML7"
    block.block_specializations["CoreML7"].operations.add().type = "evil"


def _everywhere(name: str, change: Change) -> list[Case]:
    return [Case(f"{kind}: {name}", kind, change) for kind in KINDS]


INDEXES = [
    *_everywhere("index of no object", _raw(INDEX, "[]")),
    *_everywhere("index that sets arguments", _edited(INDEX, compile_only=True, ov_config={"CACHE_DIR": "/x"})),
    *_everywhere("tokenizer of another module", _edited(INDEX, tokenizer=["antigravity", "X"])),
    *_everywhere(
        "class of the folder", _all(_edited(INDEX, tokenizer=["evil", "Evil"]), _raw("tokenizer/evil.py", CODE))
    ),
    *_everywhere("pipeline of the folder", _edited(INDEX, _class_name=["evil", "Evil"])),
    *_everywhere("bytecode", _raw("tokenizer/__pycache__/evil.cpython-311.pyc", PICKLE)),
    *_everywhere(
        "tokenizer with code", _edited("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": "e.E"})
    ),
    *_everywhere("timesteps without end", _edited("scheduler/scheduler_config.json", num_train_timesteps=10**10)),
]

_INDEX_CHANGES: dict[str, Any] = {
    "scheduler of a module that runs": {"scheduler": ["lib2to3.__main__", "X"]},
    "automatic tokenizer": {"tokenizer": ["transformers", "AutoTokenizer"]},
    "component of a function": {"tokenizer": ["os", "system"]},
    "component of a nested module": {"unet": ["diffusers.pipelines", "DiffusionPipeline"]},
    "component that is a pipeline": {"unet": ["diffusers", "DiffusionPipeline"]},
    "scheduler that is a model": {"scheduler": ["diffusers", "UNet2DConditionModel"]},
    "component that is a number": {"tokenizer": 7},
    "component of three": {"tokenizer": ["transformers", "CLIPTokenizer", "x"]},
    "component that is half nothing": {"tokenizer": ["transformers", None]},
    "component that is a list of lists": {"tokenizer": [["transformers"], ["CLIPTokenizer"]]},
    "pipeline of any kind": {"_class_name": "DiffusionPipeline"},
    "pipeline that is a number": {"_class_name": 1},
    "version that is none": {"_diffusers_version": "../../x"},
    "setting that is text": {"requires_safety_checker": "no"},
    "custom pipeline": {"custom_pipeline": "evil/code"},
    "trusted code": {"trust_remote_code": True},
    "file of a part elsewhere": {"unet_file_name": "../../x.xml"},
    "quantization while loading": {"load_in_8bit": True},
    "cache elsewhere": {"model_save_dir": "/tmp/x"},
    "component that climbs": {"../evil": ["diffusers", "UNet2DConditionModel"]},
    "component of Python's own": {"__class__": ["diffusers", "UNet2DConditionModel"]},
    "safety checker of another module": {"safety_checker": ["evil", "Evil"]},
}
MORE_INDEXES = [
    *(Case(f"index: {name}", "openvino", _edited(INDEX, **each)) for name, each in _INDEX_CHANGES.items()),
    Case("index that is nested deeply", "openvino", _raw(INDEX, DEEP)),
    Case("index with a key twice", "openvino", _raw(INDEX, '{"_class_name": "a", "_class_name": "b"}')),
    Case("index that is enormous", "openvino", _raw(INDEX, b" " * (3 * 2**20))),
    Case("index that is no text", "openvino", _raw(INDEX, PICKLE)),
    Case("index that is not there", "sdnq", _without(INDEX)),
]

_LAUGHS = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
)
GRAPHS = [
    Case("graph that is cut off", "openvino", _cut(XML, 0.5)),
    Case("graph that is a pickle", "openvino", _raw(XML, PICKLE)),
    Case("graph of control characters", "openvino", _raw(XML, bytes(range(256)) * 10)),
    Case("graph of entities", "openvino", _raw(XML, f"{_LAUGHS}]><net version='11'>&j;</net>")),
    Case(
        "graph of a file elsewhere",
        "openvino",
        _raw(XML, '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]><net version="11">&x;</net>'),
    ),
    Case("graph that is nested deeply", "openvino", _raw(XML, '<net version="11">' + "<body>" * 100_000)),
    Case("graph of another version", "openvino", _graph('version="11"', 'version="99"')),
    Case("graph that is no net", "openvino", _raw(XML, "<html/>")),
    Case("operation of an extension", "openvino", _graph('version="opset1"', 'version="extension"')),
    Case("operation of no set", "openvino", _graph('type="Const" version="opset1"', 'type="Const"')),
    Case("operation of a set that is a path", "openvino", _graph('version="opset1"', 'version="./evil.so"')),
    Case("graph with an element of its own", "openvino", _graph("<edges>", "<extensions/><edges>")),
    Case("graph of weights elsewhere", "openvino", _graph("<rt_info>", '<rt_info><weightless path="/x"/>')),
    Case("constant beyond its file", "openvino", _graph(r'offset="\d+"', 'offset="1000000000000000"')),
    Case("constant before its file", "openvino", _graph(r'offset="\d+"', 'offset="-64"')),
    Case("constant whose size is text", "openvino", _graph(r' size="\d+"', ' size="many"')),
    Case("constant larger than its bytes", "openvino", _graph(r'shape="8, 4, 3, 3"', 'shape="800000, 4, 3, 3"')),
    Case(
        "constant of a strange type",
        "openvino",
        _graph(r'element_type="(f16|f32)" shape', 'element_type="x" shape'),
    ),
    Case("constants that are cut off", "openvino", _cut(BIN, 0.5)),
    Case("constants that are not there", "openvino", _without(BIN)),
    Case("constants without a graph", "openvino", _raw("vae_decoder/openvino_model_2.bin", PICKLE)),
    Case("operation that is not known", "openvino", _graph('type="Convolution"', 'type="Evil"')),
    Case("operation that keeps state", "openvino", _graph('type="Multiply" version="opset1"', READ_VALUE)),
    Case(
        "operation that loops", "openvino", _graph('type="Add" version="opset1"', 'type="Loop" version="opset5"')
    ),
    Case(
        "operation that branches", "openvino", _graph('type="Add" version="opset1"', 'type="If" version="opset8"')
    ),
    Case("graph with a body", "openvino", _graph("<edges>", "<body/><edges>")),
    Case("edge to nowhere", "openvino", _graph(r'from-layer="\d+"', 'from-layer="99999999"'), by="loader"),
    Case("graph without anything", "openvino", _raw(XML, '<net version="11"/>'), by="loader"),
]

CONFIGS = [
    Case(
        "tokenizer with a file elsewhere",
        "openvino",
        _edited("tokenizer/tokenizer_config.json", tokenizer_file=f"../../{SECRET}"),
    ),
    Case(
        "tokenizer with a vocabulary elsewhere",
        "sdnq",
        _edited("tokenizer/tokenizer_config.json", vocab_file="/etc/passwd"),
    ),
    Case(
        "tokenizer with arguments", "sdnq", _edited("tokenizer/tokenizer_config.json", init_inputs=["/etc/passwd"])
    ),
    Case(
        "tokenizer of another class",
        "openvino",
        _edited("tokenizer/tokenizer_config.json", tokenizer_class="EvilTok"),
    ),
    Case("tokenizer of Python's own", "openvino", _edited("tokenizer/tokenizer_config.json", __class__="x")),
    Case("tokenizer that is no JSON", "openvino", _raw("tokenizer/tokenizer.json", PICKLE)),
    Case("tokenizer that is nested deeply", "openvino", _raw("tokenizer/tokenizer.json", DEEP)),
    Case("tokenizer that says nothing", "openvino", _raw("tokenizer/tokenizer.json", "{}"), by="loader"),
    Case(
        "tokenizer of a strange model",
        "sdnq",
        _raw("tokenizer/tokenizer.json", '{"version": "1.0", "model": {"type": "Evil"}}'),
        by="loader",
    ),
    Case(
        "scheduler of text",
        "openvino",
        _edited("scheduler/scheduler_config.json", num_train_timesteps="many"),
        by="loader",
    ),
    Case(
        "scheduler of a strange schedule",
        "sdnq",
        _edited("scheduler/scheduler_config.json", beta_schedule="evil"),
        by="loader",
    ),
    Case(
        "scheduler that draws nothing",
        "openvino",
        _edited("scheduler/scheduler_config.json", trained_betas=[1.0] * 1000),
        by="loader",
    ),
    Case("scheduler of another class", "openvino", _edited("scheduler/scheduler_config.json", _class_name="Evil")),
    Case(
        "scheduler of infinite numbers", "openvino", _raw("scheduler/scheduler_config.json", '{"beta_end": 1e999}')
    ),
    Case("model with renamed keys", "sdnq", _edited("text_encoder/config.json", attribute_map={"a": "b"})),
    Case("model with code", "sdnq", _edited("text_encoder/config.json", auto_map={"AutoModel": "evil.Evil"})),
    Case("model with a kernel", "sdnq", _edited("text_encoder/config.json", _attn_implementation="evil/kernel")),
    Case("model without end", "sdnq", _edited("unet/config.json", layers_per_block=10**8)),
    Case("model of enormous layers", "sdnq", _edited("text_encoder/config.json", num_hidden_layers=10**6)),
    Case("model of enormous width", "sdnq", _edited("unet/config.json", block_out_channels=[10**9, 16])),
    Case("model that is another", "sdnq", _edited("unet/config.json", _class_name="FluxTransformer2DModel")),
    Case("config of no object", "openvino", _raw("unet/config.json", "[1]")),
    Case("config that is enormous", "openvino", _raw("vae_decoder/config.json", b" " * (3 * 2**20))),
    Case(
        "graph with a quantization of its own",
        "openvino",
        _edited("unet/config.json", quantization_config={"a": 1}),
    ),
]

VALUES = [
    Case("tokenizer of many values", "openvino", _raw("tokenizer/tokenizer.json", MANY)),
    Case("vocabulary of many values", "sdnq", _raw("tokenizer/vocab.json", MANY)),
    Case("header of many values", "sdnq", _raw(WEIGHTS, len(MANY).to_bytes(8, "little") + b'{"a":' + MANY)),
    Case("shards of many values", "sdnq", _raw(f"{WEIGHTS}.index.json", MANY[: 20 * 2**20])),
]

FILES = [
    Case("library beside the graph", "openvino", _raw("unet/evil.so", PICKLE)),
    Case("numbered library", "openvino", _raw("unet/libevil.so.1.2", PICKLE)),
    Case("library of macOS", "coreml", _raw(f"{PACKAGE}/Data/evil.dylib", PICKLE)),
    Case("module of Windows", "sdnq", _raw("unet/evil.pyd", PICKLE)),
    Case("code at the top", "sdnq", _raw("evil.PY", CODE)),
    Case("script", "openvino", _raw("setup.sh", "touch x")),
    Case("pickle beside the weights", "sdnq", _raw("unet/diffusion_pytorch_model.bin", PICKLE)),
    Case("pickle at the top", "openvino", _raw("pytorch_model.bin", PICKLE)),
    Case("file of no kind", "openvino", _raw("unet/notes.dat", "x")),
    Case("second version of weights", "sdnq", _raw("unet/diffusion_pytorch_model.fp16.safetensors", PICKLE)),
    Case("link out of the folder", "openvino", _link("unet/config.json", f"../../../{SECRET}")),
    Case("link in a circle", "openvino", _link("unet/config.json", "config.json")),
    Case("folder that leads out", "sdnq", _link("vae_2", "/etc")),
    Case("pipe", "openvino", lambda root: os.mkfifo(root / "unet" / "waits")),
    Case("pipe that is looked at first", "nunchaku", lambda root: os.mkfifo(root / "svdq-a.safetensors")),
    Case("texts at the top", "openvino", _raw("README.md", CODE), by=None),
    Case("code in a hidden folder", "openvino", _raw(".git/hooks/evil", CODE), by=None),
]

TENSORS = [
    Case("weights that are cut off", "sdnq", _cut(WEIGHTS, 0.5)),
    Case("weights that are a pickle", "sdnq", _raw(WEIGHTS, PICKLE)),
    Case("weights with a header without end", "sdnq", _raw(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}")),
    Case("weights of another model", "sdnq", _raw(WEIGHTS, safetensors_bytes({"x": ("F32", (1,))})), by="loader"),
    Case("weights that are not there", "sdnq", _without("vae/diffusion_pytorch_model.safetensors"), by="loader"),
    Case(
        "shard elsewhere",
        "sdnq",
        _raw(f"{WEIGHTS}.index.json", json.dumps({"weight_map": {"a": "../../x.safetensors"}})),
    ),
    Case("shards of no object", "sdnq", _raw(f"{WEIGHTS}.index.json", '{"weight_map": 7}')),
    Case("sdnq: key of its own", "sdnq", _quantized(evil=1)),
    Case("sdnq: kernel", "sdnq", _quantized(use_hadamard=True)),
    Case("sdnq: strange type", "sdnq", _quantized(weights_dtype="evil")),
    Case("sdnq: groups of nothing", "sdnq", _quantized(group_size=0)),
    Case("sdnq: rank without end", "sdnq", _quantized(use_svd=True, svd_rank=10**9)),
    Case("sdnq: layers of no object", "sdnq", _quantized(modules_quant_config=[1])),
    Case("sdnq: layer of Python's own", "sdnq", _quantized(modules_to_not_convert=["__class__.__init__"])),
    Case("sdnq: method of another library", "sdnq", _quantized(quant_method="bitsandbytes")),
    Case("svdquant: key of its own", "svdquant", _quantized(evil={"a": 1})),
    Case("svdquant: wide type", "svdquant", _quantized(compute_dtype="float64")),
    Case("svdquant: section of no object", "svdquant", _quantized(svdq_w4a4=[1])),
    Case("svdquant: layer of Python's own", "svdquant", _section(targets=["__class__"])),
    Case("svdquant: layers that are text", "svdquant", _section(targets="all")),
    Case("svdquant: rank below nothing", "svdquant", _section(rank=-16)),
    Case("svdquant: rank without end", "svdquant", _section(rank=10**9)),
    Case("svdquant: weights of another model", "svdquant", _edited("unet/config.json", dropout=0.0), by="loader"),
    Case("nunchaku: config that is no JSON", "nunchaku", _single(config="{")),
    Case("nunchaku: config that is nested deeply", "nunchaku", _single(config=DEEP.decode())),
    Case("nunchaku: config with code", "nunchaku", _single(config='{"auto_map": {"a": "b"}}')),
    Case("nunchaku: class of its own", "nunchaku", _single(model_class="evil.Evil")),
    Case("nunchaku: key of its own", "nunchaku", _single(quantization_config='{"method": "svdquant", "evil": 1}')),
    Case("nunchaku: quantization of no object", "nunchaku", _single(quantization_config="[]")),
    Case("nunchaku: file that is cut off", "nunchaku", _cut("svdq-int4_r32-x.safetensors", 0.5)),
]

PACKAGES = [
    Case("manifest that leads out", "coreml", _item(path="../../../../etc/passwd")),
    Case("manifest of another file", "coreml", _item(path="com.apple.CoreML/evil.bin")),
    Case("manifest whose path is a number", "coreml", _item(path=7)),
    Case("manifest of no object", "coreml", _raw(f"{PACKAGE}/Manifest.json", "[]")),
    Case("manifest without a root", "coreml", _edited(f"{PACKAGE}/Manifest.json", rootModelIdentifier="3")),
    Case(
        "manifest whose root is the weights",
        "coreml",
        _edited(f"{PACKAGE}/Manifest.json", rootModelIdentifier="2"),
    ),
    Case("script in a package", "coreml", _raw(f"{PACKAGE}/Data/com.apple.CoreML/run", CODE)),
    Case("weights without a specification", "coreml", _without(MODEL)),
    Case(
        "weights elsewhere", "coreml", _link(f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin", "/etc/passwd")
    ),
    Case("specification that is no message", "coreml", _raw(MODEL, PICKLE), by="loader"),
    Case("specification of nothing", "coreml", _raw(MODEL, b""), by="loader"),
    Case("specification with a layer of its own", "coreml", _specified(_custom_layer), by="loader"),
    Case("specification with an operation of its own", "coreml", _specified(_unknown_operation), by="loader"),
    Case(
        "specification of a custom model",
        "coreml",
        _specified(lambda model: setattr(model.customModel, "className", "Evil")),
        by="loader",
    ),
]

EVIDENCE = [
    Case("evidence of steps without end", "openvino", _asks(steps=10**9), by="sampling"),
    Case("evidence of enormous pictures", "openvino", _asks(width=10**6, height=10**6), by="sampling"),
    Case("evidence of steps below nothing", "openvino", _asks(steps=-1), by="sampling"),
    Case("evidence of no prompts", "openvino", _asks(prompts=[]), by="sampling"),
    Case(
        "evidence of a million prompts",
        "openvino",
        _asks(prompts=[{"text": "a", "seed": 0}] * 10**5),
        by="sampling",
    ),
    Case(
        "evidence of an enormous seed", "openvino", _asks(prompts=[{"text": "a", "seed": 10**30}]), by="sampling"
    ),
    Case(
        "evidence of an enormous prompt",
        "openvino",
        _asks(prompts=[{"text": "a" * 10**5, "seed": 0}]),
        by="sampling",
    ),
    Case("evidence of text for numbers", "openvino", _asks(steps="many"), by="sampling"),
    Case("evidence that is nested deeply", "openvino", _evidence(DEEP), by="sampling"),
    Case("evidence of no object", "openvino", _evidence([]), by="sampling"),
    Case("evidence without a word", "openvino", _evidence({}), by="sampling"),
]

CASES = [*INDEXES, *MORE_INDEXES, *GRAPHS, *CONFIGS, *VALUES, *FILES, *TENSORS, *PACKAGES, *EVIDENCE]
