"""Compiled Core ML bundles, with a compiler that only copies: Apple's own is on macOS alone."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest

from sdhub.core.errors import BuildError, CheckError, UnsupportedError
from sdhub.core.hub import Hub
from sdhub.publishing.download import download
from sdhub.publishing.package import sha256_of
from sdhub.publishing.verify import verify_folder
from sdhub.workflow.compiled import add_compiled, compile_folder
from sdhub.workflow.variants import vet_folder
from tests.hubs import running_hub

NAME = "coreml-emoji-6bit"
REPO = f"acme/{NAME}"
CARD = """---
license: mit
---

# coreml-emoji-6bit

## Packages

The whole variant in one file.

## Limits

- The packages need iOS 16.2 or newer.
- Compiled bundles (.mlmodelc) are made elsewhere; they are not in this repository yet.
"""
COMPILER = """
import pathlib, shutil, sys
package, out = map(pathlib.Path, sys.argv[-2:])
if "Broken" in package.name:
    sys.exit("error: the model is broken")
bundle = out / f"{package.stem}.mlmodelc"
bundle.mkdir()
shutil.copyfile(package / "Data/com.apple.CoreML/model.mlmodel", bundle / "model.mil")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub") / "data") as url:
        yield url


@pytest.fixture
def compiler(tmp_path):
    path = tmp_path / "compiler.py"
    path.write_text(COMPILER)
    return (sys.executable, str(path))


def variant(folder, packages=("unet", "text_encoder")):
    for name in packages:
        stem = name if name.startswith("ControlNet") else f"Stable_Diffusion_version_acme_emoji_{name}"
        place = folder / "split_einsum" / "packages" / f"{stem}.mlpackage" / "Data/com.apple.CoreML"
        place.mkdir(parents=True)
        (place / "model.mlmodel").write_text(name)
    for name in ("vocab.json", "merges.txt"):
        (folder / "split_einsum" / "packages" / name).write_text(name)
    (folder / "README.md").write_text(CARD)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    manifest = {
        "version": 1,
        "variant": "coreml-6bit",
        "recipe_sha256": "0" * 64,
        "packages": [],
        "bundles": [],
        "terms": [],
        "files": {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in files.items()},
    }
    (folder / "sdhub.json").write_text(json.dumps(manifest))
    return folder


def test_bundles_are_added_once_and_everything_is_as_stated(hub, compiler, tmp_path):
    from huggingface_hub import HfApi

    client = HfApi(hub, token="local")
    client.create_repo(REPO)
    client.upload_folder(repo_id=REPO, folder_path=variant(tmp_path / "variant"))
    added = add_compiled(REPO, hub=Hub(hub, "local"), compiler=compiler)
    assert added.status == "published"
    folder = tmp_path / "copy"
    download(REPO, folder, hub=Hub(hub))
    bundle = folder / f"{NAME}_split_einsum_compiled.zip"
    with zipfile.ZipFile(bundle) as zipped:
        assert {name.partition("/")[2] for name in zipped.namelist()} == {
            "Unet.mlmodelc/model.mil",
            "TextEncoder.mlmodelc/model.mil",
            "vocab.json",
            "merges.txt",
        }
    assert (folder / "split_einsum" / "compiled" / "Unet.mlmodelc" / "model.mil").read_text() == "unet"
    card = (folder / "README.md").read_text()
    assert sha256_of(bundle) in card.partition("## Packages")[2].partition("## Limits")[0]
    assert "not in this repository yet" not in card
    assert "iOS 16.2" in card
    found = {each.name: each for each in verify_folder(folder, gate=vet_folder)}
    assert found["files"].status == "passed", found["files"].detail
    assert add_compiled(REPO, hub=Hub(hub, "local"), compiler=compiler).status == "unchanged"


def test_an_altered_repository_is_refused(hub, compiler, tmp_path):
    from huggingface_hub import HfApi

    client = HfApi(hub, token="local")
    client.create_repo("acme/altered")
    folder = variant(tmp_path / "variant")
    (folder / "split_einsum" / "packages" / "vocab.json").write_text("other")
    client.upload_folder(repo_id="acme/altered", folder_path=folder)
    with pytest.raises(CheckError, match="altered"):
        add_compiled("acme/altered", hub=Hub(hub, "local"), compiler=compiler)


def test_what_does_not_compile_is_named(compiler, tmp_path):
    folder = variant(tmp_path / "variant", ("unet", "vae_decoder_Broken_unet"))
    with pytest.raises(BuildError, match=r"Broken_unet\.mlpackage.*the model is broken"):
        compile_folder(folder, NAME, tmp_path / "work", compiler)


def test_bundles_are_named_as_the_apps_ask_for_them(compiler, tmp_path):
    sized = ("unet", "unet_chunk1", "unet_chunk2", "control-unet", "vae_decoder", "vae_encoder", "safety_checker")
    others = ("unet_512x768", "unet_512x768_chunk1", "vae_decoder_512x768")
    nets = ("ControlNet_lllyasviel_sd-controlnet-canny", "ControlNet_lllyasviel_sd-controlnet-canny_512x768")
    folder = variant(tmp_path / "variant", (*sized, *others, *nets, "text_encoder", "text_encoder_2"))
    usual, portrait = compile_folder(folder, NAME, tmp_path / "work", compiler)
    assert [usual.name, portrait.name] == [
        f"{NAME}_split_einsum_compiled.zip",
        f"{NAME}_split_einsum_512x768_compiled.zip",
    ]

    def bundles(package):
        with zipfile.ZipFile(folder / package.name) as zipped:
            found = {name.partition(".mlmodelc")[0] for name in zipped.namelist() if ".mlmodelc" in name}
        assert {name.partition("/")[0] for name in found} == {package.name.removesuffix(".zip")}
        return {name.partition("/")[2] for name in found}

    shared = {"TextEncoder", "TextEncoder2"}
    own = {"Unet", "UnetChunk1", "UnetChunk2", "ControlledUnet", "VAEDecoder", "VAEEncoder", "SafetyChecker"}
    net = "controlnet/LllyasvielSdControlnetCanny"
    assert bundles(usual) == {*shared, *own, net}
    assert bundles(portrait) == {*shared, "Unet", "UnetChunk1", "VAEDecoder", net}


def test_no_compiler_and_no_packages(tmp_path, compiler):
    with pytest.raises(UnsupportedError, match="is not here"):
        add_compiled(REPO, hub=Hub("http://127.0.0.1:9"), compiler=("no-such-compiler",))
    with pytest.raises(UnsupportedError, match="no Core ML packages"):
        compile_folder(tmp_path, NAME, tmp_path / "work", compiler)
