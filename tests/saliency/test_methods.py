"""What holds of every saliency method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from diffcf.errors import ConfigError
from diffcf.saliency import (
    CounterfactualSaliency,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    InputGradient,
    IntegratedGradients,
    LatentShiftSaliency,
    Occlusion,
    SaliencyMethod,
    ScoreCAM,
    SearchSaliency,
    normalised,
)

METHODS: dict[str, SaliencyMethod] = {
    "gradient": InputGradient(),
    "integrated": IntegratedGradients(steps=4),
    "hirescam": HiResCAM(),
    "gradcam": GradCAM(),
    "gradcam++": GradCAMPlusPlus(),
    "scorecam": ScoreCAM(),
    "occlusion": Occlusion(8, 8),
    "counterfactual": CounterfactualSaliency(),
    "published": CounterfactualSaliency.published(),
    "no_rec": CounterfactualSaliency.no_rec(),
    "latent_shift": LatentShiftSaliency(),
    "search": SearchSaliency(),
}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def parsed(text: dict[str, Any]) -> SaliencyMethod:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=SaliencyMethod)
    return parser.instantiate(parser.parse_object({"method": text})).method


@every
def test_maps_have_their_shape_and_range(method, convolutions, blocks, scans) -> None:
    for target in (None, torch.tensor([1, 0, 1])):
        found = method(convolutions, scans, target, blocks)
        assert found.shape == (3, 2, 1, 16, 16)
        assert bool(found.isfinite().all())
        assert float(found.min()) >= 0
        assert not found.requires_grad
        unit = normalised(found)
        tops = unit.flatten(1).max(1).values
        assert bool(((tops == 1) | (tops == 0)).all())


@every
def test_maps_do_not_depend_on_the_rest_of_the_batch(method, convolutions, blocks, scans) -> None:
    together = method(convolutions, scans, generator=blocks)
    alone = torch.cat([method(convolutions, scan[None], generator=blocks) for scan in scans])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(alone.max()))


@every
def test_the_classifier_is_left_as_it_was(method, convolutions, blocks, scans) -> None:
    convolutions.train()
    convolutions.norm.eval()
    convolutions.head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in convolutions.state_dict().items()}
    method(convolutions, scans, generator=blocks)
    assert (convolutions.training, convolutions.norm.training, convolutions.drop.training) == (True, False, True)
    assert [name for name, one in convolutions.named_parameters() if not one.requires_grad] == ["head.weight"]
    assert all(one.grad is None for one in convolutions.parameters())
    assert all(torch.equal(value, before[name]) for name, value in convolutions.state_dict().items())
    assert not any(module._forward_hooks for module in convolutions.modules())


@every
def test_a_classifier_that_reads_nothing_has_an_empty_map(method, convolutions, blocks, scans) -> None:
    nn.init.zeros_(convolutions.head.weight)
    found = method(convolutions, scans, generator=blocks)
    assert bool(found.isfinite().all())
    if not isinstance(method, ScoreCAM) and getattr(method, "change", "") != "factual":
        assert not bool(found.any())


@every
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.3])
def test_a_constant_image_gives_finite_maps(method, value, convolutions, blocks, scans) -> None:
    found = method(convolutions, torch.full_like(scans, value), generator=blocks)
    assert bool(found.isfinite().all())
    assert bool(normalised(found).isfinite().all())


@every
def test_what_a_method_needs(method, convolutions, scans) -> None:
    with pytest.raises(ConfigError, match="slices, channels, rows, columns"):
        method(convolutions, scans[0])
    if method.needs_generator:
        with pytest.raises(ConfigError, match=f"{type(method).__name__} searches the codes of a generator"):
            method(convolutions, scans)


@every
def test_a_method_is_told_apart_by_its_words(method) -> None:
    assert sum(repr(method) == repr(other) for other in METHODS.values()) == 1
    assert hash(method) == hash(method)


@pytest.mark.parametrize("name", ["gradient", "integrated", "gradcam", "gradcam++", "counterfactual", "latent_shift"])
def test_a_classifier_without_gradients_is_refused(name, convolutions, blocks, scans) -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutions.requires_grad_(False)

        def forward(self, image):
            return self.inner(image.detach())

    with pytest.raises(ConfigError, match="gives no gradient"):
        METHODS[name](Closed(), scans, generator=blocks)
    assert ScoreCAM()(Closed(), scans).shape == (3, 2, 1, 16, 16)


def test_a_config_names_a_method() -> None:
    said = {
        "class_path": "CounterfactualSaliency",
        "init_args": {
            "loss": {"kind": "cross_entropy", "probability": 0.75},
            "distance": {"class_path": "diffcf.distances.L1", "init_args": {"reduction": "mean"}},
            "distance_weight": 100,
            "solver": {
                "class_path": "diffcf.counterfactuals.solvers.GradientDescent",
                "init_args": {"rate": 1, "steps": 20, "tolerance": 0},
            },
            "change": "factual",
            "point": "last",
            "slopes": 0,
            "smooth": 0,
        },
    }
    assert parsed(said) == CounterfactualSaliency.published()
    assert parsed({"class_path": "ScoreCAM", "init_args": {"batch": 8}}) == ScoreCAM(batch=8)
    assert parsed({"class_path": "CounterfactualSaliency"}) == CounterfactualSaliency()


def test_normalised_maps_run_from_0_to_1() -> None:
    raw = torch.tensor([[3.0, 5.0, 4.0, 3.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 1e-30]]).view(3, 1, 1, 2, 2)
    expected = torch.tensor([[0.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert torch.equal(normalised(raw).flatten(1), expected)
