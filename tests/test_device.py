"""Devices: words, refusals, precision, placement; on a stand-in for a GPU (`tests.far`)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sdhub
from sdhub.backends.base import backends
from sdhub.backends.sdnq.backend import BACKEND as SDNQ
from sdhub.backends.svdquant.backend import BACKEND as SVDQUANT
from sdhub.backends.svdquant.backend import CONSENT
from sdhub.cli import main
from sdhub.core import device as devices
from sdhub.core.errors import UsageError
from sdhub.core.placement import ROOM, place, take_home, visiting
from sdhub.evidence import noise
from sdhub.evidence.sampling import Prompt, Sampling, draw
from sdhub.recipes.calibration import calibrate
from sdhub.recipes.recipe import Calibration
from tests.checkpoint import tiny
from tests.far import NAME, Far, far_device

GPU = torch.device("cuda:0")
SAMPLING = Sampling((Prompt("pizza", 3),), 3, 4.0, 32, 32)


def pipeline() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    return StableDiffusionPipeline(
        unet=tiny.tiny_unet(),
        vae=tiny.tiny_vae(),
        text_encoder=tiny.tiny_text_encoder(),
        tokenizer=tiny.tokenizer(),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_words_become_devices(monkeypatch):
    for kind in (torch.cuda, torch.backends.mps, torch.xpu):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    assert devices.there() == ["cpu"]
    assert devices.resolve("auto") == devices.resolve("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.there() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert [str(devices.resolve(word)) for word in ("auto", "cpu", "cuda", "cuda:1")] == [
        "cuda:0",
        "cpu",
        "cuda:0",
        "cuda:1",
    ]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert str(devices.resolve("mps")) == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.resolve("auto") == torch.device("cpu")  # others only where they are named


@pytest.mark.parametrize("word", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "meta", "", "cuda:1234", "cpu\n"])
def test_what_is_no_device_is_refused_without_torch(word):
    with pytest.raises(UsageError, match="names no device") as caught:
        devices.vet_word(word)
    assert caught.value.hint == devices.WORDS


def test_what_this_machine_lacks_is_refused_with_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="this machine has no device 'cuda:1'") as caught:
        devices.resolve("cuda:1")
    assert caught.value.hint == "there are: cpu, cuda, cuda:0"


def test_precision_suits_the_device(monkeypatch):
    asked: list[Any] = []

    def native(**said: Any) -> bool:
        asked.append(said)
        return len(asked) > 1

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", native)
    assert devices.precision(torch.device("cpu")) == "float32"
    assert devices.precision(GPU) == "float16"
    asked.clear()
    assert devices.precision(GPU, "transformer") == "float32"
    assert devices.precision(GPU, "transformer") == devices.precision(GPU) == "bfloat16"
    assert asked[0] == {"including_emulation": False}
    assert devices.precision(torch.device("mps")) == "float16"


def test_layers_are_solved_where_there_is_float64():
    solved = {name: str(devices.solver(torch.device(name))) for name in ("cpu", "cuda:1", "mps", "xpu")}
    assert solved == {"cpu": "cpu", "cuda:1": "cuda:1", "mps": "cpu", "xpu": "cpu"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "demo", "--variant", "openvino-int8", "-o", "OUT"],
        ["publish", "demo", "--dry-run", "--to", "me"],
        ["generate", "OUT", "pizza"],
        ["analyze", "demo"],
        ["verify", "OUT"],
    ],
)
@pytest.mark.parametrize(("word", "said"), [("gpu", "gpu names no device"), ("cuda:77", "no device 'cuda:77'")])
def test_every_verb_refuses_a_device_in_one_line(arguments, word, said, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    if arguments[0] in ("generate", "verify"):
        (out / "unet").mkdir(parents=True)
        for path in ("model_index.json", "unet/openvino_model.xml"):
            (out / path).write_text("{}")
    monkeypatch.setenv("SDHUB_HOME", str(tmp_path / "home"))
    given = [str(out) if each == "OUT" else each for each in arguments]
    monkeypatch.setattr("sys.argv", ["sdhub", *given, "--device", word])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2, told
    assert said in told[-2]
    assert told[-1].strip().startswith((f"hint: {devices.WORDS}", "hint: there are: cpu"))
    assert not (tmp_path / "home" / "work").exists()


def test_a_runtime_says_which_devices_it_has(tmp_path):
    openvino = backends()["openvino"]
    with pytest.raises(UsageError, match="openvino variants have no device TPU") as caught:
        openvino.open(tmp_path, "cpu", "TPU")
    assert caught.value.hint == "there are: CPU, GPU, NPU"
    with pytest.raises(UsageError, match="sdnq variants have no device GPU"):
        SDNQ.open(tmp_path, "cpu", "GPU")
    with pytest.raises(UsageError, match="OpenVINO has no device NPU here") as caught:
        openvino.open(tmp_path, "cpu", "NPU")
    assert "CPU" in caught.value.hint
    for variant, said in (
        ("openvino-int8", "no device NPU here"),
        ("sdnq-int8", "sdnq variants have no device NPU"),
    ):
        with pytest.raises(UsageError, match=said):
            sdhub.publish("demo", variant, sdhub.Options(namespace="me", runtime_device="NPU"), dry_run=True)


def sizes(pipe: Any) -> list[int]:
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    return [4 * sum(each.numel() for each in (*part.parameters(), *part.buffers())) for part in parts]


def test_a_pipeline_is_placed_whole_where_it_fits():
    with far_device():
        pipe = place(pipeline(), GPU)
        assert {each.device.type for each in pipe.unet.parameters()} == {"cuda"}
        assert devices.described(pipe) == {"device": f"cuda:0, {NAME}", "precision": "float32"}
        assert take_home(pipe) == GPU
        assert {each.device.type for each in pipe.unet.parameters()} == {"cpu"}
        assert not isinstance(pipe.unet.conv_in.weight, Far)


def test_what_does_not_fit_is_offloaded_by_diffusers(monkeypatch):
    called: list[Any] = []
    pipe = pipeline()
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        monkeypatch.setattr(pipe, name, lambda device, name=name: called.append((name, device)), raising=False)
    for bytes_ in (max(sizes(pipe)), max(sizes(pipe)) - 1):
        with far_device(free=int(bytes_ / ROOM) + (bytes_ == max(sizes(pipe)))):
            place(pipe, GPU)
    assert called == [("enable_model_cpu_offload", GPU), ("enable_sequential_cpu_offload", GPU)]


def test_an_offloaded_pipeline_draws_the_same_and_comes_home_whole():
    base = draw(pipeline(), SAMPLING.prompts[0], SAMPLING)
    before = pipeline().unet.state_dict()
    free = int(max(sizes(pipeline())) / ROOM) + 1
    with far_device(free=free):
        pipe = place(pipeline(), GPU)
        assert devices.described(pipe)["device"] == f"cuda:0, {NAME}, offloaded"
        drawn = draw(pipe, SAMPLING.prompts[0], SAMPLING)
        assert take_home(pipe) == GPU
    assert abs(drawn.latents - base.latents).max() < 1e-3 * abs(base.latents).max()
    after = pipe.unet.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_module_visits_a_device_that_holds_it():
    module = torch.nn.Linear(8, 8)
    with far_device(), visiting(module, GPU):
        assert isinstance(module.weight, Far)
    with far_device(free=100), visiting(module, GPU):
        assert module.weight.device.type == "cpu"
    assert not isinstance(module.weight, Far)


def test_pictures_start_alike_on_every_device_and_in_every_precision():
    starts = []
    for dtype in (torch.float32, torch.bfloat16):
        with far_device():
            pipe = place(pipeline().to(dtype), GPU)
            with noise.recorded(pipe) as points:
                draw(pipe, SAMPLING.prompts[0], SAMPLING)
        starts.append(points[0].latents)
    with noise.recorded(pipeline()) as points:
        draw(pipeline_ := pipeline(), SAMPLING.prompts[0], SAMPLING)
    with noise.recorded(pipeline_) as points:
        draw(pipeline_, SAMPLING.prompts[0], SAMPLING)
    assert torch.equal(starts[0], points[0].latents)
    assert torch.equal(starts[1], points[0].latents.bfloat16().float())


def test_transformers_in_16_bits_are_given_the_latents_of_32():
    from sdhub.evidence.sampling import _noise

    seen = []

    def prepare_latents(batch, channels, height, width, dtype, device, generator, latents=None):
        seen.append((batch, channels, height, width, dtype, device))
        return torch.randn((batch, channels, 4, 4), generator=generator, dtype=dtype), "ids"

    class FluxPipeline:
        transformer = SimpleNamespace(dtype=torch.bfloat16, config=SimpleNamespace(in_channels=64))

    pipe: Any = FluxPipeline()
    pipe.prepare_latents = prepare_latents
    found = _noise(pipe, SAMPLING, torch.Generator().manual_seed(3))["latents"]
    wanted = torch.randn((1, 16, 4, 4), generator=torch.Generator().manual_seed(3))
    assert torch.equal(found, wanted)
    assert seen == [(1, 16, 32, 32, torch.float32, torch.device("cpu"))]
    pipe.transformer.dtype = torch.float32
    assert _noise(pipe, SAMPLING, torch.Generator())["latents"] is None  # it draws the same itself


def test_calibration_on_a_device_ends_on_the_cpu():
    setting = Calibration(
        prompts=("red heart",), seed=5, steps=2, recorded=2, guidance=4.0, width=32, height=32, rows=96, block=512
    )
    for component in ("unet", "text_encoder"):
        wanted = calibrate(pipeline(), setting, component, tokens=8)
        with far_device():
            found = calibrate(place(pipeline(), GPU), setting, component, tokens=8)
        assert set(found) == set(wanted)
        for name, each in found.items():
            for key, value in vars(each).items():
                parts = value if isinstance(value, tuple) else (value,)
                assert not any(isinstance(part, Far) for part in parts), (name, key)
            assert each.gram is not None and wanted[name].gram is not None
            off = (each.gram[0] - wanted[name].gram[0]).norm()
            assert off <= 1e-4 * wanted[name].gram[0].norm(), name


def test_what_a_fused_lora_adds_is_reckoned_on_the_device(tmp_path):
    from safetensors.torch import save_file

    from sdhub.checkpoint import lora
    from sdhub.checkpoint.checkpoint import Lora
    from sdhub.core.hub import Hub
    from sdhub.core.progress import SILENT

    name, layer = "unet.mid_block.attentions.0.proj_in", "mid_block.attentions.0.proj_in"
    shape = pipeline().unet.get_submodule(layer).weight.shape
    up, down = torch.randn(shape[0], 2), torch.randn(2, *shape[1:])
    file = tmp_path / "style.safetensors"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file)
    pinned = lora.pin(Lora(str(file), 0.5), Hub())
    weights = []
    for device in (None, GPU):
        pipe = pipeline()
        with far_device():
            lora.fuse(pipe, [(pinned, file)], SILENT, device)
        weights.append(pipe.unet.get_submodule(layer).weight)
    assert type(weights[1]) is torch.nn.Parameter
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], pipeline().unet.get_submodule(layer).weight)


def test_kernels_are_used_where_they_are_installed_and_let(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    for each in backends().values():
        assert each.kernels(tmp_path, cpu) is None
    monkeypatch.setattr("sdhub.backends.quantized.metadata.version", lambda name: "0.2.8")
    with far_device():
        assert SDNQ.kernels(tmp_path, GPU) == "sdnq 0.2.8"
    (tmp_path / "unet").mkdir()
    said = {"quant_method": "nunchaku_lite", "svdq_w4a4": {"precision": "int4"}}
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"quantization_config": said}))
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    monkeypatch.setattr("sdhub.backends.svdquant.backend.find_spec", lambda name: True)
    with far_device():  # of capability 8.0
        monkeypatch.delenv(CONSENT, raising=False)
        assert SVDQUANT.kernels(tmp_path, GPU) is None
        monkeypatch.setenv(CONSENT, "true")
        assert SVDQUANT.kernels(tmp_path, GPU) == "kernels 0.2.8"
        said["svdq_w4a4"]["precision"] = "nvfp4"
        (tmp_path / "unet" / "config.json").write_text(json.dumps({"quantization_config": said}))
        assert SVDQUANT.kernels(tmp_path, GPU) is None


def test_a_stood_in_kernel_follows_to_a_device_in_float32():
    from sdhub.backends.svdquant.reference import Unpacked, W4A4Linear

    torch.manual_seed(1)
    layer = Unpacked(torch.randn(8, 64), torch.ones(64), torch.randn(4, 64), torch.randn(8, 4), torch.randn(8))
    made, given = W4A4Linear(layer, "int4", torch.float16), torch.randn(3, 64)
    wanted = made(given)
    assert made.to(torch.bfloat16).residual.dtype == torch.float32
    with far_device():
        found = made.to(GPU)(given.to(GPU))
        assert isinstance(made.bias, Far)
        assert torch.equal(found.cpu(), wanted)


def test_options_refuse_a_word_before_any_work():
    with pytest.raises(UsageError, match="names no device"):
        sdhub.Options(device="gpu")
    with pytest.raises(UsageError, match="names no device"):
        sdhub.load("nowhere", device="gpu")
    assert sdhub.Options().device == "auto"


def test_evidence_says_what_it_ran_on():
    found = devices.described(pipeline())
    assert found == {"device": "cpu", "precision": "float32"}
    half = pipeline().to(torch.float16)
    assert devices.described(half)["precision"] == "float16"

    class StableDiffusionXLPipeline:
        unet = SimpleNamespace(dtype=torch.float16)
        vae = SimpleNamespace(config={"force_upcast": True})

    assert devices.described(StableDiffusionXLPipeline())["precision"] == "float16, autoencoder float32"


def test_the_stand_in_mixes_no_devices():
    with far_device():
        far, near = torch.ones(3).to(GPU), torch.ones(3)
        for mixed in (
            lambda: far + near,
            lambda: torch.cat([near, far]),
            lambda: far.index_select(0, near.long()),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        assert torch.equal((far + torch.tensor(1.0)).cpu(), near * 2)  # as on a GPU
        with pytest.raises(RuntimeError, match="not supported"):
            far.numpy()


def test_what_is_written_of_the_machine_needs_no_gpu(tmp_path: Path):
    assert devices.on_device("cpu") == "cpu"
    with far_device():
        assert devices.on_device("cuda:0") == f"cuda:0, {NAME}"
