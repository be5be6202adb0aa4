"""The Explainer: generator, black box and agent in, an explanation out. It is what the command line calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcf.cards import AgentCard, AttributesCard
from diffcf.counterfactuals import (
    AgentScorer,
    Counterfactuals,
    Exemplar,
    ImageScorer,
    Method,
    Points,
    StepSearch,
    counterfactual,
    default_method,
    path,
)
from diffcf.counterfactuals.exemplar import EXEMPLARS_NAME
from diffcf.counterfactuals.ray import take
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.attributes import AttributeSpace
from diffcf.generators.joint import JointSpace
from diffcf.generators.space import same_stochastic
from diffcf.trust import (
    Evidence,
    TrustStatistics,
    TrustThresholds,
    edit_magnitude,
    trust_checks,
    worst_psnr,
)
from diffcf.types import AttributeChange, Code, Cost, Explanation, Solution

MEBI = 1024**2


@dataclass(frozen=True)
class ExplainSettings:
    """How an explanation is searched and judged.

    method: where a counterfactual is looked for (`diffcf.counterfactuals.methods`); None is `default_method`, and
        `Exemplar` for an agent read from a folder with exemplars.
    search: how far to go, with the asked probability and the budget of decodings.
    residual_carry: keep in the counterfactual what the decoder cannot reproduce (`Ray`); None is the method's own way.
    batch: scans encoded, decoded and scored at once (as of `counterfactual`).
    path_points: n of the path, 3 or more.
    full_path: decode its inner frames in full, too, where they would be previews (`diffcf.counterfactuals.path`).
    thresholds: of the trust checks.

    Errors: ConfigError for a method that is a name.
    """

    method: Method | None = None
    search: StepSearch = field(default_factory=StepSearch)
    residual_carry: bool | None = None
    batch: int = 16
    path_points: int = 9
    full_path: bool = False
    thresholds: TrustThresholds = field(default_factory=TrustThresholds)

    def __post_init__(self) -> None:
        if self.method is not None and not isinstance(self.method, Method):
            raise ConfigError(
                f"method {self.method!r}: expected a method such as Latent(); `diffcf.counterfactuals.method_named` "
                "gives the one of a name."
            )


class Explainer:
    """Explains decisions of one black box through one generator, with the agent that belongs to both if there is one.

    generator: a `SliceWise`, on the device of the black box and the agent. trust: the generator's statistics; without
    them an explanation is made, and its first failed check says that nobody can judge it. generator_hash,
    blackbox_hash: content hashes of the folders that the models were read from; where given, the agent's card must
    name the same (`Explainer.load` gives them). `preparation` is how scans are cut for both: the generator's, with the
    black box's `slices`.

    Errors: CheckpointError where the agent belongs to another black box or generator, in hash, slices or classes;
    ConfigError where the black box cannot see the generator's images.
    """

    def __init__(
        self,
        generator: Any,
        blackbox: Any,
        agent: Any,
        settings: ExplainSettings | None = None,
        *,
        trust: TrustStatistics | None = None,
        generator_hash: str | None = None,
        blackbox_hash: str | None = None,
    ) -> None:
        self.generator, self.blackbox, self.agent = generator, blackbox, agent
        self.settings = settings or ExplainSettings()
        self.trust = trust
        self.slices = blackbox.card.preparation.slices
        self.preparation = replace(generator.card.preparation, slices=self.slices)
        self.classes = tuple(blackbox.card.classes)
        self._view = blackbox.view_of(self.preparation)
        if agent is not None:
            check_agent(agent.card, self.classes, self.slices, generator_hash, blackbox_hash)
        self.method = self.settings.method or default_method(generator, agent)
        self.space = self.method.space(generator)
        self.method.check(self.classes, generator_hash, blackbox_hash)

    @classmethod
    def load(
        cls,
        generator: str | Path,
        classifier: str | Path,
        agent: str | Path | None,
        settings: ExplainSettings | None = None,
        *,
        card: str | Path | None = None,
        device: str | torch.device = "cpu",
        onestep: str | Path | None = None,
        **sampling: Any,
    ) -> Explainer:
        """Read all three from folders or bundled names and check that they belong together.

        card: of a classifier that is a bare file. onestep: folder or bundled name of the generator's one-step decoder,
        which makes the previews of a search; None takes the one beside the generator, if there is one. sampling:
        `sampler` and `steps` of `load_generator`.
        """
        from diffcf.classifiers.agent import load_agent
        from diffcf.classifiers.blackbox import load_blackbox
        from diffcf.generators.generator import SliceWise, load_generator
        from diffcf.weights import content_hash, part_of

        folder = part_of(generator, "generator")
        lifted, student = SliceWise(load_generator(generator, onestep=onestep, **sampling)), None
        lifted.to(device)
        if agent is not None:
            student = load_agent(agent).to(device)
            kept = part_of(agent, "agent")
            settings = settings or ExplainSettings()
            if settings.method is None and lifted.spatial and (kept / EXEMPLARS_NAME).is_file():
                settings = replace(settings, method=Exemplar(kept))
        return cls(
            lifted,
            load_blackbox(classifier, card).to(device),
            student,
            settings,
            trust=TrustStatistics.load(folder / lifted.card.trust) if lifted.card.trust else None,
            generator_hash=content_hash(generator, "generator"),
            blackbox_hash=content_hash(classifier, "classifier", card=card),
        )

    def explain(
        self,
        image: Tensor,
        target: int | str | None = None,
        probability: float | None = None,
        seed: int = 0,
        roi: Tensor | None = None,
    ) -> Explanation:
        """Explain one scan.

        image: "s c h w" or "1 s c h w" in [-1, 1] of the generator's preparation. target: class index or name; None is
        the other one of two classes, and of more the runner-up. probability: what the black box itself must give the
        target, instead of the settings'. seed: of the fresh x_T that the edit is compared with; nothing else is random.
        roi: "s 1 h w" of 0 and 1, where the image may change.

        Returns an `Explanation` with b = 1, on the image's device. Errors: ConfigError for images and targets that do
        not fit the models, and for a target that the black box predicts already, unless more of it is asked for than it
        has.
        """
        _check_tensor(image)
        batch = image if image.ndim == 5 else image[None]
        if len(batch) != 1:
            raise ConfigError(f"{len(batch)} scans came; explain takes one, explain_batch several.")
        targets = None if target is None else [target]
        return self.explain_batch(batch, targets, probability, seed, None if roi is None else roi[None])[0]

    @torch.no_grad()
    def explain_batch(
        self,
        images: Tensor,
        targets: Sequence[int | str] | None = None,
        probability: float | None = None,
        seed: int = 0,
        roi: Tensor | None = None,
    ) -> list[Explanation]:
        """Explain several scans "b s c h w" together; one explanation each, as `explain` gives it. roi: "b s 1 h w".

        Counts of the cost are each scan's own; seconds are divided evenly and the memory is everybody's.
        """
        images = self._checked(images)
        device = images.device
        started = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        search = self.settings.search
        if probability is not None:
            search = replace(search, probability=probability)
        wanted = self._target_indices(targets, len(images), device)
        if wanted is not None:
            self._refuse_reached(images, wanted, search.probability if probability is not None else 0.0)
        found = counterfactual(
            images,
            wanted,
            generator=self.generator,
            blackbox=ImageScorer(self.blackbox, self._view),
            agent=None if self.agent is None else AgentScorer(self.agent),
            method=self.method,
            search=search,
            residual_carry=self.settings.residual_carry,
            roi=None if roi is None else roi.to(device),
            batch=self.settings.batch,
        )
        way = path(found, self.settings.path_points, full=self.settings.full_path)
        floor = self._floor(found, seed)
        psnrs = worst_psnr(found.ray.reconstruction, images)
        codes = self._semantic(found) if self.trust else None
        seconds = (time.perf_counter() - started) / len(images)
        memory = _peak_memory_mb(device)
        return [
            self._explanation(found, way, floor, psnrs, codes, sample, search.probability, seconds, memory)
            for sample in range(len(images))
        ]

    def _explanation(
        self,
        found: Counterfactuals,
        way: Points,
        floor: Tensor,
        psnrs: Tensor,
        codes: Tensor | None,
        sample: int,
        probability: float,
        seconds: float,
        memory: float,
    ) -> Explanation:
        ray, one, mine = found.ray, slice(sample, sample + 1), way[:, sample]
        index = torch.tensor([sample], device=ray.factual.device)
        difference = found.difference[one]
        trust = self.trust
        evidence = Evidence(
            factual=ray.factual_probability[sample].tolist(),
            reconstruction=ray.reconstruction_probability[sample].tolist(),
            counterfactual=found.end.probability[sample].tolist(),
            agent=ray.agent_probability[sample].tolist() if found.asked_agent else None,
            target=int(found.target[sample]),
            probability=probability,
            edit=float(edit_magnitude(difference)),
            floor=float(floor[sample]),
            code_distance=float(trust.code_distance(codes[one])) if trust and codes is not None else None,
            appearance_distance=float(trust.appearance_distance(ray.factual[one])) if trust else None,
            psnr=float(psnrs[sample]) if trust else None,
            edited_distance=float(trust.appearance_distance(found.end.image[one])) if trust else None,
            agreed=None if found.agreed is None else float(found.agreed[sample]),
        )
        solution = found.solution
        return Explanation(
            factual=ray.factual[one],
            reconstruction=ray.reconstruction[one],
            counterfactual=found.end.image[one],
            reference=ray.reference[one],
            difference=difference,
            factual_code=take(ray.code, index),
            counterfactual_code=take(found.code, index),
            factual_probability=ray.factual_probability[one],
            reconstruction_probability=ray.reconstruction_probability[one],
            counterfactual_probability=found.end.probability[one],
            agent_probability=ray.agent_probability[one],
            target=found.target[one],
            solution=Solution(
                solution.value[one], solution.converged[one], solution.steps[one], solution.residual[one]
            ),
            reachable=found.reachable[one],
            path_steps=mine.step,
            path_images=mine.image[:, None],
            path_probability=mine.probability[:, None],
            path_agent_probability=mine.agent_probability[:, None],
            residual_carry=ray.residual_carry,
            path_previewed=found.previewed and not self.settings.full_path,
            cost=Cost(
                generator_forwards=int(ray.effort.generator_forwards[sample]),
                generator_backwards=int(ray.effort.generator_backwards[sample]),
                blackbox_forwards=int(ray.effort.blackbox_forwards[sample]),
                seconds=seconds,
                peak_memory_mb=memory,
            ),
            trust=trust_checks(evidence, self.trust, self.settings.thresholds, self.classes),
            attributes=self._changed(ray.code.semantic[sample], found.end.semantic[sample]),
        )

    def _attributes(self) -> AttributesCard | None:
        """The card of the attributes that are searched, if any."""
        return self.space.attributes if isinstance(self.space, AttributeSpace) else None

    def _changed(self, before: Tensor, after: Tensor) -> tuple[AttributeChange, ...]:
        """What has changed between amounts "k", in attribute space; the largest change first."""
        card = self._attributes()
        if card is None:
            return ()
        rows = zip(card.names, card.mean, card.spread, before.tolist(), after.tolist(), strict=True)
        changes = [
            AttributeChange(name, mean + spread * old, mean + spread * new, new - old)
            for name, mean, spread, old, new in rows
            if new != old
        ]
        return tuple(sorted(changes, key=lambda change: -abs(change.spreads)))

    def _semantic(self, found: Counterfactuals) -> Tensor:
        """The generator's semantic codes of the factual images, whatever code was searched."""
        ray = found.ray
        if ray.generator is self.generator:
            return ray.code.semantic
        parts = ray.factual.split(self.settings.batch)
        return torch.cat([self.generator.encode_semantic(part) for part in parts])

    def _floor(self, found: Counterfactuals, seed: int) -> Tensor:
        """What noise alone changes, "b": the factual code decoded from two fresh x_T; 0 where nothing has an x_T."""
        ray, space, noise = found.ray, found.ray.generator, found.ray.code.stochastic
        if noise is None and not isinstance(space, JointSpace):
            return torch.zeros(len(ray.factual))
        everyone = torch.arange(len(ray.factual), device=ray.factual.device)
        images = []
        for offset in (0, 1):
            # Every sample sees the same noise, so that an explanation does not depend on its neighbours.
            if noise is None or isinstance(space, AttributeSpace):
                code = space.refreshed(ray.code, seed + offset)
            else:
                fresh = same_stochastic(self.generator, ray.code.semantic, seed + offset)
                code = Code(ray.code.semantic, fresh.to(noise))
            images.append(ray.decode(code, everyone).clamp(-1, 1))
        return edit_magnitude(images[1] - images[0]).cpu()

    def _target_indices(self, targets: Sequence[int | str] | None, count: int, device: torch.device) -> Tensor | None:
        if targets is None:
            return None
        if len(targets) != count:
            raise ConfigError(f"{len(targets)} targets for {count} scans.")
        return torch.tensor([self.class_index(target) for target in targets], device=device)

    def _refuse_reached(self, images: Tensor, wanted: Tensor, asked: float) -> None:
        """Refuse a target that is the prediction, unless more of it is asked for than there is."""
        parts = images.split(self.settings.batch)
        given = torch.cat([self.blackbox(self._view(part)) for part in parts]).softmax(1)
        for target, scores in zip(wanted.tolist(), given, strict=True):
            if int(scores.argmax()) == target and float(scores[target]) >= asked:
                others = ", ".join(repr(name) for k, name in enumerate(self.classes) if k != target)
                has = f"{float(scores[target]):.3f}"
                raise ConfigError(
                    f"the black box already says {self.classes[target]!r} ({has}): nothing has to change for it. Ask "
                    f"for another class ({others}), or for more of this one: a probability above {has}."
                )

    def class_index(self, target: int | str) -> int:
        """Index of a class given by index or name. Errors: ConfigError, which lists the classes."""
        if isinstance(target, str) and target in self.classes:
            return self.classes.index(target)
        if str(target).isdecimal() and int(target) < len(self.classes):
            return int(target)
        listed = ", ".join(f"{index} = {name!r}" for index, name in enumerate(self.classes))
        raise ConfigError(f"target {target!r} is no class of this black box, which has {listed}.")

    def _checked(self, images: Tensor) -> Tensor:
        size = self.preparation.size
        _check_tensor(images)
        if images.ndim != 5 or tuple(images.shape[1:]) != (self.slices, 1, size, size):
            raise ConfigError(
                f"images of shape {tuple(images.shape)}: expected (b, {self.slices}, 1, {size}, {size}), as the "
                "models' cards say; prepare the scan with the explainer's preparation."
            )
        if not torch.isfinite(images).all() or float(images.abs().max()) > 1 + 1e-4:
            raise ConfigError("images must be finite and within [-1, 1]; apply the card's window and clip to it.")
        return images.clamp(-1, 1).to(next((weight.dtype for weight in self.blackbox.parameters()), images.dtype))


def _check_tensor(images: Any) -> None:
    """Errors: ConfigError for what is no float tensor."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        came = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ConfigError(f"images are {came}: expected a float32 tensor; torch.from_numpy makes one of an array.")


def check_agent(
    card: AgentCard | None,
    classes: Sequence[str],
    slices: int,
    generator_hash: str | None = None,
    blackbox_hash: str | None = None,
) -> None:
    """Refuse an agent that was trained with another black box or generator (CheckpointError); None is not checked."""
    if card is None:
        raise CheckpointError(
            "the agent has no card.yaml, so nobody knows which black box it imitates; train it again."
        )
    wrong = []
    if blackbox_hash is not None and card.blackbox_hash != blackbox_hash:
        wrong.append(f"black box {card.blackbox_hash[:12]}, but this one is {blackbox_hash[:12]}")
    if generator_hash is not None and card.generator_hash != generator_hash:
        wrong.append(f"generator {card.generator_hash[:12]}, but this one is {generator_hash[:12]}")
    if list(card.classes) != list(classes):
        wrong.append(f"classes {list(card.classes)}, but the black box has {list(classes)}")
    if card.slices != slices:
        wrong.append(f"{card.slices} slice(s), but the black box sees {slices}")
    if wrong:
        raise CheckpointError(
            f"this agent does not belong here; its card says {'; '.join(wrong)}. "
            "Give the agent of this pair, or train one: train/agent.py."
        )


def _peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the accelerator since the explanation began, or of the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEBI
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBI if sys.platform == "darwin" else peak / 1024
