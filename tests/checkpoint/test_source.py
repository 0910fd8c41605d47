from __future__ import annotations

from pathlib import Path

import pytest

from sdhub.checkpoint.checkpoint import Lora
from sdhub.checkpoint.source import parse_config, parse_lora, parse_source
from sdhub.core.errors import SdhubError, SourceError, UnsafeError
from sdhub.demo import emoji_sd
from tests.checkpoint.tiny import safetensors_bytes, skeleton, write


def test_demo_is_the_built_in_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    skeleton(tmp_path / "demo")
    assert parse_source("demo").ref == str(emoji_sd())
    assert parse_source("./demo").ref == str(tmp_path / "demo")


def test_folder_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    skeleton(tmp_path / "org" / "name")
    file = write(tmp_path / "model.safetensors", safetensors_bytes({}))
    assert (parse_source("org/name").kind, parse_source("org/name").ref) == ("folder", str(tmp_path / "org/name"))
    assert (parse_source("model.safetensors").kind, parse_source(str(file)).ref) == ("file", str(file))
    assert parse_source("https://huggingface.co/org/name").kind == "hub"


@pytest.mark.parametrize(
    ("text", "ref", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/na.me-1_x@main", "org/na.me-1_x", "main"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("org/name@" + "a" * 40, "org/name", "a" * 40),
        ("https://huggingface.co/org/name", "org/name", None),
        ("https://huggingface.co/org/name/", "org/name", None),
        ("https://hf.co/org/name/tree/v1.0", "org/name", "v1.0"),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F3", "org/name", "refs/pr/3"),
    ],
)
def test_hub_ids(text: str, ref: str, revision: str | None) -> None:
    source = parse_source(text)
    assert (source.kind, source.ref, source.revision) == ("hub", ref, revision)


@pytest.mark.parametrize(
    ("text", "ref", "revision", "file"),
    [
        ("https://huggingface.co/org/name/blob/main/a/m.safetensors", "org/name", "main", "a/m.safetensors"),
        (
            "https://huggingface.co/org/name/resolve/v1/my%20m.safetensors?download=true",
            "org/name",
            "v1",
            "my m.safetensors",
        ),
        ("https://hf.co/org/name/blob/refs/pr/3/m.safetensors", "org/name", "refs/pr/3", "m.safetensors"),
        ("org/name/m.safetensors", "org/name", None, "m.safetensors"),
        ("org/name/a/m.safetensors@v1", "org/name", "v1", "a/m.safetensors"),
    ],
)
def test_files_on_the_hub(text: str, ref: str, revision: str | None, file: str) -> None:
    source = parse_source(text)
    assert (source.kind, source.ref, source.revision, source.file) == ("hub", ref, revision, file)
    assert source.single


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/org/name/blob/main/model_index.json",
        "https://huggingface.co/org/name/blob/main/../x.safetensors",
        "https://huggingface.co/org/name/blob/main/%2e%2e/%2e%2e/x.safetensors",
        "https://huggingface.co/org/name/resolve/main",
        "org/name/../x.safetensors",
        "org/..//x.safetensors",
        "../name/x.safetensors",
        "~/name/x.safetensors",
        "/org/name/x.safetensors",
        "org/name/x.safetensors@",
        "org/name/a\x1bb.safetensors",
        "n" * 5000 + "/name/x.safetensors",
        "https://huggingface.co/org/name/blob/main/a%0ab.safetensors",
    ],
)
def test_files_that_are_none(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(text)
    assert caught.value.hint and caught.value.message.isprintable()


def test_a_path_that_is_nearly_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    skeleton(tmp_path / "models" / "my-finetune")
    write(tmp_path / "models" / "sd" / "style.safetensors", safetensors_bytes({}))
    for text, near in (
        ("./models/my-fintune", "models/my-finetune"),
        ("models/sd/stile.safetensors", "models/sd/style.safetensors"),
        ("model", "models"),
        ("dmeo", "demo"),
    ):
        with pytest.raises(SourceError) as caught:
            parse_source(text)
        assert caught.value.hint == f"did you mean {near}?"
    with pytest.raises(SourceError) as caught:
        parse_lora("demo")
    assert "did you mean" not in caught.value.hint


def test_the_built_in_checkpoint_gives_configs_too(tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", safetensors_bytes({}))
    assert parse_source(str(file), config="demo").config == parse_source("demo").ref


def test_addresses_of_another_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no address on the Hub"):
        parse_source("http://127.0.0.1:8420/org/name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8420")
    assert parse_source("http://127.0.0.1:8420/org/name").ref == "org/name"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "name",
        "./missing",
        "~/missing-folder",
        "/missing/folder",
        "a/b/c",
        "missing.safetensors",
        "org/name.safetensors",
        "org/..",
        "../name",
        "org/na..me",
        "org/na--me",
        "org/name.git",
        "-org/name",
        "org/name-",
        "org/" + "n" * 97,
        "org/name@",
        "org/name@../x",
        "org/name@a//b",
        "org/name@a b",
        "org/name@-x",
        "org/name@x.lock",
        "org/name@a\nb",
        "org/na\x00me",
        "org\\name",
        "C:\\models\\x",
        "https://example.com/org/name",
        "https://huggingface.co@example.com/org/name",
        "ftp://huggingface.co/org/name",
        "https://huggingface.co/org",
        "https://huggingface.co/org/name/blob/main/x.bin.txt",
        "https://huggingface.co/org/name/tree/../../x",
        "https://[::1",
        "x" * 100_000,
    ],
)
def test_what_names_nothing_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(text)
    assert caught.value.hint and caught.value.message.isprintable() and len(caught.value.message) < 200


@pytest.mark.parametrize("text", ["model.ckpt", "org/model.bin", "x.PT", "./a.pth", "a.pkl", "org/x.ckpt@main"])
def test_pickles_are_unsafe(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeError, match="pickle") as caught:
        parse_source(text)
    assert "safetensors" in caught.value.hint
    write(tmp_path / "model.ckpt", b"\x80")
    with pytest.raises(UnsafeError):
        parse_source("model.ckpt")
    with pytest.raises(UnsafeError):
        parse_lora("model.ckpt:0.5")


def test_did_you_mean(tmp_path: Path) -> None:
    inner = skeleton(tmp_path / "models--org--name" / "snapshots" / "abc")
    with pytest.raises(SourceError) as caught:
        parse_source(str(tmp_path / "models--org--name"))
    assert f"did you mean {inner}?" in caught.value.hint
    with pytest.raises(SourceError) as caught:
        parse_source(str(inner / "unet"))
    assert f"the whole checkpoint, {inner}?" in caught.value.hint
    file = write(tmp_path / "files" / "model.safetensors", b"")
    with pytest.raises(SourceError) as caught:
        parse_source(str(file.parent))
    assert f"did you mean the file {file}?" in caught.value.hint
    with pytest.raises(SourceError):
        parse_source(str(write(tmp_path / "notes.txt", "x")))


def test_loras(tmp_path: Path) -> None:
    file = write(tmp_path / "my lora.safetensors", safetensors_bytes({}))
    assert parse_lora("org/name") == Lora("org/name", 1.0)
    assert parse_lora("org/name:0.8") == Lora("org/name", 0.8)
    assert parse_lora("org/name@v1:-1e-1") == Lora("org/name@v1", -0.1)
    assert parse_lora("https://huggingface.co/org/name:2") == Lora("org/name", 2.0)
    assert parse_lora("https://huggingface.co/org/name") == Lora("org/name", 1.0)
    assert parse_lora(f"{file}:0.5") == Lora(str(file), 0.5)
    inside = "sub/x.safetensors"
    assert parse_lora(f"org/name/{inside}:0.5") == Lora("org/name", 0.5, inside)
    assert parse_lora("org/name/sub@v1") == Lora("org/name@v1", 1.0, "sub")
    for kind in ("blob", "resolve", "tree"):
        address = f"https://huggingface.co/org/name/{kind}/main/{inside}"
        assert parse_lora(address) == Lora("org/name@main", 1.0, inside)
    assert parse_lora(
        "https://huggingface.co/org/name/resolve/refs%2Fpr%2F1/a%20b.safetensors?download=true:2"
    ) == Lora("org/name@refs/pr/1", 2.0, "a b.safetensors")
    assert parse_lora(str(file.parent)) == Lora(str(file), 1.0)
    assert parse_source("demo", ["org/a:0.5", "org/b"]).loras == (Lora("org/a", 0.5), Lora("org/b"))


@pytest.mark.parametrize(
    "text", ["", "org/name:nan", "org/name:inf", "org/name:1000", "org/name:x", ":1", "./x.safetensors"]
)
def test_broken_loras(text: str) -> None:
    with pytest.raises(SourceError):
        parse_lora(text)


def test_config(tmp_path: Path) -> None:
    folder = str(skeleton(tmp_path / "c"))
    assert parse_config(folder) == parse_config(parse_config(folder)) == folder
    assert parse_config("org/name@v1") == "org/name@v1"
    with pytest.raises(SdhubError):
        parse_config("./missing")
