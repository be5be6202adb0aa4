"""The agent: a two-layer linear student that reads a semantic code and decides as the black box does.

Paper 004, section 2.2: one linear layer from the codes of all slices to the black box's penultimate features, then the
black box's own classification layer, copied and frozen. The gradient of its logits tells in which direction
counterfactuals are searched (Eq. 2).

A linear reader's weights are not what it reads: they also cancel whatever else varies in the codes, and a step along
them leaves the codes that images have. What varies *with* a logit over the training codes is its pattern, covariance
times weights (Haufe et al. 2014, "On the interpretation of weight vectors of linear models", NeuroImage 87).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, reduce
from torch import Tensor, nn

from diffcf.cards import AgentCard, read_card, write_card
from diffcf.errors import CheckpointError, ConfigError
from diffcf.folders import whole_folder
from diffcf.weights import MODEL_FOLDER, MODEL_WEIGHTS, part_of, write_tensors

SliceMode = Literal["channels", "average", "concatenate"]


class Agent(ModelMixin, ConfigMixin):
    """Semantic codes "b s d" or "b s d h w" -> logits "b k".

    Codes are standardised by the statistics of the training codes (buffers `mean` and `std`, one a code channel), so
    that a step along the gradient is measured in spreads of the code and not in whatever unit the encoder chose.
    The layer's structure follows how the black box treats its slices:

    - "channels": the slices enter the black box together, so one layer reads the concatenation of their codes;
    - "average": the black box averages features of single slices, so one layer is shared by the slices and its
      outputs are averaged;
    - "concatenate": the black box concatenates features of single slices, so a shared layer's outputs are.

    Args:
        slices: s.
        semantic_shape: of one slice's code, (d,) or (d, h, w).
        features: width of the black box's penultimate layer, all slices together.
        classes: k.
        slice_mode: as above.
        pool: side of the average pooling over a spatial code before it is flattened; 1 reads every position.
        own_head: the classification layer belongs to the agent and is trained, because the black box shows none.
            It starts as the identity where `features` equals `classes`.

    Errors: ConfigError where the sizes do not fit each other.
    """

    mean: Tensor
    std: Tensor
    patterns: Tensor

    @register_to_config
    def __init__(
        self,
        slices: int,
        semantic_shape: Sequence[int],
        features: int,
        classes: int,
        slice_mode: SliceMode = "channels",
        pool: int = 1,
        own_head: bool = False,
    ) -> None:
        super().__init__()
        dim, *grid = semantic_shape
        if len(grid) not in (0, 2) or any(side % pool for side in grid) or (pool > 1 and not grid):
            raise ConfigError(
                f"a code of shape {tuple(semantic_shape)} with pool {pool}: expected (d,) with pool 1, "
                "or (d, h, w) with h and w divisible by pool."
            )
        if slice_mode not in ("channels", "average", "concatenate"):
            raise ConfigError(f"slice_mode {slice_mode!r}: expected channels, average or concatenate.")
        if slice_mode == "concatenate" and features % slices:
            raise ConfigError(
                f"{features} features of {slices} concatenated slices do not divide; check the black box's card."
            )
        self.slices = slices
        self.semantic_shape = tuple(semantic_shape)
        self.slice_mode: SliceMode = slice_mode
        self.pool = pool
        self.own_head = own_head
        self.card: AgentCard | None = None
        inputs = dim
        for side in grid:
            inputs *= side // pool
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("patterns", torch.zeros(classes, slices, *self.semantic_shape))
        self.linear = nn.Linear(
            inputs * slices if slice_mode == "channels" else inputs,
            features // slices if slice_mode == "concatenate" else features,
        )
        self.head = nn.Linear(features, classes)
        if own_head and features == classes:
            nn.init.eye_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.head.requires_grad_(own_head)

    @classmethod
    def for_blackbox(cls, blackbox: Any, semantic_shape: Sequence[int], *, pool: int = 1) -> Agent:
        """An untrained agent for a black box, its classification layer copied and frozen.

        semantic_shape: of one slice's code. A black box without a linear `head` gets an agent with a head of its own,
        which only the KL loss can train.
        """
        card = blackbox.card
        slices, classes, head = card.preparation.slices, len(card.classes), blackbox.head
        if head is None:
            mode: SliceMode = "average" if card.slice_mode == "average" else "channels"
            return cls(slices, semantic_shape, classes, classes, mode, pool, own_head=True)
        if head.out_features != classes:
            raise ConfigError(
                f"the black box's classification layer gives {head.out_features} logits but its card names "
                f"{classes} classes; correct the card."
            )
        agent = cls(slices, semantic_shape, head.in_features, classes, card.slice_mode, pool)
        with torch.no_grad():
            agent.head.weight.copy_(head.weight)
            agent.head.bias.copy_(head.bias if head.bias is not None else torch.zeros_like(agent.head.bias))
        return agent

    def set_statistics(self, semantic: Tensor) -> None:
        """Take `mean` and `std` from the training codes "n s d" or "n s d h w".

        A channel that never varies gets std 0 and is ignored: nothing could be learned about it.
        """
        mean, std = code_statistics(checked_codes(self, semantic))
        self.mean.copy_(mean)
        self.std.copy_(std)

    @property
    def scale(self) -> Tensor:
        """Spread of the training codes, "d" or "d 1 1": broadcasts over semantic codes.

        A steepest step in standardised codes moves the semantic code by `scale**2` times its gradient.
        """
        return self.std if len(self.semantic_shape) == 1 else rearrange(self.std, "d -> d 1 1")

    @torch.no_grad()
    def set_patterns(self, semantic: Tensor) -> None:
        """Take each logit's pattern, Cov(code, logit), "k s d" or "k s d h w", from the training codes "n s ...".

        It belongs to the weights: take it anew when they change.
        """
        semantic = checked_codes(self, semantic)
        logits = torch.cat([self(part) for part in semantic.split(1024)]).double()
        logits -= logits.mean(0)
        centre, total = semantic.double().mean(0), torch.zeros_like(self.patterns, dtype=torch.float64)
        for part, weights in zip(semantic.split(1024), logits.split(1024), strict=True):
            total += torch.einsum("n...,nk->k...", part.double() - centre, weights)
        self.patterns.copy_(total / len(semantic))

    def covariance(self, gradient: Tensor) -> Tensor:
        """The training codes' covariance C times gradients "b s ...", of anything that is read from the logits.

        Such a gradient is a mixture of the logits' own, sum_k c_k w_k, and C w_k is the pattern of logit k: C itself,
        all slices together, is never built. Errors: ConfigError where the agent has no patterns.
        """
        if bool(gradient.any()) and not bool(self.patterns.any()):
            raise ConfigError("this agent has no patterns of its training codes; set_patterns, or train it again.")
        with torch.enable_grad():
            start = torch.zeros_like(gradient[:1]).requires_grad_(True)
            logits = self(start)[0]
            rows = [torch.autograd.grad(logit, start, retain_graph=True)[0].flatten() for logit in logits]
        weights = torch.stack(rows)  # "k D", the same everywhere: the agent is affine
        mixture = gradient.flatten(1) @ torch.linalg.pinv(weights)
        return torch.einsum("bk,k...->b...", mixture, self.patterns.to(gradient))

    def inputs(self, semantic: Tensor) -> Tensor:
        """What the linear layer reads: standardised, pooled and flattened codes, "b 1 p" (channels) or "b s p"."""
        spread = self.scale
        inverse = torch.where(spread > 0, 1 / spread, 0.0)
        mean = self.mean if len(self.semantic_shape) == 1 else rearrange(self.mean, "d -> d 1 1")
        x = (checked_codes(self, semantic) - mean) * inverse
        if self.pool > 1:
            x = reduce(x, "b s d (h p) (w q) -> b s d h w", "mean", p=self.pool, q=self.pool)
        return rearrange(x, "b s ... -> b 1 (s ...)" if self.slice_mode == "channels" else "b s ... -> b s (...)")

    def features(self, semantic: Tensor) -> Tensor:
        """The imitated penultimate features, "b f"."""
        each = self.linear(self.inputs(semantic))
        if self.slice_mode == "concatenate":
            return rearrange(each, "b s f -> b (s f)")
        return reduce(each, "b s f -> b f", "mean")

    def forward(self, semantic: Tensor) -> Tensor:
        """Semantic codes "b s d" or "b s d h w" -> logits "b k".

        Errors: ConfigError where the codes come from another generator or number of slices.
        """
        return self.head(self.features(semantic))


def checked_codes(agent: Any, semantic: Tensor) -> Tensor:
    """The codes "b s ...", if they are what an agent with `slices` and `semantic_shape` reads; else ConfigError."""
    expected = (agent.slices, *agent.semantic_shape)
    if tuple(semantic.shape[1:]) != expected:
        wanted = ", ".join(map(str, expected))
        raise ConfigError(
            f"semantic codes of shape {tuple(semantic.shape)}: this agent reads (b, {wanted}); "
            "use the generator and the slices that it was trained with."
        )
    return semantic


def code_statistics(semantic: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of every channel of codes "n s d ...", float64 "d"; a channel that never varies has spread 0."""
    values = rearrange(semantic.double(), "n s d ... -> d (n s ...)")
    mean, std = values.mean(1), values.std(1, correction=0)
    return mean, torch.where(std > 1e-6 * std.amax(), std, 0.0)


def save_agent(agent: Any, card: AgentCard, folder: Path, *, half: bool = False) -> None:
    """Write config.json, safetensors weights and card.yaml to `folder`; an earlier agent there is replaced.

    agent: an `Agent` or a `ConvAgent`. half: store the weights in half precision, half the size; they are computed
    with in single precision all the same.

    Errors: ConfigError for a folder of something else.
    """
    with whole_folder(folder, MODEL_FOLDER, overwrite=True) as whole:
        write_tensors(agent.state_dict(), whole / MODEL_WEIGHTS, half=half)
        agent.save_config(whole)
        write_card(card, whole)
    agent.card = card


def load_agent(source: str | Path) -> Any:
    """Read what `save_agent` wrote, an `Agent` or a `ConvAgent`; in eval mode and single precision, with its card.

    source: folder or bundled name; a set ("lidc") stands for its agent.

    Errors: CheckpointError where the folder holds no agent.
    """
    from diffcf.classifiers.conv_agent import ConvAgent

    kinds = {"Agent": Agent, "ConvAgent": ConvAgent}
    folder = part_of(source, "agent")
    card = read_card(AgentCard, folder)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"no weights in {folder}: copy the agent's folder again.")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
        if kind not in kinds:
            raise ValueError(f"config.json names the class {kind!r}, expected one of {', '.join(kinds)}")
        loaded = kinds[kind].from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} holds no readable agent: {error}") from error
    agent: Any = loaded
    agent.float().eval()
    agent.card = card
    return agent
