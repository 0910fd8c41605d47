from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdhub.checkpoint.checkpoint import License, Lora, Source
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.source import parse_source
from sdhub.core.errors import SourceError, UnsafeError, UnsupportedError
from tests.checkpoint.tiny import safetensors_bytes, skeleton, write


def look(root: Path, *loras: Lora) -> object:
    return inspect(Source("folder", str(root), loras=loras))


def test_the_demo() -> None:
    found = inspect(parse_source("demo"))
    assert (found.id, found.name, found.sha) == ("emoji-sd", "emoji-sd", None)
    assert found.pipeline == "StableDiffusionPipeline"
    assert found.license == License("apache-2.0")
    counts = {part.name: part.parameters for part in found.components}
    assert counts == {"scheduler": 0, "text_encoder": 889_344, "tokenizer": 0, "unet": 16_717_060, "vae": 954_567}
    assert {part.dtype for part in found.components if part.parameters} == {"float16"}
    assert found.bytes == 2 * sum(counts.values())
    assert found.component("unet").config["block_out_channels"] == [128, 256]
    assert found.component("scheduler").config["prediction_type"] == "epsilon"
    assert "README.md" not in found.files and len(found.files) == 12
    assert len(found.prompts) == 8 and found.prompts[0] == "pizza"


def test_nothing_heavy_is_imported_and_no_network_used() -> None:
    code = (
        "import sys\n"
        "from sdhub.checkpoint.source import parse_source\n"
        "from sdhub.checkpoint.inspect import inspect\n"
        "inspect(parse_source('demo'))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'huggingface_hub', 'numpy', 'peft'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dtype_is_that_of_most_bytes_and_buffers_are_no_parameters(tmp_path: Path) -> None:
    skeleton(tmp_path)
    tensors = {
        "a": ("F16", (10,)),
        "b": ("F32", (6,)),
        "text_model.embeddings.position_ids": ("I64", (1, 2)),
    }
    write(tmp_path / "text_encoder" / "model.safetensors", safetensors_bytes(tensors))
    part = look(tmp_path).component("text_encoder")
    assert (part.parameters, part.bytes, part.dtype) == (16, 20 + 24 + 16, "float32")


def test_the_plain_file_goes_before_the_variant(tmp_path: Path) -> None:
    skeleton(tmp_path)
    write(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", safetensors_bytes({"x": ("F16", (1,))}))
    (tmp_path / "text_encoder" / "model.safetensors").rename(tmp_path / "text_encoder" / "model.fp16.safetensors")
    found = look(tmp_path)
    assert found.component("unet").files == ("unet/diffusion_pytorch_model.safetensors",)
    assert found.component("text_encoder").files == ("text_encoder/model.fp16.safetensors",)


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ],
)
def test_shards(index: str, tmp_path: Path) -> None:
    unet = skeleton(tmp_path) / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    write(unet / "m-00001-of-00002.safetensors", safetensors_bytes({"a": ("F32", (4,))}))
    write(unet / "m-00002-of-00002.safetensors", safetensors_bytes({"b": ("F32", (5,))}))
    write(
        unet / index,
        {"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}},
    )
    found = look(tmp_path)
    part = found.component("unet")
    assert part.files == ("unet/m-00001-of-00002.safetensors", "unet/m-00002-of-00002.safetensors")
    assert (part.parameters, part.bytes, part.dtype) == (9, 36, "float32")
    assert f"unet/{index}" in found.files and set(part.files) < set(found.files)
    assert found.sizes[part.files[0]] == (unet / "m-00001-of-00002.safetensors").stat().st_size


def test_licence_and_names_of_a_folder(tmp_path: Path) -> None:
    root = skeleton(tmp_path / "My model! v1..2--x")
    write(root / "README.md", "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    write(root / "LICENSE", "text")
    found = look(root)
    assert found.license == License("other", "mine", "LICENSE", "LICENSE")
    assert "LICENSE" in found.files
    assert (found.id, found.name) == ("My model! v1..2--x", "My-model-v1-2-x")


def test_what_a_folder_without_index_may_be(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_lora_weights.safetensors", b"")
    with pytest.raises(SourceError) as caught:
        look(tmp_path)
    assert "--lora" in caught.value.hint


LORA = {
    "unet.mid_block.attentions.0.proj_in.lora_A.weight": ("F32", (2, 4)),
    "unet.mid_block.attentions.0.proj_in.lora_B.weight": ("F32", (4, 2)),
}


def test_loras_are_pinned(tmp_path: Path) -> None:
    root = skeleton(tmp_path / "model")
    file = write(tmp_path / "x.safetensors", safetensors_bytes(LORA))
    (pinned,) = look(root, Lora(str(file), 0.5)).loras
    assert (pinned.file, pinned.scale, pinned.sha) == (str(file), 0.5, None)
    assert pinned.bytes == file.stat().st_size


@pytest.mark.parametrize(
    ("tensors", "metadata", "kind"),
    [
        ({"weight": ("F32", (1,))}, {}, UnsupportedError),
        ({"lora_unet_x.lokr_w1": ("F32", (1,))}, {}, UnsupportedError),
        ({"lora_unet_x.hada_w1_a": ("F32", (1,))}, {}, UnsupportedError),
        ({**LORA, "unet.x.lora_magnitude_vector": ("F32", (1,))}, {}, UnsupportedError),
        ({**LORA, "x.dora_scale": ("F32", (1,))}, {}, UnsupportedError),
        (LORA, {"lora_adapter_metadata": '{"unet.use_dora": true}'}, UnsupportedError),
        (LORA, {"lora_adapter_metadata": '{"unet.target_modules": "(a+)+$"}'}, UnsafeError),
        (LORA, {"lora_adapter_metadata": '{"unet.alpha_pattern": {"(a+)+$": 1}}'}, UnsafeError),
        (LORA, {"lora_adapter_metadata": '{"unet.init_lora_weights": "corda"}'}, UnsafeError),
        (LORA, {"lora_adapter_metadata": '{"unet.r": NaN}'}, SourceError),
        (LORA, {"lora_adapter_metadata": "[]"}, SourceError),
    ],
)
def test_loras_that_cannot_be_fused(
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str],
    kind: type[Exception],
    tmp_path: Path,
) -> None:
    root = skeleton(tmp_path / "model")
    file = write(tmp_path / "x.safetensors", safetensors_bytes(tensors, metadata))
    with pytest.raises(kind):
        look(root, Lora(str(file)))
