"""Scenes drawn anew with one attribute changed: a black box whose every reason is known is found out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripts import ROOT, load
from torch import Tensor, nn

from diffcf.cards import AttributesCard, Preparation, Window
from diffcf.data.dataset import ScanDataset
from diffcf.data.phantom import Shortcut
from diffcf.data.phantom.folder import PhantomSet, write_scenes
from diffcf.errors import ConfigError

WANTED = PhantomSet("nodule", 12, size=32, shortcut=Shortcut("symbol", 0.0), label="mark", seed=4)
PREPARATION = Preparation(Window(-600, 1600), size=32, slices=1, field="crop", spacing=None)
NAMES = ["texture", "diameter", "shortcut"]


class Reader(nn.Module):
    """Takes a mark for a + by its upper arm, or a nodule for solid by its middle's brightness."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.weight = of, nn.Parameter(torch.zeros(1))

    def forward(self, view: Tensor) -> Tensor:
        part = (
            view[:, 0, 0, 1:3, 3]
            if self.of == "mark"
            else view[:, 0, 0, 12:20, 12:20].flatten(1).quantile(0.9, 1)[:, None]
        )
        margin = 40 * (part.mean(1) - (0.9 if self.of == "mark" else 0.62))
        return torch.stack([-margin, margin], 1)


@pytest.fixture(scope="module")
def asking(tmp_path_factory) -> Any:
    manifest = write_scenes(WANTED, tmp_path_factory.mktemp("scenes") / "set")
    rows = manifest.split("train")
    scans = ScanDataset(rows, PREPARATION)
    texture, diameter = scans.attributes[:, [scans.attribute_names.index(name) for name in NAMES[:2]]].T
    mean = [float(texture.mean()), float(diameter.mean()), 0.5]
    card = AttributesCard(NAMES, mean, [1.0, 3.0, 0.5], [-2.0, -1.0, -1.0], [0.8, 1.0, 1.0], "")

    def make(of: str = "mark", card: AttributesCard = card) -> Any:
        box: Any = Reader(of)
        explainer = SimpleNamespace(blackbox=box, preparation=PREPARATION)
        with torch.no_grad():
            labels = box(scans.images).argmax(1)
        told = SimpleNamespace(images=scans.images, labels=labels, patients=scans.patients)
        search = SimpleNamespace(search=SimpleNamespace(probability=0.75))
        scorer = SimpleNamespace(view=lambda image: image)
        return SimpleNamespace(
            card=lambda frozen=(): card.only([k for k, name in enumerate(card.names) if name not in frozen]),
            explainer=explainer, rows=rows, scans=told, chosen=list(range(len(rows))), classes=("a", "b"),
            question=search, scorer=scorer,
        )  # fmt: skip

    return make


@pytest.fixture
def scenes(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return load("evaluation", "scenes")


def test_own_attributes_give_the_scan_itself_and_a_mark_becomes_the_other(asking, scenes) -> None:
    asked = asking()
    for row, image in zip(asked.rows, asked.scans.images, strict=True):
        own = dict(row.attributes)
        index = int(row.path.name[:6])
        torch.testing.assert_close(scenes.drawn(WANTED, index, own, PREPARATION), image, atol=1e-3, rtol=0)
        other = scenes.drawn(WANTED, index, {**own, "shortcut": 1 - own["shortcut"]}, PREPARATION)
        changed = (other - image).abs()[0, 0] > 0.05
        assert changed[:8, :8].any()
        assert not changed[8:].any()


def test_what_decides_is_the_only_attribute_that_turns_the_decision(asking, scenes) -> None:
    asked = asking("mark")
    asked.chosen = asked.chosen[:3]
    for query in scenes.drawn_anew(asked, WANTED):
        assert query.reached
        assert query.order == ["shortcut"]
        assert abs(query.change["shortcut"]) == pytest.approx(2.0)
    for query in scenes.drawn_anew(asked, WANTED, ("shortcut",)):
        assert not query.reached
        assert not query.order
    bright = scenes.drawn_anew(asking("middle"), WANTED)
    assert "texture" in {query.order[0] for query in bright if query.reached}
    assert all(query.order[0] != "shortcut" for query in bright if query.reached)


def test_an_answer_is_confirmed_where_its_scene_is_given_the_other_class(asking, scenes) -> None:
    asked = asking("mark")
    asked.chosen = asked.chosen[:3]
    turning = scenes.drawn_anew(asked, WANTED)
    assert scenes.confirmed(asked, WANTED, turning) == [1.0, 1.0, 1.0]
    none = [replace(query, change=dict.fromkeys(query.change, 0.0)) for query in turning]
    missed = [replace(query, reached=False) for query in turning]
    assert scenes.confirmed(asked, WANTED, none) == [0.0, 0.0, 0.0]
    assert all(each != each for each in scenes.confirmed(asked, WANTED, missed))


def test_scenes_of_another_set_and_attributes_that_are_none_are_refused(asking, scenes) -> None:
    with pytest.raises(ConfigError, match=r"is not scene \d+ of the set"):
        scenes.drawn_anew(asking(), PhantomSet("nodule", 12, size=32, shortcut=WANTED.shortcut, seed=5))
    with pytest.raises(ConfigError, match="of the kind fibrosis are asked about texture, diameter, shortcut"):
        scenes.drawn_anew(asking(), PhantomSet("fibrosis", 12, size=32))
    with pytest.raises(ConfigError, match=r"expected nodules, and of .*texture"):
        scenes.drawn_anew(asking(), PhantomSet("nodule", 12, size=32, seed=4))
    asked = asking()
    asked.classes = ("a", "b", "c")
    with pytest.raises(ConfigError, match="3 classes; scenes are drawn anew for two"):
        scenes.drawn_anew(asked, WANTED)
