"""What methods add to the loss, against their formulas; the monitor; regions."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.alignment.loss import Inner
from diffcf.alignment.methods import (
    Alternating,
    Augmented,
    Batch,
    CounterfactualAlignment,
    RightReasons,
    TrainingLoss,
    Vanilla,
    swapped_share,
)
from diffcf.alignment.monitor import Monitor
from diffcf.alignment.regions import regions_of
from diffcf.errors import ConfigError
from diffcf.implicit import GaussNewton, ProximalSteps, SubgradientSteps


def test_vanilla_is_cross_entropy(small, scene) -> None:
    image, label, region = scene
    classifier = small()
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    loss = TrainingLoss(classifier, Vanilla().terms(classifier), weights)
    each = F.cross_entropy(classifier(image), label, weights, reduction="none")
    assert torch.allclose(loss(image, label, region, 0.0), each.mean())
    assert set(loss.seen) == {"cross_entropy", "majority"}


@pytest.mark.parametrize("form", ["squared", "normalised"])
def test_right_reasons_against_finite_differences_of_the_image(form, small, scene) -> None:
    image, label, region = scene
    classifier = small()
    found = RightReasons(2.0, form).terms(classifier)(Batch(image, label, region), 0.0)

    def score(x: torch.Tensor) -> torch.Tensor:
        scores = F.log_softmax(classifier(x), 1)
        if form == "squared":
            return scores.sum(1)
        return scores[torch.arange(len(x)), label] - scores[torch.arange(len(x)), 1 - label]

    slope = torch.zeros_like(image)
    with torch.no_grad():
        for y in range(image.shape[-2]):
            for x in range(image.shape[-1]):
                moved = torch.zeros_like(image)
                moved[..., y, x] = 1e-6
                slope[..., y, x] = ((score(image + moved) - score(image - moved)) / 2e-6)[:, None, None]
    outside = slope * (1 - region)
    if form == "squared":
        wanted = outside.square().flatten(1).sum(1)
    else:
        wanted = outside.abs().flatten(1).sum(1) / slope.abs().flatten(1).sum(1)
    assert float(found.detach()) == pytest.approx(2 * float(wanted.mean()), rel=1e-5)


def test_right_reasons_reach_every_weight(small, scene) -> None:
    classifier = small()
    loss = TrainingLoss(classifier, RightReasons().terms(classifier))
    loss(*scene, 0.0).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in classifier.parameters())


class Spy(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return torch.zeros(len(x), 2, dtype=x.dtype)


def test_augmentation_keeps_the_region_and_fills_it(small, scene) -> None:
    image, label, region = scene
    spy = Spy()
    torch.manual_seed(0)
    found = Augmented(0.5).terms(spy)(Batch(image, label, region), 0.0)
    factual, filled = spy.seen
    assert torch.equal(factual * region, image * region)
    assert torch.equal(factual * (1 - region), image.roll(1, 0) * (1 - region))
    assert torch.equal(filled * (1 - region), image * (1 - region))
    assert not torch.allclose(filled * region, image * region)
    assert float(filled.abs().max()) <= 1
    assert float(found) == pytest.approx(0.5 * 2 * torch.log(torch.tensor(2.0)).item())


def test_every_channel_is_filled_as_its_surroundings_are(scene) -> None:
    image, label, region = scene
    spy = Spy()
    flat = torch.full_like(image, 0.2).expand(-1, -1, 3, -1, -1)
    Augmented(0.5).terms(spy)(Batch(flat, label, region), 0.0)
    torch.testing.assert_close(spy.seen[1], flat)


class Sums(nn.Module):
    """log-odds of class 1: inside * the sum over the middle + outside * that over the rest."""

    def __init__(self, inside: float, outside: float) -> None:
        super().__init__()
        self.inside, self.outside = inside, outside

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        middle = image[..., 3:8, 4:9].flatten(1).sum(1)
        odds = self.inside * middle + self.outside * (image.flatten(1).sum(1) - middle)
        return torch.stack([torch.zeros_like(odds), odds], 1)


def test_the_share_of_the_way_that_the_outside_goes(scene) -> None:
    image, label, region = scene
    batch = Batch(image, label, region)
    assert float(swapped_share(Sums(1.0, 0.0), batch)) == pytest.approx(0)
    assert float(swapped_share(Sums(0.0, 1.0), batch)) == pytest.approx(1)
    # By hand: the next sample with another label, of 0, 1, 0, 1, 1, 0.
    other = torch.tensor([1, 2, 3, 5, 5, 1])
    middle = image[..., 3:8, 4:9].flatten(1).sum(1)
    rest = image.flatten(1).sum(1) - middle
    gone, within = (rest[other] - rest).abs() * 0.2, (middle[other] - middle).abs()
    wanted = (gone / (gone + within)).mean()
    assert float(swapped_share(Sums(1.0, 0.2), batch)) == pytest.approx(float(wanted))
    alone = Batch(image[[0, 2]], label[[0, 2]], region[[0, 2]])
    assert float(swapped_share(Sums(1.0, 0.2), alone)) == 0


def test_a_jump_that_no_gradient_shows_is_seen_by_swapping(scene) -> None:
    image, label, region = scene
    corner = torch.where(label == 1, 1.0, -1.0).double()
    image = image.clone()
    image[:, 0, 0, 0, 0] = corner

    class Hidden(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            odds = 5 * x[:, 0, 0, 0, 0].sign() + 50 * x[:, 0, 0, 5, 5]
            return torch.stack([torch.zeros_like(odds), odds], 1)

    batch = Batch(image, label, region)
    assert float(RightReasons(1.0, "normalised").terms(Hidden())(batch, 0.0).detach()) == 0
    quiet = image.clone()
    quiet[:, 0, 0, 5, 5] = 0  # nothing inside tells the classes apart
    assert float(swapped_share(Hidden(), Batch(quiet, label, region))) == pytest.approx(1)


def test_a_share_of_the_batch_and_a_rising_weight(small, scene) -> None:
    image, label, region = scene
    classifier = small()
    inner = Inner(distance_weight=0.3, solver=GaussNewton(2))
    whole = CounterfactualAlignment(2.0, inner=inner, share=1.0, wait=0.0).terms(classifier)(
        Batch(image, label, region), 0.0
    )
    half = CounterfactualAlignment(2.0, inner=inner, share=0.5, wait=0.0).terms(classifier)(
        Batch(image, label, region), 0.0
    )
    few = Batch(image[:3], label[:3], region[:3])
    first = CounterfactualAlignment(2.0, inner=inner, share=1.0, wait=0.0).terms(classifier)(few, 0.0)
    assert torch.allclose(half, first)
    assert not torch.allclose(half, whole)
    rising = CounterfactualAlignment(2.0, inner=inner, share=1.0, wait=0.5).terms(classifier)
    assert float(rising(Batch(image, label, region), 0.0).detach()) == 0
    assert torch.allclose(rising(Batch(image, label, region), 0.25), whole / 2)
    assert torch.allclose(rising(Batch(image, label, region), 0.8), whole)


@pytest.mark.parametrize("wrong", [{"align_weight": 0.0}, {"share": 0.0}, {"share": 1.5}, {"wait": 1.0}])
def test_settings_that_cannot_be_meant(wrong) -> None:
    with pytest.raises(ConfigError, match="expected"):
        CounterfactualAlignment(**wrong)


def gradient(value: torch.Tensor, classifier: nn.Module) -> list[torch.Tensor]:
    weights = list(classifier.parameters())
    return list(torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True, materialize_grads=True))


def test_each_step_of_the_alternating_form_has_the_gradient_of_its_loss_alone(small, scene) -> None:
    image, label, _ = scene
    classifier, batch = small(), Batch(*scene)
    method = CounterfactualAlignment(2.0, inner=Inner(distance_weight=0.3, solver=GaussNewton(2)), wait=0.5)
    loss = TrainingLoss(classifier, method.terms(classifier))
    plain = F.cross_entropy(classifier(image), label, reduction="none").mean()
    added = method.terms(classifier)(batch, 0.25)
    wanted = {"both": plain + added, "classification": plain, "alignment": added}
    for part, value in wanted.items():
        found = loss(*scene, 0.25, part=part)
        assert torch.equal(found, value), part
        both = (gradient(one, classifier) for one in (found, value))
        assert all(torch.equal(one, other) for one, other in zip(*both, strict=True)), part
        assert ("outside" in loss.seen) == (part != "classification")  # what is not computed is not shown again
        assert {"cross_entropy", "majority"} <= set(loss.seen)
    assert torch.equal(loss(*scene, 0.25), wanted["both"])  # the joint form where nothing is said
    slopes = torch.autograd.grad(loss(*scene, 0.25, part="alignment"), list(classifier.parameters()))
    assert len(slopes) == len(list(classifier.parameters()))  # distributed training waits for every weight's


def test_which_steps_are_on_which_loss() -> None:
    assert [Alternating().at(step)[0] for step in range(5)] == list("cacac")
    assert [Alternating(1, 2).at(step)[0] for step in range(7)] == list("caacaac")
    assert [Alternating(3, 1).at(step)[0] for step in range(9)] == list("cccacccac")
    for wrong in ({"classification": 0}, {"alignment": 0}):
        with pytest.raises(ConfigError, match="one step of each"):
            Alternating(**wrong)


def test_nothing_takes_no_turns(small, scene) -> None:
    classifier = small()
    loss = TrainingLoss(classifier, Vanilla().terms(classifier))
    with pytest.raises(ConfigError, match="alternating: null"):
        loss(*scene, 0.0, part="alignment")


def test_the_monitor_means_and_forgets(small, scene) -> None:
    classifier = small()
    loss = TrainingLoss(classifier, CounterfactualAlignment(inner=Inner(distance_weight=0.3)).terms(classifier))
    monitor = Monitor(loss)
    kept = []
    for _ in range(2):
        loss(*scene, 0.0)
        kept.append(float(loss.seen["outside"]))
        monitor.take()
        monitor.take()  # a batch counts once
        with torch.no_grad():
            classifier.net[0].weight += 0.05
    assert monitor.figures()["outside"] == pytest.approx(sum(kept) / 2)
    assert monitor.figures() == {}


def test_the_monitor_warns_of_a_collapse(small, scene) -> None:
    classifier = small()
    loss = TrainingLoss(classifier, Vanilla().terms(classifier))
    monitor = Monitor(loss)
    one_class = torch.tensor([[1.0, 0.0]]).expand(10, 2)
    labels = torch.tensor([0, 1] * 5)
    (said,) = monitor.warnings(one_class, labels)
    assert "majority" in said
    assert not monitor.warnings(one_class, torch.zeros(10, dtype=torch.long))
    loss.seen = {"validity": torch.tensor(0.01)}
    assert "have died" in monitor.warnings(torch.eye(2).repeat(5, 1), labels)[0]


def scans(masks: torch.Tensor | None, has_mask: list[bool] | None = None):
    count = 3 if masks is None else len(masks)
    return SimpleNamespace(
        masks=masks,
        has_mask=torch.tensor(has_mask or [True] * count),
        rows=[SimpleNamespace(path=f"{i}.npz") for i in range(count)],
    )


def test_regions_are_widened() -> None:
    masks = torch.zeros(3, 2, 1, 9, 9)
    masks[..., 4, 4] = 1
    region = regions_of(scans(masks), 2)
    assert region[0, 1, 0].sum() == 25
    assert region[0, 1, 0, 2:7, 2:7].all()
    assert torch.equal(regions_of(scans(masks), 0), masks)


def test_regions_that_cannot_be_used() -> None:
    masks = torch.zeros(3, 1, 1, 9, 9)
    masks[..., 4, 4] = 1
    with pytest.raises(ConfigError, match="mask=True"):
        regions_of(scans(None), 0)
    with pytest.raises(ConfigError, match=r"1 scan\(s\) with no mask: 1\.npz"):
        regions_of(scans(masks, [True, False, True]), 0)
    empty = masks.clone()
    empty[2] = 0
    with pytest.raises(ConfigError, match=r"empty in the field: 2\.npz"):
        regions_of(scans(empty), 0)
    with pytest.raises(ConfigError, match="whole field"):
        regions_of(scans(masks), 9)
    with pytest.raises(ConfigError, match="widen"):
        regions_of(scans(masks), -1)
    with pytest.warns(UserWarning, match="says little"):
        regions_of(scans(masks), 3)


def test_the_method_of_the_guide_works_as_written(small, scene, tmp_path) -> None:
    guide = (Path(__file__).parents[2] / "EXTENDING.md").read_text()
    code = guide.split("## Your own alignment")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "blind.py").write_text(code)
    written = runpy.run_path(str(tmp_path / "blind.py"))
    classifier = small()
    loss = TrainingLoss(classifier, written["Blind"](2.0).terms(classifier))
    image, label, region = scene
    plain = F.cross_entropy(classifier(image), label)
    change = (classifier(image) - classifier(image * region)).square().mean()
    assert torch.allclose(loss(image, label, region, 0.0), plain + 2 * change)
    assert "penalty" in loss.seen


def test_settings_are_values() -> None:
    assert dataclasses.replace(CounterfactualAlignment(), align_weight=2.0) == CounterfactualAlignment(2.0)


def test_the_share_of_the_outside_sees_no_dropout() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, image: Tensor) -> Tensor:
            kept = self.drop(image[..., 2:6, 2:6])
            score = kept.mean((1, 2, 3, 4))
            return torch.stack([-score, score], 1)

    image = torch.randn(6, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    region = torch.zeros_like(image)
    region[..., 2:6, 2:6] = 1
    net = Inside().train()
    assert float(swapped_share(net, Batch(image, torch.tensor([0, 1] * 3), region))) == 0
    assert net.drop.training


@pytest.mark.parametrize(
    "make",
    [
        lambda: CounterfactualAlignment(swapped=-1.0),
        lambda: RightReasons(-5.0),
        lambda: Augmented(-1.0),
        lambda: GaussNewton(0),
        lambda: GaussNewton(newton=0),
        lambda: ProximalSteps(rate=0.0),
        lambda: ProximalSteps(0),
        lambda: SubgradientSteps(rate=-0.1),
    ],
)
def test_settings_that_turn_a_loss_off_or_upside_down_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()
