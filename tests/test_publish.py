"""The main job end to end, as a user runs it: the built-in checkpoint, a real Hub server, the real clients."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from sdhub.core.hub import Hub
from sdhub.demo import emoji_sd
from tests.hubs import running_hub
from tests.runs import environment, sdhub, sdhub_json

REPO = "acme/emoji-sd-openvino-int8"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub") / "data") as url:
        yield url


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Fewer pictures than usual: the tests are of the journey."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(["pizza", {"text": "red heart", "seed": 3}]))
    return path


@pytest.fixture(scope="module")
def wanted(hub, prompts):
    return [
        "publish",
        "demo",
        "--to",
        "acme",
        "--hub",
        hub,
        "--prompts",
        str(prompts),
        "--variant",
        "openvino-int8",
    ]


@pytest.fixture(scope="module")
def first(wanted, home):
    return sdhub_json(*wanted, home=home)


def download(hub, repo, folder):
    from huggingface_hub import snapshot_download

    return snapshot_download(repo, endpoint=hub, local_dir=folder, token=False)


@pytest.fixture(scope="module")
def published(first, hub, tmp_path_factory):
    """The repository as a stranger downloads it."""
    return Path(download(hub, REPO, tmp_path_factory.mktemp("download")))


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_report(first, hub):
    source, (variant,) = first["source"], first["variants"]
    assert source["id"] == "emoji-sd"
    assert source["family"] == "sd1"
    assert source["license"] == "apache-2.0"
    assert len(source["sha"]) == 64
    assert variant["name"] == "openvino-int8"
    assert variant["repo"] == REPO
    assert variant["url"] == f"{hub}/{REPO}"
    assert variant["status"] == "published"
    assert variant["bytes"] < 0.65 * variant["base_bytes"]
    evidence = variant["evidence"]
    shown = {"psnr_db", "ssim", "latent_psnr_db", "latency_ratio", "peak_mib", "device", "precision", "kernels"}
    assert set(evidence) == shown
    assert evidence["psnr_db"] > 40
    assert evidence["ssim"] > 0.99
    assert evidence["latency_ratio"] > 0
    assert evidence["peak_mib"] > 100


def test_predictions_are_compared_along_the_trajectories_of_the_base(published):
    found = json.loads((published / "evidence" / "evidence.json").read_text())["noise_snr"]
    assert len(found["points"]) == 2 * 4
    assert {each["prompt"] for each in found["points"]} == {0, 1}
    assert 10 < found["worst_db"] <= found["median_db"] < 80


def test_every_hash_holds(published, first):
    manifest = json.loads((published / "sdhub.json").read_text())
    files = contents(published)
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: found for name, found in files.items() if name not in {"sdhub.json", ".gitattributes"}
    }
    (package,) = first["variants"][0]["packages"]
    assert files[package["path"]] == package["sha256"]
    recipe = (published / "recipe.json").read_bytes()
    assert hashlib.sha256(recipe).hexdigest() == first["variants"][0]["recipe_sha256"]


def test_the_package_holds_the_variant(published):
    with zipfile.ZipFile(published / "packages" / "emoji-sd-openvino-int8.zip") as package:
        names = package.namelist()
        assert {name.split("/")[0] for name in names} == {"emoji-sd-openvino-int8"}
        inside = package.read("emoji-sd-openvino-int8/unet/openvino_model.bin")
    assert inside == (published / "unet" / "openvino_model.bin").read_bytes()


def test_the_card(published, first):
    from huggingface_hub import ModelCard

    card = ModelCard.load(published / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "emoji-sd"
    assert card.data.base_model_relation == "quantized"
    psnr = next(each.metric_value for each in card.data.eval_results if each.metric_type == "psnr")
    assert psnr == first["variants"][0]["evidence"]["psnr_db"]
    assert "from_pretrained('acme/emoji-sd-openvino-int8')" in card.text
    assert str(emoji_sd()) not in card.content


def test_the_picture_shows_its_subject(published):
    """A red heart: red in the middle, white around it."""
    import numpy as np
    from PIL import Image

    for side in ("base", "variant"):
        picture = np.asarray(Image.open(published / "evidence" / f"{side}-01.png"), dtype=float) / 255
        red, green, blue = picture[28:36, 28:36].reshape(-1, 3).mean(0)
        assert red > 0.6
        assert max(green, blue) < 0.4
        assert picture[:6, :6].min() > 0.85


def test_a_second_publish_uploads_nothing(first, wanted, home):
    again = sdhub_json(*wanted, home=home)
    (variant,) = again["variants"]
    assert variant["status"] == "unchanged"
    assert variant["uploaded_bytes"] == 0
    assert variant["commit"] == first["variants"][0]["commit"]


def test_a_second_publish_reads_no_large_file_again(first, wanted, home, hub, monkeypatch):
    from sdhub.publishing import remote
    from sdhub.publishing.push import push
    from sdhub.publishing.repository import read_manifest

    (folder,) = (home / "work" / "repository").glob("*/")
    known = {name: entry["sha256"] for name, entry in read_manifest(folder)["files"].items()}
    monkeypatch.setattr(remote, "sha256_of", lambda path: pytest.fail(f"{path} is read again"))
    assert push(folder, REPO, hub=Hub(hub, "any"), message="x", known=known).status == "unchanged"


def test_verify_downloads_checks_and_draws_again(first, hub, home, tmp_path):
    done = sdhub_json("verify", REPO, "--hub", hub, home=home)
    assert done["sound"]
    assert done["commit"] == first["variants"][0]["commit"]
    assert {each["name"]: each["status"] for each in done["checks"]} == dict.fromkeys(
        ["files", "recipe", "packages", "figures", "code", "drawing"], "passed"
    )
    folder = Path(download(hub, REPO, tmp_path / "copy"))
    shutil.rmtree(folder / ".cache")
    weights = folder / "unet" / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    done = sdhub("verify", str(folder), home=home, code=1)
    assert "altered: unet/openvino_model.bin" in done.stdout
    assert "is not what it says it is" in done.stderr


def test_generate_from_the_repository(first, hub, home, tmp_path):
    from PIL import Image

    picture = tmp_path / "pizza.png"
    done = sdhub_json("generate", REPO, "pizza", "--hub", hub, "--seed", "1", "-o", str(picture), home=home)
    assert (done["width"], done["height"], done["steps"], done["guidance"]) == (64, 64, 20, 4.0)
    assert Image.open(picture).size == (64, 64)


def test_a_dry_run_lists_what_is_published_and_writes_nothing(first, wanted, hub, home):
    from huggingface_hub import HfApi

    (seen,) = sdhub_json(*wanted, "--dry-run", home=home)["variants"]
    (done,) = first["variants"]
    assert seen["status"] == "dry-run"
    assert (seen["files"], seen["changes"], seen["uploaded_bytes"]) == (done["files"], {}, 0)
    elsewhere = ["beta" if each == "acme" else each for each in wanted]
    (seen,) = sdhub_json(*elsewhere, "--dry-run", home=home)["variants"]
    assert seen["files"] == done["files"]  # the names of both namespaces are of one length
    assert seen["changes"] == done["changes"]
    assert seen["uploaded_bytes"] == done["uploaded_bytes"] == sum(each["bytes"] for each in done["files"])
    assert not list(HfApi(hub, token="any").list_models(author="beta"))


def test_several_sources_end_with_one_table(first, wanted, home, tmp_path):
    (tmp_path / "broken").mkdir()
    done = sdhub(*wanted, str(tmp_path / "broken"), str(tmp_path / "absent.safetensors"), home=home, code=2)
    table = done.stdout[done.stdout.index("source") :]
    assert [line.split()[:3] for line in table.splitlines()[2:3]] == [["demo", "openvino-int8", "unchanged"]]
    assert table.count("failed: ") == 2
    assert done.stderr.count("error: ") == 2


TIMED = {"latency", "peak_mib", "base_peak_mib", "picture_seconds"}
SAYING = {"README.md", "sdhub.json"}


def steady(folder):
    """What a repository holds, without what was timed."""
    kept = {name: sha256 for name, sha256 in contents(folder).items() if name not in SAYING}
    evidence = json.loads((folder / "evidence" / "evidence.json").read_text())
    assert set(evidence) > TIMED
    kept["evidence/evidence.json"] = {name: value for name, value in evidence.items() if name not in TIMED}
    return kept


def test_killed_at_random_moments_and_resumed_the_bytes_are_the_same(
    first, published, wanted, hub, home, tmp_path
):
    """All but what was timed, and what says it: speed and memory differ from run to run."""
    moments = random.Random(7)
    other = tmp_path / "home"
    with running_hub(tmp_path / "hub") as url:
        command = [url if each == hub else each for each in wanted]
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-m", "sdhub", *command, "--json"],
                env=environment(other),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(moments.uniform(1, 40))
            process.send_signal(signal.SIGKILL)
            process.wait()
        (variant,) = sdhub_json(*command, home=other)["variants"]
        assert variant["status"] in {"published", "unchanged"}
        again = steady(Path(download(url, REPO, tmp_path / "download")))
    assert again == steady(published)


def checkpoint_with_card(folder, card):
    shutil.copytree(emoji_sd(), folder)
    (folder / "README.md").write_text(card)
    return folder


def test_an_unknown_licence_is_refused_unless_said(first, wanted, hub, home, tmp_path):
    source = checkpoint_with_card(tmp_path / "nameless", "# no front matter\n")
    done = sdhub("publish", str(source), "--to", "acme", "--hub", hub, "--dry-run", home=home, code=3)
    assert "--license" in done.stderr
    rest = [each for each in wanted if each not in {"publish", "demo"}]
    plan = sdhub_json("publish", str(source), *rest, "--license", "mit", "--dry-run", home=home)
    assert plan["source"]["license"] == "mit"


def test_a_private_source_is_not_published_into_a_public_repository(first, wanted, hub, home, tmp_path):
    from huggingface_hub import HfApi

    api = HfApi(hub, token="any")
    api.create_repo("acme/secret", private=True)
    api.upload_folder(repo_id="acme/secret", folder_path=emoji_sd())
    api.create_repo("acme/secret-openvino-int8", private=False)
    arguments = ["acme/secret" if each == "demo" else each for each in wanted]
    report = sdhub_json(*arguments, home=home, endpoint=hub, code=3)
    (variant,) = report["variants"]
    assert variant["status"] == "failed"
    assert "private" in variant["reason"]
    assert [each.rfilename for each in api.model_info("acme/secret-openvino-int8").siblings] in (
        [],
        [".gitattributes"],
    )


def test_an_edited_preset_needs_a_name_of_its_own(hub, home, tmp_path):
    recipe = json.loads(sdhub("recipe", "show", "openvino-int8", "demo", home=home).stdout)
    recipe["components"]["unet"]["default"] = {"scheme": "float", "dtype": "float16"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(recipe))
    done = sdhub("plan", "demo", "--recipe", str(path), home=home, code=2)
    assert "openvino-int8-mine" in done.stderr
    path.write_text(json.dumps({**recipe, "name": "openvino-int8-mine"}))
    (planned,) = sdhub_json("plan", "demo", "--recipe", str(path), "--to", "acme", home=home)["variants"]
    assert planned["repo"] == "acme/emoji-sd-openvino-int8-mine"


def test_a_namespace_that_is_none_is_refused_before_work(home):
    done = sdhub("plan", "demo", "--to", "a/b c", home=home, code=2)
    assert "no repository name" in done.stderr


def test_a_missing_variant_and_a_bad_prompt_file_are_calls_gone_wrong(hub, home, tmp_path):
    done = sdhub("publish", "demo", "--hub", hub, "--variant", "openvino-int3", home=home, code=2)
    assert "openvino-int8" in done.stderr
    bad = tmp_path / "bad.json"
    bad.write_text('["fine", 7]')
    done = sdhub("publish", "demo", "--hub", hub, "--prompts", str(bad), home=home, code=2)
    assert "prompt 2" in done.stderr
