"""What strangers may send: checkpoints, weights, LoRAs, zips, recipes, manifests, cards and names made to do harm.

A case writes its files into an empty folder and returns what sdhub is then asked to take: a call that has to
refuse it with an SdhubError, or to return something harmless. Pickles and code would write the file that the
variable `CANARY` names.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.checkpoint.tiny import TENSORS, copy_demo, safetensors_bytes, skeleton, write

CANARY = "SDHUB_CANARY"
DEEP = b"[" * 200_000
UNET = "unet/diffusion_pytorch_model.safetensors"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One piece of mischief.

    `harmless`: it is taken, and does nothing. `built`: inspect takes it, and what is read of it before it is built
    is refused; `later` changes the checkpoint's folder between the two.
    """

    name: str
    make: Callable[[Path], Call]
    harmless: bool = False
    built: bool = False
    later: Callable[[Path], object] | None = None


class Boom:
    """Unpickled, it writes the canary."""

    def __reduce__(self) -> Any:
        return eval, (f"open(__import__('os').environ[{CANARY!r}], 'w').close()",)


PICKLE = pickle.dumps(Boom())
CODE = f"import os\nopen(os.environ[{CANARY!r}], 'w').close()\n"


def _inspect(source: Path | str, *loras: str, config: str | None = None) -> Call:
    def call() -> Any:
        from sdhub.checkpoint.resolve import resolve

        return resolve(str(source), loras, config)

    return call


def _checkpoint(change: Callable[[Path], object], **settings: Any) -> Callable[[Path], Call]:
    """A sound checkpoint, changed."""

    def make(folder: Path) -> Call:
        root = skeleton(folder / "model", **settings)
        write(root / "README.md", "---\nlicense: mit\n---\n")
        change(root)
        return _inspect(root)

    return make


def _with(path: str, content: bytes | str) -> Callable[[Path], Call]:
    return _checkpoint(lambda root: _replace(root / path, content))


def _replace(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    write(path, content)


def _config(path: str, **entries: Any) -> Callable[[Path], Call]:
    def change(root: Path) -> None:
        document = json.loads((root / path).read_text())
        _replace(root / path, json.dumps({**document, **entries}))

    return _checkpoint(change)


def _index(**entries: Any) -> Callable[[Path], Call]:
    return _config("model_index.json", **entries)


def _unet(content: bytes) -> Callable[[Path], Call]:
    return _with(UNET, content)


def _header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> bytes:
    return _header({"weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}, bytes(8))


def _sharded(weight_map: Any) -> Callable[[Path], Call]:
    def change(root: Path) -> None:
        (root / UNET).unlink()
        _replace(root / f"{UNET}.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}))

    return _checkpoint(change)


def _linked(path: str, target: str) -> Callable[[Path], Call]:
    def change(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)

    return _checkpoint(change)


def _folder_link(root: Path) -> None:
    for path in (root / "unet").iterdir():
        path.unlink()
    (root / "unet").rmdir()
    (root / "unet").symlink_to("/etc")


def _fifo(root: Path) -> None:
    (root / "unet" / "config.json").unlink()
    os.mkfifo(root / "unet" / "config.json")


def _sparse(path: str, size: int) -> Callable[[Path], Call]:
    def change(root: Path) -> None:
        _replace(root / path, b"{")
        os.truncate(root / path, size)

    return _checkpoint(change)


def _huge_header(root: Path) -> None:
    path = root / UNET
    _replace(path, struct.pack("<Q", 2**31) + b"{")
    os.truncate(path, 2**31 + 8)


def _torch_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr("archive/data.pkl", PICKLE)
    return out.getvalue()


def _single(name: str, content: bytes) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        return _inspect(write(folder / name, content))

    return make


def _pickled_part(part: str, name: str) -> Callable[[Path], Call]:
    def change(root: Path) -> None:
        for path in (root / part).glob("*.safetensors"):
            path.unlink()
        _replace(root / part / name, PICKLE)

    return _checkpoint(change)


def _lora(content: bytes, name: str = "style.safetensors", scale: str = "") -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        root = skeleton(folder / "model")
        return _inspect(root, f"{write(folder / name, content)}{scale}")

    return make


def _named(source: str, *loras: str) -> Callable[[Path], Call]:
    return lambda _folder: _inspect(source, *loras)


PICKLES = [
    Case("unet as pickle only", _pickled_part("unet", "diffusion_pytorch_model.bin")),
    Case("text encoder as pickle only", _pickled_part("text_encoder", "pytorch_model.bin")),
    Case("vae as .pt", _pickled_part("vae", "diffusion_pytorch_model.pt")),
    Case("pickle called safetensors", _unet(PICKLE)),
    Case("torch zip called safetensors", _unet(_torch_zip())),
    Case("numpy file called safetensors", _unet(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}" + PICKLE)),
    Case("single .ckpt", _single("model.ckpt", PICKLE)),
    Case("single .pt", _single("model.pt", _torch_zip())),
    Case("single .bin", _single("model.bin", PICKLE)),
    Case("single pickle called safetensors", _single("model.safetensors", PICKLE)),
    Case("LoRA as pickle", _lora(PICKLE, "style.pt")),
    Case("LoRA as pickle called safetensors", _lora(PICKLE)),
    Case("pickle beside safetensors", _with("unet/diffusion_pytorch_model.bin", PICKLE), harmless=True),
    Case("pickle as vocabulary", _with("tokenizer/vocab.json", PICKLE), harmless=True),
]
CODES = [
    Case("custom_pipeline", _index(custom_pipeline="evil")),
    Case("auto_map", _config("unet/config.json", auto_map={"AutoModel": "evil.Model"})),
    Case("trust_remote_code", _config("text_encoder/config.json", trust_remote_code=True)),
    Case("nested auto_map", _config("text_encoder/config.json", text_config={"auto_map": {"A": "b--c.D"}})),
    Case("class from a file", _index(_class_name=["pipeline", "Evil"])),
    Case("library os", _index(unet=["os", "system"])),
    Case("library builtins", _index(scheduler=["builtins", "exec"])),
    Case("library subprocess", _index(vae=["subprocess", "Popen"])),
    Case("unknown class", _index(unet=["diffusers", "EvilModel"])),
    Case("unknown pipeline", _index(_class_name="EvilPipeline")),
    Case("dotted library", _index(unet=["diffusers.pipelines.evil", "UNet2DConditionModel"])),
    Case("component that is a path", _index(**{"../../evil": ["diffusers", "UNet2DConditionModel"]})),
    Case("component of Python", _index(**{"unet.__class__": ["diffusers", "UNet2DConditionModel"]})),
    Case("dunder in a config", _config("unet/config.json", __class__="x")),
    Case("kernel from the Hub", _config("text_encoder/config.json", _attn_implementation="evil/kernel")),
    Case("weights elsewhere", _config("text_encoder/config.json", transformers_weights="evil.bin")),
    Case("quantized already", _config("unet/config.json", quantization_config={"quant_method": "evil"})),
    Case("a module of the library's name", _with("unet/diffusers.py", CODE)),
    Case("a Python file", _with("evil.py", CODE), harmless=True),
]
PATHS = [
    Case("shard above", _sharded({"weight": "../../../etc/passwd"})),
    Case("shard absolute", _sharded({"weight": "/etc/passwd"})),
    Case("shard in another component", _sharded({"weight": "../vae/diffusion_pytorch_model.safetensors"})),
    Case("shard that is a pickle", _sharded({"weight": "model.bin"})),
    Case("shard map is a list", _sharded(["x"])),
    Case("shard name is a number", _sharded({"weight": 7})),
    Case("weights link to a file of the system", _linked(UNET, "/etc/passwd")),
    Case("weights link to a device", _linked(UNET, "/dev/zero")),
    Case("config links outside", _linked("unet/config.json", "/etc/hostname")),
    Case("index links outside", _linked("model_index.json", "/etc/passwd")),
    Case("link to itself", _linked("unet/config.json", "config.json")),
    Case("folder links outside", _checkpoint(_folder_link)),
    Case("pipe for a config", _checkpoint(_fifo)),
    Case("name that climbs", _named("../../../../etc/passwd")),
    Case("name with a revision that climbs", _named("org/name@../../x")),
    Case("name of another host", _named("https://evil.example/org/name")),
    Case("name with a line break", _named("org/na\nme")),
    Case("name that is enormous", _named("o/" + "x" * 100_000)),
    Case("name with direction marks", _named("org/\u202eelpmaxe")),
    Case("LoRA name that climbs", _named("demo", "../../../etc/passwd")),
    Case("LoRA scale that is no number", _named("demo", "org/style:nan")),
    Case("LoRA scale that is enormous", _named("demo", "org/style:1e308")),
]
HEADERS = [
    Case("header of 2^63 bytes", _unet(struct.pack("<Q", 2**63) + b"{}")),
    Case("header longer than the file", _unet(struct.pack("<Q", 10**6) + b"{}")),
    Case("header of two gigabytes", _checkpoint(_huge_header)),
    Case("empty header", _unet(_header(b""))),
    Case("empty file", _unet(b"")),
    Case("three bytes", _unet(b"abc")),
    Case("header that is nested deeply", _unet(_header(DEEP))),
    Case("header that is a list", _unet(_header([]))),
    Case("header that is no UTF-8", _unet(_header(b'{"\xff": 1}'))),
    Case("header with a tensor twice", _unet(_header(b'{"a": {}, "a": {}}'))),
    Case("header with NaN", _unet(_header(b'{"a": NaN}'))),
    Case("header with an enormous integer", _unet(_header(b'{"a": ' + b"9" * 100_000 + b"}"))),
    Case("header without tensors", _unet(_header({}))),
    Case("header of many tensors", _unet(_header({f"t{n}": {} for n in range(200_000)}))),
    Case("metadata that is no text", _unet(_header({"__metadata__": {"a": [1]}}))),
    Case("metadata that is a list", _unet(_header({"__metadata__": [1]}))),
    Case("unknown dtype", _unet(_tensor(dtype="F7"))),
    Case("dtype that is a list", _unet(_tensor(dtype=["F32"]))),
    Case("shape that is enormous", _unet(_tensor(shape=[2**62, 2**62]))),
    Case("shape that wraps around", _unet(_tensor(shape=[2**33, 2**31]))),
    Case("shape that is negative", _unet(_tensor(shape=[-1, -2]))),
    Case("shape of fractions", _unet(_tensor(shape=[1.5, 2]))),
    Case("shape of truth values", _unet(_tensor(shape=[True, 2]))),
    Case("shape of many sides", _unet(_tensor(shape=[1] * 100_000))),
    Case("shape that is text", _unet(_tensor(shape="22"))),
    Case("offsets that go backwards", _unet(_tensor(offsets=[8, 0]))),
    Case("offsets beyond the end", _unet(_tensor(shape=[4], offsets=[0, 16]))),
    Case("offsets that are negative", _unet(_tensor(offsets=[-8, 0]))),
    Case("offsets that leave a hole", _unet(_tensor(shape=[1], offsets=[4, 8]))),
    Case("offsets that do not fit the shape", _unet(_tensor(shape=[1]))),
    Case("data cut off", _unet(safetensors_bytes(TENSORS)[:-3])),
    Case("data beyond the last tensor", _unet(safetensors_bytes(TENSORS) + b"more")),
    Case(
        "tensors that overlap",
        _unet(_header({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, bytes(8))),
    ),
    Case(
        "weights that are not a number",
        _unet(_tensor()[:-8] + struct.pack("<ff", *[float("nan")] * 2)),
        harmless=True,
    ),
    Case("names of tensors with control characters", _unet(_header({"a\x1b[2J\u202e": 1}))),
]
JSONS = [
    Case("index that is nested deeply", _with("model_index.json", b'{"a":' * 200_000)),
    Case("index of a gigabyte", _sparse("model_index.json", 2**30)),
    Case("config of a gigabyte", _sparse("unet/config.json", 2**30)),
    Case("vocabulary of four gigabytes", _sparse("tokenizer/vocab.json", 2**32)),
    Case("index with a key twice", _with("model_index.json", '{"_class_name": "A", "_class_name": "B"}')),
    Case("index that is a list", _with("model_index.json", "[]")),
    Case("index that is empty", _with("model_index.json", "")),
    Case("index that is no UTF-8", _with("model_index.json", b"\xff\xfe{}")),
    Case("config with NaN", _with("unet/config.json", '{"in_channels": NaN}')),
    Case("config with an infinite number", _with("unet/config.json", '{"in_channels": 1e999}')),
    Case("config with half a character", _with("unet/config.json", '{"a": "\\ud800"}')),
    Case("config with an enormous integer", _with("unet/config.json", '{"a": ' + "9" * 5000 + "}")),
    Case("component that is a number", _index(unet=7, vae=["diffusers"])),
    Case("no index", _checkpoint(lambda root: (root / "model_index.json").unlink())),
    Case("no weights", _checkpoint(lambda root: (root / UNET).unlink())),
    Case("no tokenizer", _checkpoint(lambda root: [path.unlink() for path in (root / "tokenizer").iterdir()])),
]


def _demo(change: Callable[[Path], object]) -> Callable[[Path], Call]:
    """The built-in checkpoint, which loads, changed."""

    def make(folder: Path) -> Call:
        root = copy_demo(folder / "model")
        change(root)
        return _inspect(root)

    return make


def _set(path: str, **entries: Any) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        file = root / path
        document = json.loads(file.read_text()) if file.exists() else {}
        _replace(file, json.dumps({**document, **entries}))

    return change


def _of_demo(path: str, **entries: Any) -> Callable[[Path], Call]:
    return _demo(_set(path, **entries))


def _filled(path: str, number: float) -> Callable[[Path], object]:
    """Weights, the last of which is `number`."""

    def change(root: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(root / path)
        next(iter(tensors.values())).view(-1)[-1] = number
        (root / path).unlink()
        save_file(tensors, root / path)

    return change


def _nothing(root: Path) -> None:
    pass


def _hard_link(root: Path) -> None:
    secret = write(root.parent / "elsewhere.json", '{"a": "not a number"}')
    (root / "tokenizer/added_tokens.json").unlink(missing_ok=True)
    os.link(secret, root / "tokenizer/added_tokens.json")


def _deep_folders(root: Path) -> None:
    here = os.open(root, os.O_RDONLY)
    for _ in range(1_500):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)


UNET_CONFIG, VAE_CONFIG = "unet/config.json", "vae/config.json"
TEXT_CONFIG, SCHEDULER = "text_encoder/config.json", "scheduler/scheduler_config.json"
TOKENIZER, SPECIAL = "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"
DENIED: list[tuple[str, str, dict[str, Any]]] = [
    ("keys renamed", TEXT_CONFIG, {"attribute_map": {"x": "_attn_implementation"}, "x": "evil/kernel"}),
    ("keys renamed in a nested config", TEXT_CONFIG, {"text_config": {"attribute_map": {"a": "b"}}}),
    ("keys renamed in a tokenizer", TOKENIZER, {"attribute_map": {"a": "b"}}),
    ("arguments of a tokenizer", TOKENIZER, {"init_inputs": ["/etc/passwd"]}),
    ("code of a tokenizer", TOKENIZER, {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
    ("code deep within a config", TEXT_CONFIG, {"a": {"b": [{"auto_map": {"AutoModel": "evil.Model"}}]}}),
    ("kernel deep within a config", TEXT_CONFIG, {"a": [{"_attn_implementation": "evil/kernel"}]}),
    ("kernel of experts", TEXT_CONFIG, {"experts_implementation": "evil/kernel"}),
    ("library for sentences that names a file", TOKENIZER, {"sp_model_kwargs": {"model_file": "/etc/passwd"}}),
    ("token that is an object of another kind", TOKENIZER, {"bos_token": {"__type": "Evil", "content": "a"}}),
    ("tokens by the names of methods", TOKENIZER, {"extra_special_tokens": {"__class__": "x"}}),
    ("a million million tokens", TOKENIZER, {"added_tokens_decoder": {str(2**40): {"content": "a"}}}),
    ("token that is a number", SPECIAL, {"eos_token": 7}),
    ("tokens that are nested", SPECIAL, {"additional_special_tokens": [[["a"]]]}),
    ("length of a prompt below nought", TOKENIZER, {"model_max_length": -1}),
    ("length of a prompt of gigabytes", TOKENIZER, {"model_max_length": 2**40}),
    ("a hundred million layers", UNET_CONFIG, {"layers_per_block": 10**8}),
    ("a hundred million layers in a list", UNET_CONFIG, {"layers_per_block": [1, 10**8]}),
    ("a million hidden layers", TEXT_CONFIG, {"num_hidden_layers": 10**6}),
    ("a milliard channels", UNET_CONFIG, {"block_out_channels": [10**9, 10**9]}),
    ("a milliard channels of a VAE", VAE_CONFIG, {"block_out_channels": [10**9]}),
    ("vocabulary of 2^40", TEXT_CONFIG, {"vocab_size": 2**40}),
    ("sample of a milliard pixels", UNET_CONFIG, {"sample_size": 10**9}),
    ("ten milliard timesteps", SCHEDULER, {"num_train_timesteps": 10**10}),
    ("no timesteps", SCHEDULER, {"num_train_timesteps": 0}),
    ("betas that are text", SCHEDULER, {"trained_betas": "0.1"}),
    ("beta of 1e308", SCHEDULER, {"beta_end": 1e308}),
    ("predictions of another kind", SCHEDULER, {"prediction_type": "evil"}),
    ("steps offset below nought", SCHEDULER, {"steps_offset": -(2**63)}),
    ("schedule that is a path", SCHEDULER, {"beta_schedule": "../../etc/passwd"}),
    ("no groups", UNET_CONFIG, {"norm_num_groups": 0}),
    ("groups that divide nothing", UNET_CONFIG, {"norm_num_groups": 7}),
    ("groups of a VAE that divide nothing", VAE_CONFIG, {"norm_num_groups": 7}),
    ("heads below nought", UNET_CONFIG, {"attention_head_dim": -8}),
    ("heads of text encoders below nought", TEXT_CONFIG, {"num_attention_heads": -1}),
    ("heads that divide no width", TEXT_CONFIG, {"hidden_size": 512, "num_attention_heads": 7}),
    ("width as text", UNET_CONFIG, {"cross_attention_dim": "768"}),
    ("width as text with digits of another script", TEXT_CONFIG, {"hidden_size": "٧"}),
    ("width that is nested", UNET_CONFIG, {"cross_attention_dim": [[1]]}),
    ("channels that are nested", VAE_CONFIG, {"block_out_channels": [[1]]}),
    ("channels that are none", VAE_CONFIG, {"block_out_channels": []}),
    ("channels of fractions", UNET_CONFIG, {"in_channels": 4.5}),
    ("channels that are true", UNET_CONFIG, {"in_channels": True}),
    ("more blocks than channels", UNET_CONFIG, {"down_block_types": ["DownBlock2D"] * 9}),
    ("block that is a path", UNET_CONFIG, {"down_block_types": ["../../evil"] * 2}),
    ("activation that is code", TEXT_CONFIG, {"hidden_act": "__import__('os')"}),
    ("version that is an object", UNET_CONFIG, {"_diffusers_version": {"a": 1}}),
    ("scaling that is nought", VAE_CONFIG, {"scaling_factor": 0}),
    ("epsilon below nought", TEXT_CONFIG, {"layer_norm_eps": -1}),
]
UNUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("tokenizer file elsewhere", TOKENIZER, {"tokenizer_file": "../../secret.txt"}),
    ("vocabulary elsewhere", TOKENIZER, {"vocab_file": "/etc/passwd", "merges_file": "/etc/passwd"}),
    ("map of tokens elsewhere", TOKENIZER, {"special_tokens_map_file": "/etc/passwd"}),
    ("tokenizer of another class", TOKENIZER, {"tokenizer_class": "EvilTokenizer"}),
    ("chat template", TOKENIZER, {"chat_template": "{{ ''.__class__.__mro__ }}"}),
    ("tokenizer that is downloaded", TOKENIZER, {"name_or_path": "evil/tokenizer", "_from_auto": True}),
    ("config of another class", TEXT_CONFIG, {"config_class": "os.system", "model_type": "evil"}),
    ("architectures of another library", TEXT_CONFIG, {"architectures": ["evil.Model"]}),
    ("config downloaded", UNET_CONFIG, {"_name_or_path": "evil/model", "_commit_hash": "x"}),
    ("class of another library", UNET_CONFIG, {"_class_name": "os.system"}),
    (
        "arguments of a loader",
        UNET_CONFIG,
        {"cache_dir": "/tmp/evil", "force_download": True, "proxies": {"a": "b"}},
    ),
    ("weights without a check", UNET_CONFIG, {"use_safetensors": False, "weights_name": "evil.bin"}),
]
UNFIT: list[tuple[str, str, dict[str, Any]]] = [
    ("width other than the file's", UNET_CONFIG, {"cross_attention_dim": 64_000}),
    ("layers that the file has not", UNET_CONFIG, {"layers_per_block": 16}),
    ("vocabulary that the file has not", TEXT_CONFIG, {"vocab_size": 2**22}),
    ("hidden layers that the file has not", TEXT_CONFIG, {"num_hidden_layers": 512}),
    ("positions that the file has not", TEXT_CONFIG, {"max_position_embeddings": 2**21}),
    ("width of text of 65,536", TEXT_CONFIG, {"intermediate_size": 2**20}),
    ("channels of a VAE other than the file's", VAE_CONFIG, {"block_out_channels": [65_536] * 3}),
    ("activation of no library", VAE_CONFIG, {"act_fn": "evil"}),
    ("block of no library", UNET_CONFIG, {"mid_block_type": "EvilBlock"}),
    ("schedule of no library", SCHEDULER, {"beta_schedule": "evil"}),
]
CONFIGS = [
    *(Case(name, _config(path, **entries)) for name, path, entries in DENIED if path != SPECIAL),
    *(Case(name, _of_demo(path, **entries)) for name, path, entries in DENIED if path == SPECIAL),
    *(Case(f"{name} (unused)", _of_demo(path, **entries), harmless=True) for name, path, entries in UNUSED),
    *(Case(name, _of_demo(path, **entries), built=True) for name, path, entries in UNFIT),
]


def _controlnet(**entries: Any) -> Callable[[Path], Call]:
    """A sound ControlNet of the built-in checkpoint but for its config, loaded as Core ML's build does it."""

    def make(folder: Path) -> Call:
        from diffusers import ControlNetModel, UNet2DConditionModel

        root, net = copy_demo(folder / "model"), folder / "net"
        unet = UNet2DConditionModel.from_pretrained(root / "unet")
        ControlNetModel.from_unet(unet).save_pretrained(net)
        _set("config.json", **entries)(net)

        def call() -> None:
            from sdhub.checkpoint.companions import load_all
            from sdhub.checkpoint.resolve import resolve
            from sdhub.core.hub import Hub

            load_all(resolve(str(root), controlnets=[str(net)]), SimpleNamespace(unet=unet), Hub())

        return call

    return make


CONTROLNETS = [
    Case("ControlNet as it was saved", _controlnet(), harmless=True),
    Case("ControlNet of layers that its file has not", _controlnet(layers_per_block=16)),
    Case("ControlNet of channels that its file has not", _controlnet(block_out_channels=[65_536] * 3)),
    Case("ControlNet of hints that its file has not", _controlnet(conditioning_embedding_out_channels=[8192] * 9)),
]
BYTECODE = b"\xa7\r\r\n" + bytes(12) + PICKLE
FILES = [
    *(
        Case(f"a file of code, {name}", _demo(lambda root, name=name: write(root / name, BYTECODE)), harmless=True)
        for name in ("unet/diffusers.pyc", "torch.so", "vae/lib.dylib", "tokenizer/evil.pyd", "__pycache__/a.pyc")
    ),
    Case("sitecustomize", _demo(lambda root: write(root / "sitecustomize.py", CODE)), harmless=True),
    Case("weights with NaN", _demo(_filled(UNET, float("nan"))), built=True),
    Case("weights with Inf", _demo(_filled("vae/diffusion_pytorch_model.safetensors", float("inf"))), built=True),
    Case("weights replaced after inspect", _demo(_nothing), built=True, later=_filled(UNET, 7.0)),
    Case(
        "config replaced after inspect", _demo(_nothing), built=True, later=_set(UNET_CONFIG, layers_per_block=7)
    ),
    Case(
        "tokenizer replaced after inspect",
        _demo(_nothing),
        built=True,
        later=_set("tokenizer/vocab.json", evil=7),
    ),
    Case("hard link to a file that is none of its kind", _demo(_hard_link)),
    Case("vocabulary links outside", _linked("tokenizer/vocab.json", "/etc/passwd")),
    Case("merges link outside", _linked("tokenizer/merges.txt", "/etc/passwd")),
    Case("1,500 folders within each other", _demo(_deep_folders)),
    Case("file with a direction mark", _demo(lambda root: write(root / "unet/\u202egpj.py", CODE)), harmless=True),
    Case("name with NUL", _named("org/na\0me")),
    Case("folder with NUL", _named("./na\0me")),
    Case("LoRA with NUL", _named("demo", "./na\0me.safetensors")),
    Case(
        "whole tokenizer of another kind",
        _with("tokenizer/tokenizer.json", '{"model": {"type": "Evil"}}'),
        built=True,
    ),
    Case(
        "whole tokenizer that is none",
        _demo(lambda root: write(root / "tokenizer/tokenizer.json", '{"model": {}}')),
        built=True,
    ),
    Case("tokens numbered by 2^63", _with("tokenizer/added_tokens.json", '{"a": 9223372036854775808}')),
]


def _license(card: bytes | str) -> Callable[[Path], Call]:
    """A source whose card says this; asked for is the licence to publish under."""

    def make(folder: Path) -> Call:
        root = skeleton(folder / "model")
        _replace(root / "README.md", card)

        def call() -> Any:
            from sdhub.publishing.license import settle

            return settle(_inspect(root)().license)

        return call

    return make


LICENSES = [
    Case("no card", _license("")),
    Case("licence that forbids derivatives", _license("---\nlicense: cc-by-nd-4.0\n---\n")),
    Case("licence of a hidden name", _license("---\nlicense: other\nlicense_name: No Derivatives 1.0\n---\n")),
    Case("licence without terms", _license("---\nlicense: other\n---\n")),
    Case("licence with a script", _license("---\nlicense: '<script>alert(1)</script>'\n---\n")),
    Case("licence with a line break", _license('---\nlicense: "mit\\nx: y"\n---\n')),
    Case(
        "link that is code",
        _license("---\nlicense: other\nlicense_name: x\nlicense_link: 'javascript:a()'\n---\n"),
    ),
    Case(
        "YAML that makes objects",
        _license("---\nlicense: !!python/object/apply:os.system ['id']\n---\n"),
        harmless=True,
    ),
    Case("YAML of aliases", _license("---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: *b\n---\n")),
    Case("YAML that is nested deeply", _license(b"---\na: " + DEEP[:50_000] + b"\n---\n")),
    Case("YAML without an end", _license(b"---\n" + b"a: b\n" * 300_000)),
    Case("card of control characters", _license(bytes(range(256)) * 100)),
]


def _zip(fill: Callable[[zipfile.ZipFile], object], *, cut: int = 0) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        archive = folder / "package.zip"
        with zipfile.ZipFile(archive, "w") as zipped:
            fill(zipped)
        if cut:
            os.truncate(archive, archive.stat().st_size - cut)

        def call() -> Any:
            from sdhub.publishing.package import unpack

            unpack(archive, folder / "out")

        return call

    return make


def _entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    return entry


def _bomb(zipped: zipfile.ZipFile) -> None:
    with zipped.open(zipfile.ZipInfo("zeros"), "w", force_zip64=True) as out:
        for _ in range(64):
            out.write(bytes(2**20))


def _deflated_bomb(zipped: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("zeros")
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipped.open(entry, "w") as out:
        for _ in range(64):
            out.write(bytes(2**20))


ZIPS = [
    Case("entry that climbs", _zip(lambda z: z.writestr("../evil", CODE))),
    Case("entry that climbs inside", _zip(lambda z: z.writestr("a/../../evil", CODE))),
    Case("entry that is absolute", _zip(lambda z: z.writestr("/tmp/evil", CODE))),
    Case("entry with a drive", _zip(lambda z: z.writestr("C:\\evil", CODE))),
    Case("entry that is a link", _zip(lambda z: z.writestr(_entry("link", 0o120777), "/etc/passwd"))),
    Case("entry that is a device", _zip(lambda z: z.writestr(_entry("device", 0o020666), ""))),
    Case("entry twice", _zip(lambda z: [z.writestr("a", "1"), z.writestr("A", "2")])),
    Case("entry that is file and folder", _zip(lambda z: [z.writestr("a", "1"), z.writestr("a/b", "2")])),
    Case("entry with a control character", _zip(lambda z: z.writestr("a\x1b[2J", "1"))),
    Case("entry that packs zeros", _zip(_deflated_bomb)),
    Case("archive that is cut off", _zip(lambda z: z.writestr("a", "1" * 1000), cut=30)),
    Case("archive without entries", _zip(lambda z: None), harmless=True),
    Case("zeros that are stored", _zip(_bomb), harmless=True),
]


def _recipe(content: bytes) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        path = write(folder / "recipe.json", content)

        def call() -> Any:
            from sdhub.recipes.recipe import load_recipe

            return load_recipe(path)

        return call

    return make


def _recipe_of(**changes: Any) -> Callable[[Path], Call]:
    document = {
        "name": "openvino-mine",
        "backend": "openvino",
        "components": {"unet": {"default": {"scheme": "affine", "bits": 8}}},
    }
    return _recipe(json.dumps({**document, **changes}).encode())


RECIPES = [
    Case("recipe that is nested deeply", _recipe(DEEP)),
    Case("recipe that is no JSON", _recipe(PICKLE)),
    Case("recipe that is enormous", _recipe(b" " * (17 * 2**20))),
    Case("recipe of another version", _recipe_of(version=99)),
    Case("recipe with code", _recipe_of(run="import os")),
    Case("recipe whose name climbs", _recipe_of(name="openvino-../../x")),
    Case("recipe whose backend is a module", _recipe_of(backend="os.system")),
    Case(
        "recipe of a million bits",
        _recipe_of(components={"unet": {"default": {"scheme": "affine", "bits": 10**6}}}),
    ),
    Case("recipe whose component climbs", _recipe_of(components={"../x": {"default": {"scheme": "float"}}})),
    Case("recipe of no scheme", _recipe_of(components={"unet": {"default": {"scheme": "eval"}}})),
]


def _published(manifest: Any, **files: bytes) -> Callable[[Path], Call]:
    """A repository that says it is sdhub's; asked for is whether it is what it says."""

    def make(folder: Path) -> Call:
        root = folder / "repository"
        write(root / "sdhub.json", manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode())
        for name, content in files.items():
            write(root / name, content)

        def call() -> Any:
            from sdhub.publishing.verify import verify_folder
            from sdhub.workflow.variants import vet_folder

            findings = verify_folder(root, gate=vet_folder)
            assert any(each.status == "failed" for each in findings), "it passes"
            assert all("\n" not in each.detail and len(each.detail) < 500 for each in findings)

        return call

    return make


def _manifest(**changes: Any) -> dict[str, Any]:
    return {"variant": "x", "recipe_sha256": "0" * 64, "files": {}, **changes}


_HASH = {"bytes": 1, "sha256": "0" * 64}
MANIFESTS = [
    Case("manifest that is nested deeply", _published(DEEP)),
    Case("manifest of no object", _published([])),
    Case("manifest without files", _published({"version": 1})),
    Case("manifest whose hashes are numbers", _published(_manifest(files={"a": {"bytes": 1, "sha256": 1}}))),
    Case("manifest whose sizes are text", _published(_manifest(files={"a": {**_HASH, "bytes": "1"}}))),
    Case("manifest of files that climb", _published(_manifest(files={"../../etc/passwd": _HASH})), harmless=True),
    Case(
        "manifest whose bundle is no zip",
        _published(_manifest(bundles=[{"name": "README.md"}]), **{"README.md": b"x"}),
        harmless=True,
    ),
    Case(
        "evidence that is nested deeply",
        _published(_manifest(), **{"evidence/evidence.json": DEEP}),
        harmless=True,
    ),
    Case("recipe that is a pickle", _published(_manifest(), **{"recipe.json": PICKLE}), harmless=True),
    Case(
        "package that is a bomb",
        _published(_manifest(), **{"packages/a.zip": b"PK\x05\x06" + b"\xff" * 18}),
        harmless=True,
    ),
]


def _rendered(text: str) -> Callable[[Path], Call]:
    """A card of a stranger on a page of the embedded Hub."""

    def make(_folder: Path) -> Call:
        def call() -> Any:
            from sdhub.hub.cards import CardError, parse_front_matter, split_card
            from sdhub.hub.pages.markdown import render

            source, body = split_card(text)
            try:
                parse_front_matter(source)
            except CardError as error:
                assert "\n" not in str(error)
            return _assert_tame(render(body))

        return call

    return make


def _assert_tame(page: str) -> None:
    """Nothing in a page can act: no script, frame, style, form, handler, or address of another scheme."""
    from html.parser import HTMLParser

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in {
                "script",
                "iframe",
                "style",
                "form",
                "object",
                "embed",
                "link",
                "meta",
                "base",
                "svg",
            }
            for name, value in attrs:
                assert not name.startswith("on") and name not in {"style", "srcdoc", "formaction"}, name
                address = "".join((value or "").split()).lower()
                assert not address.startswith(("javascript:", "data:", "vbscript:", "file:")), value

    Parser().feed(page)


_MARKUP = {
    "script": "<script>alert(1)</script>",
    "handler": "<img src=x onerror=alert(1)>",
    "link that is code": "[x](javascript:alert(1)) [y](JaVa\tScript:alert(1)) [z](data:text/html,x)",
    "picture that is code": '![x](javascript:alert(1)) ![x](x "onerror=alert(1)")',
    "frame": '<iframe src="https://evil.example"></iframe><object data=x></object>',
    "svg": "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "style": "<style>*{display:none}</style><p style='background:url(javascript:1)'>x</p>",
    "form": "<form action=https://evil.example><input name=token></form>",
    "unfinished tag": "<img src=x onerror=alert(1) ",
    "entities": "&lt;script&gt;alert(1)&#x3c;/script&#x3e; <a href='&#106;avascript:alert(1)'>x</a>",
    "front matter that ends early": "---\nlicense: mit\n---\n---\n<script>alert(1)</script>\n---\n",
    "front matter of objects": "---\na: !!python/object/apply:os.system ['id']\n---\nx",
    "front matter of aliases": "---\n"
    + "a0: &a0 [x,x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    + "---\nx",
    "front matter that is nested deeply": "---\na: " + "[" * 5000 + "\n---\nx",
    "nested quotes": ">" * 5000 + " x",
    "nested brackets": "[" * 20_000 + "](x)" * 20_000,
    "emphasis without end": "*a _b " * 20_000,
    "control and direction characters": "".join(map(chr, range(32))) + "\u202e\u2066<b>x</b>\ufeff" * 100,
}
CARDS = [Case(f"card with {name}", _rendered(text), harmless=True) for name, text in _MARKUP.items()]


def _prompts(content: bytes) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        path = write(folder / "prompts.json", content)

        def call() -> Any:
            from sdhub.evidence.sampling import load_prompts

            return load_prompts(path)

        return call

    return make


PROMPTS = [
    Case("prompts that are nested deeply", _prompts(DEEP)),
    Case("prompts that are no texts", _prompts(b"[1, null]")),
    Case("prompts that are a pickle", _prompts(PICKLE)),
    Case("no prompts", _prompts(b"[]")),
]

SOURCES = [*(PICKLES + CODES + PATHS + HEADERS + JSONS + CONFIGS + CONTROLNETS + FILES + LICENSES)]
CASES = [
    *SOURCES,
    *(ZIPS + RECIPES + MANIFESTS + CARDS + PROMPTS),
]
