"""Distillation against closed forms: a teacher that is linear in the code, scikit-learn's ridge, KL by hand."""

from __future__ import annotations

import math

import pytest
import torch
from einops import rearrange
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.agent import Agent
from diffcf.distillation import (
    KL,
    L1,
    MSE,
    Distillation,
    DistillationSet,
    Observation,
    augment_with_edits,
    distillation_set,
    edit_towards_margin,
    evaluate_loss,
    fit_ridge,
    observe,
)
from diffcf.errors import ConfigError
from diffcf.types import Code


class LinearTeacher(nn.Module):
    """A black box that is affine in a code which is itself affine in the image."""

    def __init__(self, mode: str, slices: int = 2, size: int = 4, features: int = 6, head: bool = True) -> None:
        super().__init__()
        pixels = size * size
        self.mode = mode
        self.layer = nn.Linear(pixels * slices if mode == "channels" else pixels, features)
        width = features * slices if mode == "concatenate" else features
        self.last = nn.Linear(width, 2)
        self.head = self.last if head else None
        self.card = ClassifierCard(Preparation(size=size, slices=slices), ["no", "yes"], slice_mode=mode)

    def features(self, image: Tensor) -> Tensor:
        if self.mode == "channels":
            return self.layer(rearrange(image, "b s c h w -> b (s c h w)"))
        each = self.layer(rearrange(image, "b s c h w -> b s (c h w)"))
        return each.mean(1) if self.mode == "average" else rearrange(each, "b s f -> b (s f)")

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.features(image))


def encode_semantic(image: Tensor) -> Tensor:
    """An invertible linear "encoder": the image itself, in odd units."""
    flat = rearrange(image, "b s c h w -> b s (c h w)")
    return 3 * flat * torch.linspace(0.1, 4, flat.shape[-1]) + 1


def decode(code: Code) -> Tensor:
    scaled = (code.semantic - 1) / 3 / torch.linspace(0.1, 4, code.semantic.shape[-1])
    return rearrange(scaled, "b s (c h w) -> b s c h w", c=1, h=4)


def make_set(blackbox: LinearTeacher, n: int, views: str = "none") -> DistillationSet:
    images = torch.rand(n, 2, 1, 4, 4) * 2 - 1
    return distillation_set(images.split(16), encode_semantic, lambda x: observe(blackbox, x), views=views)


@pytest.mark.parametrize("mode", ["channels", "average", "concatenate"])
@pytest.mark.parametrize("head", [True, False])
def test_a_teacher_linear_in_the_code_is_recovered(mode: str, head: bool) -> None:
    blackbox = LinearTeacher(mode, head=head)
    train, val, test = make_set(blackbox, 200), make_set(blackbox, 30), make_set(blackbox, 30)
    agent = Agent.for_blackbox(blackbox, (16,))
    agent.set_statistics(train.semantic)
    assert fit_ridge(agent, train, val, [0.0, 1e4]) == 0.0
    assert evaluate_loss(agent, test, KL()) < 1e-7  # float32 rounding
    with torch.no_grad():
        torch.testing.assert_close(agent(test.semantic), test.teacher.logits, atol=1e-4, rtol=1e-3)
    if head:
        assert evaluate_loss(agent, test, MSE()) < 1e-8


@pytest.mark.parametrize("loss", [L1(), MSE(), KL()])
def test_gradient_descent_on_every_loss_approaches_the_linear_teacher(loss: L1 | MSE | KL) -> None:
    blackbox = LinearTeacher("channels")
    train, test = make_set(blackbox, 256), make_set(blackbox, 64)
    agent = Agent.for_blackbox(blackbox, (16,))
    agent.set_statistics(train.semantic)
    start = evaluate_loss(agent, test, KL())
    module = Distillation(agent, loss)
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-2)
    head = agent.head.weight.clone()
    for step in range(300):
        for group in optimiser.param_groups:
            group["lr"] = 3e-2 * (1 - step / 300)
        optimiser.zero_grad()
        module(**train.tensors()).backward()
        optimiser.step()
    assert evaluate_loss(agent, test, KL()) < min(1e-4, start / 10)
    assert torch.equal(agent.head.weight, head)


@pytest.mark.parametrize("n", [20, 60])  # fewer and more codes than coordinates
def test_ridge_equals_scikit_learn(n: int) -> None:
    blackbox = LinearTeacher("channels")
    train = make_set(blackbox, n)
    noisy = train.teacher.features + torch.randn_like(train.teacher.features)
    train = DistillationSet(train.semantic, Observation(noisy, train.teacher.logits))
    agent = Agent.for_blackbox(blackbox, (16,))
    agent.set_statistics(train.semantic)
    fit_ridge(agent, train, train, [7.0])
    x = agent.inputs(train.semantic)[:, 0].double().numpy()
    reference = Ridge(alpha=7.0).fit(x, noisy.double().numpy())
    torch.testing.assert_close(
        agent.linear.weight.detach().double(), torch.from_numpy(reference.coef_), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        agent.linear.bias.detach().double(), torch.from_numpy(reference.intercept_), atol=1e-6, rtol=1e-5
    )


def test_ridge_keeps_the_penalty_that_agrees_best_on_validation() -> None:
    blackbox = LinearTeacher("channels")
    train, val = make_set(blackbox, 24), make_set(blackbox, 100)
    noisy = Observation(train.teacher.features + torch.randn_like(train.teacher.features), train.teacher.logits)
    train = DistillationSet(train.semantic, noisy)
    agent = Agent.for_blackbox(blackbox, (16,))
    agent.set_statistics(train.semantic)
    reached = {}
    for penalty in (1e-3, 10.0, 1e5):
        fit_ridge(agent, train, val, [penalty])
        reached[penalty] = evaluate_loss(agent, val, KL())
    assert fit_ridge(agent, train, val, list(reached)) == min(reached, key=reached.get)
    assert evaluate_loss(agent, val, KL()) == pytest.approx(min(reached.values()))


def test_losses_by_hand() -> None:
    p, q = 0.8, 0.6
    teacher = Observation(torch.tensor([[1.0, 2.0]]), torch.tensor([[math.log(p), math.log(1 - p)]]) + 5)
    student = Observation(torch.tensor([[1.5, 4.0]]), torch.tensor([[math.log(q), math.log(1 - q)]]) - 2)
    assert float(KL()(student, teacher)) == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert float(L1()(student, teacher)) == pytest.approx(1.25)
    assert float(MSE()(student, teacher)) == pytest.approx(2.125)


def test_kl_of_k_classes_is_averaged_over_the_batch() -> None:
    a, b = torch.randn(2, 9, 4, dtype=torch.float64)
    p, q = a.softmax(1), b.softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(KL()(Observation(None, b), Observation(None, a)), expected)


def test_feature_losses_are_refused_without_features() -> None:
    agent = Agent.for_blackbox(LinearTeacher("channels", head=False), (16,))
    for loss in (L1(), MSE()):
        with pytest.raises(ConfigError, match="KL loss"):
            Distillation(agent, loss)
    Distillation(agent, KL())


def test_views_are_labelled_anew_by_the_black_box() -> None:
    blackbox = LinearTeacher("channels")
    image = torch.rand(3, 2, 1, 4, 4)
    data = distillation_set([image], encode_semantic, lambda x: observe(blackbox, x), views="mirror")
    assert len(data) == 6
    torch.testing.assert_close(data.teacher.logits[3:], blackbox(image.flip(-1)).detach())
    torch.testing.assert_close(data.semantic[3:], encode_semantic(image.flip(-1)))


def test_observe_is_what_the_black_box_says() -> None:
    image = torch.rand(3, 2, 1, 4, 4)
    for head in (True, False):
        blackbox = LinearTeacher("average", head=head)
        seen = observe(blackbox, image)
        torch.testing.assert_close(seen.logits, blackbox(image).detach())
        assert (seen.features is not None) == head
        assert not seen.logits.requires_grad


def test_sets_round_trip_and_join() -> None:
    data = make_set(LinearTeacher("channels"), 5)
    both = DistillationSet.join([data, DistillationSet.from_tensors(data.tensors())])
    assert len(both) == 10
    assert torch.equal(both.semantic[5:], data.semantic)
    with pytest.raises(ConfigError, match="no images"):
        distillation_set([], encode_semantic, lambda x: Observation(None, x))


def test_an_edit_reaches_the_asked_margin() -> None:
    blackbox = LinearTeacher("channels")
    data = make_set(blackbox, 40)
    agent = Agent.for_blackbox(blackbox, (16,))
    agent.set_statistics(data.semantic)
    agent.set_patterns(data.semantic)
    target = torch.randint(2, (40,))
    margin = torch.linspace(-5, 5, 40)
    with torch.no_grad():
        logits = agent(edit_towards_margin(agent, data.semantic, target, margin))
    index = torch.arange(40)
    torch.testing.assert_close(logits[index, target] - logits[index, 1 - target], margin, atol=1e-3, rtol=1e-3)


def test_a_flat_agent_moves_nothing() -> None:
    agent = Agent.for_blackbox(LinearTeacher("channels"), (16,))
    nn.init.zeros_(agent.linear.weight)
    codes = torch.randn(3, 2, 16)
    assert torch.equal(edit_towards_margin(agent, codes, torch.tensor([0, 1, 0]), torch.ones(3)), codes)


@pytest.mark.parametrize("carry", [False, True])
def test_edits_are_labelled_by_the_black_box_on_their_decoded_image(carry: bool) -> None:
    blackbox = LinearTeacher("channels")
    image = torch.rand(6, 2, 1, 4, 4) * 0.4 - 0.2
    code = Code(encode_semantic(image))
    agent = Agent.for_blackbox(blackbox, (16,))
    agent.set_statistics(code.semantic)
    agent.set_patterns(code.semantic)
    spoiled = image + 0.1  # what the generator did not encode comes back only with residual carry

    def edits() -> DistillationSet:
        return augment_with_edits(
            agent, [(spoiled, code)], decode, lambda x: observe(blackbox, x), margins=(-1, 1), residual_carry=carry
        )

    data = edits()
    shown = decode(Code(data.semantic)) + (0.1 if carry else 0.0)
    with torch.no_grad():
        torch.testing.assert_close(data.teacher.logits, blackbox(shown.clamp(-1, 1)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(data.semantic, code.semantic)
    assert torch.equal(edits().semantic, data.semantic)
