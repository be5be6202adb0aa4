"""Image -> attributes -> label (paper 001, section 4.3), as an architecture of timm: `diffcf_hierarchical`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm import create_model
from timm.models import register_model
from torch import Tensor, nn

from diffcf.errors import ConfigError

GIVEN = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes", "in_chans")  # fmt: skip  # noqa: E501


SPREAD = 8.0  # of the decider's input: at the start all attributes are near 1/2, and an MLP over them learns nothing


class Spread(nn.Module):
    """Probabilities in [0, 1] -> [-4, 4]."""

    def forward(self, chances: Tensor) -> Tensor:
        """Any shape."""
        return SPREAD * (chances - 0.5)


class Hierarchical(nn.Module):
    """f_θ2(sigmoid(f_θ1(x))): a network that sees attributes, and one that decides by nothing else.

    attributes: their names, p of them. backbone, backbone_args: f_θ1, any architecture of timm; the seven layers of the
    paper by default. hidden: units of f_θ2, a perceptron of two layers. in_chans, num_classes: as in timm.
    """

    def __init__(
        self,
        attributes: Sequence[str],
        backbone: str = "diffcf_cnn7",
        backbone_args: Mapping[str, Any] | None = None,
        hidden: int = 16,
        in_chans: int = 1,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        options = dict(backbone_args or {})
        refused = [name for name in options if name in GIVEN]
        if refused:
            raise ConfigError(f"backbone_args holds {', '.join(refused)}: these come from the rest; leave them out.")
        if not attributes or len(set(attributes)) < len(attributes) or hidden < 1:
            raise ConfigError(
                f"attributes {list(attributes)}, hidden {hidden}: expected one or more different names, and units."
            )
        self.attributes, self.num_classes = tuple(attributes), num_classes
        self.perceiver: nn.Module = create_model(
            backbone, pretrained=False, num_classes=len(attributes), in_chans=in_chans, **options
        )
        self.decider = nn.Sequential(
            Spread(), nn.Linear(len(attributes), hidden), nn.SiLU(), nn.Linear(hidden, num_classes)
        )

    def get_classifier(self) -> nn.Linear:
        """The last layer, as timm's architectures give it."""
        last = self.decider[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward_features(self, picture: Tensor) -> Tensor:
        """Picture "b c h w" -> log-odds of the attributes "b p"."""
        return self.perceiver(picture)

    def forward_head(self, attributes: Tensor, pre_logits: bool = False) -> Tensor:
        """Log-odds of the attributes -> logits "b k", or what the last layer reads."""
        chances = attributes.sigmoid()
        return self.decider[:-1](chances) if pre_logits else self.decider(chances)

    def forward(self, picture: Tensor) -> Tensor:
        """Logits "b k"."""
        return self.forward_head(self.forward_features(picture))


@register_model
def diffcf_hierarchical(pretrained: bool = False, **options: Any) -> Hierarchical:
    """See `Hierarchical`; there are no pretrained weights, and nothing that timm says of where they lie is used."""
    if pretrained:
        raise ConfigError("diffcf_hierarchical has no pretrained weights.")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return Hierarchical(**options)
