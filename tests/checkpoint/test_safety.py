"""A corpus of hostile and broken checkpoints; each is refused for its own reason, in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint.checkpoint import Source
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.safety import vet_config
from sdhub.core.errors import SdhubError, SourceError, UnsafeError, UnsupportedError
from tests.checkpoint.tiny import safetensors_bytes, skeleton, write

UNET = "unet/diffusion_pytorch_model.safetensors"
SHARDS = "unet/diffusion_pytorch_model.safetensors.index.json"
Change = Callable[[Path], object]


def look(root: Path) -> Any:
    return inspect(Source("folder", str(root)))


def index(**changes: Any) -> Change:
    def change(root: Path) -> None:
        document = json.loads((root / "model_index.json").read_text())
        write(root / "model_index.json", {**document, **changes})

    return change


def put(path: str, content: Any) -> Change:
    return lambda root: write(root / path, content)


def gone(path: str) -> Change:
    return lambda root: (root / path).unlink()


def both(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


def sharded(weight_map: Any) -> Change:
    return both(gone(UNET), put(SHARDS, {"weight_map": weight_map}))


def link(path: str, target: str) -> Change:
    def change(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)

    return change


def outside(path: str) -> Change:
    def change(root: Path) -> None:
        (root.parent / "outside").mkdir(exist_ok=True)
        target = write(root.parent / "outside" / "x.safetensors", safetensors_bytes({}))
        link(path, str(target))(root)

    return change


def linked_folder(root: Path) -> None:
    (root / "unet").rename(root.parent / "elsewhere")
    (root / "unet").symlink_to(root.parent / "elsewhere")


UNSAFE: dict[str, tuple[Change, str]] = {
    "pickle only": (both(gone(UNET), put("unet/diffusion_pytorch_model.bin", b"\x80")), "pickle only"),
    "ckpt only": (both(gone(UNET), put("unet/model.ckpt", b"\x80")), "pickle only"),
    "pickle of another case": (both(gone(UNET), put("unet/x.PTH", b"\x80")), "pickle only"),
    "text encoder pickle": (
        both(gone("text_encoder/model.safetensors"), put("text_encoder/pytorch_model.bin", b"\x80")),
        "pickle only",
    ),
    "sharded pickle": (both(gone(UNET), put("unet/a-00001.bin", b""), put("unet/a.bin.index.json", {})), "pickle"),
    "auto_map": (put("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}), "remote code"),
    "auto_map deep": (put("text_encoder/config.json", {"text_config": [{"auto_map": {"A": "b"}}]}), "remote code"),
    "auto_map of a tokenizer": (put("tokenizer/tokenizer_config.json", {"auto_map": {"A": "b"}}), "remote code"),
    "auto_map of special tokens": (put("tokenizer/special_tokens_map.json", {"auto_map": {"A": "b"}}), "remote"),
    "custom_pipeline": (index(custom_pipeline="org/evil"), "remote code"),
    "trust_remote_code": (put("unet/config.json", {"trust_remote_code": True}), "remote code"),
    "pipeline from a module": (index(_class_name=["pipeline", "Evil"]), "Python file"),
    "unet from a module": (put("unet/config.json", {"_class_name": ["evil", "Evil"]}), "Python file"),
    "library is a module": (both(put("evil.py", ""), index(unet=["evil", "UNet"])), "code of the checkpoint"),
    "library is a module inside": (
        both(put("unet/evil.py", ""), index(unet=["evil", "UNet"])),
        "code of the checkpoint",
    ),
    "unknown library": (index(unet=["os", "system"]), "does not know"),
    "unknown dotted library": (index(unet=["diffusers.utils", "UNet2DConditionModel"]), "does not know"),
    "unknown class": (index(unet=["diffusers", "DiffusionPipeline"]), "does not know"),
    "unknown scheduler": (index(scheduler=["diffusers", "EvilScheduler"]), "does not know"),
    "class of another library": (index(unet=["transformers", "UNet2DConditionModel"]), "does not know"),
    "unknown safety checker": (index(safety_checker=["evil", "Checker"]), "does not know"),
    "component outside": (index(**{"../x": ["diffusers", "UNet2DConditionModel"]}), "names the component"),
    "component absolute": (index(**{"/etc": ["diffusers", "UNet2DConditionModel"]}), "names the component"),
    "component with a line break": (index(**{"a\nb": ["diffusers", "AutoencoderKL"]}), "names the component"),
    "kernel from the Hub": (put("text_encoder/config.json", {"attn_implementation": "org/kernel"}), "kernel"),
    "private kernel": (put("text_encoder/config.json", {"_attn_implementation": {"": "org/k"}}), "kernel"),
    "inner kernel": (put("text_encoder/config.json", {"_attn_implementation_internal": "org/k:f"}), "kernel"),
    "weights elsewhere": (put("text_encoder/config.json", {"transformers_weights": "../../x"}), "weight file"),
    "dunder": (put("unet/config.json", {"__class__": "x"}), "Python's own"),
    "shard outside": (sharded({"w": "../../x.safetensors"}), "leave its folder"),
    "shard absolute": (sharded({"w": "/etc/x.safetensors"}), "leave its folder"),
    "shard on a drive": (sharded({"w": "C:x.safetensors"}), "leave its folder"),
    "shard with backslash": (sharded({"w": "..\\x.safetensors"}), "leave its folder"),
    "shard with NUL": (sharded({"w": "a\x00.safetensors"}), "leave its folder"),
    "shard with a line break": (sharded({"w": "a\n.safetensors"}), "leave its folder"),
    "shard in a folder": (sharded({"w": "x/a.safetensors"}), "no safetensors shard"),
    "shard is a pickle": (both(put("unet/a.bin", b""), sharded({"w": "a.bin"})), "no safetensors shard"),
    "link out": (outside(UNET), "leads out"),
    "config link out": (outside("unet/config.json"), "leads out"),
    "unused link out": (outside("unet/unused"), "leads out"),
    "dangling link out": (link("unet/x", "/nowhere/at/all"), "leads out"),
    "relative link out": (link("unet/x", "../../../../etc/passwd"), "leads out"),
    "folder link out": (linked_folder, "leads out"),
    "link in a circle": (link("unet/x", "x"), "circle|cannot be read|leads out"),
    "pipe": (both(gone(UNET), lambda root: os.mkfifo(root / UNET)), "no ordinary file"),
}

BROKEN: dict[str, tuple[Change, str]] = {
    "no index": (gone("model_index.json"), "no model_index.json"),
    "index is a list": (put("model_index.json", "[]"), "no JSON object"),
    "index is no JSON": (put("model_index.json", b"\x80\x04\x95"), "not valid JSON"),
    "index too large": (put("model_index.json", '{"a": "' + "x" * 3_000_000 + '"}'), "more than"),
    "index too deep": (put("model_index.json", '{"a": ' * 50 + "1" + "}" * 50), "deeply"),
    "index not finite": (put("model_index.json", '{"a": NaN}'), "NaN"),
    "index with a key twice": (put("model_index.json", '{"a": 1, "a": 2}'), "twice"),
    "no class": (index(_class_name=None), "no pipeline class"),
    "class is no name": (index(_class_name="a b"), "no pipeline class"),
    "entry of three": (index(unet=["a", "b", "c"]), r"\[library, class\]"),
    "entry half null": (index(unet=["diffusers", None]), r"\[library, class\]"),
    "entry of numbers": (index(unet=[1, 2]), r"\[library, class\]"),
    "no unet": (index(unet=[None, None]), "no unet"),
    "no scheduler": (index(scheduler=[None, None]), "no scheduler"),
    "no weights": (gone(UNET), "no diffusion_pytorch_model.safetensors"),
    "weights of another name": (
        lambda root: (root / UNET).rename(root / "unet/other.safetensors"),
        "there is other.safetensors",
    ),
    "no config": (gone("vae/config.json"), "no vae/config.json"),
    "config too large": (put("vae/config.json", '{"a": "' + "x" * 3_000_000 + '"}'), "more than"),
    "no vocabulary": (both(gone("tokenizer/vocab.json"), gone("tokenizer/merges.txt")), "no vocabulary"),
    "header oversized": (put(UNET, b"\xff" * 8 + bytes(100)), "100 MB"),
    "header cut": (put(UNET, (10_000).to_bytes(8, "little") + b"{}"), "cut off"),
    "data cut": (put(UNET, safetensors_bytes({"a": ("F32", (10,))})[:-1]), "describes"),
    "pointer": (put(UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"), "LFS"),
    "empty weights": (put(UNET, safetensors_bytes({})), "no weights"),
    "shard missing": (sharded({"w": "a-00001.safetensors"}), "missing"),
    "shards of numbers": (sharded({"w": 1}), "weight_map"),
    "no shards": (sharded({}), "weight_map"),
    "index of shards is a list": (both(gone(UNET), put(SHARDS, "[]")), "no JSON object"),
    "tensor in another shard": (
        both(put("unet/a.safetensors", safetensors_bytes({"v": ("F16", (1,))})), sharded({"w": "a.safetensors"})),
        "which it does not",
    ),
    "unknown prediction": (put("scheduler/scheduler_config.json", {"prediction_type": "magic"}), "magic"),
    "another kind of unet": (
        put("unet/config.json", {"addition_embed_type": "text_time", "_class_name": "UNet2DConditionModel"}),
        "of another kind",
    ),
    "dangling link": (link(UNET, "missing.safetensors"), "cannot be read"),
}


def refused(kind: type[SdhubError], change: Change, said: str, root: Path) -> None:
    skeleton(root)
    look(root)
    change(root)
    with pytest.raises(kind, match=said) as caught:
        look(root)
    error = caught.value
    assert type(error) is kind
    assert error.message.isprintable() and len(error.message) < 400
    assert error.hint and error.hint.isprintable()


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe(name: str, tmp_path: Path) -> None:
    refused(UnsafeError, *UNSAFE[name], tmp_path / "model")


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str, tmp_path: Path) -> None:
    refused(SourceError, *BROKEN[name], tmp_path / "model")


def test_unknown_pipelines_are_told_by_name(tmp_path: Path) -> None:
    index(_class_name="KandinskyPipeline", movq=["diffusers", "VQModel"])(skeleton(tmp_path))
    with pytest.raises(UnsupportedError, match="KandinskyPipeline") as caught:
        look(tmp_path)
    assert "Stable Diffusion" in caught.value.hint


def test_quantized_already(tmp_path: Path) -> None:
    put("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})(skeleton(tmp_path))
    with pytest.raises(UnsupportedError, match="quantized already"):
        look(tmp_path)


def test_harmless_settings_pass() -> None:
    vet_config(
        {
            "auto_map": None,
            "trust_remote_code": False,
            "_attn_implementation": "sdpa",
            "attn_implementation": None,
            "quantization_config": None,
            "_class_name": "UNet2DConditionModel",
            "_attn_implementation_autoset": True,
        },
        "config.json",
    )


def test_tokenizers_as_they_are_published(tmp_path: Path) -> None:
    """Stable Diffusion 1.5 has `__type`, many a fine-tune int(1e30) for a text of any length."""
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>", "lstrip": False},
        "model_max_length": int(1e30),
        "name_or_path": "/home/someone/tokenizer",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    write(skeleton(tmp_path) / "tokenizer" / "tokenizer_config.json", config)
    assert look(tmp_path).component("tokenizer").config == config


def test_pickles_beside_safetensors_are_not_read(tmp_path: Path) -> None:
    skeleton(tmp_path)
    write(tmp_path / "unet" / "diffusion_pytorch_model.bin", b"\x80")
    write(tmp_path / "pipeline.py", "raise SystemExit")
    write(tmp_path / "v1-5-pruned.ckpt", b"\x80")
    files = look(tmp_path).files
    assert UNET in files and not any(path.endswith((".bin", ".py", ".ckpt")) for path in files)


def test_a_pickled_safety_checker_is_not_read(tmp_path: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    skeleton(tmp_path, entries={"safety_checker": checker})
    (tmp_path / "safety_checker" / "model.safetensors").rename(tmp_path / "safety_checker" / "pytorch_model.bin")
    found = look(tmp_path)
    assert "no-safety-checker" not in found.traits
    assert found.component("safety_checker").files == ()
    assert not any(path.startswith("safety_checker") for path in found.files)


def test_links_inside_and_of_the_hubs_cache_work(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--tiny"
    snapshot = skeleton(repository / "snapshots" / ("a" * 40))
    blobs = repository / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.rglob("*.*"))):
        if path.is_file():
            path.rename(blobs / str(number))
            path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    found = look(snapshot)
    assert (found.id, found.name) == ("tiny", "tiny")
    assert found.component("unet").parameters == 11
    (snapshot / "alias").symlink_to(snapshot / "model_index.json")
    look(snapshot)


def test_hidden_folders_are_not_looked_into(tmp_path: Path) -> None:
    skeleton(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "link").symlink_to("/etc/passwd")
    look(tmp_path)
