"""The agent of attributes against black boxes whose every answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcf.cards import AttributesCard
from diffcf.classifiers.attribute_agent import AttributeAgent, features
from diffcf.errors import CheckpointError, ConfigError

NAMES, MEAN, SPREAD = ["size", "light", "round"], [10.0, 0.0, -3.0], [2.0, 0.5, 1.0]
CARD = AttributesCard(NAMES, MEAN, SPREAD, [-3.0] * 3, [3.0] * 3, "")
CLASSES = ["benign", "malignant", "other"]


def amounts(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)).double()


def told(amount: Tensor, noise: float = 0.0) -> Tensor:
    """Logits of three classes: one rises with the size, one with size times light, one with the square of round."""
    size, light, round_ = amount.T
    extra = noise * torch.randn(len(amount), 3, generator=torch.Generator().manual_seed(7)).double()
    return torch.stack([2 * size + 1, 1.5 * size * light, round_**2], 1) + 5 + extra


def fitted(noise: float = 0.0, count: int = 200) -> AttributeAgent:
    def rated(count: int, seed: int) -> tuple[Tensor, Tensor]:
        amount = amounts(count, seed)
        return torch.tensor(MEAN) + torch.tensor(SPREAD) * amount, told(amount, noise)

    return AttributeAgent.fit(CARD, CLASSES, "a hash", rated(count, 0), rated(100, 1))


def test_there_is_a_feature_for_every_amount_and_every_two_of_them() -> None:
    torch.testing.assert_close(features(torch.tensor([[2.0, 3.0]])), torch.tensor([[1.0, 2.0, 3.0, 4.0, 6.0, 9.0]]))


def test_a_black_box_that_is_quadratic_in_the_attributes_is_imitated() -> None:
    agent, fresh = fitted(), amounts(50, 2)
    # A penalty of 0.1 on 200 scans keeps it from being exact.
    torch.testing.assert_close(agent(fresh).softmax(1), told(fresh).softmax(1), atol=5e-3, rtol=0)
    torch.testing.assert_close(agent(fresh).sum(1), torch.zeros(50).double(), atol=1e-4, rtol=0)
    assert agent.card.about == {"explained": 1.0, "agrees": 1.0}


def test_the_card_says_how_much_is_not_explained() -> None:
    agent, fresh = fitted(noise=3.0, count=4000), amounts(100, 1)
    logits = told(fresh, 3.0)
    wanted = logits - logits.mean(1, keepdim=True)
    left = (agent(fresh) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert agent.card.about["explained"] == pytest.approx(1 - float(left), abs=1e-3)
    assert 0.2 < agent.card.about["explained"] < 0.6
    agrees = (agent(fresh).argmax(1) == logits.argmax(1)).double().mean()
    assert agent.card.about["agrees"] == pytest.approx(float(agrees), abs=1e-3)


def test_gradients_reach_the_amounts() -> None:
    assert torch.autograd.gradcheck(fitted(), amounts(4, 3).requires_grad_())


def test_it_is_read_as_it_was_written(tmp_path) -> None:
    agent = fitted()
    agent.save(tmp_path / "agent")
    again = AttributeAgent.load(tmp_path / "agent")
    assert again.card == agent.card
    assert torch.equal(again.weight, agent.weight)
    AttributeAgent(agent.card, agent.weight[:, :2]).save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match=r"weight of shape \(10, 3\)"):
        AttributeAgent.load(tmp_path / "agent")
    (tmp_path / "agent" / "agent.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        AttributeAgent.load(tmp_path / "agent")


def test_too_few_scans_are_refused() -> None:
    with pytest.raises(ConfigError, match="10 rated scans for 10 features of 3 attributes"):
        fitted(count=10)
