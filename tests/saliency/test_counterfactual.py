"""Counterfactual saliency of a classifier that looks at one patch, through codes that are the image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange, reduce
from scipy.ndimage import gaussian_filter

from diffcf.counterfactuals import ImageScorer, Pixels, Shift, counterfactual
from diffcf.counterfactuals.solvers import Adam, GradientDescent
from diffcf.distances import SmoothL1
from diffcf.errors import ConfigError
from diffcf.saliency import (
    CounterfactualSaliency,
    LatentShiftSaliency,
    SearchSaliency,
    descent_curve,
    normalised,
    shift_curve,
)
from diffcf.saliency.changes import mean_of_changes, smoothed
from diffcf.saliency.counterfactual import Scene
from diffcf.types import Code

SHARP = CounterfactualSaliency(smooth=0.0)
METHODS = {
    "default": SHARP,
    "adam": replace(SHARP, solver=Adam(steps=20)),
    "changes alone": replace(SHARP, slopes=0),
    "decoded": replace(SHARP, change="decoded"),
    "published": replace(CounterfactualSaliency.published(), change="decoded"),
    "no_rec": CounterfactualSaliency.no_rec(),
    "shift": LatentShiftSaliency(),
    "search": SearchSaliency(smooth=0.0),
    "search alone": SearchSaliency(slopes=0, smooth=0.0),
}
ZERO, ONE = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("through", ["blocks", "pixels"])
def test_the_map_lies_in_the_patch_that_decides(method, through, patch, scans, share, request) -> None:
    generator = request.getfixturevalue(through)
    assert bool((share(method(patch, scans, generator=generator)) > 0.999).all())


def test_every_class_is_asked_for_without_a_target(patch, blocks, scans) -> None:
    method = CounterfactualSaliency()
    each = [method(patch, scans, target, blocks) for target in (ZERO, ONE)]
    assert torch.allclose(method(patch, scans, None, blocks), (each[0] + each[1]) / 2, atol=1e-6)
    for found in each:
        assert set(found.flatten(1).max(1).values.tolist()) <= {0.0, 1.0}


def test_what_is_certain_already_adds_nothing(patch, blocks, scans) -> None:
    patch.level = -0.8  # class 1 far beyond 0.97
    method = CounterfactualSaliency()
    assert not bool(method(patch, scans, ONE, blocks).any())
    both, other = method(patch, scans, None, blocks), method(patch, scans, ZERO, blocks)
    assert torch.allclose(both, other / 2)
    assert bool(both.any())


def test_the_counterfactual_reaches_the_asked_class(patch, blocks, scans) -> None:
    method = CounterfactualSaliency(distance_weight=0.01)
    for target in (ZERO, ONE):
        found = blocks.decode(Code(method.descend(patch, Scene(blocks, scans, "carried"), target)))
        probability = patch(found).softmax(1).gather(1, target[:, None])
        assert float(probability.min()) > 0.85


def test_against_the_factual_what_is_not_reproduced_shows(patch, blocks, scans) -> None:
    class Lossy(type(blocks)):
        def decode(self, code):
            image = super().decode(code).clone()
            image[..., :2, :2] = 0
            return image

    method = replace(SHARP, slopes=0)
    for change in ("carried", "decoded"):
        kept = replace(method, change=change)(patch, scans, None, Lossy())
        assert not bool(kept[..., :2, :2].any())
    shown = replace(method, change="factual")(patch, scans, None, Lossy())
    assert float(shown[..., :2, :2].max()) > 0.1


def test_the_published_steps_by_hand(patch, blocks, scans) -> None:
    """z <- z - (d cross-entropy / dz + 100 sign(z - z0) / N), 20 times."""
    found = CounterfactualSaliency.published().descend(patch, Scene(blocks, scans, "factual"), ZERO)
    for scan, solution in zip(scans, found, strict=True):
        start = blocks.encode(scan[None]).semantic
        value = start
        for _ in range(20):
            leaf = value.detach().requires_grad_()
            fit = -patch(blocks.decode(Code(leaf)).clamp(-1, 1)).log_softmax(1)[0, 0]
            (slope,) = torch.autograd.grad(fit, leaf)
            value = value - slope - 100 * (value - start).sign() / start.numel()
        assert torch.allclose(solution, value[0], atol=1e-5)


def test_the_best_point_is_the_start_where_every_step_overshoots(patch, blocks, scans) -> None:
    last = replace(CounterfactualSaliency.published(), distance_weight=1e4, change="decoded")
    assert not bool(replace(last, point="best")(patch, scans, ZERO, blocks).any())
    assert bool(last(patch, scans, ZERO, blocks).any())


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (CounterfactualSaliency(), 45),
        (CounterfactualSaliency.published(), 45),
        (CounterfactualSaliency.no_rec(), 45),
        (LatentShiftSaliency(), 45),
        (SearchSaliency(), 45),
    ],
)
@pytest.mark.parametrize("gain", [0.01, 1.0, 12.0, 300.0])
def test_a_map_costs_at_most_45_passes(method, most, gain, patch, blocks, scans) -> None:
    patch.gain = gain
    method(patch, scans[:1], generator=blocks)
    assert patch.backwards <= 42
    # A backward pass costs as much as two forward ones; of 45 of both together.
    assert (patch.forwards + 2 * patch.backwards) / 3 <= most
    assert (blocks.forwards + 2 * patch.backwards) / 3 <= most


def test_latent_shift_moves_the_probability_by_what_is_asked(patch, blocks, scans) -> None:
    patch.level = 0.0
    method = LatentShiftSaliency(moved=0.3, first=1e-3)
    found = method(patch, scans, ONE, blocks)
    assert torch.equal(normalised(found), found)
    weight = torch.zeros_like(scans[0])
    weight[..., 4:8, 8:12] = patch.gain / 32
    start = patch(scans).softmax(1)[:, 1]
    lambdas = 1e-3 * 2.0 ** torch.arange(25)
    curve = shift_curve(patch, scans, blocks, lambdas, ONE)
    for scan, given, line in zip(scans, start, curve, strict=True):
        odds = patch((scan + lambdas[:, None, None, None, None] * weight).clamp(-1, 1))
        assert torch.allclose(line, odds.softmax(1)[:, 1], atol=1e-5)
        first = int((line >= given + 0.3).nonzero()[0])
        assert float(line[first - 1]) < float(given) + 0.3


def test_latent_shift_takes_the_furthest_where_nothing_reaches(blocks, patch, scans) -> None:
    """The box of [-1, 1] stops the patch before the probability has moved by a half."""
    patch.gain, patch.level = 0.5, 0.0
    found = LatentShiftSaliency()(patch, scans, ONE, blocks)
    assert bool((found[..., 4:8, 8:12].flatten(1).max(1).values == 1).all())
    assert not bool(found[..., :4, :].any())


def test_what_is_certain_is_shifted_down_only(patch, blocks, scans) -> None:
    patch.level = -0.9
    method = LatentShiftSaliency()
    assert not bool(method(patch, scans, ONE, blocks).any())
    found = method(patch, scans, None, blocks)
    assert torch.allclose(found.flatten(1).max(1).values, torch.full((3,), 0.5))


def test_progressive_steps_get_further_than_one_long_step(blocks, scans) -> None:
    """Appendix F: where the slope turns, no length of the first gradient does what small steps do."""

    class Bent(torch.nn.Module):
        """Rises along the first pixel only until it has moved by 0.1, and from there along the second one."""

        def forward(self, image):
            first, second = image[:, 0, 0, 0, 0], image[:, 0, 0, 0, 8]
            odds = -2 - 40 * (first - 0.1).square() + 6 * second * (first > 0.05)
            return torch.stack([torch.zeros_like(odds), odds], 1)

    image = torch.zeros_like(scans)
    line = shift_curve(Bent(), image, blocks, torch.logspace(-5, 2, 50), ONE)
    method = replace(CounterfactualSaliency.no_rec(), solver=GradientDescent(rate=0.02, steps=20))
    curve = descent_curve(method, Bent(), image, blocks, ONE)
    assert line.shape == (3, 50)
    assert curve.shape == (3, 21)
    assert float(line.max()) < 0.2
    assert float(curve[:, -1].min()) > 0.5


def test_the_descent_curve_begins_at_the_reconstruction(patch, blocks, scans) -> None:
    for method in (CounterfactualSaliency(), CounterfactualSaliency.published()):
        curve = descent_curve(method, patch, scans, blocks, ZERO)
        assert torch.allclose(curve[:, 0], patch(scans).softmax(1)[:, 0], atol=1e-5)
        assert bool((curve[:, -1] > curve[:, 0]).all())
    assert curve.shape == (3, 21)


def test_search_saliency_is_the_change_of_the_search(patch, pixels, scans) -> None:
    patch.level = 0.0
    method = SearchSaliency(Pixels(), slopes=0, smooth=0.0)
    predicted = patch(scans).argmax(1)
    change = counterfactual(
        scans, 1 - predicted, generator=pixels, blackbox=ImageScorer(patch), method=Pixels()
    ).difference
    found = method(patch, scans, None, pixels)
    assert torch.equal(found, method(patch, scans, 1 - predicted, pixels))
    assert bool(found.flatten(1).any(1).all())
    assert torch.allclose(found, change.abs().mean(2, keepdim=True), atol=1e-6)
    # By hand: the slope of log-odds that are linear in the image is the same all the way.
    leaf = scans.clone().requires_grad_()
    (slope,) = torch.autograd.grad((patch(leaf)[:, 1] - patch(leaf)[:, 0]).sum(), leaf)
    expected = smoothed((smoothed(found, 1.5) * slope.abs().mean(2, keepdim=True)).sqrt(), 1.5)
    assert torch.allclose(replace(method, slopes=3, smooth=1.5)(patch, scans, None, pixels), expected, atol=1e-4)
    with pytest.raises(ConfigError, match="follows an agent"):
        SearchSaliency(Shift())(patch, scans, None, pixels)


def test_the_map_is_the_geometric_mean_of_change_and_slope(patch, blocks, scans) -> None:
    """By hand: the slope of log-odds that are linear in the image is the same all the way."""
    method = SHARP
    scene = Scene(blocks, scans, "carried")
    change = scene.shown(method.descend(patch, scene, ZERO), torch.arange(3)) - scans
    leaf = scans.clone().requires_grad_()
    odds = patch(leaf)[:, 0] - patch(leaf)[:, 1]
    (slope,) = torch.autograd.grad(odds.sum(), leaf)
    expected = mean_of_changes((change * slope).abs().sqrt(), 3)
    assert torch.allclose(method(patch, scans, ZERO, blocks), expected, atol=1e-4)


def test_smoothing_against_scipy() -> None:
    given = torch.rand(2, 3, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(given.numpy(), (0, 0, 0, 1.5, 1.5), mode="mirror", truncate=8 / 3)
    assert torch.allclose(smoothed(given, 1.5), torch.from_numpy(expected), atol=1e-5)
    assert smoothed(given, 0.0) is given
    assert smoothed(torch.ones(1, 1, 1, 3, 3), 5.0).allclose(torch.ones(1, 1, 1, 3, 3))


def test_settings_that_cannot_be(patch, blocks, scans) -> None:
    with pytest.raises(ConfigError, match="distance_weight -1"):
        CounterfactualSaliency(distance_weight=-1)
    with pytest.raises(ConfigError, match="smooth -1"):
        CounterfactualSaliency(smooth=-1)
    with pytest.raises(ConfigError, match="slopes -1"):
        SearchSaliency(slopes=-1)
    with pytest.raises(ConfigError, match="a move between 0 and 1"):
        LatentShiftSaliency(moved=0)
    with pytest.raises(ConfigError, match="no proximal step"):
        CounterfactualSaliency(distance=SmoothL1())(patch, scans, None, blocks)


def test_a_sparse_distance_leaves_other_places_alone(patch, blocks, scans) -> None:
    code = blocks.encode(scans)
    moved = CounterfactualSaliency().descend(patch, Scene(blocks, scans, "carried"), ZERO) - code.semantic
    places = reduce(moved.abs(), "b s d y x -> b y x", "sum")
    assert not bool(places[:, :2].any())
    inside = rearrange(places[:, 2:4, 4:6], "b y x -> b (y x)")
    assert bool((inside.sum(1) > 0).any())
