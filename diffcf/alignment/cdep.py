"""Contextual decomposition, and explanations penalised by it (Rieger, Singh, Murdoch and Yu 2020: CDEP)."""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.alignment.methods import Batch, Method, Terms
from diffcf.alignment.spaces import Space
from diffcf.classifiers.cnn7 import CNN7
from diffcf.classifiers.network import SlicedClassifier, normalised
from diffcf.errors import ConfigError

TINY = 1e-12
Parts = tuple[Tensor, Tensor]  # β, what a part of the input gives, and γ, the rest: their sum is the network's own


def through(module: nn.Module, parts: Parts) -> Parts:
    """β and γ behind a module (Singh, Murdoch and Yu 2019, section 3.2).

    Linear and convolutional layers act on both, their bias is shared in proportion to what each contributes. An
    activation f gives β the value f(β) and γ the rest, f(β + γ) - f(β). GroupNorm, which they do not treat, is a linear
    map once the mean and spread of the whole are given: its scale acts on both, its shift is shared like a bias.

    Errors: ConfigError for a layer without a rule.
    """
    beta, gamma = parts
    if isinstance(module, nn.Sequential):
        for part in module:
            parts = through(part, parts)
        return parts
    if isinstance(module, nn.Conv2d):
        own, rest = (module._conv_forward(part, module.weight, None) for part in parts)
        return (own, rest) if module.bias is None else _shared(own, rest, rearrange(module.bias, "f -> f 1 1"))
    if isinstance(module, nn.Linear):
        own, rest = F.linear(beta, module.weight), F.linear(gamma, module.weight)
        return _shared(own, rest, module.bias) if module.bias is not None else (own, rest)
    if isinstance(module, nn.GroupNorm):
        whole = rearrange(beta + gamma, "b (g f) y x -> b g (f y x)", g=module.num_groups)
        mean, spread = whole.mean(2), (whole.var(2, unbiased=False) + module.eps).sqrt()
        each = beta.shape[1] // module.num_groups
        mean, spread = (part.repeat_interleave(each, 1)[:, :, None, None] for part in (mean, spread))
        scale = rearrange(module.weight, "f -> f 1 1") / spread
        return _shared(beta * scale, gamma * scale, rearrange(module.bias, "f -> f 1 1") - mean * scale)
    if isinstance(module, nn.SiLU | nn.ReLU):
        own = module(beta)
        return own, module(beta + gamma) - own
    raise ConfigError(
        f"contextual decomposition has no rule for {type(module).__name__}; it is for diffcf_cnn7, made of Conv2d, "
        "Linear, GroupNorm, SiLU and ReLU."
    )


def decomposed(classifier: SlicedClassifier, image: Tensor, part: Tensor) -> Parts:
    """Logits "b k" in two: what the part of images "b s c h w" that is 1 in "b s 1 h w" gives, and the rest.

    The value 0 of the normalised image counts as nothing. Errors: ConfigError for another architecture than CNN7.
    """
    net = _net_of(classifier)
    picture = normalised(image, classifier.card)
    picture, part = (rearrange(one.expand_as(image), "b s c h w -> b (s c) h w") for one in (picture, part))
    own, rest = through(net.layers, (net.seen(picture * part), net.seen(picture * (1 - part))))
    return through(net.head, (net.pooled(own), net.pooled(rest)))


@dataclass(frozen=True)
class Decomposition(Method):
    """decomposition_weight * the mean over samples and classes of |β|, β the logits' part that comes from outside of
    the region: it shall contribute nothing (CDEP, Eq. 4 there with explanations of 0).

    decomposition_share: of every batch for which it is computed.
    """

    decomposition_weight: float = 1.0
    decomposition_share: float = 0.5

    def __post_init__(self) -> None:
        if self.decomposition_weight < 0 or not 0 < self.decomposition_share <= 1:
            raise ConfigError(
                f"decomposition_weight {self.decomposition_weight}, decomposition_share {self.decomposition_share}: "
                "expected 0 or more, and a share above 0 and at most 1."
            )

    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """See `Method`. Errors: ConfigError for another architecture than CNN7."""
        _net_of(classifier)
        return DecompositionTerms(self, classifier)


class DecompositionTerms(Terms):
    """See `Decomposition`."""

    def __init__(self, method: Decomposition, classifier: nn.Module) -> None:
        super().__init__()
        self.method, self.classifier = method, classifier

    def forward(self, batch: Batch, progress: float) -> Tensor:
        """See `Terms`."""
        assert isinstance(self.classifier, SlicedClassifier)
        few = batch.head(max(1, round(self.method.decomposition_share * len(batch.image))))
        outside, _ = decomposed(self.classifier, few.image, 1 - few.region)
        penalty = reduce(outside.abs(), "b k -> b", "mean").mean()
        self.seen = {"penalty": penalty.detach()}
        return self.method.decomposition_weight * penalty


def _net_of(classifier: nn.Module) -> CNN7:
    sliced = isinstance(classifier, SlicedClassifier) and classifier.card.slice_mode == "channels"
    net = getattr(classifier.network, "net", None) if sliced else None
    if type(net) is not CNN7:
        raise ConfigError(
            "contextual decomposition is written for architecture diffcf_cnn7 with slice_mode channels; take another "
            "method for other networks."
        )
    return net


def _shared(own: Tensor, rest: Tensor, bias: Tensor) -> Parts:
    share = own.abs() / (own.abs() + rest.abs()).clamp(min=TINY)
    own_bias = share * bias
    return own + own_bias, rest + (bias - own_bias)
