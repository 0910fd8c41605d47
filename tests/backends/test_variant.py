"""The gate of variants and the view behind it; hostile folders are in `tests/hostile`."""

from __future__ import annotations

import gc
import json

import pytest

from sdhub.backends.base import backends
from sdhub.backends.openvino.vetting import constants, graph, layout
from sdhub.backends.variant.gate import vet
from sdhub.backends.variant.layout import Variant
from sdhub.backends.variant.view import lay, opened
from sdhub.checkpoint.tree import Folder
from sdhub.core.errors import BuildError, SourceError, UnsafeError, UnsupportedError
from sdhub.core.foreign import translate_errors
from sdhub.workflow.variants import vet_folder
from tests.checkpoint.tiny import write
from tests.hostile.variants import edit, skeletons


@pytest.fixture
def folders(tmp_path):
    skeletons(tmp_path)
    return tmp_path


def test_each_backend_passes_its_own_and_no_other(folders):
    known = backends()
    for kind in ("svdquant", "nunchaku", "coreml"):
        assert "model_index.json" in vet(folders / kind, known[kind].layout()).files
        with pytest.raises((UnsafeError, SourceError)):
            vet(folders / kind, known["openvino"].layout())


def test_the_view_holds_what_was_vetted_and_nothing_besides(folders, tmp_path):
    root = folders / "svdquant"
    edit(root / "model_index.json", _name_or_path="/somewhere", requires_safety_checker=False)
    edit(root / "tokenizer/tokenizer_config.json", name_or_path="/somewhere")
    write(root / "README.md", "a card")
    write(root / ".cache/x", "hidden")
    place = tmp_path / "view"
    lay(vet_folder(root), place)
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"tokenizer/{name}" for name in ("tokenizer_config.json", "vocab.json", "merges.txt")),
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
        *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
        "text_encoder/model.safetensors",
    }
    index = json.loads((place / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["safety_checker"] == [None, None]
    assert index["requires_safety_checker"] is False
    assert "/somewhere" not in "".join(path.read_text() for path in place.rglob("*.json"))
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.resolve() == (root / "unet" / weights.name).resolve()
    assert not (place / "unet" / "config.json").is_symlink()


def test_the_view_stays_as_long_as_what_was_opened(folders):
    class Pipeline:
        pass

    places = []

    def load(view):
        places.append(view)
        return Pipeline()

    pipeline = opened(folders / "svdquant", backends()["svdquant"].layout(), load)
    assert places[0].is_dir()
    del pipeline
    gc.collect()
    assert not places[0].exists()


def test_whatever_a_loader_raises_is_one_line_without_the_view(folders):
    class PanicException(BaseException):  # as libraries in Rust raise
        pass

    for error in (PanicException("a\nb"), MemoryError("all of it"), RecursionError("deep"), SyntaxError("x")):

        def load(view, error=error):
            raise type(error)(f"{view}/unet: {error}")

        with pytest.raises(BuildError) as refused:
            opened(folders / "svdquant", backends()["svdquant"].layout(), load)
        assert refused.value.message.startswith("svdquant does not open: unet: ")
        assert "\n" not in refused.value.message


def test_a_fault_of_a_part_names_the_variant_too(folders):
    def load(view):
        raise BuildError(f"the tokenizer of {view} is broken", hint="get it again")

    with pytest.raises(BuildError) as refused:
        opened(folders / "svdquant", backends()["svdquant"].layout(), load)
    assert refused.value.message == "svdquant: the tokenizer of svdquant is broken"
    assert refused.value.hint == "get it again"


def test_what_ends_the_program_is_no_library_error():
    with pytest.raises(KeyboardInterrupt), translate_errors("x", BuildError):
        raise KeyboardInterrupt
    with pytest.raises(UnsupportedError, match=r"^as it is$"), translate_errors("x", BuildError):
        raise UnsupportedError("as it is")


CONSTANT = '<layer id="0" name="w" type="Const" version="opset1"><data element_type="{}" shape="{}" {}/></layer>'


def read(tmp_path, layers, size):
    write(tmp_path / "unet/openvino_model.xml", f'<net version="11"><layers>{layers}</layers></net>')
    write(tmp_path / "unet/openvino_model.bin", bytes(size))
    variant = Variant(Folder(tmp_path), layout(frozenset()), {})
    constants(variant, "unet/openvino_model.bin")
    return graph(variant, "unet/openvino_model.xml")


@pytest.mark.parametrize(
    ("kind", "shape", "size"),
    [("f32", "2, 3", 24), ("f16", "", 2), ("u4", "3", 2), ("i8", "5,1", 5), ("boolean", "0", 0), ("u1", "9", 2)],
)
def test_constants_take_what_their_type_and_shape_say(tmp_path, kind, shape, size):
    """Sizes by hand: elements times bits, in whole bytes."""
    sound = CONSTANT.format(kind, shape, f'offset="8" size="{size}"')
    assert read(tmp_path, sound, 8 + size) == (tmp_path / "unet/openvino_model.xml").read_bytes()
    with pytest.raises(SourceError, match="ends at byte"):
        read(tmp_path, sound, 7 + size)
    with pytest.raises(SourceError, match="does not take"):
        read(tmp_path, CONSTANT.format(kind, shape, f'offset="0" size="{size + 9}"'), 99)
