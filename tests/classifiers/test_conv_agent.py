"""The convolutional agent: shapes, statistics, files, and that it learns what a linear one cannot."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from diffcf.cards import AgentCard, ClassifierCard, Preparation
from diffcf.classifiers.agent import load_agent, save_agent
from diffcf.classifiers.conv_agent import ConvAgent
from diffcf.errors import CheckpointError, ConfigError

CARD = AgentCard(["no", "yes"], 2, "b" * 64, "g" * 64)


def teacher(slices: int = 2) -> SimpleNamespace:
    return SimpleNamespace(card=ClassifierCard(Preparation(slices=slices), ["no", "yes"]), head=None)


def test_shapes_and_statistics() -> None:
    codes = 5 + 3 * torch.randn(6, 2, 4, 8, 8)
    agent = ConvAgent.for_blackbox(teacher(), (4, 8, 8), width=8).eval()
    agent.set_statistics(codes)
    assert agent(codes).shape == (6, 2)
    assert agent.features(codes).shape == (6, 2 * 8 * 4)
    torch.testing.assert_close(agent.mean, codes.mean((0, 1, 3, 4)))
    assert agent.scale.shape == (4, 1, 1)
    other = ConvAgent.for_blackbox(teacher(), (4, 8, 8), width=8).eval()
    other.load_state_dict(agent.state_dict())
    other.set_statistics(10 * codes - 7)  # another unit of the code changes nothing
    torch.testing.assert_close(other(10 * codes - 7), agent(codes), atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="linear agent"):
        ConvAgent.for_blackbox(teacher(), (512,), width=8)
    with pytest.raises(ConfigError, match="divisible by 4"):
        ConvAgent.for_blackbox(teacher(), (4, 6, 6), width=8)
    with pytest.raises(ConfigError, match="multiple of 8"):
        ConvAgent.for_blackbox(teacher(), (4, 8, 8), width=12)
    agent = ConvAgent.for_blackbox(teacher(), (4, 8, 8), width=8)
    with pytest.raises(ConfigError, match="this agent reads"):
        agent(torch.randn(1, 1, 4, 8, 8))
    with pytest.raises(ConfigError, match="latent"):
        agent.covariance(torch.randn(1, 2, 4, 8, 8))


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded(tmp_path, half: bool) -> None:
    agent = ConvAgent.for_blackbox(teacher(), (4, 8, 8), width=8).eval()
    codes = torch.randn(3, 2, 4, 8, 8)
    agent.set_statistics(codes)
    save_agent(agent, CARD, tmp_path / "agent", half=half)
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, ConvAgent)
    assert not again.training
    assert again.card == CARD
    assert next(again.parameters()).dtype == torch.float32
    torch.testing.assert_close(again(codes), agent(codes), atol=1e-2 if half else 0, rtol=0)
    text = (tmp_path / "agent" / "config.json").read_text()
    (tmp_path / "agent" / "config.json").write_text(text.replace("ConvAgent", "Trojan"))
    with pytest.raises(CheckpointError, match="Trojan"):
        load_agent(tmp_path / "agent")


def test_it_learns_what_no_linear_reader_can() -> None:
    """Whether two places have the same sign: linear in no code."""
    torch.manual_seed(0)
    codes = torch.randn(256, 2, 4, 8, 8)
    logits = 4 * F.one_hot((codes[:, 0, 0, 2, 2] * codes[:, 0, 0, 2, 3] > 0).long(), 2).float()

    def fit(agent) -> float:
        agent.set_statistics(codes)
        weights = [weight for weight in agent.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=3e-3)
        for _ in range(60):
            loss = F.cross_entropy(agent(codes), logits.argmax(1))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            return float((agent.eval()(codes).argmax(1) == logits.argmax(1)).float().mean())

    assert fit(ConvAgent.for_blackbox(teacher(), (4, 8, 8), width=16)) > 0.95
    # Neither place alone says anything about it.
    pooled = torch.stack([codes[:, 0, 0, 2, 2], codes[:, 0, 0, 2, 3]], 1)
    assert abs(float(torch.corrcoef(torch.cat([pooled, logits[:, 1:]], 1).T)[2, :2].abs().max())) < 0.15
