"""The alignment loss: degenerate regions, its gradient against solutions found anew, what it leaves alone."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import nn

from diffcf.alignment.loss import AlignmentLoss, Inner, evaluating
from diffcf.alignment.methods import Batch, CounterfactualAlignment, RightReasons, figures
from diffcf.alignment.spaces import Pixels
from diffcf.distances import L1, SmoothL1, SquaredL2
from diffcf.errors import ConfigError
from diffcf.implicit import Detached, GaussNewton, Implicit, ProximalSteps, SubgradientSteps, Unrolled

CONVERGED = Inner(distance_weight=0.3, solver=GaussNewton(20), adjoint=Implicit("cg", tolerance=1e-11))


def gradient(loss: AlignmentLoss, scene) -> tuple[list[torch.Tensor], torch.Tensor]:
    image, _, region = scene
    total = loss(image, region).penalty.sum()
    return list(torch.autograd.grad(total, list(loss.classifier.parameters()))), total.detach()


@pytest.mark.parametrize("form", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["margin", "cross_entropy"])
def test_the_gradient_is_that_of_solutions_found_anew(form, kind, small, scene) -> None:
    # A small step: |change| has a kink wherever a pixel's change is about to turn.
    classifier = small()
    inner = Inner(kind, distance_weight=2.0, solver=GaussNewton(20), adjoint=Implicit("cg", tolerance=1e-11))
    loss = AlignmentLoss(classifier, inner, form)
    slopes, _ = gradient(loss, scene)
    still = AlignmentLoss(
        classifier, Inner(kind, distance_weight=2.0, solver=GaussNewton(20), adjoint=Detached()), form
    )
    image, _, region = scene
    drawn = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=drawn, dtype=p.dtype) for p in classifier.parameters()]
    sides = []
    for step in (1e-7, -2e-7):
        with torch.no_grad():
            for weight, direction in zip(classifier.parameters(), directions, strict=True):
                weight += step * direction
        sides.append(float(still(image, region).penalty.detach().sum()))
    with torch.no_grad():
        for weight, direction in zip(classifier.parameters(), directions, strict=True):
            weight += 1e-7 * direction
    predicted = sum(float((s * d).sum()) for s, d in zip(slopes, directions, strict=True))
    assert predicted == pytest.approx((sides[0] - sides[1]) / 2e-7, rel=1e-5)


def test_forms_against_their_formula(small, scene) -> None:
    image, _, region = scene
    inner = Inner(distance_weight=0.01, adjoint=Detached())
    for form in ("relative", "absolute"):
        found = AlignmentLoss(small(), inner, form)(image, region)
        change = (found.counterfactual - image).abs()
        outside, whole = (change * (1 - region)).flatten(1).sum(1), change.flatten(1).sum(1)
        assert torch.allclose(found.penalty, outside / whole if form == "relative" else outside)
        assert torch.allclose(found.outside, outside / whole)
        assert torch.allclose(found.moved, whole / image[0].numel())
        assert bool(found.valid.all())
        assert float(found.counterfactual.abs().max()) <= 1


def test_degenerate_regions(small, scene) -> None:
    image, _, region = scene
    loss = AlignmentLoss(small(), CONVERGED)
    everything = loss(image, torch.ones_like(region)).penalty
    assert not bool(everything.any())
    slopes = torch.autograd.grad(everything.sum(), list(loss.classifier.parameters()))
    assert not any(bool(slope.any()) for slope in slopes)
    assert torch.allclose(loss(image, torch.zeros_like(region)).penalty, torch.ones(6, dtype=torch.float64))


def test_where_nothing_moved_there_is_no_share_outside(small, scene) -> None:
    image, _, region = scene
    classifier = small()
    nn.init.zeros_(classifier.net[-1].weight)
    found = AlignmentLoss(classifier, Inner(adjoint=Detached()))(image, region)
    assert bool(found.outside.isnan().all())
    assert not bool(found.moved.any())
    assert not bool(found.penalty.any())
    one = AlignmentLoss(small(), Inner(adjoint=Detached()))(image[:1], region[:1])
    watched = figures(dataclasses.replace(found, outside=torch.cat([one.outside, found.outside[1:]])))
    assert float(watched["outside"]) == pytest.approx(float(one.outside))  # of the one that moved


def test_a_change_below_the_floor_is_not_blown_up(small, scene) -> None:
    image, _, region = scene
    loss = AlignmentLoss(small(), Inner(distance_weight=1e6), floor=0.01)
    found = loss(image, region)
    assert float(found.penalty.detach().max()) < 1e-3
    assert float(found.outside.min()) > 0.5
    assert not bool(found.valid.any())


def test_one_gradient_step_moves_the_change_inside(small, scene) -> None:
    image, _, region = scene
    loss = AlignmentLoss(small(), Inner(distance_weight=0.3, solver=GaussNewton(5)))
    adam = torch.optim.Adam(loss.classifier.parameters(), lr=6e-3)
    shares = []
    for _ in range(26):
        found = loss(image, region)
        adam.zero_grad()
        found.penalty.mean().backward()
        adam.step()
        shares.append(float(found.outside.mean()))
    assert shares[-1] < 0.4 * shares[0]
    assert float(found.valid.double().mean()) > 0.8  # and did not die


def test_the_first_step_in_pixels_is_the_normalised_gradient(small, scene) -> None:
    image, label, region = scene
    classifier = small()
    inner = Inner(distance_weight=0.3, solver=GaussNewton(3), adjoint=Detached())
    loss = AlignmentLoss(classifier, inner, first=2.0)
    found = loss(image * 0.1, region)  # far from the window's limits
    terms = RightReasons(1.0, "normalised").terms(classifier)
    wanted = terms(Batch(image * 0.1, label, region), 0.0)
    assert torch.allclose(found.first.mean(), wanted.detach(), atol=1e-9)
    plain = AlignmentLoss(classifier, inner)(image * 0.1, region)
    assert torch.allclose(found.penalty, plain.penalty + 2 * found.first)
    ours = torch.autograd.grad(found.penalty.mean(), list(classifier.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(wanted, list(classifier.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, 2 * other, atol=1e-9)


def test_targets(small, scene) -> None:
    image, _, region = scene
    loss = AlignmentLoss(small(classes=4), Inner(distance_weight=0.01, adjoint=Detached()))
    with torch.no_grad():
        logits = loss.classifier(image)
    ranked = logits.argsort(1, descending=True)
    assert torch.equal(loss(image, region).target, ranked[:, 1])
    last = loss(image, region, ranked[:, 3])
    with torch.no_grad():
        assert bool((loss.classifier(last.counterfactual).argmax(1) == ranked[:, 3]).any())


def test_modes_and_batch_statistics_are_left_alone(small, scene) -> None:
    image, _, region = scene
    classifier = small(norm=True).train()
    classifier.net[2].eval()
    with pytest.warns(UserWarning, match="GroupNorm"):
        loss = AlignmentLoss(classifier)
    before = {name: value.clone() for name, value in classifier.named_buffers()}
    loss(image, region).penalty.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in classifier.named_buffers())
    assert classifier.training
    assert not classifier.net[2].training
    with evaluating(classifier):
        assert not any(module.training for module in classifier.modules())
    assert classifier.net[1].training
    assert not classifier.net[2].training


def test_samples_do_not_mix(small, scene) -> None:
    image, _, region = scene
    loss = AlignmentLoss(small())
    together = loss(image, region)
    alone = [loss(image[i : i + 1], region[i : i + 1]) for i in range(len(image))]
    assert torch.allclose(together.penalty, torch.cat([one.penalty for one in alone]), atol=1e-12)
    assert torch.allclose(together.change, torch.cat([one.change for one in alone]), atol=1e-12)


def test_the_papers_own_form(small, scene) -> None:
    inner = Inner(
        "cross_entropy",
        distance=L1(),
        distance_weight=0.01,
        solver=SubgradientSteps(20, 0.1),
        adjoint=Implicit("cg", as_published=True, ridge=1e-3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slopes, _ = gradient(AlignmentLoss(small(), inner, "absolute"), scene)
    assert all(bool(slope.isfinite().all()) for slope in slopes)


def test_every_adjoint_and_solver_trains_every_parameter(small, scene) -> None:
    for inner in (
        Inner(adjoint=Unrolled()),
        Inner(solver=GaussNewton(4)),
        Inner(distance=L1(), distance_weight=0.02, solver=ProximalSteps(60, 0.05), adjoint=Implicit("cg", ridge=0.01)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slopes, _ = gradient(AlignmentLoss(small(), inner), scene)
        assert all(bool(slope.isfinite().all()) for slope in slopes)
        assert any(bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize(
    ("shape", "match"), [((6, 1, 1, 12, 11), "regions of shape"), ((5, 1, 1, 12, 12), "regions of shape")]
)
def test_regions_that_do_not_fit(shape, match, small, scene) -> None:
    with pytest.raises(ConfigError, match=match):
        AlignmentLoss(small())(scene[0], torch.ones(shape))


@pytest.mark.parametrize("wrong", [{"probability": 1.0}, {"probability": 0.3}, {"distance_weight": 0.0}])
def test_settings_that_cannot_be_meant(wrong) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Inner(**wrong)
    with pytest.raises(ConfigError, match="floor"):
        AlignmentLoss(nn.Identity(), floor=0)


@pytest.mark.parametrize(("scaled", "distance"), [("std", SquaredL2()), ("mad", L1())])
def test_a_distance_that_is_scaled_counts_in_deviations(scaled, distance, small, scene) -> None:
    image, _, region = scene
    drawn = torch.Generator().manual_seed(5)
    spread = torch.rand(image.shape[1:], generator=drawn, dtype=torch.float64) + 0.5
    samples = spread * torch.randn(4000, *image.shape[1:], generator=drawn, dtype=torch.float64)
    inner = Inner(distance=distance, scaled=scaled, solver=ProximalSteps(300, 0.05), distance_weight=0.1)
    fitted = inner.fitted(samples)
    # The paper divides squares by the deviation; the median absolute one of a normal distribution is 0.67 of it.
    deviation = spread.sqrt() if scaled == "std" else 0.6745 * spread
    torch.testing.assert_close(fitted.distance.scale, deviation, rtol=0.1, atol=0)
    assert Inner().fitted(samples) == Inner()
    # Where a coordinate varies ten times as much, a change of it costs less, and more of the change goes there.
    wide = torch.where(region[0] == 1, 10.0, 1.0) * samples
    shares = [
        float(
            AlignmentLoss(small(), dataclasses.replace(inner.fitted(one), adjoint=Detached()))(
                image, region
            ).outside.mean()
        )
        for one in (samples, wide)
    ]
    assert shares[1] < shares[0] - 0.05
    with pytest.raises(ConfigError, match="has no scale yet"):
        AlignmentLoss(small(), inner)
    with pytest.raises(ConfigError, match="SmoothL1 has no scale"):
        Inner(distance=SmoothL1(), scaled="mad")


def test_a_method_takes_its_scale_from_the_training_images(scene) -> None:
    image, _, _ = scene
    method = CounterfactualAlignment(inner=Inner(scaled="std"))
    assert torch.equal(method.fitted(Pixels(), image).inner.distance.scale, image.std(0).sqrt())
    plain = CounterfactualAlignment()
    assert plain.fitted(Pixels(), image) is plain
