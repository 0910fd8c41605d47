"""Layers with the same inputs are looked at once: told by their names, checked on what really comes in."""

import pytest
import torch

from sdhub.backends.input_statistics import shared_inputs


def inputs_of(unet, layers):
    """What every layer is given in one call."""
    given = {}
    handles = [
        unet.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: given.__setitem__(name, args[0].clone())
        )
        for name in layers
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        unet(torch.randn(2, 4, 8, 8, generator=generator), 10, torch.randn(2, 5, 16, generator=generator))
    for handle in handles:
        handle.remove()
    return given


@pytest.mark.parametrize("changes", [{}, {"only_cross_attention": True}])
def test_layers_that_share_really_have_the_same_inputs(changes):
    from tests.checkpoint.tiny import tiny_unet

    unet = tiny_unet(**changes)
    layers = [name for name, part in unet.named_modules() if isinstance(part, torch.nn.Linear)]
    leaders = shared_inputs(unet, layers)
    given = inputs_of(unet, layers)
    for name, leader in leaders.items():
        assert leaders[leader] == leader
        assert torch.equal(given[name], given[leader]), name
    saved = len(layers) - len(set(leaders.values()))
    blocks = sum(name.endswith("attn2.to_q") for name in layers)
    assert saved == blocks * (2 if changes else 3)


def test_text_encoders_share_too():
    from tests.checkpoint.tiny import tiny_text_encoder

    encoder = tiny_text_encoder()
    layers = [name for name, part in encoder.named_modules() if isinstance(part, torch.nn.Linear)]
    leaders = shared_inputs(encoder, layers)
    assert len(layers) - len(set(leaders.values())) == 2 * 2
