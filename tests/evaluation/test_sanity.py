"""evaluation/sanity.py: what chance makes of the likeness of two maps."""

from __future__ import annotations

import pytest
import timm
import torch
from scripts import ROOT, load

from diffcf.errors import ConfigError


def test_maps_are_compared_with_those_of_other_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    up = torch.arange(6.0)
    maps = torch.stack([up, up.exp(), 5 - up, torch.ones(6)])
    by_chance = load("evaluation", "sanity").by_chance
    alike = by_chance(maps, ["a", "a", "b", "c"])
    # Neither its own patient's other map nor the constant one of c counts; -1 is as like as 1.
    assert alike[:3].tolist() == [1, 1, 1]
    assert alike[3].isnan()
    assert by_chance(maps[:2], ["a", "a"]).isnan().all()


def test_what_all_maps_share_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    beyond_others = load("evaluation", "sanity").beyond_others
    random = torch.Generator().manual_seed(0)
    middle, own, other = torch.randn(3, 8, 4000, generator=random).double()
    middle = middle[:1].expand(8, -1)
    patients = [str(k) for k in range(8)]
    maps = middle + own
    # Normal maps: r_ab = 0.5 through the middle alone, 0 given it; own parts in common stay.
    unlike, alike = middle + other, middle + own + 0.5 * other
    assert float(beyond_others(maps, unlike, patients).mean()) < 0.12
    assert float(beyond_others(maps, alike, patients).mean()) > 0.8
    assert beyond_others(maps[:2], unlike[:2], ["a", "a"]).isnan().all()


def test_no_trained_weight_is_left_in_a_random_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    redrawn = load("evaluation", "sanity").redrawn
    net = timm.create_model("densenet121", in_chans=1, num_classes=2, growth_rate=4, block_config=(2, 2))
    before = {}
    with torch.no_grad():
        for name, own in net.named_parameters():
            own.add_(0.3)  # norms begin at 1 and 0
            before[name] = own.clone()
    images = 3 + torch.randn(70, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    after = redrawn(net, 1, images)
    assert not after.training
    assert all((own != before[name]).all() for name, own in after.named_parameters())
    first = next(module for module in after.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert first.momentum == 0.1
    assert not torch.equal(first.running_mean, torch.zeros_like(first.running_mean))
    assert float(after(images).std()) > 0
    with pytest.raises(ConfigError, match="cls_token"):
        redrawn(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=1), 0, images)
