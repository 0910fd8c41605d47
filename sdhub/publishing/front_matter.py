"""The front matter of a card, written by huggingface_hub's `ModelCardData` alone."""

from __future__ import annotations

from typing import Any

from sdhub.publishing import words
from sdhub.publishing.markdown import plain
from sdhub.publishing.publication import Publication, prompts_of


def front_matter(publication: Publication, *, evaluated: bool = True) -> str:
    """The YAML of the card, without its `---` lines; with its figures where `evaluated`."""
    from huggingface_hub import ModelCardData

    license = publication.license
    base = publication.base_model
    gate: dict[str, Any] = {key: _text(value) for key, value in sorted(publication.checkpoint.gate.items())}
    data = ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base else None,
        library_name=plain(publication.library),
        pipeline_tag="text-to-image",
        license=plain(license.id),
        license_name=plain(license.name) if license.name else None,
        license_link=publication.license_link,
        tags=[plain(tag) for tag in publication.tags],
        model_name=publication.name,
        eval_results=(_eval_results(publication) if evaluated else []) or None,
        **gate,
    )
    if not data.eval_results:
        data.pop("model_name")
    return data.to_yaml()


def _text(value: str) -> str:
    """Several lines without control, format and bidirectional characters."""
    return "\n".join(plain(line, 2000) for line in value.splitlines())


def _eval_results(publication: Publication) -> list[Any]:
    from huggingface_hub import EvalResult

    evidence = publication.evidence
    prompts = len(prompts_of(evidence))
    metrics = (
        ("psnr", "PSNR of pictures against the base (dB)", "psnr_db"),
        ("ssim", "SSIM against the base", "ssim"),
    )
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_name=f"{prompts} {'prompt' if prompts == 1 else 'prompts'} of evidence/evidence.json",
            metric_type=kind,
            metric_name=name,
            metric_value=words.number(evidence.get(key)),
        )
        for kind, name, key in metrics
        if words.number(evidence.get(key)) is not None
    ]
