"""Teaching the agent what the black box sees: losses, closed-form start, and edits added to the lesson.

Paper 004, section 2.2 and Table 1. The black box labels every image itself, so an agent can be distilled on scans
that nobody has labelled.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange, reduce
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.classifiers.agent import Agent
from diffcf.classifiers.conv_agent import ConvAgent
from diffcf.data.views import KINDS, Views, view
from diffcf.errors import ConfigError
from diffcf.metrics import classification
from diffcf.types import Code
from diffcf.weights import write_tensors

RIDGE_PENALTIES = tuple(10.0**e for e in range(-2, 7))


@dataclass(frozen=True)
class Observation:
    """What a classifier says about n images: penultimate features "n f" (None where it shows none), logits "n k"."""

    features: Tensor | None
    logits: Tensor


@dataclass(frozen=True)
class DistillationSet:
    """Semantic codes "n s ..." beside what the black box says about the images that they stand for."""

    semantic: Tensor
    teacher: Observation

    def __len__(self) -> int:
        return len(self.semantic)

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors, for safetensors and for batches."""
        named = {"semantic": self.semantic, "logits": self.teacher.logits}
        return named if self.teacher.features is None else {**named, "features": self.teacher.features}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> DistillationSet:
        """The inverse of `tensors`."""
        return cls(named["semantic"], Observation(named.get("features"), named["logits"]))

    @classmethod
    def join(cls, parts: Sequence[DistillationSet]) -> DistillationSet:
        """One set of several, in order."""
        named = [part.tensors() for part in parts]
        return cls.from_tensors({key: torch.cat([part[key] for part in named]) for key in named[0]})


class AgentLoss(ABC):
    """How far the agent's observation is from the teacher's; a new loss is a frozen dataclass with this one method."""

    needs_features: ClassVar[bool]

    @abstractmethod
    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Scalar loss, averaged over the batch."""


@dataclass(frozen=True)
class L1(AgentLoss):
    """Mean absolute difference of the features, over batch and features: the paper's default (section 2.2)."""

    needs_features: ClassVar[bool] = True

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Scalar loss."""
        return F.l1_loss(*_both_features(self, student, teacher))


@dataclass(frozen=True)
class MSE(AgentLoss):
    """Mean squared difference of the features, over batch and features."""

    needs_features: ClassVar[bool] = True

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Scalar loss."""
        return F.mse_loss(*_both_features(self, student, teacher))


@dataclass(frozen=True)
class KL(AgentLoss):
    """KL(teacher || agent) of the predicted probabilities, in nats, averaged over the batch."""

    needs_features: ClassVar[bool] = False

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Scalar loss."""
        log_p, log_q = teacher.logits.log_softmax(1), student.logits.log_softmax(1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _both_features(loss: AgentLoss, student: Observation, teacher: Observation) -> tuple[Tensor, Tensor]:
    if student.features is None or teacher.features is None:
        raise ConfigError(
            f"the {type(loss).__name__} loss compares features, but this black box shows none; use the KL loss."
        )
    return student.features, teacher.features


class Distillation(nn.Module):
    """Agent and loss as one module, so that distributed training sees every pass through `forward`.

    Errors: ConfigError where the loss needs features and the agent has a head of its own.
    """

    def __init__(self, agent: Agent | ConvAgent, loss: AgentLoss) -> None:
        super().__init__()
        if loss.needs_features and agent.own_head:
            raise ConfigError(
                f"the {type(loss).__name__} loss compares features, but this black box shows none (no linear "
                "classification layer was found): its agent has a head of its own. Use the KL loss."
            )
        self.agent = agent
        self.loss = loss

    def forward(self, semantic: Tensor, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Scalar loss of the agent on codes "b s ..." against the teacher's logits "b k" and features "b f"."""
        seen = self.agent.features(semantic)
        return self.loss(Observation(seen, self.agent.head(seen)), Observation(features, logits))


@torch.no_grad()
def observe(blackbox: Any, image: Tensor) -> Observation:
    """Features and logits of the black box on images "b s c h w", from one pass where it has a linear head."""
    if blackbox.head is None:
        return Observation(None, blackbox(image).float())
    features = blackbox.features(image)
    return Observation(features.float(), blackbox.head(features).float())


@torch.no_grad()
def distillation_set(
    images: Iterable[Tensor],
    encode_semantic: Callable[[Tensor], Tensor],
    teacher: Callable[[Tensor], Observation],
    *,
    views: Views = "none",
) -> DistillationSet:
    """Encode batches of original images "b s c h w" and let the black box label them.

    views: every image enters in all of them ("mirror": 2, "square": 8), and the black box labels each anew.
    """
    parts = []
    for image in images:
        for kind in range(KINDS[views]):
            seen = view(image, [kind] * len(image))
            parts.append(_on_cpu(encode_semantic(seen), teacher(seen)))
    if not parts:
        raise ConfigError("there are no images to distil from; check the manifest's split column.")
    return DistillationSet.join(parts)


def cached_distillation_set(
    images: Tensor,
    encode_semantic: Callable[[Tensor], Tensor],
    teacher: Callable[[Tensor], Observation],
    *,
    models: Sequence[str],
    folder: Path | None,
    views: Views = "none",
    batch: int = 64,
) -> DistillationSet:
    """`distillation_set` over images "n s c h w", computed once for the same pixels, `models` and `views`.

    models: content hashes of generator and black box. folder: where sets are kept; None keeps nothing.
    """
    if folder is not None:
        pixels = images.detach().cpu().contiguous()
        key = hashlib.sha256(repr((list(models), views, pixels.dtype, tuple(pixels.shape))).encode())
        key.update(pixels.numpy().data)
        path = folder / f"codes-{key.hexdigest()[:24]}.safetensors"
        if path.is_file():
            return DistillationSet.from_tensors(load_file(path))
    made = distillation_set(images.split(batch), encode_semantic, teacher, views=views)
    if folder is not None:
        write_tensors(made.tensors(), path)
    return made


def fit_ridge(
    agent: Agent, train: DistillationSet, val: DistillationSet, penalties: Sequence[float] = RIDGE_PENALTIES
) -> float:
    """Set the agent's linear layer to the ridge solution of the MSE loss; returns the penalty chosen.

    Minimises sum_i |y_i - b - W x_i|^2 + penalty |W|^2 over the agent's standardised inputs x (as scikit-learn's
    Ridge) for each penalty, and keeps the one whose KL to the teacher on `val` is smallest. An agent with a head of its
    own regresses onto the logits; its head is the identity then.
    """
    if agent.own_head and agent.head.in_features != agent.head.out_features:
        raise ConfigError("ridge needs a head of its own to be square (features = classes); use init: random.")
    with torch.no_grad():
        x, y = _regression(agent, train)
        x_mean, y_mean = x.mean(0), y.mean(0)
        u, s, vh = torch.linalg.svd(x - x_mean, full_matrices=False)
        projected = rearrange(u, "n r -> r n") @ (y - y_mean)
        best, best_kl = None, float("inf")
        for penalty in penalties:
            shrink = rearrange(s / (s.square() + penalty), "r -> r 1") if penalty else _pseudo_inverse(s)
            weight = rearrange(rearrange(vh, "r p -> p r") @ (shrink * projected), "p f -> f p")
            agent.linear.weight.copy_(weight)
            agent.linear.bias.copy_(y_mean - weight @ x_mean)
            kl = evaluate_loss(agent, val, KL())
            if kl < best_kl:
                best, best_kl = penalty, kl
                kept = {key: value.clone() for key, value in agent.linear.state_dict().items()}
        if best is None:
            raise ConfigError("no ridge solution had a finite KL on the validation set; check the codes for NaN.")
        agent.linear.load_state_dict(kept)
    return best


@torch.no_grad()
def evaluate_loss(agent: Agent | ConvAgent, data: DistillationSet, loss: AgentLoss) -> float:
    """The loss over a whole set."""
    module = Distillation(agent, loss)
    named = {key: value.to(agent.device) for key, value in data.tensors().items()}
    return float(module(**named))


@torch.no_grad()
def predict(agent: Agent | ConvAgent, data: DistillationSet) -> Tensor:
    """The agent's logits "n k" over a whole set, on the CPU."""
    return agent(data.semantic.to(agent.device)).cpu()


def edit_towards_margin(agent: Agent, semantic: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Shift codes along the agent's pattern until it prefers `target` by `margin` logits; same shape as `semantic`.

    Eq. 2 of paper 004 along the pattern, as explanations are searched. The margin is the target's logit minus the
    best other one's; the agent is affine, so one step is exact as long as the same class stays the rival.
    """
    with torch.enable_grad():
        point = semantic.detach().requires_grad_(True)
        logits = agent(point)
        wanted = F.one_hot(target, logits.shape[1]).bool()
        now = logits[wanted] - logits.masked_fill(wanted, -torch.inf).amax(1)
        (slope,) = torch.autograd.grad(now.sum(), point)
    direction = agent.covariance(slope)
    rate = reduce(slope * direction, "b ... -> b", "sum")
    step = torch.where(rate > 0, (margin - now.detach()) / rate, 0.0)  # a flat agent moves nothing
    return semantic.detach() + torch.einsum("b,b...->b...", step, direction)


@torch.no_grad()
def augment_with_edits(
    agent: Agent,
    batches: Iterable[tuple[Tensor, Code]],
    decode: Callable[[Code], Tensor],
    teacher: Callable[[Tensor], Observation],
    *,
    edits: int = 1,
    margins: tuple[float, float] = (-4.0, 4.0),
    residual_carry: bool = False,
    seed: int = 0,
) -> DistillationSet:
    """Codes edited along the agent's gradient, beside what the black box says about their decoded images.

    The agent is not the teacher: along its own gradient it is asked about codes that no image has, and this is where
    it drifts from the black box. Each code is moved `edits` times to a margin drawn evenly from `margins` towards a
    class drawn at random.

    batches: original images "b s c h w" in [-1, 1] with their codes. decode: code -> image, not clamped.
    residual_carry: label x + D(z', e) - D(z, e) instead of D(z', e), as explanations made with that option show it.
    """
    random = torch.Generator().manual_seed(seed)
    classes = agent.head.out_features
    low, high = margins
    parts = []
    for image, code in batches:
        image = image.to(code.semantic.device)
        kept = image - decode(code) if residual_carry else 0.0
        for _ in range(edits):
            target = torch.randint(classes, (len(image),), generator=random).to(image.device)
            margin = (low + (high - low) * torch.rand(len(image), generator=random)).to(image.device)
            edited = dataclasses.replace(code, semantic=edit_towards_margin(agent, code.semantic, target, margin))
            parts.append(_on_cpu(edited.semantic, teacher((decode(edited) + kept).clamp(-1, 1))))
    if not parts:
        raise ConfigError("there are no codes to edit.")
    return DistillationSet.join(parts)


def agreement(student: Tensor, teacher: Tensor, positive: int = -1) -> dict[str, float]:
    """Table 1 of paper 004: the agent's logits "n k" against the black box's "n k", whose predictions are the truth.

    `auc`, `sensitivity`, `specificity` and `f1` are about class `positive` against the others, where the black box
    (and the agent) predict it; `accuracy` is the share of equal predictions; `kl` is the mean of KL(teacher || agent)
    in nats. What is undefined, as AUC is where the black box predicts one class only, is NaN.
    """
    student, teacher = student.double(), teacher.double()
    q, p = student.softmax(1), teacher.softmax(1)
    positive %= p.shape[1]
    said, truth = (q.argmax(1) == positive).numpy(), (p.argmax(1) == positive).numpy()
    return {
        "auc": classification.auc(q[:, positive].numpy(), truth),
        "accuracy": classification.accuracy(q.argmax(1).numpy(), p.argmax(1).numpy()),
        "sensitivity": classification.sensitivity(said, truth),
        "specificity": classification.specificity(said, truth),
        "f1": classification.f1(said, truth),
        "kl": float(KL()(Observation(None, student), Observation(None, teacher))),
    }


def _on_cpu(semantic: Tensor, seen: Observation) -> DistillationSet:
    features = None if seen.features is None else seen.features.cpu()
    return DistillationSet(semantic.float().cpu(), Observation(features, seen.logits.cpu()))


def _pseudo_inverse(s: Tensor) -> Tensor:
    kept = s > s.amax() * 1e-12
    return rearrange(torch.where(kept, 1 / s, 0.0), "r -> r 1")


def _regression(agent: Agent, data: DistillationSet) -> tuple[Tensor, Tensor]:
    """Inputs "n p" and targets "n f" of the linear layer as a plain regression, in float64 on the agent's device."""
    x = agent.inputs(data.semantic.to(agent.device)).double()
    targets = data.teacher.logits if agent.own_head else data.teacher.features
    if targets is None:
        raise ConfigError("ridge regresses onto the black box's features, but this set holds none.")
    y = targets.to(x)
    if agent.slice_mode == "concatenate":
        return rearrange(x, "b s p -> (b s) p"), rearrange(y, "b (s f) -> (b s) f", s=agent.slices)
    return reduce(x, "b s p -> b p", "mean"), y
