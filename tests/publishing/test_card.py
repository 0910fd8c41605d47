from __future__ import annotations

import json
import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sdhub.checkpoint.checkpoint import License, PinnedLora, Source
from sdhub.core.errors import CheckError
from sdhub.publishing import markdown, words
from sdhub.publishing.card import card, extract_usage, index_card
from sdhub.publishing.package import Package
from sdhub.publishing.publication import Sibling
from sdhub.recipes.recipe import parse_recipe
from tests.publishing.hostile import HOSTILE
from tests.publishing.publications import SHA, checkpoint, evidence, publication, recipe

PACKAGES = (Package("emoji-sd-openvino-int8.zip", 512_000, "ab" * 32),)


# What mdast-util-gfm-autolink-literal makes a link of, in text that is none yet.
AUTOLINK = re.compile(r"(https?://|www(?=\.))[-.\w]+|[-.\w+]+@[-\w]+(\.[-\w]+)+", re.IGNORECASE)


def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def _tokens(text: str):
    body = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL)
    parser = _parser()
    flat = []
    for token in parser.parse(body):
        flat.append(token)
        flat.extend(token.children or ())
    return flat


def _shape(text: str) -> list[tuple[str, str]]:
    """The structure of a card: every block and link, without what stands in them."""
    structural = (
        "heading",
        "table",
        "tr",
        "td",
        "th",
        "list",
        "fence",
        "html",
        "link",
        "image",
        "hr",
        "quote",
        "em",
        "s_",
    )
    return [
        (token.type, str(token.attrGet("href") or token.attrGet("src") or token.tag))
        for token in _tokens(text)
        if any(word in token.type for word in structural)
    ]


def _hostile_publication(tmp_path, string: str):
    figures = evidence()
    for prompt in figures["prompts"]:
        prompt["text"] = string
    figures["machine"] = {"cpu": string, "cores": 2, "system": string, "architecture": string}
    document, name = recipe(), string.encode("utf-8", "replace").decode() or "x"
    document["components"] = {name: {"default": {"scheme": name, "bits": name}, "layers": {"a": {"scheme": name}}}}
    source, loras = Source("folder", "/x"), (PinnedLora(string, 0.8, string, SHA),)
    return publication(
        tmp_path,
        checkpoint=checkpoint(source=source, loras=loras, id=string, sha=None, license=License("other")),
        identity=string,
        license=License("other", name=string or "x", link="" if string.startswith("https://") else string),
        description=string,
        tags=(string,),
        library=string,
        evidence=figures,
        recipe=document,
        versions={"torch": string, "openvino": string, "sdhub": string},
        install=string.replace("\n", " "),
        usage=f"print({string!r})\n",
        notes=(string, "sound"),
        hub="https://hub.example",
        siblings=(
            Sibling(string, string, {"bytes": string, "psnr_db": string, "latency": string}),
            Sibling("openvino-fp16", "local/other", {"latency": {"ratio": string}}),
            Sibling(string, string, {}, branch=string),
        ),
    )


@pytest.mark.parametrize("string", HOSTILE, ids=lambda string: ascii(string[:24]))
def test_hostile_strings_stay_text(tmp_path, string):
    text = card(_hostile_publication(tmp_path, string), PACKAGES)
    tame = card(_hostile_publication(tmp_path, "word"), PACKAGES)
    assert _shape(text) == _shape(tame)
    assert not [token for token in _tokens(text) if token.type == "text" and AUTOLINK.search(token.content)]
    assert text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]", text)
    assert len(text) < 40_000 + 2 * len(repr(string)) + len(string)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other"
    assert front.keys() <= {
        "library_name",
        "license",
        "license_name",
        "license_link",
        "pipeline_tag",
        "tags",
        "model-index",
    }
    assert extract_usage(text) == f"print({string!r})\n"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_one_run_of_text_in_prose_and_in_a_cell(string):
    parser = _parser()
    prose = parser.parse(f"before {markdown.text(string)} after")
    assert [token.type for token in prose] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in prose[1].children} <= {"text", "text_special"}
    start = parser.parse(f"{markdown.text(string)} after")
    assert [token.type for token in start] == ["paragraph_open", "inline", "paragraph_close"]
    table = parser.parse(f"| a | b |\n|---|---|\n| {markdown.cell(string)} | {markdown.text(string)} |\n")
    cells = [token for token in table if token.type == "td_open"]
    assert len(cells) == 2
    row = [token for token in table if token.type == "inline"][2]
    assert [child.type for child in row.children] == ["code_inline"]
    assert row.children[0].content.strip() == (markdown.plain(string) or "(empty)").strip()


def test_front_matter(tmp_path):
    text = card(publication(tmp_path), PACKAGES)
    (tmp_path / "README.md").write_text(text)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "someone/emoji-sd"
    assert data.base_model_relation == "quantized"
    assert data.license == "creativeml-openrail-m"
    assert data.library_name == "openvino"
    assert data.pipeline_tag == "text-to-image"
    assert data.tags == ["openvino", "nncf"]
    assert data.model_name == "emoji-sd-openvino-int8"
    assert {each.metric_type: each.metric_value for each in data.eval_results} == {"psnr": 32.14, "ssim": 0.97512}


def test_local_sources_have_no_base_model(tmp_path):
    local = checkpoint(source=Source("folder", "/x"), sha=None, id="folder")
    text = card(publication(tmp_path, checkpoint=local, identity="cd" * 32))
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
    assert "SHA-256 of its files" in text
    assert "cd" * 32 in text


def test_other_licences_link_to_their_text(tmp_path):
    other = License("other", name="flux-1-dev-non-commercial-license", link="LICENSE.md", file="LICENSE.md")
    front = yaml.safe_load(card(publication(tmp_path, license=other)).split("---\n")[1])
    assert front["license_name"] == "flux-1-dev-non-commercial-license"
    assert front["license_link"] == "LICENSE.txt"
    without = card(publication(tmp_path, license=other, license_file=None))
    link = yaml.safe_load(without.split("---\n")[1])["license_link"]
    assert link == f"https://huggingface.co/someone/emoji-sd/blob/{SHA}/LICENSE.md"


def test_every_figure_of_the_card_is_in_the_evidence(tmp_path):
    text = card(publication(tmp_path), PACKAGES)
    for said in (
        "12.3 MB",
        "45.6 MB",
        "27% of the base",
        "0.0613",
        "0.120",
        "1.96 times",
        "PSNR 32.1 dB",
        "SSIM 0.975",
        "28.5 dB",
        "812 MiB",
        "25 steps of `DDIMScheduler`",
        "guidance 7.5",
        "64 × 64 pixels",
        "5 alternating rounds on 2 threads",
        "An Example CPU",
        "2026.4.1",
        "`pizza` | 0 | 31.2 dB | 0.9700 | 28.5 dB",
        "`a red heart` | 1 | 33.5 dB",
        "v-prediction",
        "no safety checker",
        f"`someone/style` (commit `{SHA}`) at scale 0.8",
        SHA,
    ):
        assert said in text
    assert "**Not measured:** peak memory of the base." in text


def test_null_figures_are_not_measured(tmp_path):
    empty = dict.fromkeys(evidence())
    text = card(publication(tmp_path, evidence=empty, contact_sheet=None, pictures={}))
    front = yaml.safe_load(text.split("---\n")[1])
    assert "model-index" not in front
    body = text.partition("## Use it")[0] + text.partition("## Evidence")[2].partition("## Recipe")[0]
    assert not re.search(r"\d+(\.\d+)? ?(dB|MB|MiB|times|%)", body)
    for figure in ("PSNR", "SSIM", "speed", "size", "peak memory"):
        assert figure in body.partition("**Not measured:**")[2]
    assert "![" not in text


@pytest.mark.parametrize("value", [math.nan, math.inf, "9.9", True, [], {}])
def test_figures_that_are_no_numbers_are_not_measured(tmp_path, value):
    figures = {**evidence(), "psnr_db": value, "bytes": value, "peak_mib": value, "latency": {"ratio": value}}
    text = card(publication(tmp_path, evidence=figures))
    assert "PSNR not measured" in text
    assert "9.9" not in text


def test_identical_pictures_are_called_identical(tmp_path):
    figures = {**evidence(), "psnr_db": None, "ssim": 1.0, "latent_psnr_db": None}
    text = card(publication(tmp_path, evidence=figures))
    assert "PSNR identical" in text
    assert "likeness" not in text.partition("**Not measured:**")[2].splitlines()[0]


def test_the_noise_snr_is_on_the_card_where_there_is_one(tmp_path):
    found = card(publication(tmp_path))
    assert "| Noise SNR of the denoiser's predictions | median 24.2 dB, worst 17.5 dB |" in found
    assert "at 8 points of the base's own trajectories" in found
    equal = {**evidence()["noise_snr"], "worst_db": None, "median_db": None}
    assert "median identical, worst identical" in card(
        publication(tmp_path, evidence={**evidence(), "noise_snr": equal})
    )
    for nothing in (None, {}, {"points": 3}, {"points": []}, []):
        assert "Noise SNR" not in card(publication(tmp_path, evidence={**evidence(), "noise_snr": nothing}))


def test_usage_comes_back_as_it_was(tmp_path):
    lines = 'prompt = "```\\n## Use it"\n\n\nif prompt:\n    print("""\n````\n""")\n'
    assert extract_usage(card(publication(tmp_path, usage=lines))) == lines
    with pytest.raises(CheckError):
        extract_usage("# Title\n\n## Other\n\n```python\nx\n```\n")


def test_the_same_inputs_give_the_same_card(tmp_path):
    one = publication(tmp_path)
    shuffled = json.loads(json.dumps(evidence(), sort_keys=True))
    assert card(one, PACKAGES) == card(publication(tmp_path, evidence=shuffled), PACKAGES)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345_678, "12.3 MB"),
        (999_600_000, "1.00 GB"),
        (5e12, "5000 GB"),
        (None, "not measured"),
    ],
)
def test_sizes(value, said):
    assert words.size(value) == said


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://example.org/a b", "https://example.org/a%20b"),
        ("https://example.org/a)(b", "https://example.org/a%29%28b"),
        ("https://example.org/<x>|`", "https://example.org/%3Cx%3E%7C%60"),
        ("LICENSE.md", "LICENSE.md"),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
        ("//evil.example", None),
        ("/etc/passwd", None),
        ("https://", None),
        ("https://[", None),
        ("https://example.org/\n", None),
        ("", None),
        (None, None),
    ],
)
def test_urls(url, safe):
    assert markdown.safe_url(url) == safe


def test_the_first_screen_has_a_picture_and_three_figures_against_the_base(tmp_path):
    first = card(publication(tmp_path), PACKAGES).partition("---\n\n")[2].partition("\n## ")[0]
    assert first.startswith("# emoji-sd-openvino-int8\n")
    assert first.count("![") == 1
    rows = [line for line in first.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "Size on disk",
        "Seconds per sampling step",
        "Likeness to the base",
    ]
    assert len(first.splitlines()) < 15


def test_siblings_stand_in_one_table_with_their_figures(tmp_path):
    figures = {"bytes": 20_000_000, "psnr_db": 51.26, "ssim": 0.9991, "latency": {"ratio": 0.98}}
    siblings = (
        Sibling("openvino-fp16", "local/emoji-sd-openvino-fp16", figures),
        Sibling("openvino-int8", "local/emoji-sd-openvino-int8", evidence()),
    )
    made = publication(tmp_path, siblings=siblings, hub="https://huggingface.co")
    table = card(made, PACKAGES).partition("## Variants\n")[2].partition("\n## ")[0]
    link = "[`local/emoji-sd-openvino-fp16`](https://huggingface.co/local/emoji-sd-openvino-fp16)"
    assert f"| `openvino-fp16` | 20.0 MB | 0.980 times | 51.3 dB | 0.9991 | {link} |" in table
    assert "| `openvino-int8` (this one) | 12.3 MB | 1.96 times | 32.1 dB | 0.9751 |" in table
    index = index_card(made, siblings)
    assert link in index
    assert "model-index" not in yaml.safe_load(index.split("---\n")[1])
    alone = card(publication(tmp_path, siblings=siblings[1:]), PACKAGES)
    assert "## Variants" not in alone


def test_what_could_not_be_run_here_is_said(tmp_path):
    figures = {**evidence(), "latency": None, "peak_mib": None, "base_peak_mib": None}
    text = card(publication(tmp_path, checks="sdhub", evidence=figures, notes=("Needs macOS 14.",)), PACKAGES)
    assert "**were not run**" in text
    assert "- Needs macOS 14." in text
    assert "peak memory of the variant; peak memory of the base; speed" in text
    assert "Speed and memory hold for the machine above" not in text
    assert "times the speed" not in text


def test_what_was_never_drawn_is_not_said_to_have_been(tmp_path):
    """As `sdhub card` makes it, of a folder without evidence."""
    figures = {"bytes": 100, "base_bytes": 400}
    text = card(publication(tmp_path, checks="sdhub", evidence=figures), PACKAGES)
    assert "**were not run**" in text
    assert "downloaded again" not in text
    assert "Likeness was measured" not in text
    assert "How close this variant is to its base was not measured." in text


def test_calibrated_variants_stand_beside_the_same_formats_without_calibration(tmp_path):
    figures = {**evidence(), "nearest": {"psnr_db": 20.5, "ssim": 0.9, "identical": False}}
    text = card(publication(tmp_path, evidence=figures), PACKAGES)
    assert "| The same formats without calibration | PSNR 20.5 dB, SSIM 0.9000 |" in text
    assert "without calibration" not in card(publication(tmp_path), PACKAGES)


@pytest.mark.parametrize(
    ("treatment", "said"),
    [
        ({"scheme": "float", "dtype": "float16"}, "kept in float16"),
        ({"scheme": "palette", "bits": 6}, "6-bit palette: 64 values found by k-means for each layer"),
        (
            {"scheme": "palette", "bits": 4, "group_size": 16, "rounding": "gptq"},
            "4-bit palette: 16 values found by k-means for every 16 output channels, rounded by GPTQ",
        ),
        (
            {"scheme": "affine", "bits": 8, "symmetric": True, "activations": "int8"},
            "8-bit integer weights, symmetric for each output channel, inputs rounded to int8 while it runs",
        ),
        (
            {
                "scheme": "low_rank",
                "rank": 32,
                "residual": "int4",
                "group_size": 64,
                "activations": "int4",
                "smoothing": True,
            },
            "a 16-bit branch of rank 32 beside int4 weights with a scale for groups of 64 input channels, "
            "inputs rounded to int4 while it runs, outliers of the inputs moved into the weights first",
        ),
        (
            {"scheme": "low_rank", "rank": 0, "residual": "nvfp4"},
            "nvfp4 weights with a scale for each output channel",
        ),
    ],
)
def test_every_scheme_in_words(treatment, said):
    document = {"name": "x-y", "backend": "x", "components": {"unet": {"default": treatment}}}
    full = parse_recipe(json.dumps(document)).document()
    assert words.treatment(full["components"]["unet"]["default"]) == said


def test_a_recipe_in_words(tmp_path):
    calibration = {
        "prompts": ["a", "b"],
        "seed": 7,
        "steps": 20,
        "recorded": 5,
        "guidance": 7.5,
        "width": 512,
        "height": 512,
    }
    document = {
        "name": "coreml-mine",
        "backend": "coreml",
        "components": {"unet": {"default": {"scheme": "palette", "bits": 6}, "token_merging": 0.4}},
        "calibration": calibration,
        "sizes": [[512, 512], [768, 512]],
        "attention": ["original", "split_einsum_v2"],
    }
    text = card(publication(tmp_path, recipe=parse_recipe(json.dumps(document)).document()), PACKAGES)
    for said in (
        "self-attention at the highest resolution merges 40% of its tokens",
        "- Calibrated on 2 prompts of 20 steps, 5 of them looked at (10 calls of the denoiser in all), ",
        "seeds from 7.",
        "- Fixed sizes in pixels: 512 × 512, 768 × 512.",
        "- Attention: original, split\\_einsum\\_v2.",
    ):
        assert said in text
