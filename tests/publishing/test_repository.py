from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace

import pytest

from sdhub.checkpoint.checkpoint import PinnedLora
from sdhub.core.errors import BuildError, UnsafeError
from sdhub.core.work import digest
from sdhub.publishing.package import regular_files
from sdhub.publishing.repository import assemble, read_manifest
from tests.publishing.publications import SHA, checkpoint, publication, recipe


@pytest.fixture
def assembled(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    return assemble(publication(tmp_path), out), out


def test_layout(assembled):
    packages, out = assembled
    assert list(regular_files(out)) == [
        "LICENSE.txt",
        "README.md",
        "evidence/base-0.png",
        "evidence/contact_sheet.png",
        "evidence/evidence.json",
        "evidence/variant-0.png",
        "model_index.json",
        "packages/SHA256SUMS",
        "packages/emoji-sd-openvino-int8.zip",
        "recipe.json",
        "scheduler/scheduler_config.json",
        "sdhub.json",
        "unet/openvino_model.bin",
        "unet/openvino_model.xml",
    ]
    with zipfile.ZipFile(out / "packages" / packages[0].name) as zipped:
        names = zipped.namelist()
    assert names == sorted(names)
    assert {name.removeprefix("emoji-sd-openvino-int8/") for name in names} == {
        "LICENSE.txt",
        "model_index.json",
        "recipe.json",
        "scheduler/scheduler_config.json",
        "unet/openvino_model.bin",
        "unet/openvino_model.xml",
    }


def test_the_manifest_lists_every_other_file(assembled):
    packages, out = assembled
    manifest = read_manifest(out)
    files = {
        name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in regular_files(out).items()
        if name != "sdhub.json"
    }
    assert manifest["files"] == files
    assert manifest["source"]["sha"] == SHA
    assert manifest["source"]["loras"] == [{"ref": "someone/style", "sha": SHA, "scale": 0.8}]
    assert manifest["packages"] == [vars(each) for each in packages]


def test_the_recipes_hash_is_that_of_its_file(assembled):
    _, out = assembled
    content = (out / "recipe.json").read_bytes()
    assert json.loads(content) == recipe()
    sha256 = hashlib.sha256(content).hexdigest()
    assert sha256 == digest(recipe()) == read_manifest(out)["recipe_sha256"]
    assert sha256 in (out / "README.md").read_text()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs GNU coreutils")
def test_sha256sum_verifies_the_packages(assembled):
    _, out = assembled
    subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=out / "packages", check=True, capture_output=True
    )


def test_the_same_inputs_give_the_same_bytes(assembled, tmp_path):
    _, out = assembled
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "again"
    again.mkdir()
    assemble(publication(tmp_path / "elsewhere"), again)
    assert {name: path.read_bytes() for name, path in regular_files(out).items()} == {
        name: path.read_bytes() for name, path in regular_files(again).items()
    }


def test_variant_files_are_linked_and_untouched(assembled, tmp_path):
    _, out = assembled
    assert (out / "unet/openvino_model.bin").stat().st_ino == (
        tmp_path / "variant/unet/openvino_model.bin"
    ).stat().st_ino
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    "name", ["README.md", "readme.md", "sdhub.json", "packages/x.zip", "evidence/x", "recipe.json", "LICENSE.txt"]
)
def test_files_of_ours_are_not_overwritten(tmp_path, name):
    made = publication(tmp_path)
    (made.folder / name).parent.mkdir(exist_ok=True)
    (made.folder / name).write_text("theirs")
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError, match="sdhub writes itself"):
        assemble(made, tmp_path / "out")


def test_links_and_strange_pictures_are_refused(tmp_path):
    made = publication(tmp_path)
    (tmp_path / "out").mkdir()
    sheet = made.contact_sheet
    for name in ("../x.png", "a/b.png", "contact_sheet.png", "x.html", ".png", "a\nb.png"):
        (tmp_path / name.encode().hex()).mkdir()
        with pytest.raises(BuildError):
            assemble(replace(made, pictures={name: sheet}), tmp_path / name.encode().hex())
    (made.folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeError):
        assemble(made, tmp_path / "out")


def test_the_path_of_a_local_lora_is_not_published(tmp_path):
    lora = PinnedLora("/home/someone/clients/style.safetensors", 1.0, "/home/someone/clients/style.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    assemble(publication(tmp_path, checkpoint=checkpoint(loras=(lora,))), out)
    for name in ("README.md", "sdhub.json"):
        text = (out / name).read_text()
        assert "style.safetensors" in text
        assert "/home/someone" not in text


def test_bundles_lie_at_the_top_with_one_folder_named_as_their_stem(tmp_path):
    made = publication(tmp_path)
    name = "emoji-sd_original_packages.zip"
    made = replace(made, bundles={name: made.folder / "unet"})
    out = tmp_path / "out"
    out.mkdir()
    assemble(made, out)
    with zipfile.ZipFile(out / name) as zipped:
        assert sorted(zipped.namelist()) == [
            "emoji-sd_original_packages/openvino_model.bin",
            "emoji-sd_original_packages/openvino_model.xml",
        ]
    with zipfile.ZipFile(out / "packages" / f"{made.name}.zip") as package:
        assert not [each for each in package.namelist() if each.endswith(".zip")]
    (bundle,) = read_manifest(out)["bundles"]
    assert bundle["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    assert bundle["sha256"] in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["../x.zip", "a/b.zip", "x.txt", ".zip", "recipe.json"])
def test_bundles_of_other_names_and_folders_are_refused(tmp_path, name):
    made = publication(tmp_path)
    for bundles in ({name: made.folder / "unet"}, {"fine.zip": tmp_path}, {"fine.zip": made.folder / "none"}):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        with pytest.raises(BuildError):
            assemble(replace(made, bundles=bundles), out)
