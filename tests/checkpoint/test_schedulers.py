"""Schedules are drawn once, with a model that predicts zeros, before they are taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint.checkpoint import Source
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.known import SCHEDULERS
from sdhub.checkpoint.load import load
from sdhub.checkpoint.schedulers import draw_nothing
from sdhub.checkpoint.values import TIMESTEPS
from sdhub.core.errors import SourceError
from tests.checkpoint.tiny import copy_demo

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, about diffusers
@pytest.mark.parametrize(
    "settings", [{}, SD, {**SD, "use_karras_sigmas": True}, {"num_train_timesteps": TIMESTEPS}]
)
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_draws_with_its_own_settings(name: str, settings: dict[str, Any]) -> None:
    try:
        scheduler = getattr(diffusers, name).from_config(settings)
    except ImportError:
        pytest.skip("its package is missing")
    state = torch.random.get_rng_state()
    for steps in (4, 25, 50):
        draw_nothing(scheduler, steps)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_flow_matching_that_shifts_with_the_size_draws() -> None:
    draw_nothing(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_train_timesteps": 2}, rf"num_train_timesteps is 2, not a whole number from {TIMESTEPS} to"),
        ({"trained_betas": [0.1, 0.2]}, "scheduler_config.json of model makes no DDIMScheduler that draws"),
        ({"trained_betas": [1.0] * 1000}, "not finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings: dict[str, Any], match: str, tmp_path: Path) -> None:
    root = copy_demo(tmp_path / "model")
    path = root / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(SourceError, match=match):
        load(inspect(Source("folder", str(root))), root)
