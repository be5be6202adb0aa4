"""Where reasons lie, of classifiers that are known: one reads the expert's region, one a corner, one everything."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange, reduce
from PIL import Image
from scripts import ROOT
from torch import Tensor, nn

from diffcf.alignment.loss import Inner
from diffcf.cards import ClassifierCard, Preparation
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.errors import ConfigError
from diffcf.implicit import GaussNewton
from diffcf.saliency import Occlusion

SIDE, SCANS = 16, 12
PREPARATION = Preparation(size=SIDE, slices=1)
INNER = Inner(distance_weight=0.1, solver=GaussNewton(3))  # of outputs that are linear, the first step is exact


class Reader(nn.Module):
    """Says yes where the mean brightness in a box, weighed at half resolution, is above `bias`."""

    def __init__(self, rows: slice, columns: slice, bias: float = 0.0) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        weight = torch.zeros(SIDE // 2, SIDE // 2)
        weight[rows, columns] = 1
        self.weight, self.bias = nn.Parameter(8 * weight / weight.sum()), bias
        self.card = ClassifierCard(PREPARATION, ["no", "yes"])
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.pool(rearrange(image, "b 1 1 h w -> b 1 h w")) + 1 - self.bias
        score = reduce(maps * self.weight, "b 1 y x -> b", "sum")
        return torch.stack([torch.zeros_like(score), score], 1)


INSIDE = Reader(slice(3, 5), slice(3, 5), bias=1)  # pixels 6 to 9
CORNER = Reader(slice(0, 2), slice(0, 2), bias=1)
WHOLE = Reader(slice(None), slice(None), bias=1)


def region() -> Tensor:
    """Rows and columns 6 to 9: 16 pixels of 256."""
    found = torch.zeros(SCANS, 1, 1, SIDE, SIDE)
    found[..., 6:10, 6:10] = 1
    return found


@pytest.fixture
def alignment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return importlib.import_module("alignment")


@pytest.fixture
def scene(alignment: ModuleType):
    """Every other scan is bright inside and labelled yes; the corners say so, too, and in `wrong` the opposite."""
    labels = torch.arange(SCANS) % 2
    sign = rearrange(2.0 * labels - 1, "n -> n 1 1 1 1")
    inside = region()
    corner = torch.zeros_like(inside)
    corner[..., :4, :4] = 1
    chance = 0.5 * sign * inside + 0.3 * sign * corner
    wrong = 0.5 * sign * inside - 0.3 * sign * corner
    scans = SimpleNamespace(labels=labels, patients=[f"p{i // 3}" for i in range(SCANS)])
    return importlib.import_module("reasons").Scene(scans, inside, chance, wrong)


def configure(alignment: ModuleType, folder: Path, **more):
    readers = {"inside": ["inside", "inside"], "corner": ["corner"], "whole": ["whole"]}
    settings = {"default": "inside", "reference": "whole", "shortcut": Shortcut(), "occlusion": Occlusion(2, 2)}
    settings |= {"inner": INNER, "resamples": 10, "out": folder}
    return alignment.Config("toys", folder / "no.csv", readers, **settings | more)


@pytest.fixture
def run(alignment: ModuleType, scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """main() over the toys; `seen` are the marks that scenes were made for."""
    readers, seen = {"inside": INSIDE, "corner": CORNER, "whole": WHOLE}, []

    def made(config, blackbox, mark):
        seen.append(mark)
        return scene

    monkeypatch.setattr(alignment, "load_blackbox", readers.__getitem__)
    monkeypatch.setattr(alignment, "scene_of", made)

    def run(**more):
        rows = alignment.main(configure(alignment, tmp_path, **more))
        return {row["method"]: row for row in rows}, seen

    return run


def test_every_figure_of_classifiers_that_are_known(run, tmp_path: Path) -> None:
    rows, _ = run()
    inside, corner, whole = rows["inside"], rows["corner"], rows["whole"]
    share = 16 / SIDE**2
    for row in rows.values():
        assert row["chance"] == pytest.approx(share)
        assert row["region_pixels"] == 16
        assert row["threshold"] == 0.5
        assert row["accuracy"] == row["auc"] == row["balanced_accuracy"] == 1
    for name in ("saliency", "gradcam", "hirescam", "occlusion", "change"):
        assert inside[f"{name}_lift"] == pytest.approx(inside[f"{name}_precision"] / share)
        assert inside[f"{name}_lift_low"] <= inside[f"{name}_lift"] <= inside[f"{name}_lift_high"]
    for name in ("saliency", "change"):  # exact: what is not read has no gradient, and does not move
        assert (inside[f"{name}_precision"], corner[f"{name}_precision"]) == (1, 0)
        assert whole[f"{name}_precision"] == pytest.approx(share, rel=0.3)
        assert whole[f"{name}_lift"] == pytest.approx(1, rel=0.3)
    for key in ("relevance_mass", "roi_precision", "pointing", "change_pointing", "occlusion_mass"):
        assert (inside[key], corner[key]) == (1, 0)
    assert whole["relevance_mass"] == pytest.approx(share)  # the same gradient everywhere
    assert inside["hirescam_mass"] > 0.6  # blurred by half a pixel of its layer
    assert corner["hirescam_mass"] == 0
    assert {row["validity"] for row in rows.values()} == {1}
    assert (inside["reversal_accuracy"], corner["reversal_accuracy"]) == (1, 0)
    assert (inside["reversal_gap"], corner["reversal_gap"]) == (0, -1)
    assert inside["accuracy_gap"] == 0
    assert inside["accuracy_std"] == inside["saliency_precision_std"] == inside["auc_std"] == 0
    assert "auc_std" not in corner  # of one seed
    written = json.loads((tmp_path / "alignment_toys.json").read_text())["rows"]
    assert [row["default"] for row in written] == [True, False, False]


def test_the_threshold_is_that_of_the_maps(alignment: ModuleType) -> None:
    """16 pixels of 1 in the region and as many of 0.5 beside it."""
    lies = importlib.import_module("reasons").lies
    shown = region()[:1] + 0.5 * region()[:1].roll(4, -1)
    for threshold, precision in ((0.4, 0.5), (0.6, 1.0)):
        assert lies("change", shown, region()[:1], threshold) == {
            "change_precision": precision,
            "roi_precision": pytest.approx(2 / 3),
            "change_pointing": 1,
        }


def test_methods_may_be_judged_beside_marks_of_their_own(run) -> None:
    rows, seen = run(marks={"corner": Shortcut("intensity"), "whole": None})
    assert len(seen) == 3
    assert set(seen) == {Shortcut(), Shortcut("intensity"), None}
    assert "reversal_gap" in rows["corner"]
    assert "reversal_gap" not in rows["whole"]


def test_where_a_seed_has_no_case_there_is_no_deviation(alignment: ModuleType, scene, tmp_path: Path) -> None:
    """A seed whose every change is nothing still has its row."""
    known = {
        "accuracy": np.ones(SCANS),
        "positive": np.arange(SCANS) % 2.0,
        "score": np.linspace(0, 1, SCANS),
        "chance": np.full(SCANS, 0.25),
    }
    known["reversal_accuracy"] = known["accuracy"]
    seeds = [known | {"change_precision": np.full(SCANS, value)} for value in (0.5, math.nan)]
    row = alignment.row_of("inside", seeds, scene, configure(alignment, tmp_path), None)
    assert (row["change_precision"], row["change_lift"]) == (0.5, 2)
    assert math.isnan(row["change_precision_std"])
    assert row["accuracy_std"] == 0


def test_figures_are_means_over_the_seeds_that_have_them(alignment: ModuleType) -> None:
    nan = math.nan
    seeds = [{"a": np.array([1.0, nan, nan])}, {"a": np.array([0.0, 0.5, nan])}]
    np.testing.assert_array_equal(alignment.over_seeds(seeds)["a"], [0.5, 0.5, nan])
    assert alignment.lift(np.array([0.5, nan, 1.0]), np.array([0.25, 9.0, 0.5])) == 2


def test_scores_of_several_classes(alignment: ModuleType) -> None:
    """AUC is of the last class against all others; classes count equally in the balanced accuracy."""
    label, at = np.array([0, 0, 0, 1, 2]), np.arange(5)
    cases = {
        "accuracy": np.array([1.0, 1, 0, 1, 0]),
        "positive": np.array([0.0, 0, 0, 0, 1]),
        "score": np.array([0.1, 0.2, 0.3, 0.9, 0.5]),
    }
    assert alignment.scored("auc", label, cases, at) == 0.75
    assert alignment.scored("balanced_accuracy", label, cases, at) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert math.isnan(alignment.scored("auc", label, cases, at[:4]))
    assert math.isnan(alignment.scored("balanced_accuracy", label, cases, at[:3]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"default": "mine"}, "no method 'mine'; there are inside, corner, whole"),
        ({"reference": "mine"}, "no method 'mine'"),
        ({"marks": {"mine": None}}, "no method 'mine'"),
        ({"threshold": 0.0}, "threshold 0.0: expected a share"),
    ],
)
def test_what_does_not_fit_is_refused(alignment: ModuleType, tmp_path: Path, more, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configure(alignment, tmp_path, **more)


def test_panels_of_what_is_not_there_are_refused(alignment: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no method 'mine'"):
        configure(alignment, tmp_path, panels=alignment.Panels(["mine"]))
    for wrong in ({"methods": []}, {"methods": ["inside"], "scans": 0}):
        with pytest.raises(ConfigError, match="expected one of each or more"):
            alignment.Panels(**wrong)


def test_the_first_of_each_class_that_all_tell_right_are_drawn(alignment: ModuleType, scene) -> None:
    panels = importlib.import_module("panels")
    both = {"inside": (INSIDE, scene), "corner": (CORNER, scene)}
    assert panels.chosen_scans(both, 2) == [0, 4, 7, 9]  # patients p0, p1, and of the second class p2, p3
    changed = scene.chance.clone()
    changed[0] *= -1
    both["corner"] = (CORNER, replace(scene, chance=changed))
    assert panels.chosen_scans(both, 1) == [2, 3]
    both["corner"] = (CORNER, replace(scene, chance=scene.wrong))
    with pytest.raises(ConfigError, match="no scan is told right by all of inside, corner"):
        panels.chosen_scans(both, 1)


def test_a_strip_says_what_was_found(alignment: ModuleType, scene) -> None:
    """A change of 0.2 on half of the region's pixels and of 0.1 on as many beside it; another's of 0.4; one of none."""
    panels = importlib.import_module("panels")
    before = scene.chance[:1]
    change = torch.zeros_like(before)
    change[..., 6:8, 6:10] = 0.2
    change[..., 0:2, 6:10] = -0.1
    turned = {
        "inside": panels.Turned.of(INSIDE, before, before + change, change),
        "corner": panels.Turned.of(CORNER, before, before - 2 * change, -2 * change),
        "still": panels.Turned.of(WHOLE, before, before, 0 * change),
    }
    blocks = panels.strips_of(turned, scene.region[:1], ["p0\nno"], ["no", "yes"], 800.0)
    (one,), (two,), (three,) = blocks.values()
    assert {strip.label for strip in (one, two, three)} == {"p0\nno\n±320"}  # one scale for all, in HU
    assert [strip.reach for strip in (one, two, three)] == pytest.approx([0.4] * 3)
    said = 1 / (1 + math.exp(-4))  # 8 times a brightness of -0.5
    then = 1 / (1 + math.exp(-(8 * 0.4)))
    assert one.words == (f"no {said:.2f}", f"no {then:.2f}", "0.67 inside")
    assert two.words[2] == "0.67 inside"
    assert three.words[2] == "no change"
    np.testing.assert_array_equal(one.region, scene.region[0, 0, 0].numpy())
    np.testing.assert_allclose(one.images[1] - one.images[0], one.change, atol=1e-6)
    assert one.count == 3


def test_panels_are_drawn_beside_the_result(run, alignment: ModuleType, tmp_path: Path) -> None:
    pictures = []
    for name in ("a", "b"):
        run(panels=alignment.Panels(["corner", "inside"], scans=1, figures=tmp_path / name))
        (file,) = (tmp_path / name).iterdir()
        assert file.name == "alignment_toys_panels.png"
        pictures.append(file.read_bytes())
    assert pictures[0] == pictures[1]
    with Image.open(file) as shown:
        drawn = np.asarray(shown.convert("RGB")).astype(int)
    assert drawn.shape[1] > 1.5 * drawn.shape[0]  # two scans, twice three pictures
    red, green, blue = rearrange(drawn, "h w c -> c h w")
    assert ((red > green + 60) & (red > blue + 60)).any()  # brighter
    assert ((blue > green + 60) & (blue > red + 60)).any()  # darker
    assert ((red > blue + 100) & (green > blue + 100)).any()  # the outline


def test_through_a_decoder_the_scans_that_are_told_right_are_judged(
    run, alignment: ModuleType, scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A decoder that turns the region round, at the first two scans of each class that are right."""
    seen = []

    def decoded(blackbox, generator, images, config):
        seen.append(len(images))
        moved = -2 * images * scene.region[: len(images)]
        return [
            SimpleNamespace(
                counterfactual=(image + move)[None], difference=move[None], reachable=torch.tensor([bool(move.any())])
            )
            for image, move in zip(images, moved, strict=True)
        ]

    for module in ("reasons", "panels"):
        monkeypatch.setattr(importlib.import_module(module), "decoded", decoded)
    monkeypatch.setattr(alignment, "load_generator", lambda name: name)
    monkeypatch.setattr(alignment, "SliceWise", lambda generator: generator)
    panels = alignment.Panels(["corner", "inside"], scans=1, figures=tmp_path / "drawn")
    rows, _ = run(generator="gen", decoded=2, panels=panels)
    for row in rows.values():
        assert row["decoded_precision"] == row["decoded_roi"] == row["decoded_pointing"] == row["decoded_validity"] == 1
        assert row["decoded_lift"] == pytest.approx(SIDE**2 / 16)
    assert seen == [4, 4, 4, 4, 2, 2]  # two seeds of the first method; then the panels
    names = {file.name for file in (tmp_path / "drawn").iterdir()}
    assert names == {"alignment_toys_panels.png", "alignment_toys_panels_decoded.png"}


def test_where_nothing_is_told_right_nothing_is_decoded(alignment: ModuleType, scene, tmp_path: Path) -> None:
    reasons = importlib.import_module("reasons")
    config = configure(alignment, tmp_path, decoded=2)
    found = reasons.decode(CORNER, replace(scene, chance=scene.wrong), config, "gen")
    assert set(found) == {"decoded_precision", "decoded_roi", "decoded_pointing", "decoded_validity"}
    assert all(np.isnan(value).all() and len(value) == SCANS for value in found.values())
