"""LPIPS from local weights: against the package's own pipeline, without any download."""

from __future__ import annotations

import pytest
import torch
from einops import repeat
from lpips import LPIPS
from torchvision.models import alexnet

from diffcf.errors import CheckpointError, ConfigError
from diffcf.metrics.perceptual import Perceptual


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet(weights=None).state_dict(), path)
    return path


def test_the_distance_is_the_package_s_over_the_given_backbone(backbone) -> None:
    reference = LPIPS(net="alex", pnet_rand=True, verbose=False)
    stored = torch.load(backbone, weights_only=True)
    with torch.no_grad():
        for name, value in reference.net.state_dict().items():
            value.copy_(stored[f"features.{name.partition('.')[2]}"])
    image, other = torch.rand(2, 3, 2, 1, 64, 64) * 2 - 1
    perceptual = Perceptual(backbone)
    ours = perceptual(image, other)
    flat = [repeat(x, "b s 1 h w -> (b s) c h w", c=3) for x in (image, other)]
    torch.testing.assert_close(ours.flatten(), reference(*flat).flatten())
    assert ours.shape == (3, 2)
    assert (ours > 0).all()
    assert not perceptual(image, image).any()
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        perceptual(torch.zeros(1, 2, 64, 64), torch.zeros(1, 2, 64, 64))


def test_other_weights_are_refused(tmp_path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="AlexNet"):
        Perceptual(tmp_path / "other.pth")
