"""Hierarchical alignment: its two counterfactuals against what is known of them, and whose weights they reach."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffcf.alignment.hierarchy import (
    EDGE,
    Chances,
    Decider,
    HierarchicalAlignment,
    HierarchicalTerms,
    LogOdds,
    Perceiver,
    hierarchy_of,
    of_flipped,
    of_found,
    row_of,
)
from diffcf.alignment.loss import AlignmentLoss, Inner
from diffcf.alignment.methods import Batch, TrainingLoss
from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.blackbox import load_blackbox, save_blackbox
from diffcf.classifiers.network import SlicedClassifier, build_classifier
from diffcf.errors import CheckpointError, ConfigError
from diffcf.implicit import Detached, GaussNewton, Implicit, ProximalSteps

NAMES = ["round", "large", "bright"]
CARD = ClassifierCard(
    preparation=Preparation(size=16, slices=2, field="resize"),
    classes=["no", "yes"],
    architecture="diffcf_hierarchical",
    architecture_args={"attributes": NAMES, "hidden": 8, "backbone_args": {"width": 4}},
    mean=0.1,
    std=0.5,
)


@pytest.fixture
def classifier() -> SlicedClassifier:
    torch.manual_seed(0)
    return build_classifier(CARD).double()


@pytest.fixture
def batch() -> Batch:
    drawn = torch.Generator().manual_seed(1)
    image = torch.rand(6, 2, 1, 16, 16, generator=drawn, dtype=torch.float64) * 1.6 - 0.8
    region = torch.zeros_like(image)
    region[..., 4:10, 5:12] = 1
    attributes = torch.randint(0, 2, (6, 3), generator=drawn).double()
    causes = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    return Batch(image, torch.tensor([0, 1, 0, 1, 1, 0]), region, attributes, causes)


def test_the_label_is_decided_by_the_attributes_alone(classifier, batch, tmp_path: Path) -> None:
    image = batch.image
    attributes = Perceiver(classifier)(image)
    assert attributes.shape == (6, 3)
    assert torch.allclose(Decider(classifier)(row_of(attributes.sigmoid())), classifier(image))
    assert torch.allclose(classifier.head(classifier.features(image)), classifier(image))
    assert hierarchy_of(classifier).attributes == tuple(NAMES)
    save_blackbox(classifier.float(), CARD, tmp_path / "blackbox")
    loaded = load_blackbox(tmp_path / "blackbox")
    assert torch.equal(loaded(image.float()), classifier(image.float()))
    assert torch.equal(Perceiver(loaded)(image.float()), Perceiver(classifier)(image.float()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attributes": []}, "one or more different names"),
        ({"attributes": ["a", "a"]}, "one or more different names"),
        ({"attributes": ["a"], "hidden": 0}, "units"),
        ({"attributes": ["a"], "backbone_args": {"pretrained": True}}, "backbone_args holds pretrained"),
        ({"attributes": ["a"], "backbone": "no_such_network"}, "no_such_network"),
    ],
)
def test_what_the_architecture_refuses(changes, said) -> None:
    with pytest.raises(CheckpointError, match=said):
        build_classifier(dataclasses.replace(CARD, architecture_args=changes))


def test_a_classifier_without_attributes_is_refused(small) -> None:
    with pytest.raises(ConfigError, match="does not decide by attributes"):
        HierarchicalAlignment().terms(small())
    flat = dataclasses.replace(CARD, architecture="diffcf_cnn7", architecture_args={"width": 4})
    with pytest.raises(ConfigError, match="diffcf_hierarchical"):
        Perceiver(build_classifier(flat))


def decide_by_first(classifier: SlicedClassifier) -> None:
    """Make the decider one that reads the first attribute alone: log-odds 1.5 silu(10 a_0) - 7, which rise with it."""
    _, first, _, last = hierarchy_of(classifier).decider
    with torch.no_grad():
        for weight in (first.weight, first.bias, last.weight, last.bias):
            weight.zero_()
        first.weight[0, 0], first.bias[0] = 10 / 8, 5.0
        last.weight[1, 0] = 1.5
        last.bias[1] = -7.0


@pytest.mark.parametrize(("space", "solver"), [(LogOdds(), GaussNewton(20, halvings=4)), (Chances(), ProximalSteps(200, 0.006))])  # fmt: skip  # noqa: E501
def test_counterfactual_attributes_are_those_that_the_decider_reads(classifier, space, solver) -> None:
    decide_by_first(classifier)
    loss = AlignmentLoss(Decider(classifier), Inner(distance_weight=0.01, solver=solver), space=space)
    chances = torch.tensor([[0.3, 0.5, 0.6], [0.4, 0.9, 0.2]], dtype=torch.float64)
    for cause, wanted in ((0, 0.0), (1, 1.0)):
        causes = torch.zeros(2, 3, dtype=torch.float64)
        causes[:, cause] = 1
        found = loss(row_of(chances), row_of(causes), torch.tensor([1, 1]))
        moved = (found.counterfactual - row_of(chances)).flatten(1)
        assert bool((moved[:, 0] > 0.2).all())
        assert float(moved[:, 1:].abs().max()) < 1e-12
        assert float(found.counterfactual.min()) >= 0
        assert float(found.counterfactual.max()) <= 1
        assert bool(found.valid.all())
        torch.testing.assert_close(found.penalty, torch.full((2,), wanted, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["margin", "cross_entropy"])
def test_the_counterfactual_image_shows_the_counterfactual_attributes(kind, classifier, batch) -> None:
    inner = Inner(kind, distance_weight=1e-3, solver=GaussNewton(25, halvings=8))
    loss = AlignmentLoss(Perceiver(classifier), inner)
    before = Perceiver(classifier)(batch.image).detach()
    asked = (before + torch.tensor([0.05, -0.03, 0.0])).sigmoid()
    opened = loss.space.at(batch.image)
    problem = loss.posed(opened.image, opened.start, lambda logits: logits, of_found(asked, inner))
    judged = loss.judge(problem, opened, batch.image, batch.region)
    reached = Perceiver(classifier)(judged.counterfactual).detach()
    assert float((reached.sigmoid() - asked).abs().max()) < 0.2 * float((before.sigmoid() - asked).abs().max())


def test_losses_towards_attributes_by_hand(batch) -> None:
    drawn = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 3, generator=drawn, dtype=torch.float64)
    asked = torch.rand(6, 3, generator=drawn, dtype=torch.float64)
    asked[0, 0] = 1.0  # its log-odds are infinite: kept EDGE away
    goal = torch.logit(asked.clamp(EDGE, 1 - EDGE))
    torch.testing.assert_close(of_found(asked, Inner())(logits), ((logits - goal) ** 2).sum(1) / 2)
    entropy = -(asked * logits.sigmoid().log() + (1 - asked) * (1 - logits.sigmoid()).log()).sum(1)
    torch.testing.assert_close(of_found(asked, Inner("cross_entropy"))(logits), entropy)
    # An attribute that is 1 is asked to become 0, at odds of 9 to 1; one that is not a cause is not asked anything.
    goal = torch.log(torch.tensor(9.0, dtype=torch.float64))
    margin = torch.where(batch.attributes == 1, -logits, logits)
    wanted = ((goal - margin).clamp(min=0) ** 2 / 2 * batch.causes).sum(1)
    torch.testing.assert_close(of_flipped(batch, Inner())(logits), wanted)
    entropy = (torch.log1p(torch.exp(-margin)) * batch.causes).sum(1)
    torch.testing.assert_close(of_flipped(batch, Inner("cross_entropy"))(logits), entropy)
    assert float(of_flipped(batch, Inner())(logits)[5]) == 0


def difference(network: nn.Module, of, slopes: list[Tensor]) -> tuple[float, float]:
    """(predicted, measured) change of a value along one random direction of the network's weights."""
    drawn = torch.Generator().manual_seed(3)
    weights = list(network.parameters())
    directions = [torch.randn(p.shape, generator=drawn, dtype=p.dtype) for p in weights]
    sides = []
    for step in (1e-7, -2e-7):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight += step * direction
        sides.append(float(of()))
    predicted = sum(float((slope * direction).sum()) for slope, direction in zip(slopes, directions, strict=True))
    return predicted, (sides[0] - sides[1]) / 2e-7


@pytest.mark.parametrize("towards", ["found", "flipped"])
def test_the_gradient_through_the_image_is_that_of_images_found_anew(towards, classifier, batch) -> None:
    perceiver = Perceiver(classifier)
    asked = torch.rand(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def penalty(adjoint) -> Tensor:
        inner = Inner(distance_weight=30.0, solver=GaussNewton(25), adjoint=adjoint)
        loss = AlignmentLoss(perceiver, inner)
        goal = of_found(asked, inner) if towards == "found" else of_flipped(batch, inner)
        opened = loss.space.at(batch.image)
        problem = loss.posed(opened.image, opened.start, lambda logits: logits, goal)
        return loss.judge(problem, opened, batch.image, batch.region).penalty.sum()

    exact = Implicit("cg", tolerance=1e-12, iterations=200)
    slopes = list(torch.autograd.grad(penalty(exact), list(perceiver.parameters())))
    predicted, measured = difference(perceiver, lambda: penalty(Detached()).detach(), slopes)
    assert predicted == pytest.approx(measured, rel=1e-4)


def test_each_counterfactual_reaches_its_own_network_alone(classifier, batch) -> None:
    only_reason = HierarchicalAlignment(attribute_weight=0.0, align_weight=0.0, wait=0.0, share=1.0)
    only_image = HierarchicalAlignment(attribute_weight=0.0, reason_weight=0.0, wait=0.0, share=1.0)
    for method, reached, spared in ((only_reason, "decider", "perceiver"), (only_image, "perceiver", "decider")):
        terms = method.terms(classifier)
        terms.logits(classifier, batch.image)
        classifier.zero_grad()
        terms(batch, 1.0).backward()
        for name, weight in classifier.named_parameters():
            if reached in name:
                assert weight.grad is not None, name
            else:
                assert spared in name
                assert weight.grad is None or not bool(weight.grad.any()), name
        assert any(bool(w.grad.any()) for n, w in classifier.named_parameters() if reached in n and w.grad is not None)


def test_attributes_that_nobody_rated_do_not_count(classifier, batch) -> None:
    method = HierarchicalAlignment(reason_weight=0.0, align_weight=0.0)
    unrated = batch.attributes.clone()
    unrated[2], unrated[4, 1] = torch.nan, torch.nan

    def error(attributes: Tensor) -> float:
        terms = method.terms(classifier)
        terms.logits(classifier, batch.image)
        return float(terms.taught(dataclasses.replace(batch, attributes=attributes)).detach())

    chance = Perceiver(classifier)(batch.image).sigmoid().detach()
    each = -torch.where(batch.attributes == 1, chance.log(), (1 - chance).log())
    assert error(batch.attributes) == pytest.approx(float(each.mean()))
    assert error(unrated) == pytest.approx(float(each[~unrated.isnan()].mean()))
    assert error(torch.full_like(unrated, torch.nan)) == 0


def test_scans_without_a_known_cause_have_no_reason_to_align(classifier, batch) -> None:
    method = HierarchicalAlignment(attribute_weight=0.0, align_weight=0.0, wait=0.0, share=1.0)

    def term(causes: Tensor) -> float:
        terms = method.terms(classifier)
        terms.logits(classifier, batch.image)
        return float(terms(dataclasses.replace(batch, causes=causes), 1.0).detach())

    assert term(torch.zeros_like(batch.causes)) == 0
    assert term(torch.ones_like(batch.causes)) == pytest.approx(0, abs=1e-12)
    assert 0 < term(batch.causes) < 1


def test_scans_of_which_nothing_is_asked_do_not_count(classifier, batch) -> None:
    method = HierarchicalAlignment(
        attribute_weight=0.0, reason_weight=0.0, swapped=0.0, wait=0.0, share=1.0, towards="flipped"
    )

    def seen(count: int, causes: Tensor) -> dict[str, float]:
        terms, part = method.terms(classifier), dataclasses.replace(batch, causes=causes).head(count)
        terms.logits(classifier, part.image)
        total = terms(part, 1.0)
        return {name: float(terms.seen[name]) for name in ("penalty", "moved")} | {"total": float(total.detach())}

    half = torch.ones_like(batch.causes)
    half[3:] = 0
    assert seen(6, half) == pytest.approx(seen(3, half), rel=1e-6)
    assert seen(6, torch.zeros_like(half))["total"] == 0


def test_the_whole_loss_is_that_of_eq_5(classifier, batch) -> None:
    parts = []
    weights = {"attribute_weight": 0.7, "reason_weight": 0.5, "align_weight": 2.0}
    chosen = [{name: value if name == kept else 0.0 for name, value in weights.items()} for kept in weights]
    for settings in (*chosen, weights):
        method = HierarchicalAlignment(**settings, wait=0.0, share=0.5)
        loss = TrainingLoss(classifier, method.terms(classifier))
        found = loss(batch.image, batch.label, batch.region, 1.0, batch.attributes, batch.causes)
        parts.append(float(found.detach()))
    plain = float(nn.functional.cross_entropy(classifier(batch.image), batch.label).detach())
    attribute, reason, image, whole = parts
    assert whole == pytest.approx(attribute + reason + image - 2 * plain)


def test_attributes_are_learned_in_the_steps_of_classification(classifier, batch) -> None:
    """Their cross-entropy belongs to the classification loss (the end of section 4 of paper 000)."""
    parts = {}
    method = HierarchicalAlignment(attribute_weight=0.7, wait=0.0)
    loss = TrainingLoss(classifier, method.terms(classifier))
    for part in ("both", "classification", "alignment"):
        found = loss(batch.image, batch.label, batch.region, 1.0, batch.attributes, batch.causes, part=part)
        parts[part] = torch.autograd.grad(found, list(classifier.parameters())), found.detach()
        assert "attribute_loss" in loss.seen
        assert ("reason_validity" in loss.seen) == ("validity" in loss.seen) == (part != "classification")
    plain = nn.functional.cross_entropy(classifier(batch.image), batch.label)
    odds = Perceiver(classifier)(batch.image)
    plain = plain + 0.7 * nn.functional.binary_cross_entropy_with_logits(odds, batch.attributes)
    assert float(parts["classification"][1]) == pytest.approx(float(plain.detach()))
    by_hand = torch.autograd.grad(plain, list(classifier.parameters()))
    slopes = zip(by_hand, *(parts[part][0] for part in ("classification", "alignment", "both")), strict=True)
    for hand, classification, alignment, both in slopes:
        torch.testing.assert_close(classification, hand)
        torch.testing.assert_close(classification + alignment, both)


@pytest.mark.parametrize("towards", ["found", "flipped"])
def test_the_search_for_images_begins_where_the_last_one_ended(towards, classifier, batch) -> None:
    method = HierarchicalAlignment(towards=towards, share=1.0, wait=0.0, warm=True)
    terms = method.terms(classifier)
    again = dataclasses.replace(batch, keys=list(range(6)), turns=[0] * 6)
    shares = []
    for _ in range(2):
        terms.logits(classifier, batch.image)
        terms(again, 1.0)
        shares.append(float(terms.seen["warm"]))
    known = float(batch.causes.any(1).double().mean()) if towards == "flipped" else 1.0  # without a cause nothing moves
    assert shares == [0.0, pytest.approx(known)]
    with pytest.raises(ConfigError, match="keys and turns"):
        terms(batch, 1.0)


def test_batches_without_attributes_are_refused(classifier, batch) -> None:
    terms = HierarchicalAlignment().terms(classifier)
    assert isinstance(terms, HierarchicalTerms)
    terms.logits(classifier, batch.image)
    bare = Batch(batch.image, batch.label, batch.region)
    for refused in (lambda: terms.taught(bare), lambda: terms(bare, 0.0)):
        with pytest.raises(ConfigError, match="needs the scans' attributes"):
            refused()


@pytest.mark.parametrize("wrong", [{"attribute_weight": -1.0}, {"reason_weight": -0.1}, {"align_weight": -1.0}, {"share": 0.0}])  # fmt: skip  # noqa: E501
def test_settings_that_cannot_be(wrong) -> None:
    with pytest.raises(ConfigError):
        HierarchicalAlignment(**wrong)
