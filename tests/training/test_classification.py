"""Views that keep a label, and class weights, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from diffcf.cards import Window
from diffcf.training.classification import Augmentation, class_weights
from diffcf.training.guided import ClassificationLoss

WINDOW = Window(-600, 1600)


def drawn(augmentation: Augmentation, image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augmentation(image, WINDOW, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("views", "kinds"), [("none", 1), ("mirror", 2), ("square", 8)])
def test_views_are_those_of_the_kind_and_slices_stay_together(views: str, kinds: int) -> None:
    one = torch.arange(18.0).reshape(1, 2, 1, 3, 3)
    drawn_views = drawn(Augmentation(views), one.expand(200, -1, -1, -1, -1))
    turns = [torch.rot90(side, k, (-2, -1)) for side in (one[0], one[0].flip(-1)) for k in range(4)]
    allowed = {"none": turns[:1], "mirror": [turns[0], turns[4]], "square": turns}[views]
    found = {tuple(view.flatten().tolist()) for view in drawn_views}
    assert found == {tuple(turn.flatten().tolist()) for turn in allowed}
    assert len(found) == kinds


def test_shifts_move_the_whole_scan_and_repeat_the_edge() -> None:
    image = torch.zeros(100, 2, 1, 9, 9)
    image[..., 4, 4] = 1
    views = drawn(Augmentation("none", shift=2), image)
    peaks = views.flatten(2).argmax(2)
    assert torch.equal(peaks[:, 0], peaks[:, 1])
    assert {(int(p) // 9, int(p) % 9) for p in peaks[:, 0]} == {(y, x) for y in range(2, 7) for x in range(2, 7)}
    edge = torch.linspace(-1, 1, 9).expand(50, 1, 1, 9, 9)
    assert drawn(Augmentation("none", shift=3), edge).min() == -1
    assert drawn(Augmentation("none", shift=3), edge).max() == 1


def test_jitter_is_in_hu_and_stays_in_the_window() -> None:
    image = torch.zeros(5000, 2, 1, 1, 1)
    views = drawn(Augmentation("none", jitter=40), image)
    assert torch.equal(views[:, 0], views[:, 1])
    assert float(views[:, 0].std()) * 800 == pytest.approx(40, rel=0.05)
    assert drawn(Augmentation("none", jitter=500), torch.ones(50, 1, 1, 1, 1)).abs().max() <= 1


def test_views_follow_the_generator() -> None:
    augmentation = Augmentation("square", 2, 20)
    image = torch.rand(8, 1, 1, 16, 16)
    assert torch.equal(drawn(augmentation, image), drawn(augmentation, image))
    assert not torch.equal(drawn(augmentation, image), drawn(augmentation, image, seed=1))


def test_class_weights_equal_scikit_learn_s() -> None:
    labels = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    torch.testing.assert_close(class_weights(labels, 3).double(), torch.from_numpy(expected), atol=1e-6, rtol=1e-6)
    assert float(class_weights(labels, 3)[labels].mean()) == pytest.approx(1)


def test_a_balanced_loss_does_not_depend_on_how_a_batch_is_shared_out() -> None:
    torch.manual_seed(0)
    image, label, weights = torch.randn(8, 5), torch.tensor([0, 1, 0, 0, 0, 1, 2, 0]), torch.tensor([0.5, 1.5, 3.0])
    model = nn.Linear(5, 3)
    loss = ClassificationLoss(model, weights)
    halves = [loss(label[part], image[part]) for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(loss(label, image), torch.stack(halves).mean())
    # A whole batch in the training set's own proportions has the loss that it always had.
    even = class_weights(label, 3)
    expected = nn.functional.cross_entropy(model(image), label, even)
    torch.testing.assert_close(ClassificationLoss(model, even)(label, image), expected)
