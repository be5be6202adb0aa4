"""The line of codes q + step * direction, and what its points look like and score; every look is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diffcf.counterfactuals.carry import Gate
from diffcf.counterfactuals.direction import shifted
from diffcf.errors import ConfigError
from diffcf.types import Candidate, Code, Scorer


@dataclass(frozen=True)
class Points:
    """m points, each of one sample: step "m", semantic code "m s ...", image "m s c h w", probabilities "m k"."""

    step: Tensor
    semantic: Tensor
    image: Tensor
    probability: Tensor  # of the black box, on the image
    agent_probability: Tensor  # of the agent, on the code

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, index: Any) -> Points:
        """The points at `index` of the first dimension (slice, indices or mask)."""
        return Points(*(value[index] for value in self.fields()))

    def fields(self) -> tuple[Tensor, ...]:
        """Every field, in order."""
        return self.step, self.semantic, self.image, self.probability, self.agent_probability

    @classmethod
    def join(cls, parts: Sequence[Points]) -> Points:
        """One after the other."""
        return cls(*(torch.cat(values) for values in zip(*(part.fields() for part in parts), strict=True)))


@dataclass
class Effort:
    """What has been evaluated, per sample, int "b": network evaluations of the generator, those that a gradient went
    back through, and images scored."""

    generator_forwards: Tensor
    generator_backwards: Tensor
    blackbox_forwards: Tensor

    @classmethod
    def none(cls, samples: int) -> Effort:
        """Nothing yet."""
        return cls(*(torch.zeros(samples, dtype=torch.long) for _ in range(3)))


class Ray:
    """Images and scores along one line in code space a sample.

    The image of a point is D(q', e) (paper 004, Eq. 2) or, with residual carry, x + gate(D(q', e) - D(q, e)): what the
    decoder cannot reproduce is taken over from the factual image, and step 0 is that image itself. Both are limited to
    [-1, 1] as the black box expects. `start` is the point of step 0; its image is the `reference` of every difference.

    image: "b s c h w". generator: a `SliceWise`, or anything with its `encode` and `decode`; where it has a counter
    `forwards`, that is read, and otherwise a call counts as one. blackbox: scorer of images; agent: scorer of codes, or
    None, whose probabilities are NaN. gate: of the change that is carried. roi: where the image may change, "b s 1 h w"
    of 0 and 1, which needs residual carry. others: directions that answers took before. batch: scans decoded at once.
    record: keep the iterates of solvers.
    """

    def __init__(
        self,
        image: Tensor,
        *,
        generator: Any,
        blackbox: Scorer,
        agent: Scorer | None = None,
        residual_carry: bool = False,
        gate: Gate | None = None,
        roi: Tensor | None = None,
        others: Sequence[Tensor] = (),
        batch: int = 16,
        record: bool = False,
    ) -> None:
        if roi is not None and not residual_carry:
            raise ConfigError(
                "a region where the image may change needs residual carry, since the plain decode changes all of it; "
                "ask for residual carry."
            )
        if roi is not None and roi.shape[:2] + roi.shape[3:] != image.shape[:2] + image.shape[3:]:
            raise ConfigError(f"a region of shape {tuple(roi.shape)} for images of {tuple(image.shape)}.")
        if roi is not None and not bool(((roi == 0) | (roi == 1)).all()):  # NaN is neither
            raise ConfigError("a region holds NaN or values other than 0 and 1; give (mask > 0).")
        if roi is not None and not bool(roi.flatten(1).any(1).all()):
            raise ConfigError("a region where nothing may change: it does not reach the field of every scan.")
        self.factual = image
        self.residual_carry = residual_carry
        self.agent, self.blackbox, self.batch, self.others = agent, blackbox, batch, tuple(others)
        self.generator, self._gate = generator, gate
        self._carried = None if roi is None else roi.to(image)
        self.iterates: list[Tensor] | None = [] if record else None  # codes "b s ..."
        self.effort = Effort.none(len(image))
        everyone = torch.arange(len(image))
        with torch.no_grad():
            self.code = self._encode(image)
            self._base = self.decode(self.code, everyone)
            self.reconstruction = self._base.clamp(-1, 1)
            self.factual_probability = self.score(self.code, image, everyone)
            self.agent_probability = self.ask_agent(self.code)
            self.reconstruction_probability = self.score(self.code, self.reconstruction, everyone)
        self.direction = torch.zeros_like(self.code.semantic)

    @property
    def reference(self) -> Tensor:
        """What a change is measured against, "b s c h w": the image at step 0."""
        return self.factual if self.residual_carry else self.reconstruction

    @property
    def glimpsed(self) -> Tensor:
        """What the change of a `glimpse` is measured against, "b s c h w": that of the code itself."""
        return self.factual if self.residual_carry else self._base_preview.clamp(-1, 1)

    @property
    def previews_fit(self) -> bool:
        """Whether a preview can stand between full decodes: it is one evaluation in place of many, of a code that holds
        most of the image, and residual carry compares it with a preview, so that nothing but the change is shown."""
        known = (getattr(self.generator, name, False) for name in ("spatial", "previews"))
        return self.residual_carry and all(known)

    @property
    def start(self) -> Points:
        """The points of step 0, which cost nothing more."""
        return Points(
            step=torch.zeros_like(self.factual_probability[:, 0]),
            semantic=self.code.semantic,
            image=self.reference,
            probability=self.factual_probability if self.residual_carry else self.reconstruction_probability,
            agent_probability=self.agent_probability,
        )

    def restrict(self, carried: Tensor) -> None:
        """From here on carry this share of every pixel's change, "b s c h w", in place of a gate; a roi still holds."""
        self._carried = carried if self._carried is None else carried * self._carried
        self._gate = None

    def recorder(self, scale: Tensor | float = 1.0) -> Callable[[Tensor], None] | None:
        """What a solver calls with every iterate, where they are asked for; scale: of its variables."""
        kept = self.iterates
        return None if kept is None else lambda value: kept.append(value.detach().clone() * scale)

    @torch.no_grad()
    def at(self, index: Tensor, step: Tensor, *, preview: bool = False) -> Points:
        """Decode and score samples `index` ("m", repeats allowed) shifted by `step` ("m").

        preview: in one evaluation each, as `glimpse` does.
        """
        parts = []
        for chosen, steps in zip(index.split(self.batch), step.split(self.batch), strict=True):
            code = shifted(take(self.code, chosen), self.direction[chosen], steps)
            if preview:
                image = self.glimpse(code.semantic, chosen)
            else:
                image = self._composed(self.decode(code, chosen), self._base, chosen)
            parts.append(Points(steps, code.semantic, image, self.score(code, image, chosen), self.ask_agent(code)))
        return Points.join(parts)

    def glimpse(self, semantic: Tensor, index: Tensor) -> Tensor:
        """The image of codes "m s ..." of samples `index` in one evaluation of the generator (`preview`), or decoded
        where it has no such thing. Composed as every point is; differentiable in the code; counted."""
        return self._composed(self._preview(semantic, index), self._base_preview, index)

    def change(self, semantic: Tensor, index: Tensor) -> Tensor:
        """The change of the preview itself, "m s c h w", before any gate; within a roi."""
        change = self._preview(semantic, index) - self._base_preview[index]
        return change if self._carried is None else change * self._carried[index]

    @cached_property
    def _base_preview(self) -> Tensor:
        everyone = torch.arange(len(self.factual), device=self.factual.device)
        with torch.no_grad():
            return torch.cat([self._preview(self.code.semantic[i], i) for i in everyone.split(self.batch)])

    def encode_semantic(self, image: Tensor) -> Tensor:
        """The semantic codes of images "m s c h w", without their x_T."""
        encode = getattr(self.generator, "encode_semantic", None)
        return self.generator.encode(image).semantic if encode is None else encode(image)

    def count_scored(self, index: Tensor) -> None:
        """Count images of samples `index` that the black box is shown."""
        self.effort.blackbox_forwards += torch.bincount(index.cpu(), minlength=len(self.factual))

    def glimpse_logits(self, semantic: Tensor, index: Tensor) -> Tensor:
        """The black box's logits "m k" of `glimpse`, differentiable in the code."""
        self.count_scored(index)
        return self.logits_of(self.glimpse(semantic, index))

    def logits_of(self, image: Tensor) -> Tensor:
        """The black box's logits "m k" of images "m s c h w", differentiable in them.

        Errors: ConfigError where a gradient is wanted and the black box passes none on.
        """
        logits = self.blackbox(Candidate(Code(image), lambda _: image))
        if image.requires_grad and not logits.requires_grad:
            raise ConfigError(
                "the black box gives no gradient, which this method needs; use --method agent or exemplar, which ask "
                "it for scores only."
            )
        return logits

    @cached_property
    def gives_gradient(self) -> bool:
        """Whether the black box passes a gradient on to images."""
        with torch.enable_grad():
            image = self.factual[:1].detach().requires_grad_()
            return self.blackbox(Candidate(Code(image), lambda _: image)).requires_grad

    def agent_logits(self, semantic: Tensor) -> Tensor:
        """The agent's logits "m k" of codes, differentiable in them."""
        assert self.agent is not None
        return self.agent(Candidate(Code(semantic), self._undecoded))

    def _preview(self, semantic: Tensor, index: Tensor) -> Tensor:
        before = getattr(self.generator, "forwards", None)
        stochastic = None if self.code.stochastic is None else self.code.stochastic[index]
        preview = getattr(self.generator, "preview", self.generator.decode)
        image = preview(Code(semantic, stochastic))
        spent = self._count_forwards(index, before)
        if image.requires_grad:
            self.effort.generator_backwards += spent
        return image

    def _composed(self, image: Tensor, base: Tensor, index: Tensor) -> Tensor:
        if self.residual_carry:
            change = image - base[index]
            if self._gate is not None:
                change = self._gate(change)
            if self._carried is not None:
                change = change * self._carried[index]
            image = self.factual[index] + change  # in this order a null edit is exact
        return image.clamp(-1, 1)

    @torch.no_grad()
    def ask_agent(self, code: Code) -> Tensor:
        """The agent's probabilities of codes, "m k"; NaN without an agent."""
        if self.agent is None:
            return torch.full((len(code.semantic), self.factual_probability.shape[1]), torch.nan).to(self.factual)
        return self.agent(Candidate(code, self._undecoded)).softmax(1)

    @torch.no_grad()
    def agent_at(self, index: Tensor, step: Tensor) -> Tensor:
        """The agent's probabilities alone, "m k": no image is decoded."""
        return self.ask_agent(shifted(take(self.code, index), self.direction[index], step))

    @torch.no_grad()
    def glimpse_at(self, index: Tensor, step: Tensor) -> Tensor:
        """The black box's probabilities of the points' previews, "m k": one evaluation each."""
        parts = []
        for chosen, steps in zip(index.split(self.batch), step.split(self.batch), strict=True):
            code = shifted(take(self.code, chosen), self.direction[chosen], steps)
            parts.append(self.score(code, self.glimpse(code.semantic, chosen), chosen))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, code: Code, index: Tensor) -> Tensor:
        """D(code) of samples `index`, not clamped, counted."""
        parts = []
        for chosen in torch.arange(len(index)).split(self.batch):
            before = getattr(self.generator, "forwards", None)
            parts.append(self.generator.decode(take(code, chosen.to(code.semantic.device))))
            self._count_forwards(index[chosen.to(index.device)], before)
        return torch.cat(parts)

    @torch.no_grad()
    def score(self, code: Code, image: Tensor, index: Tensor) -> Tensor:
        """The black box's probabilities of codes already decoded to images, samples `index`, "m k", counted."""
        parts = []
        for chosen in torch.arange(len(index), device=image.device).split(self.batch):
            known = Candidate(take(code, chosen), lambda _, chosen=chosen: image[chosen])
            logits = self.blackbox(known)
            parts.append(logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1))
        self.count_scored(index)
        return torch.cat(parts)

    def _encode(self, image: Tensor) -> Code:
        parts = []
        for chosen in torch.arange(len(image)).split(self.batch):
            before = getattr(self.generator, "forwards", None)
            parts.append(self.generator.encode(image[chosen.to(image.device)]))
            self._count_forwards(chosen, before)
        stochastic = [part.stochastic for part in parts]
        return Code(
            torch.cat([part.semantic for part in parts]),
            None if stochastic[0] is None else torch.cat([part for part in stochastic if part is not None]),
        )

    def _count_forwards(self, index: Tensor, before: int | None) -> Tensor:
        spent = 1 if before is None else int(self.generator.forwards) - before
        each = spent * torch.bincount(index.cpu(), minlength=len(self.factual))
        self.effort.generator_forwards += each
        return each

    @staticmethod
    def _undecoded(code: Code) -> Tensor:
        raise AssertionError("the agent reads codes, not images")


def take(code: Code, index: Tensor) -> Code:
    """Samples `index` of a batch of codes."""
    return Code(code.semantic[index], None if code.stochastic is None else code.stochastic[index])


def probability_of(probability: Tensor, wanted: Tensor) -> Tensor:
    """The probabilities "m" of classes `wanted`, int "m", among "m k"."""
    return probability.gather(1, rearrange(wanted, "m -> m 1")).squeeze(1)
