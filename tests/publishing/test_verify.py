"""Verifying: what was published passes, whatever is altered is found, by the check that is meant to find it."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest

from sdhub.core.errors import CheckError, SourceError
from sdhub.core.hub import Hub
from sdhub.publishing.download import download
from sdhub.publishing.push import push
from sdhub.publishing.repository import assemble
from sdhub.publishing.verify import verify_folder
from sdhub.recipes.recipe import parse_recipe
from sdhub.workflow.variants import vet_folder
from sdhub.workflow.verify import verify
from tests.publishing.publications import honest


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assemble(honest(tmp_path / "made"), out)
    return out


def _failed(folder):
    return {each.name: each.detail for each in verify_folder(folder, gate=vet_folder) if each.status == "failed"}


def _replace(path, content):
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _state(folder, name, content):
    """Replace a file and let `sdhub.json` say so: what hashes alone cannot find."""
    _replace(folder / name, content)
    manifest = json.loads((folder / "sdhub.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _replace(folder / "sdhub.json", json.dumps(manifest).encode())


def test_what_was_published_passes_every_check(folder):
    findings = verify_folder(folder, gate=vet_folder)
    assert [(each.name, each.status) for each in findings] == [
        ("files", "passed"),
        ("recipe", "passed"),
        ("packages", "passed"),
        ("figures", "passed"),
        ("code", "passed"),
    ]


def test_it_is_the_same_from_the_hub(hub, folder, tmp_path):
    pushed = push(folder, "local/verified", hub=Hub(hub, "any"), message="one")
    assert download("local/verified", tmp_path / "down", hub=Hub(hub)) == pushed.commit
    assert not _failed(tmp_path / "down")
    verified = verify("local/verified", hub=hub, pictures=0)
    assert verified.commit == pushed.commit
    assert verified.sound
    assert verified.document()["checks"][-1] == {
        "name": "drawing",
        "status": "skipped",
        "detail": "not asked for",
    }
    with pytest.raises(SourceError):
        verify("nothing-here")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("unet/openvino_model.bin", bytes(512_000), "1 altered: unet/openvino_model.bin"),
        ("unet/openvino_model.bin", b"short", "altered"),
        ("README.md", b"# other", "1 altered: README.md"),
        ("unet/extra.json", b"{}", "1 not listed in sdhub.json: unet/extra.json"),
        ("scheduler/scheduler_config.json", None, "1 missing: scheduler/scheduler_config.json"),
    ],
)
def test_a_file_that_is_not_as_stated(folder, name, content, why):
    if content is None:
        (folder / name).unlink()
    else:
        _replace(folder / name, content)
    assert why in _failed(folder)["files"]


def test_a_recipe_that_is_another(folder):
    other = parse_recipe((folder / "recipe.json").read_bytes()).model_copy(update={"name": "openvino-int8-other"})
    _state(folder, "recipe.json", other.canonical())
    assert "another hash" in _failed(folder)["recipe"]
    _state(folder, "recipe.json", b"{")
    assert "recipe.json" in _failed(folder)["recipe"]


def test_a_package_with_other_bytes(folder):
    name = "packages/emoji-sd-openvino-int8.zip"
    for inside in ("unet/openvino_model.xml", "unet/more.xml", "../../escaped"):
        with zipfile.ZipFile(folder / "other.zip", "w") as zipped:
            zipped.writestr(f"emoji-sd-openvino-int8/{inside}", b"<other/>")
        content = (folder / "other.zip").read_bytes()
        (folder / "other.zip").unlink()
        _state(folder, name, content)
        assert set(_failed(folder)) == {"packages"}
        assert "which is not the repository's" in _failed(folder)["packages"]
    _state(folder, name, b"no zip")
    assert "no sound zip" in _failed(folder)["packages"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d["prompts"][0].update(psnr_db=60.0), "picture 0 does not have the PSNR"),
        (lambda d: d["prompts"][1].update(ssim=0.8), "picture 1 does not have the SSIM"),
        (lambda d: d.update(psnr_db=48.0), "over all pictures does not follow"),
        (lambda d: d.update(ssim=0.9999), "is not the mean"),
        (lambda d: d.update(bytes=1000), "the evidence says 1000"),
        (lambda d: d["prompts"].clear(), "no picture"),
        (lambda d: d["prompts"][0].update(psnr_db=None), "not stated"),
        (lambda d: d.update(prompts="many"), "cannot be read"),
    ],
)
def test_figures_that_are_made_up(folder, change, why):
    document = json.loads((folder / "evidence" / "evidence.json").read_text())
    change(document)
    _state(folder, "evidence/evidence.json", json.dumps(document).encode())
    failed = _failed(folder)
    assert set(failed) == {"figures"}
    assert why in failed["figures"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("unet/diffusion_pytorch_model.bin", b"\x80\x04."),
        ("pipeline.py", b"print(1)"),
        ("vae/weights.pt", b""),
        ("unet/config.json", b'{"auto_map": {"AutoModel": "x--y.Z"}}'),
        ("text_encoder/config.json", b"[" * 100_000),
    ],
)
def test_code(folder, name, content):
    _state(folder, name, content)
    assert name in _failed(folder)["code"]


@pytest.mark.parametrize(
    "manifest",
    [None, b"", b"[]", b"{}", b"[" * 10**6, b'{"files": {"x": {"bytes": true, "sha256": 1}}}', b'{"files": 3}'],
)
def test_without_provenance_it_is_refused(folder, manifest):
    (folder / "sdhub.json").unlink()
    if manifest is not None:
        _replace(folder / "sdhub.json", manifest)
    with pytest.raises(CheckError) as refused:
        verify_folder(folder, gate=vet_folder)
    assert "\n" not in refused.value.message
    assert refused.value.hint
