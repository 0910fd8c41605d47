from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint import lora
from sdhub.checkpoint.fetch import fetch, fingerprint
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.load import load
from sdhub.checkpoint.remote import Hub
from sdhub.checkpoint.source import parse_lora, parse_source
from sdhub.errors import SourceError
from sdhub.progress import SILENT, Progress

torch = pytest.importorskip("torch")

UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
SHAPES = {UNET: (256, 256), TEXT: (128, 128)}
RANK = 4


def pair(module: str, seed: int = 0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = SHAPES[module]
    up = torch.randn(rows, RANK, generator=generator) * 0.1
    return up, torch.randn(RANK, columns, generator=generator) * 0.1


def save(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    from safetensors.torch import save_file

    save_file({key: value.clone() for key, value in tensors.items()}, path, metadata=metadata)
    return str(path)


def peft(path: Path, seed: int = 0) -> str:
    up, down = pair(UNET, seed)
    text_up, text_down = pair(TEXT, seed)
    return save(
        path,
        {
            f"unet.{UNET}.lora_A.weight": down,
            f"unet.{UNET}.lora_B.weight": up,
            f"text_encoder.{TEXT}.lora_A.weight": text_down,
            f"text_encoder.{TEXT}.lora_B.weight": text_up,
        },
    )


def kohya(path: Path, alpha: float) -> str:
    up, down = pair(UNET)
    name = f"lora_unet_{UNET.replace('.', '_')}"
    return save(
        path,
        {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(alpha)},
    )


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    checkpoint = inspect(parse_source("demo"))
    return load(checkpoint, fetch(checkpoint))


def state(pipeline: Any) -> dict[str, Any]:
    modules = {"unet": pipeline.unet, "text": pipeline.text_encoder}
    return {
        f"{part}.{key}": value for part, module in modules.items() for key, value in module.state_dict().items()
    }


@pytest.fixture
def weights(pipeline: Any) -> Callable[..., dict[str, Any]]:
    """The weights of a copy of the demo after LoRAs were fused, as `load` does it."""

    def fused(loras: list[str], progress: Progress = SILENT) -> dict[str, Any]:
        pinned = [lora.pin(parse_lora(text), Hub()) for text in loras]
        copied = copy.deepcopy(pipeline)
        lora.fuse(copied, [(each, lora.local(each, Hub())) for each in pinned], progress)
        return state(copied)

    return fused


def text_key(weights: dict[str, Any]) -> str:
    return next(key for key in weights if key.endswith(f"{TEXT.removeprefix('text_model.')}.weight"))


@pytest.fixture(scope="module")
def base(pipeline: Any) -> dict[str, Any]:
    return {key: value.clone() for key, value in state(pipeline).items()}


def changed(base: dict[str, Any], fused: dict[str, Any]) -> set[str]:
    assert set(fused) == set(base)
    return {key for key, value in base.items() if not torch.equal(value, fused[key])}


def test_weights_become_w_plus_scale_times_up_down(base: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = inspect(parse_source("demo", [f"{peft(tmp_path / 'x.safetensors')}:0.5"]))
    fused = state(load(checkpoint, fetch(checkpoint)))
    assert changed(base, fused) == {f"unet.{UNET}.weight", text_key(base)}
    for key, module in ((f"unet.{UNET}.weight", UNET), (text_key(base), TEXT)):
        up, down = pair(module)
        expected = base[key] + 0.5 * up @ down
        assert torch.allclose(fused[key], expected, rtol=0, atol=1e-6)
        assert (fused[key] - base[key]).abs().max() > 1e-3


def test_alpha_over_rank_scales_too(
    weights: Callable[..., dict[str, Any]], base: dict[str, Any], tmp_path: Path
) -> None:
    fused = weights([f"{kohya(tmp_path / 'x.safetensors', alpha=2.0)}:-1.5"])
    up, down = pair(UNET)
    key = f"unet.{UNET}.weight"
    assert changed(base, fused) == {key}
    assert torch.allclose(fused[key], base[key] - 1.5 * (2.0 / RANK) * up @ down, rtol=0, atol=1e-6)


def test_alpha_in_the_metadata_of_diffusers_is_used(
    weights: Callable[..., dict[str, Any]], pipeline: Any, base: dict[str, Any], tmp_path: Path
) -> None:
    """A file as `save_lora_weights` writes it: the alpha is in the metadata only."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    unet = copy.deepcopy(pipeline.unet)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=8, target_modules=[UNET], init_lora_weights=False))
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers,
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    fused = weights([str(tmp_path / "pytorch_lora_weights.safetensors")])
    up, down = (layers[f"{UNET}.lora_{letter}.weight"] for letter in "BA")
    key = f"unet.{UNET}.weight"
    assert changed(base, fused) == {key}
    assert torch.allclose(fused[key], base[key] + 8 / RANK * up @ down, rtol=0, atol=1e-5)


def test_two_loras_add_up(weights: Callable[..., dict[str, Any]], base: dict[str, Any], tmp_path: Path) -> None:
    loras = [f"{peft(tmp_path / 'a.safetensors', 1)}:0.5", f"{peft(tmp_path / 'b.safetensors', 2)}:2"]
    fused = weights(loras)
    (up, down), (up_2, down_2) = pair(UNET, 1), pair(UNET, 2)
    key = f"unet.{UNET}.weight"
    assert torch.allclose(fused[key], base[key] + 0.5 * up @ down + 2 * up_2 @ down_2, rtol=0, atol=2e-6)


def test_a_lora_that_matches_nothing_is_an_error(weights: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    up, down = pair(UNET)
    for name in ("unet.down_blocks.7.attentions.0.proj_in", "transformer.blocks.0.attn.to_q"):
        file = save(tmp_path / "x.safetensors", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
        with pytest.raises(SourceError, match=r"matches no layer|does not fit") as caught:
            weights([file])
        assert "another family" in caught.value.hint


def test_a_lora_of_other_sizes_is_an_error(weights: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = save(
        tmp_path / "x.safetensors",
        {f"unet.{UNET}.lora_A.weight": torch.zeros(4, 320), f"unet.{UNET}.lora_B.weight": torch.zeros(320, 4)},
    )
    with pytest.raises(SourceError, match="does not fit"):
        weights([file])


def test_a_lora_that_matches_in_part_is_told(
    weights: Callable[..., dict[str, Any]], base: dict[str, Any], tmp_path: Path
) -> None:
    up, down = pair(UNET)
    file = save(
        tmp_path / "x.safetensors",
        {
            f"unet.{UNET}.lora_A.weight": down,
            f"unet.{UNET}.lora_B.weight": up,
            "unet.down_blocks.7.attentions.0.proj_in.lora_A.weight": down,
            "unet.down_blocks.7.attentions.0.proj_in.lora_B.weight": up,
        },
    )
    notes = Notes()
    fused = weights([file], notes)
    assert changed(base, fused) == {f"unet.{UNET}.weight"}
    assert any("1 of its 2 layers" in note for note in notes.notes)


def test_fingerprint_has_loras_and_scales(tmp_path: Path) -> None:
    file = peft(tmp_path / "a.safetensors", 1)
    other = peft(tmp_path / "b.safetensors", 2)
    same = save(tmp_path / "c.safetensors", {}) and str(
        Path(tmp_path / "c.safetensors").write_bytes(Path(file).read_bytes()) and tmp_path / "c.safetensors"
    )
    marks = [fingerprint(inspect(parse_source("demo", loras))) for loras in ([], [file], [f"{file}:0.5"], [other])]
    assert len(set(marks)) == 4
    assert fingerprint(inspect(parse_source("demo", [same]))) == marks[1]


def test_a_lora_that_changed_since_is_told(tmp_path: Path) -> None:
    file = Path(peft(tmp_path / "a.safetensors"))
    checkpoint = inspect(parse_source("demo", [str(file)]))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(SourceError, match="changed since"):
        fetch(checkpoint)
