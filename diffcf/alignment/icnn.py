"""What interpretable convolutional networks are trained with beside cross-entropy (Zhang, Wu and Zhu 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from diffcf.alignment.methods import Batch, Method, Terms, check_weight
from diffcf.alignment.spaces import Space
from diffcf.classifiers.icnn import ICNN, templates
from diffcf.classifiers.network import SlicedClassifier
from diffcf.errors import ConfigError


def template_loss(maps: Tensor) -> Tensor:
    """Minus the mutual information of maps and templates, the mean over filters (Eq. 3 there): a scalar.

    maps: "b f y x", at least 0. For every filter, with X its maps in the batch,
        - sum_T p(T) sum_x p(x|T) log(p(x|T) / p(x)),    p(x|T) = exp(tr(x T)) / sum_x' exp(tr(x' T)),
    p(x) = sum_T p(T) p(x|T). T is one of n^2 templates that ask for one place, or the negative one that asks for an
    empty map, with p(T) = 1 / (1 + n^2), each times τ = 0.5 / n^2. It is smallest where every map lights up
    in one place or nowhere. Theirs is an approximate gradient of it; this is differentiated as it stands.
    """
    side = maps.shape[-1]
    tau, every = 0.5 / side**2, templates(side).to(maps)
    asked = torch.cat([tau * every, torch.full_like(every[:1], -tau)])
    prior = torch.full((len(asked),), 1 / (1 + side**2)).to(maps)  # α / n^2 and 1 - α are the same
    fit = einsum(maps, asked, "b f y x, t y x -> f t b").log_softmax(2)
    mixed = (fit + rearrange(prior.log(), "t -> 1 t 1")).logsumexp(1, keepdim=True)
    information = einsum((fit.exp() * (fit - mixed)), prior, "f t b, t -> f")
    return -information.mean()


@dataclass(frozen=True)
class TemplateLoss(Method):
    """template_weight * `template_loss` of the last maps; for `diffcf_icnn`. Regions are not used: it imposes that
    filters look at one place, not at which (paper 001 counts it among what imposes no explicit constraint)."""

    template_weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight("template_weight", self.template_weight)

    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """See `Method`. Errors: ConfigError for another architecture."""
        net = getattr(classifier.network, "net", None) if isinstance(classifier, SlicedClassifier) else None
        if not isinstance(net, ICNN):
            raise ConfigError("the template loss is of interpretable networks; train with architecture diffcf_icnn.")
        return TemplateTerms(self.template_weight, net)


class TemplateTerms(Terms):
    """See `TemplateLoss`."""

    def __init__(self, weight: float, net: ICNN) -> None:
        super().__init__()
        self.weight = weight
        self._maps = torch.zeros(0)
        net.layers.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], maps: Tensor) -> None:
        if module.training:
            self._maps = maps

    def forward(self, batch: Batch, progress: float) -> Tensor:
        """See `Terms`: of the maps that the cross-entropy has just seen."""
        loss = template_loss(self._maps.relu())
        self.seen = {"penalty": loss.detach()}
        return self.weight * loss
