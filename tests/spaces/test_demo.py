"""The demo Space's parts, without a browser: bounds, escaping, cancelling."""

from __future__ import annotations

import json
import socket
import threading
import time
from html.parser import HTMLParser
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sdhub.spaces.demo import GRADIO
from tests.spaces.sources import SPACES, space_module

catalog = space_module("demo", "catalog")
drawing = space_module("demo", "drawing")
markup = space_module("demo", "markup")

EVIL = "<script>alert(1)</script>'\" onerror=x\u202e"


def variant_folder(folder, **changes):
    (folder / "evidence").mkdir(parents=True)
    evidence = {
        "bytes": 21_000_000,
        "base_bytes": 37_000_000,
        "ssim": 0.9991,
        "latency": {"ratio": 2.2},
        "sampling": {"steps": 20, "guidance": 4.0, "width": 64, "height": 64},
        "prompts": [{"text": "pizza", "seed": 1, "psnr_db": 52.0}, {"text": EVIL, "seed": 2, "psnr_db": None}],
        **changes,
    }
    (folder / "evidence" / "evidence.json").write_text(json.dumps(evidence))
    (folder / "sdhub.json").write_text(json.dumps({"variant": "openvino-int8", "source": {"id": "acme/emoji"}}))
    (folder / "README.md").write_text("# x\n\n## Use it\n\n```python\npipe = 1\n```\n\n## Evidence\n")
    for side in ("base", "variant"):
        for number in range(2):
            Image.new("RGB", (64, 64), "red").save(folder / "evidence" / f"{side}-{number:02}.png")
    return folder


@pytest.fixture
def variant(tmp_path):
    return catalog.parse_variant("acme/emoji-openvino-int8", "c" * 40, variant_folder(tmp_path / "variant"))


def test_a_variant_from_its_repository(variant):
    assert variant.name == "openvino-int8"
    assert variant.source == "acme/emoji"
    assert variant.label == "openvino-int8 · 21 MB · 2.2× the base’s speed"
    assert variant.usage == "pipe = 1\n"
    assert variant.sizes == [(64, 64), (96, 64), (64, 96)]
    assert variant.pairs[0].prompt == "pizza"


@pytest.mark.parametrize(
    "evidence",
    [
        {"sampling": {"steps": 10**9, "guidance": -5, "width": 10**9, "height": "x"}},
        {"sampling": 7, "latency": [], "prompts": {}, "bytes": "many", "ssim": True},
        {"sampling": {"steps": 0, "width": 1, "height": 1}, "bytes": -1, "latency": {"ratio": float("inf")}},
    ],
)
def test_figures_of_strangers_are_bounded(evidence, tmp_path):
    folder = variant_folder(tmp_path / "variant", **evidence)
    found = catalog.parse_variant("a/b", "c" * 40, folder)
    assert 1 <= found.steps <= 50
    assert 0 <= found.guidance <= 20
    assert 32 <= found.width <= 1024
    assert 32 <= found.height <= 1024
    assert found.bytes is None or found.bytes >= 0


def test_a_repository_without_anything_is_shown_all_the_same(tmp_path):
    found = catalog.parse_variant("a/b", "c" * 40, tmp_path)
    assert (found.name, found.source, found.pairs, found.usage) == ("b", "a/b", (), "")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize(
    "html",
    [
        lambda variant: markup.comparison(variant),
        lambda variant: markup.status(EVIL),
        lambda variant: markup.picture(None, EVIL),
        lambda variant: markup.picture(Image.new("RGB", (8, 8)), EVIL, busy=True, step=1, steps=2),
        lambda variant: markup.gallery([markup.drawn(Image.new("RGB", (8, 8)), EVIL)]),
        lambda variant: markup.header([SimpleNamespace(source=EVIL)]),
    ],
)
def test_words_of_strangers_are_words(html, variant):
    seen = Tags()
    seen.feed(html(variant))
    assert "script" not in seen.tags
    assert "onerror" not in seen.attributes


def wish(variant, prompt="pizza", negative="", seed=1, steps=20, guidance=4.0, size="64×64"):
    return drawing.wish(prompt, negative, seed, steps, guidance, size, variant)


def test_a_wish_is_one_line_of_printable_characters(variant):
    made = wish(variant, prompt="  a\n\x00pizza\u202e ", negative="\tdog ")
    assert made.prompt == "a pizza"
    assert made.negative == "dog"
    assert (made.width, made.height) == (64, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": ""},
        {"prompt": " \n\u200b "},
        {"prompt": None},
        {"prompt": ["pizza"]},
        {"prompt": "x" * 301},
        {"negative": "x" * 301},
        {"steps": 0},
        {"steps": 51},
        {"steps": "many"},
        {"steps": float("nan")},
        {"guidance": 21},
        {"guidance": float("nan")},
        {"guidance": None},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": float("inf")},
        {"size": "4096×4096"},
        {"size": "64"},
        {"size": "64×64×64"},
        {"size": None},
    ],
)
def test_what_is_out_of_bounds_is_refused_in_a_sentence(changes, variant):
    with pytest.raises(drawing.Refusal) as refused:
        wish(variant, **changes)
    assert str(refused.value).endswith(".")


class Pipe:
    """Draws as slowly as it is let, and notes how far it came."""

    def __init__(self, *, broken=False):
        self.steps = 0
        self.broken = broken
        self.go = threading.Semaphore(0)

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompt, *, num_inference_steps, callback_on_step_end, width, height, **_):
        for step in range(num_inference_steps):
            assert self.go.acquire(timeout=10)
            if self.broken:
                raise RuntimeError(f"a secret path of {prompt}")
            self.steps += 1
            callback_on_step_end(self, step, 0, {"latents": torch.zeros(1)})
        return SimpleNamespace(images=[Image.new("RGB", (width, height), "red")])


def studio(monkeypatch, pipe):
    monkeypatch.setattr(drawing, "load", lambda variant: pipe)
    return drawing.Studio()


def test_each_step_is_told_and_the_picture_comes_last(monkeypatch, variant):
    pipe = Pipe()
    for _ in range(5):
        pipe.go.release()
    events = list(studio(monkeypatch, pipe).draw(variant, wish(variant, steps=5), threading.Event()))
    assert [event.kind for event in events] == ["loading", *["step"] * 5, "done"]
    assert [event.step for event in events[1:6]] == [1, 2, 3, 4, 5]
    assert events[-1].image.size == (64, 64)


def test_cancelling_ends_the_drawing_at_the_next_step(monkeypatch, variant):
    pipe, stop = Pipe(), threading.Event()
    events = studio(monkeypatch, pipe).draw(variant, wish(variant, steps=50), stop)
    assert next(events).kind == "loading"
    pipe.go.release()
    assert next(events).kind == "step"
    stop.set()
    pipe.go.release()
    assert [event.kind for event in events] == ["cancelled"]
    assert pipe.steps == 2


def test_leaving_ends_the_drawing_too(monkeypatch, variant):
    pipe, stop = Pipe(), threading.Event()
    events = studio(monkeypatch, pipe).draw(variant, wish(variant, steps=50), stop)
    next(events)
    events.close()
    assert stop.is_set()


def test_a_drawing_has_its_time(monkeypatch, variant):
    pipe = Pipe()
    monkeypatch.setenv("DRAW_SECONDS", "1e-9")
    for _ in range(50):
        pipe.go.release()
    events = list(studio(monkeypatch, pipe).draw(variant, wish(variant, steps=50), threading.Event()))
    assert events[-1].kind == "failed"
    assert "longer than 1e-09 s" in events[-1].message
    assert pipe.steps < 50


def test_loading_has_its_time(monkeypatch, variant):
    """The visitor is let go; who comes next waits no longer either, and draws once it is there."""
    pipe, loaded = Pipe(), threading.Event()
    monkeypatch.setenv("LOAD_SECONDS", "0.2")
    room = studio(monkeypatch, pipe)
    monkeypatch.setattr(drawing, "load", lambda variant: loaded.wait(30) and pipe)
    first, second = (list(room.draw(variant, wish(variant, steps=1), threading.Event())) for _ in range(2))
    assert [event.kind for event in first] == ["loading", "failed"]
    assert [event.kind for event in second] == ["failed"]
    assert "0.2 s" in first[-1].message
    room.loading = 30.0
    pipe.go.release()
    loaded.set()
    assert [event.kind for event in room.draw(variant, wish(variant, steps=1), threading.Event())] == [
        "step",
        "done",
    ]
    assert pipe.steps == 1


def test_a_download_has_its_time(monkeypatch, variant):
    """From a server that takes the request and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("LOAD_SECONDS", "3")
        started = time.monotonic()
        with pytest.raises(drawing.TooLong, match="3 s"):
            drawing.downloaded(variant)
        assert time.monotonic() - started < 8


@pytest.mark.parametrize("text", ["many", "nan", "-1", "0", ""])
def test_a_setting_that_is_none_is_as_usual(text, monkeypatch):
    monkeypatch.setenv("DRAW_SECONDS", text)
    assert drawing.Studio().seconds == drawing.SECONDS


def test_those_who_wait_are_told_their_place(monkeypatch, variant):
    pipe = Pipe()
    room = studio(monkeypatch, pipe)
    first, second = (room.draw(variant, wish(variant, steps=1), threading.Event()) for _ in range(2))
    assert next(first).kind == "loading"
    told = next(second)
    assert (told.kind, told.message) == ("waiting", "Place 1 of 1 in the queue.")
    leaving = threading.Event()
    fourth = room.draw(variant, wish(variant, steps=1), leaving)
    assert next(fourth).message == "Place 2 of 2 in the queue."
    assert str(room.line) == "One picture is being made, 2 wait."
    leaving.set()
    assert [event.kind for event in fourth] == ["cancelled"]
    pipe.go.release()
    assert [event.kind for event in first] == ["step", "done"]
    pipe.go.release()
    assert [event.kind for event in second] == ["step", "done"]
    for _ in range(drawing.QUEUE + 1):
        room.line.join(drawing.QUEUE)
    (refused,) = room.draw(variant, wish(variant), threading.Event())
    assert (refused.kind, refused.message) == ("failed", "16 pictures wait already: come back later.")


def test_a_failure_is_told_without_its_words(monkeypatch, variant):
    pipe = Pipe(broken=True)
    pipe.go.release()
    events = list(studio(monkeypatch, pipe).draw(variant, wish(variant), threading.Event()))
    assert events[-1].kind == "failed"
    assert "secret" not in events[-1].message


def test_previews_take_a_share_of_the_time(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(drawing.time, "perf_counter", lambda: clock.now)
    previews = drawing.Previews(None)

    def decode(_):
        clock.now += 1.0
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(previews, "_decode", decode)
    made = 0
    for _ in range(100):
        clock.now += 1.0  # a step
        made += previews.of(None) is not None
    assert 20 <= made <= 26  # a second in four of the hundred that the steps take


def test_requirements_are_pinned():
    for path in SPACES.glob("*/requirements.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line for line in lines), path


def test_the_spaces_are_tested_with_the_versions_they_get():
    """Gradio comes with a Space, and sdhub itself with the publisher: all places name the same ones."""
    pyproject = (SPACES.parent / "pyproject.toml").read_text()
    assert f'"gradio=={GRADIO}"' in pyproject
    assert f"sdk_version: {GRADIO}\n" in (SPACES / "publisher" / "README.md").read_text()
    assert f"sdhub[openvino]=={metadata.version('sdhub')}\n" in (SPACES / "publisher/requirements.txt").read_text()
