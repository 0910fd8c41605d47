"""Sources on a Hub: the real client against the embedded Hub, watched by a proxy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from sdhub.checkpoint.checkpoint import License, Source
from sdhub.checkpoint.fetch import fetch, fingerprint
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.source import parse_source
from sdhub.core import retry
from sdhub.core.endpoint import embedded
from sdhub.core.errors import HubError, RefusedError, SourceError, UnsafeError, UnsupportedError
from sdhub.core.hub import Hub
from sdhub.core.progress import Progress, Task
from sdhub.demo import emoji_sd
from tests.checkpoint.ldm import write_ldm
from tests.checkpoint.test_single_file import SD1
from tests.checkpoint.tiny import safetensors_bytes, skeleton, write
from tests.checkpoint.watching import Watch, watching

TOKEN = "hf_secret_of_the_tests"
LORA = {
    "unet.mid_block.attentions.0.proj_in.lora_A.weight": ("F32", (2, 4)),
    "unet.mid_block.attentions.0.proj_in.lora_B.weight": ("F32", (4, 2)),
}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded(tmp_path_factory.mktemp("hub")) as url:
        api = HfApi(url, token=TOKEN)
        folder = Path(shutil.copytree(emoji_sd(), tmp_path_factory.mktemp("demo") / "m"))
        write(folder / "LICENSE", "the licence")
        write(folder / "unet" / "diffusion_pytorch_model.bin", b"\x80 never read")
        write(folder / "big.ckpt", b"\x80 never read")
        upload(api, "org/emoji-sd", folder)
        yield url


def upload(api: HfApi, repo_id: str, folder: Path, **settings: Any) -> str:
    api.create_repo(repo_id, exist_ok=True, **settings)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder).oid)


@pytest.fixture
def hub(upstream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with watching(upstream) as watch:
        yield watch


@pytest.fixture
def api(upstream: str) -> HfApi:
    return HfApi(upstream, token=TOKEN)


def look(hub: Watch, text: str, **settings: Any) -> Any:
    return inspect(parse_source(text, **settings), Hub(hub.url, TOKEN))


def test_inspecting_downloads_no_weight(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    found = look(hub, "org/emoji-sd")
    here = inspect(parse_source("demo"))
    assert found.sha == api.model_info("org/emoji-sd").sha
    assert (found.id, found.name) == ("org/emoji-sd", "emoji-sd")
    assert (found.components, found.family, found.traits) == (here.components, here.family, here.traits)
    assert (found.license.id, found.license.file) == ("apache-2.0", "LICENSE")
    assert (found.prompts, found.steps, found.size) == (here.prompts, here.steps, here.size)
    assert set(found.files) == {*here.files, "LICENSE"}
    assert found.sizes["unet/config.json"] == (emoji_sd() / "unet/config.json").stat().st_size
    assert not found.private and not found.gated
    for path in found.component("unet").files:
        calls = hub.of(path)
        header = int.from_bytes((emoji_sd() / path).read_bytes()[:8], "little")
        assert [(call.range, call.bytes, call.status) for call in calls] == [
            ("bytes=0-7", 8, 206),
            (f"bytes=8-{header + 7}", header, 206),
        ]
    assert sum(call.bytes for call in hub.calls) < 200_000
    assert not hub.of(".bin") and not hub.of(".ckpt") and not hub.of("README.md")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_server_without_ranges_is_read_no_further_than_needed(hub: Watch) -> None:
    hub.ignore_ranges = True
    assert look(hub, "org/emoji-sd").component("unet").parameters == 16_717_060


class Counted(Progress):
    def __init__(self) -> None:
        self.bytes = 0.0

    def task(self, label: str, total: float | None = None, unit: str = "") -> Any:
        from contextlib import nullcontext

        outer = self

        class Count(Task):
            def advance(self, amount: float = 1.0) -> None:
                outer.bytes += amount

        return nullcontext(Count())


def test_fetching_brings_exactly_the_files(hub: Watch, upstream: str) -> None:
    found = look(hub, "org/emoji-sd")
    progress = Counted()
    folder = fetch(found, Hub(upstream, TOKEN), progress=progress)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == set(found.files)
    weights = sum(size for path, size in found.sizes.items() if path.endswith(".safetensors"))
    assert weights <= progress.bytes <= sum(found.sizes.values())
    for path in there - {"LICENSE"}:
        assert (folder / path).read_bytes() == (emoji_sd() / path).read_bytes()
    again = inspect(Source("folder", str(folder)))
    assert again.components == found.components


def test_the_revision_is_pinned(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    first = upload(api, "org/pinned", skeleton(tmp_path / "a"))
    before = look(hub, "org/pinned")
    second = upload(api, "org/pinned", write(tmp_path / "b" / "vae" / "config.json", {"new": 1}).parents[1])
    assert before.sha == first != second == look(hub, "org/pinned").sha
    assert fingerprint(before) != fingerprint(look(hub, "org/pinned"))
    assert fingerprint(before) == fingerprint(look(hub, f"org/pinned@{first}"))
    folder = fetch(before, Hub(hub.url, TOKEN))
    assert "new" not in (folder / "vae" / "config.json").read_text()
    api.create_tag("org/pinned", tag="v1", revision=first)
    assert look(hub, "org/pinned@v1").sha == first


def test_variant_and_shards(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    root = skeleton(tmp_path)
    (root / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    write(root / "unet" / "a[1].safetensors", safetensors_bytes({"w": ("F16", (4,))}))
    write(
        root / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json",
        {"weight_map": {"w": "a[1].safetensors"}},
    )
    upload(api, "org/sharded", root)
    found = look(hub, "org/sharded")
    assert found.component("unet").files == ("unet/a[1].safetensors",)
    folder = fetch(found, Hub(hub.url, TOKEN))
    assert (folder / "unet" / "a[1].safetensors").is_file()


def test_unsafe_repositories(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    root = skeleton(tmp_path / "pickle")
    (root / "unet/diffusion_pytorch_model.safetensors").rename(root / "unet/diffusion_pytorch_model.bin")
    upload(api, "org/pickle", root)
    with pytest.raises(UnsafeError, match="pickle only"):
        look(hub, "org/pickle")
    root = skeleton(tmp_path / "pointer")
    write(root / "unet/diffusion_pytorch_model.safetensors", b"\xff" * 100)
    upload(api, "org/broken", root)
    with pytest.raises(SourceError, match="100 MB"):
        look(hub, "org/broken")


def test_repositories_that_are_no_checkpoint(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    for name, file, hint in (
        ("nothing", "notes.txt", "sdhub reads"),
        ("variant", "openvino_model.xml", "OpenVINO variant"),
    ):
        upload(api, f"org/{name}", write(tmp_path / name / file, "x").parent)
        with pytest.raises(SourceError, match=r"no model_index\.json") as caught:
            look(hub, f"org/{name}")
        assert hint in caught.value.hint
    upload(api, "org/kandinsky", skeleton(tmp_path / "k", "KandinskyPipeline"))
    hub.calls.clear()
    with pytest.raises(UnsupportedError, match="KandinskyPipeline"):
        look(hub, "org/kandinsky")
    assert not hub.of(".safetensors") and not hub.of("config.json")


def test_single_files_on_the_hub(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    card = write(tmp_path / "one" / "README.md", "---\nlicense: [apache-2.0, mit]\n---\n")
    path = write_ldm(card.parent / "model.safetensors")
    write(path.parent / "LICENSE", "the licence")
    sha = upload(api, "org/one", path.parent)
    found = look(hub, "org/one", config=str(emoji_sd()))
    assert (found.source.file, found.sha, found.id, found.name) == ("model.safetensors", sha, "org/one", "one")
    assert found.license == License("apache-2.0 and mit", file="LICENSE")
    assert found.files == ("model.safetensors", "LICENSE") and found.size == 64
    assert all(call.range for call in hub.of("model.safetensors"))
    fetched = fetch(found, Hub(hub.url, TOKEN))
    assert fetched.read_bytes() == path.read_bytes() and (fetched.parent / "LICENSE").is_file()
    named = look(hub, f"{hub.url}/org/one/blob/main/model.safetensors".replace(hub.url, "https://hf.co"))
    assert (named.source.file, named.source.revision, named.sha) == ("model.safetensors", "main", sha)
    assert fingerprint(found, Hub(hub.url)) != fingerprint(look(hub, "demo"), Hub(hub.url))


def test_which_of_several_files(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    content = safetensors_bytes(SD1)
    for name in ("a/v1.safetensors", "v2.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        write(tmp_path / "m" / name, content)
    upload(api, "org/several", tmp_path / "m")
    with pytest.raises(SourceError, match=r"holds 2 single files: a/v1\.safetensors, v2\.safetensors") as caught:
        look(hub, "org/several")
    way = caught.value.hint.rpartition(" ")[2]
    assert way == "org/several/a/v1.safetensors"
    found = look(hub, way)
    assert (found.source.file, found.name, found.license) == ("a/v1.safetensors", "v1", None)
    with pytest.raises(SourceError, match=r"no v3\.safetensors") as caught:
        look(hub, "org/several/v3.safetensors")
    assert caught.value.hint == "did you mean v2.safetensors?"


def test_a_lora_that_is_named_as_a_checkpoint(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    upload(api, "org/a-lora", write(tmp_path / "l" / "any.safetensors", safetensors_bytes(LORA)).parent)
    with pytest.raises(UnsupportedError, match="is a LoRA") as caught:
        look(hub, "org/a-lora")
    assert "--lora" in caught.value.hint


@pytest.mark.parametrize(
    ("manifest", "said", "hint"),
    [
        (
            {"variant": "sdnq-int8", "source": {"kind": "hub", "id": "org/base"}},
            "(sdnq-int8) of org/base",
            "org/base",
        ),
        ({"variant": "sdnq-int8", "source": {"kind": "folder", "id": "mine"}}, "of mine", "made from"),
        (
            {"variant": "x\n" * 99, "source": {"kind": "hub", "id": "\x1b[31m/x"}},
            "that sdhub made, no",
            "made from",
        ),
        ("{", "that sdhub made, no", "made from"),
    ],
)
def test_a_variant_is_told_its_source(
    manifest: Any, said: str, hint: str, hub: Watch, api: HfApi, tmp_path: Path
) -> None:
    root = skeleton(tmp_path / "m")
    write(root / "sdhub.json", manifest)
    upload(api, "org/a-variant", root)
    for source in ("org/a-variant", str(root), "org/a-variant/x.safetensors"):
        with pytest.raises(UnsupportedError, match="is a variant that sdhub made") as caught:
            look(hub, source)
        assert said in caught.value.message and hint in caught.value.hint and caught.value.message.isprintable()


def test_loras_on_the_hub(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    content = safetensors_bytes(LORA)
    sha = upload(api, "org/one-lora", write(tmp_path / "1" / "any.safetensors", content).parent)
    found = look(hub, "demo", loras=["org/one-lora:0.7"])
    (lora,) = found.loras
    assert (lora.ref, lora.sha, lora.file, lora.scale, lora.bytes) == (
        "org/one-lora",
        sha,
        "any.safetensors",
        0.7,
        len(content),
    )
    assert all(call.bytes < len(content) for call in hub.of("any.safetensors"))
    fetch(found, Hub(hub.url, TOKEN))
    marks = {fingerprint(look(hub, "demo", loras=each)) for each in ([], ["org/one-lora:0.7"], ["org/one-lora"])}
    assert len(marks) == 3
    write(tmp_path / "2" / "a.safetensors", content)
    upload(api, "org/two-loras", write(tmp_path / "2" / "b.safetensors", content).parent)
    with pytest.raises(SourceError, match="has 2 files"):
        look(hub, "demo", loras=["org/two-loras"])
    found = look(hub, "demo", loras=["org/two-loras/b.safetensors"])
    assert (found.loras[0].file, found.name) == ("b.safetensors", "emoji-sd-two-loras")
    write(tmp_path / "4" / "README.md", "---\nlicense: cc-by-nc-4.0\n---\n")
    write(tmp_path / "4" / "sub" / "adapter_config.json", {"r": 2, "lora_alpha": 2})
    upload(api, "org/sub-lora", write(tmp_path / "4" / "sub" / "adapter_model.safetensors", content).parent.parent)
    (lora,) = look(hub, "demo", loras=["org/sub-lora/sub"]).loras
    assert (lora.file, lora.license.id) == ("sub/adapter_model.safetensors", "cc-by-nc-4.0")
    with pytest.raises(SourceError, match="has no") as caught:
        look(hub, "demo", loras=["org/sub-lora"])
    assert "org/sub-lora/sub/adapter_model.safetensors" in caught.value.hint
    upload(api, "org/pickled-lora", write(tmp_path / "3" / "pytorch_lora_weights.bin", b"\x80").parent)
    with pytest.raises(UnsafeError, match="pickle"):
        look(hub, "demo", loras=["org/pickled-lora"])


def refused(hub: Watch, kind: type[Exception], said: str, hint: str, text: str = "org/emoji-sd") -> None:
    with pytest.raises(kind, match=said) as caught:
        look(hub, text)
    error: Any = caught.value
    assert hint in error.hint
    assert (
        error.message.isprintable() and TOKEN not in f"{error.message} {error.hint}" and "<b>" not in error.message
    )


def test_what_is_not_there(hub: Watch) -> None:
    refused(hub, SourceError, "no model org/missing", "HF_TOKEN", "org/missing")
    refused(hub, SourceError, "no such revision", "a branch", "org/emoji-sd@missing")
    refused(hub, SourceError, "no such revision", "a branch", f"org/emoji-sd@{'0' * 40}")


@pytest.mark.parametrize(
    ("status", "code", "kind", "said", "hint"),
    [
        (401, "RepoNotFound", SourceError, "shows no model", "HF_TOKEN"),
        (401, "", HubError, "cannot read org/emoji-sd: 401", "HF_TOKEN"),
        (403, "", HubError, "cannot read org/emoji-sd: 403", "hf auth login"),
        (403, "GatedRepo", RefusedError, "gated", "accept"),
        (404, "RepoNotFound", SourceError, "shows no model", "spelling"),
        (418, "", HubError, "cannot read org/emoji-sd: 418", "later"),
    ],
)
def test_answers_of_the_hub(
    hub: Watch, status: int, code: str, kind: type[Exception], said: str, hint: str
) -> None:
    hub.answers["/api/models/org/emoji-sd"] = (status, code)
    refused(hub, kind, said, hint)


def test_files_of_a_gated_repository(hub: Watch) -> None:
    hub.answers["/model_index.json"] = (403, "GatedRepo")
    refused(hub, RefusedError, "gated", "accept them on the page of org/emoji-sd")
    hub.answers.clear()
    hub.answers["/unet/diffusion_pytorch_model.safetensors"] = (403, "GatedRepo")
    refused(hub, RefusedError, "gated", "accept them on the page of org/emoji-sd")


def test_no_hub_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    with pytest.raises(HubError, match=r"cannot read org/name at http://127\.0\.0\.1:9: ") as caught:
        inspect(parse_source("org/name"), Hub("http://127.0.0.1:9", TOKEN))
    assert TOKEN not in caught.value.message and "network" in caught.value.hint


@pytest.mark.parametrize("fault", ["cut", "dropped", "busy"])
@pytest.mark.parametrize(
    "at", ["/api/models/org/emoji-sd", "/model_index.json", "/diffusion_pytorch_model.safetensors"]
)
def test_reads_that_break_off_are_read_again(
    at: str, fault: str, hub: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, waits = look(hub, "org/emoji-sd"), []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.faults = {at: [fault] * 2}
    assert look(hub, "org/emoji-sd") == whole
    assert not hub.faults[at] and waits
    if "safetensors" in at:
        hub.faults = {at: [fault] * 99}
        with pytest.raises(
            HubError, match=r"cannot read unet/diffusion_pytorch_model\.safetensors of org/emoji-sd"
        ):
            look(hub, "org/emoji-sd")


def test_nobody_waits_minutes_in_silence(hub: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    hub.faults, hub.headers = {"/api/models/org/emoji-sd": ["busy"] * 9}, [("Retry-After", "300")]
    with pytest.raises(HubError, match="cannot read org/emoji-sd: 503"):
        look(hub, "org/emoji-sd")
    assert not waits
    hub.headers = [("Retry-After", "20")]
    with pytest.raises(HubError, match="cannot read org/emoji-sd: 503"):
        look(hub, "org/emoji-sd")
    assert len(waits) == 4 and all(20 <= each <= 21 for each in waits)


def test_what_is_read_while_offline_is_not_waited_for(
    hub: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(retry.time, "sleep", never)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"cannot read org/emoji-sd.*offline"):
        look(hub, "org/emoji-sd")


def test_private_repositories(hub: Watch, api: HfApi, tmp_path: Path) -> None:
    upload(api, "org/private", skeleton(tmp_path), private=True)
    assert look(hub, "org/private").private
    with pytest.raises((SourceError, HubError)):
        inspect(parse_source("org/private"), Hub(hub.url, ""))
