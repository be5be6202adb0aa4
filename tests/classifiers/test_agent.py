"""The agent's structure, its frozen head and its files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffcf.cards import AgentCard, ClassifierCard, Preparation
from diffcf.classifiers.agent import Agent, load_agent, save_agent
from diffcf.errors import CheckpointError, ConfigError


def teacher(slices: int, mode: str = "channels", features: int = 6, classes: int = 3, head: bool = True):
    card = ClassifierCard(Preparation(slices=slices), [str(i) for i in range(classes)], slice_mode=mode)
    return SimpleNamespace(card=card, head=nn.Linear(features, classes) if head else None)


@pytest.mark.parametrize("shape", [(5,), (5, 4, 4)])
@pytest.mark.parametrize("mode", ["channels", "average", "concatenate"])
def test_shapes_and_affinity(shape: tuple[int, ...], mode: str) -> None:
    agent = Agent.for_blackbox(teacher(2, mode), shape)
    a, b = torch.randn(2, 7, 2, *shape)
    agent.set_statistics(a)
    assert agent(a).shape == (7, 3)
    assert agent.features(a).shape == (7, 6)
    torch.testing.assert_close(agent(0.3 * a + 0.7 * b), 0.3 * agent(a) + 0.7 * agent(b), atol=1e-5, rtol=1e-4)


def test_structures_differ_as_the_black_boxes_do() -> None:
    codes = torch.randn(4, 2, 5)
    swapped = codes.flip(1)
    average = Agent.for_blackbox(teacher(2, "average"), (5,))
    torch.testing.assert_close(average(codes), average(swapped))
    concatenate = Agent.for_blackbox(teacher(2, "concatenate"), (5,))
    left, right = concatenate.features(codes).chunk(2, dim=1)
    torch.testing.assert_close(concatenate.features(swapped), torch.cat([right, left], dim=1))
    channels = Agent.for_blackbox(teacher(2, "channels"), (5,))
    assert not torch.allclose(channels(codes), channels(swapped))


def test_standardisation_makes_the_agent_blind_to_the_units_of_the_code() -> None:
    codes = torch.randn(50, 1, 4, 2, 2)
    unit = torch.tensor([1e-2, 1.0, 30.0, 5.0]).reshape(4, 1, 1)
    one, other = (Agent.for_blackbox(teacher(1), (4, 2, 2)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    one.set_statistics(codes)
    other.set_statistics(codes * unit + 3)
    torch.testing.assert_close(one(codes), other(codes * unit + 3), atol=1e-4, rtol=1e-4)
    x = one.inputs(codes).reshape(50, 4, 4)
    torch.testing.assert_close(x.mean((0, 2)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2), correction=0), torch.ones(4))


def test_a_channel_that_never_varies_is_ignored() -> None:
    codes = torch.randn(20, 1, 3)
    codes[..., 1] = 2.0
    agent = Agent.for_blackbox(teacher(1), (3,))
    agent.set_statistics(codes)
    moved = codes.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(agent(moved).sum(), moved)
    assert grad.isfinite().all()
    assert (grad[..., 1] == 0).all()
    assert (grad[..., 0] != 0).all()


def test_pooling_averages_positions() -> None:
    agent = Agent.for_blackbox(teacher(1), (3, 4, 4), pool=2)
    assert agent.linear.in_features == 12
    codes = torch.randn(2, 1, 3, 4, 4)
    shuffled = codes.clone()
    shuffled[..., 0, 0], shuffled[..., 1, 1] = codes[..., 1, 1], codes[..., 0, 0]
    torch.testing.assert_close(agent(codes), agent(shuffled))


def test_the_copied_head_is_frozen_and_stays_bit_for_bit() -> None:
    blackbox = teacher(1)
    agent = Agent.for_blackbox(blackbox, (5,))
    before = blackbox.head.weight.clone()
    optimiser = torch.optim.AdamW(agent.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        agent(torch.randn(4, 1, 5)).square().sum().backward()
        optimiser.step()
    assert agent.head.weight.grad is None
    assert torch.equal(agent.head.weight, before)
    assert torch.equal(blackbox.head.weight, before)
    assert agent.head.weight.data_ptr() != blackbox.head.weight.data_ptr()


def test_a_head_without_bias_is_copied_as_zero_bias() -> None:
    blackbox = teacher(1)
    blackbox.head = nn.Linear(6, 3, bias=False)
    assert torch.equal(Agent.for_blackbox(blackbox, (5,)).head.bias, torch.zeros(3))


def test_without_features_the_agent_has_a_head_of_its_own() -> None:
    agent = Agent.for_blackbox(teacher(2, head=False), (5,))
    assert agent.own_head
    assert agent.head.weight.requires_grad
    assert torch.equal(agent.head.weight, torch.eye(3))


@pytest.mark.parametrize("own", [False, True])
def test_saving_and_loading_keeps_everything(tmp_path, own: bool) -> None:
    agent = Agent.for_blackbox(teacher(2, "average", head=not own), (5, 4, 4), pool=2)
    codes = torch.randn(3, 2, 5, 4, 4)
    agent.set_statistics(codes)
    card = AgentCard(["a", "b", "c"], 2, "black", "gen", {"loss": "L1"})
    save_agent(agent, card, tmp_path)
    assert {"config.json", "card.yaml", "diffusion_pytorch_model.safetensors"} == {p.name for p in tmp_path.iterdir()}
    again = load_agent(tmp_path)
    assert again.card == card
    assert not again.training
    assert again.head.weight.requires_grad is own
    assert torch.equal(again(codes), agent(codes))


def test_refusals(tmp_path) -> None:
    agent = Agent.for_blackbox(teacher(2), (5,))
    with pytest.raises(ConfigError, match=r"\(b, 2, 5\)"):
        agent(torch.randn(3, 1, 5))
    with pytest.raises(ConfigError, match="divisible"):
        Agent(1, (5, 4, 4), 6, 2, pool=3)
    with pytest.raises(ConfigError, match="divisible"):
        Agent(1, (5,), 6, 2, pool=2)
    with pytest.raises(ConfigError, match="concatenated"):
        Agent(4, (5,), 6, 2, "concatenate")
    wrong = teacher(1)
    wrong.head = nn.Linear(6, 2)
    with pytest.raises(ConfigError, match="3 classes"):
        Agent.for_blackbox(wrong, (5,))
    with pytest.raises(CheckpointError, match=r"card\.yaml"):
        load_agent(tmp_path)


@pytest.mark.parametrize("shape", [(5,), (3, 2, 2)])
@pytest.mark.parametrize("mode", ["channels", "average", "concatenate"])
def test_covariance_times_gradient_is_the_dense_product(shape: tuple[int, ...], mode: str) -> None:
    agent = Agent.for_blackbox(teacher(2, mode), shape).double()
    codes = torch.randn(3000, 2, *shape, dtype=torch.float64)
    codes[:, 1] += 0.7 * codes[:, 0]  # slices of one patient go together
    codes = codes + torch.randn(3000, 2, 1, dtype=torch.float64).reshape(3000, 2, *[1] * len(shape))
    agent.set_statistics(codes)
    agent.set_patterns(codes)
    start = codes[:4].clone().requires_grad_(True)
    logits = agent(start)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits.logsumexp(1)).sum(), start)
    flat = codes.flatten(1)
    dense = (flat - flat.mean(0)).T @ (flat - flat.mean(0)) / len(flat)
    torch.testing.assert_close(agent.covariance(gradient).flatten(1), gradient.flatten(1) @ dense)


def test_the_pattern_is_what_goes_with_the_label_and_not_what_cancels_noise() -> None:
    """Haufe et al. 2014: signal in one channel, the same noise in both; weights (1, -1), but pattern (1, 0)."""
    signal, noise = torch.randn(2, 20000, 1, 1)
    codes = torch.cat([signal + noise, noise], 2)
    agent = Agent(1, (2,), 2, 2)
    with torch.no_grad():
        agent.linear.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
        agent.head.weight.copy_(torch.eye(2))
        agent.head.bias.zero_()
    agent.set_patterns(codes)
    pattern = agent.patterns[1, 0]
    assert abs(float(pattern[1] / pattern[0])) < 0.05


def test_without_patterns_there_is_no_covariance() -> None:
    with pytest.raises(ConfigError, match="no patterns"):
        Agent.for_blackbox(teacher(1), (3,)).covariance(torch.ones(1, 1, 3))
