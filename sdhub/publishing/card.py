"""The card (README.md) of a published variant: from checkpoint, recipe and evidence, and nothing else.

The front matter is written by huggingface_hub's `ModelCardData` alone. In the body every printed value is
escaped (see `sdhub.publishing.markdown`); a section is a template of its own in `templates/card/`. The same
inputs give the same bytes: no dates, no order by chance.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from sdhub.core.beside import folder_beside
from sdhub.core.errors import CheckError
from sdhub.evidence.budget import WELL
from sdhub.publishing import markdown, words
from sdhub.publishing.front_matter import front_matter
from sdhub.publishing.package import Package
from sdhub.publishing.publication import Publication, Sibling, prompts_of

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = folder_beside("templates")
REPOSITORY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
BRANCH = re.compile(r"[A-Za-z0-9_.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
USE = "use"
SECTIONS = {
    "": "first",
    "Use it": USE,
    "Variants": "variants",
    "Evidence": "evidence",
    "Recipe": "recipe",
    "Provenance": "provenance",
    "Packages": "packages",
    "Limits": "limits",
    "Licence": "license",
}
MEASURED = {
    "psnr_db": "likeness of the pictures (PSNR)",
    "ssim": "likeness of the pictures (SSIM)",
    "latent_psnr_db": "likeness of the latents",
    "bytes": "size",
    "base_bytes": "size of the base",
    "peak_mib": "peak memory of the variant",
    "base_peak_mib": "peak memory of the base",
}


def card(publication: Publication, packages: Sequence[Package] = (), bundles: Sequence[Package] = ()) -> str:
    """The whole README.md; `packages` lie in `packages/`, `bundles` at the top."""
    context, environment = _context(publication, packages, bundles), _environment()
    parts = [f"---\n{front_matter(publication)}\n---"]
    for title, template in SECTIONS.items():
        body = environment.get_template(f"card/{template}.md.j2").render(context).strip()
        if template != USE:  # elsewhere no value has line breaks; there they are the user's
            body = re.sub(r"\n{3,}", "\n\n", body)
        if body:
            parts.append(f"## {title}\n\n{body}" if title else body)
    return "\n\n".join(parts) + "\n"


def index_card(publication: Publication, rows: Sequence[Sibling]) -> str:
    """The README.md on `main` of a repository whose variants are branches; `rows` are those variants.

    `publication` is that of any of them.
    """
    context = {
        "title": publication.repo_id.rpartition("/")[2],
        "source": markdown.link(markdown.code(publication.checkpoint.id), publication.source_url),
        "siblings": [{**row, "here": False} for row in _siblings(publication, rows)],
        "license_words": _license_words(publication),
        "access": _access(publication),
    }
    body = _environment().get_template("card/index.md.j2").render(context).strip()
    body = re.sub(r"\n{3,}", "\n\n", body)
    return f"---\n{front_matter(publication, evaluated=False)}\n---\n\n{body}\n"


PARTS = {  # of a picture's seconds
    "encode": "text encoders",
    "steps": "denoiser, all steps",
    "decode": "autoencoder",
    "all": "the picture",
}


@cache
def card_revision() -> str:
    """Changes when the templates do, so that kept cards are written anew."""
    found = hashlib.sha256(b"1")
    for path in sorted((TEMPLATES / "card").glob("*.j2")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def extract_usage(card_text: str) -> str:
    """The Python lines of the section "Use it". Raises CheckError where there are none."""
    from markdown_it import MarkdownIt

    body = re.sub(r"\A---\n.*?\n---\n", "", card_text, count=1, flags=re.DOTALL)
    inside = False
    tokens = MarkdownIt("commonmark").parse(body)
    for token, following in zip_longest(tokens, tokens[1:]):
        if token.type == "heading_open":
            inside = token.tag == "h2" and following is not None and following.content == "Use it"
        if inside and token.type == "fence" and token.info == "python":
            return token.content
    raise CheckError('the card has no Python lines under "Use it"')


def _context(publication: Publication, packages: Sequence[Package], bundles: Sequence[Package]) -> dict[str, Any]:
    checkpoint, evidence = publication.checkpoint, _figures(publication.evidence)
    latency = _figures(evidence["latency"])
    return {
        "name": publication.name,
        "summary": _summary(publication),
        "contact_sheet": "evidence/contact_sheet.png" if publication.contact_sheet else None,
        "pictures": publication.pictures,
        "curve": "evidence/curve.png" if "curve.png" in publication.pictures else None,
        "install": publication.install,
        "usage": publication.usage,
        "evidence": evidence,
        "latency": latency,
        "settings": _pairs(latency["settings"]),
        "ran": _ran(evidence),
        "kernels": evidence["kernels"],
        "size_ratio": _size_ratio(evidence),
        "speed": _speed(latency.get("ratio")),
        "prompts": [_figures(each) for each in prompts_of(evidence)],
        "sampling": _figures(evidence["sampling"]),
        "reduced": _reduced(evidence),
        "picture": _picture_seconds(evidence),
        "scheduler": _scheduler(publication),
        "machine": _pairs(evidence.get("machine")),
        "not_measured": _not_measured(evidence),
        "noise": _noise(_mapping(evidence["noise_snr"])),
        "nearest": _figures(evidence["nearest"]),
        "subject": _figures(evidence["subject"]),
        "components": _components(publication.recipe),
        "recipe_notes": words.recipe_notes(publication.recipe),
        "siblings": _siblings(publication, publication.siblings),
        "access": _access(publication),
        "texts": [notice.name for notice in publication.notices],
        "recipe_sha256": publication.recipe_sha256,
        **_provenance(publication),
        "packages": packages,
        "bundles": bundles,
        "stand_in": publication.checks == "sdhub",
        "notes": publication.notes,
        "safety_checker": (publication.folder / "safety_checker").is_dir()
        or any(each.kind == "safety_checker" for each in checkpoint.companions),
        "prediction_type": checkpoint.prediction_type,
        "traits": checkpoint.traits,
        "license_words": _license_words(publication),
        "license_file": publication.license_target,
    }


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 — `finalize` escapes every value, for Markdown rather than HTML
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=markdown.text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        code=markdown.code,
        cell=markdown.cell,
        fence=markdown.fence,
        path=lambda value: markdown.Markdown(markdown.safe_url(value) or ""),
        link=lambda label, url: markdown.link(markdown.Markdown(label), url),
        figure=words.figure,
        significant=words.significant,
        times=words.times,
        size=words.size,
        psnr=words.psnr,
    )
    return environment


def _summary(publication: Publication) -> markdown.Markdown:
    base = markdown.link(markdown.code(publication.checkpoint.id), publication.source_url)
    return markdown.Markdown(
        f"{base} as {markdown.code(publication.variant)}: {markdown.text(publication.description.rstrip('.'))}."
    )


def _noise(snr: Mapping[str, Any]) -> dict[str, Any] | None:
    """The noise SNR in words, where there is one."""
    points = snr.get("points")
    if not isinstance(points, list) or not points:
        return None
    words_of = {
        key: "identical" if snr.get(f"{key}_db") is None else words.figure(snr[f"{key}_db"], 1, "dB")
        for key in ("median", "worst")
    }
    return {**words_of, "points": len(points)}


def _reduced(evidence: Mapping[str, Any]) -> dict[str, Any] | None:
    """How users draw, and the minutes that evidence could take, where it was drawn in less."""
    sampling, usual = _mapping(evidence.get("sampling")), _mapping(evidence.get("usual"))
    minutes = words.number(_mapping(evidence.get("budget")).get("minutes"))
    if minutes is None or not usual or all(sampling.get(name) == value for name, value in usual.items()):
        return None
    small = (words.number(sampling.get("width")) or 0) < WELL * (words.number(usual.get("width")) or 0)
    return {**_figures(usual), "minutes": minutes, "small": small}


def _picture_seconds(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of a picture's seconds: a part, and what it takes in the variant and in the base."""
    seconds = _mapping(evidence.get("picture_seconds"))
    base, variant = (_mapping(seconds.get(side)) for side in ("base", "variant"))
    return [
        {"name": name, "variant": variant.get(part), "base": base.get(part)}
        for part, name in PARTS.items()
        if part in base and part in variant
    ]


def _size_ratio(evidence: Mapping[str, Any]) -> str:
    ours, base = words.number(evidence.get("bytes")), words.number(evidence.get("base_bytes"))
    return f"{ours / base:.0%} of the base" if ours is not None and base else words.NOT_MEASURED


def _speed(ratio: Any) -> str:
    known = words.number(ratio)
    return f"{words.times(known)} the speed of the base" if known else words.NOT_MEASURED


def _scheduler(publication: Publication) -> str | None:
    part = publication.checkpoint.component("scheduler")
    return part.class_name if part else None


def _components(recipe: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name, component in sorted(_mapping(recipe.get("components")).items()):
        settings = _mapping(component)
        default = "; ".join(
            filter(None, [words.treatment(_mapping(settings.get("default"))), words.merging(settings)])
        )
        rows.append({"name": name, "words": default, "exceptions": words.exceptions(settings)})
    return rows


def _provenance(publication: Publication) -> dict[str, Any]:
    checkpoint = publication.checkpoint
    source = markdown.link(markdown.cell(checkpoint.id), publication.source_url)
    pinned = checkpoint.sha if checkpoint.sha and COMMIT.fullmatch(checkpoint.sha) else None
    commit_url = publication.source_commit_url
    return {
        "source": source,
        "identity_label": "Commit" if pinned else "SHA-256 of its files",
        "identity": markdown.link(markdown.cell(pinned), commit_url)
        if pinned
        else markdown.cell(publication.identity),
        "family": checkpoint.family.title,
        "loras": checkpoint.loras,
        "versions": _pairs(publication.versions),
    }


def _siblings(publication: Publication, siblings: Sequence[Sibling]) -> list[dict[str, Any]]:
    """Rows of the table of variants."""
    rows = []
    for each in siblings:
        figures = _figures(each.figures)
        place = f"{each.repo_id}, branch {each.branch}" if each.branch else each.repo_id
        rows.append(
            {
                "variant": each.variant,
                "here": (each.repo_id, each.branch) == (publication.repo_id, publication.branch),
                "place": markdown.link(markdown.cell(place), _page(publication.hub, each)),
                "bytes": figures["bytes"],
                "speed": words.times(_figures(figures["latency"])["ratio"]),
                "psnr": words.psnr(figures),
                "ssim": figures["ssim"],
            }
        )
    return rows


def _page(hub: str | None, sibling: Sibling) -> str | None:
    """A variant's page on a Hub that stays; none for names that are no names."""
    if not hub or not REPOSITORY.fullmatch(sibling.repo_id):
        return None
    page = f"{hub.rstrip('/')}/{sibling.repo_id}"
    if sibling.branch is None:
        return page
    return f"{page}/tree/{sibling.branch}" if BRANCH.fullmatch(sibling.branch) else None


def _access(publication: Publication) -> markdown.Markdown | None:
    """A sentence about a source that is not open to all."""
    checkpoint = publication.checkpoint
    if not checkpoint.gated:
        return None
    source = markdown.link(markdown.code(checkpoint.id), publication.source_url)
    return markdown.Markdown(
        f"The source, {source}, is gated: those who use this variant have to accept its terms there first."
    )


def _license_words(publication: Publication) -> markdown.Markdown:
    license = publication.license
    name = markdown.code(license.name or license.id)
    return markdown.Markdown(f"Licence: {markdown.link(name, publication.license_link)}.")


def _ran(evidence: Mapping[str, Any]) -> str:
    """What base and variant were drawn on and in, where the evidence says so."""
    device, kind = _mapping(evidence["device"]), _mapping(evidence["precision"])
    if not all(side in each for side in ("base", "variant") for each in (device, kind)):
        return ""
    told = f"The base was drawn on {_where(device['base'])} in {kind['base']}"
    return f"{told}, the variant on {_where(device['variant'])} in {kind['variant']}"


def _where(device: Any) -> str:
    return "the CPU" if device == "cpu" else str(device)


def _not_measured(evidence: Mapping[str, Any]) -> list[str]:
    missing = [
        label
        for key, label in MEASURED.items()
        if words.number(evidence.get(key)) is None
        and not (key.endswith("psnr_db") and words.identical(evidence, key))
    ]
    if words.number(_mapping(evidence.get("latency")).get("ratio")) is None:
        missing.append("speed")
    return missing


def _figures(value: Any) -> Mapping[str, Any]:
    """A part of the evidence, in which what is missing is None, as is what was not measured."""
    return defaultdict(lambda: None, _mapping(value))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _pairs(value: Any) -> list[tuple[str, Any]]:
    return [(str(key), each) for key, each in sorted(_mapping(value).items()) if each is not None]
