"""The Explainer over a world in which every answer is known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from diffcf.cards import AgentCard, AttributeAgentCard, AttributesCard, ClassifierCard, GeneratorCard, Preparation
from diffcf.classifiers.attribute_agent import AttributeAgent
from diffcf.counterfactuals import Attributes, Shift, StepSearch, spread_covariance
from diffcf.counterfactuals.joint import Joint
from diffcf.counterfactuals.solvers import Adam
from diffcf.errors import CheckpointError, ConfigError
from diffcf.explain import Explainer, ExplainSettings, check_agent
from diffcf.generators.attributes import AttributeDirections
from diffcf.trust import edit_magnitude, fit_trust
from diffcf.types import Code

SIZE, SLICES = 8, 2
PREPARATION = Preparation(size=SIZE, slices=SLICES)
GAIN = 40.0


class Halves:
    """A code of two numbers a slice, the means of the left and the right half; x_T is the rest of the image."""

    card = GeneratorCard(PREPARATION)

    def __init__(self) -> None:
        self.forwards = 0

    @staticmethod
    def means(image: Tensor) -> Tensor:
        return rearrange(image, "b s c h (two w) -> b s two (c h w)", two=2).mean(-1)

    def encode_semantic(self, image: Tensor) -> Tensor:
        return self.means(image)

    def encode(self, image: Tensor) -> Code:
        self.forwards += 3
        semantic = self.means(image)
        return Code(semantic, (image - self.spread(semantic))[:, :, None])

    def decode(self, code: Code) -> Tensor:
        self.forwards += 3
        return self.spread(code.semantic) + code.stochastic[:, :, 0]

    def fresh_stochastic(self, semantic: Tensor, seed: int) -> Tensor:
        noise = torch.randn(len(semantic), SLICES, 1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        return 0.01 * noise

    @staticmethod
    def spread(semantic: Tensor) -> Tensor:
        ones = torch.ones(1, 1, 1, SIZE, SIZE // 2)
        return torch.cat([rearrange(semantic[..., k], "b s -> b s 1 1 1") * ones for k in (0, 1)], -1)


class Balance(nn.Module):
    """Which half is brighter: logits (d, -d) / 2 with d = gain * (left - right), averaged over the slices."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.card = ClassifierCard(PREPARATION, ["left", "right"])

    def forward(self, image: Tensor) -> Tensor:
        left, right = Halves.means(image).mean(1).unbind(-1)
        d = GAIN * (left - right)
        return torch.stack([d, -d], 1) / 2

    def view_of(self, preparation: Preparation):
        assert preparation == PREPARATION
        return lambda image: image


class Student(nn.Module):
    """The same decision, read from the code."""

    def __init__(self) -> None:
        super().__init__()
        self.card = AgentCard(["left", "right"], SLICES, "b", "g")
        self.scale = torch.ones(2)
        self.covariance = spread_covariance(self.scale)

    def forward(self, semantic: Tensor) -> Tensor:
        d = GAIN * (semantic[..., 0] - semantic[..., 1]).mean(1)
        return torch.stack([d, -d], 1) / 2


def images(count: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(5)
    image = 0.05 * torch.randn(count, SLICES, 1, SIZE, SIZE, generator=random)
    image[..., : SIZE // 2] += 0.06
    return image


def explainer(**settings) -> Explainer:
    generator = Halves()
    trust = fit_trust(generator, images(80), images(40))
    generator.forwards = 0
    return Explainer(generator, Balance(), Student(), ExplainSettings(**settings), trust=trust)


def test_the_answer_is_the_smallest_shift_that_flips() -> None:
    image = images(1)
    search = StepSearch(probability=0.75, tolerance=0.001, resolution=0.001, evaluations=30)
    found = explainer(search=search).explain(image)
    assert int(found.target) == 1
    assert bool(found.reachable)
    assert float(found.counterfactual_probability[0, 1]) == pytest.approx(0.75, abs=0.002)
    # P(right) = sigmoid(-GAIN (left - right)): 0.75 needs a difference of log(3) / GAIN the other way.
    left, right = Halves.means(found.counterfactual).mean(1)[0].tolist()
    assert right - left == pytest.approx(torch.log(torch.tensor(3.0)).item() / GAIN, abs=1e-3)
    # The gradient is (1, -1) in every slice: both halves of both slices move by the same amount.
    change = Halves.means(found.difference)[0]
    assert change[:, 0].tolist() == pytest.approx([-float(change[0, 1])] * SLICES, abs=1e-5)
    torch.testing.assert_close(found.difference, found.counterfactual - found.reference)
    torch.testing.assert_close(found.reference, found.reconstruction)


def test_the_path_runs_from_one_class_to_the_other() -> None:
    found = explainer(path_points=7).explain(images(1))
    score = found.path_probability[:, 0, 1]
    assert len(score) == len(found.path_steps) == len(found.path_images) == 7
    assert (score.diff() > 0).all()
    assert float(score[0]) < 0.3
    assert float(score[-1]) >= 0.75
    assert 0.0 in found.path_steps.tolist()
    torch.testing.assert_close(found.path_images[-1], found.counterfactual)


def test_costs_are_counted() -> None:
    found = explainer(path_points=3).explain(images(1))
    decodings = found.cost.generator_forwards / 3
    # encode, reconstruct, each point searched, the path's middle (its ends are known), and the floor twice
    assert decodings == 2 + int(found.solution.steps) + 1 + 2
    assert found.cost.generator_backwards == 0
    assert found.cost.blackbox_forwards == 2 + int(found.solution.steps) + 1
    assert found.cost.seconds > 0


def test_a_batch_gives_what_each_scan_gives_alone() -> None:
    together = explainer().explain_batch(images(3), seed=4)
    for sample, found in enumerate(together):
        alone = explainer().explain(images(3)[sample], seed=4)
        for field in ("counterfactual", "path_probability", "path_steps", "counterfactual_probability"):
            torch.testing.assert_close(getattr(found, field), getattr(alone, field))
        assert [check.value for check in found.trust] == pytest.approx([check.value for check in alone.trust], abs=1e-5)
        assert dataclasses.replace(found.cost, seconds=0, peak_memory_mb=0) == dataclasses.replace(
            alone.cost, seconds=0, peak_memory_mb=0
        )


def test_everything_is_trusted_here_and_the_agent_agrees() -> None:
    found = explainer().explain(images(1))
    assert [check.name for check in found.trust if not check.passed] == []


def test_residual_carry_starts_from_the_scan_itself() -> None:
    found = explainer(residual_carry=True).explain(images(1))
    assert found.residual_carry
    assert torch.equal(found.reference, found.factual)
    at_zero = found.path_images[found.path_steps.tolist().index(0.0)]
    assert torch.equal(at_zero, found.factual)


def test_a_target_beyond_reach_is_said_to_be_so() -> None:
    short = StepSearch(longest=0.001)
    found = explainer(search=short).explain(images(1))
    assert not bool(found.reachable)
    assert found.trust[0].name == "validity"
    assert not found.trust[0].passed


@pytest.mark.parametrize("target", [0, "left", "0"])
def test_targets_by_name_or_index(target) -> None:
    found = explainer().explain(images(1), target, probability=0.99)
    assert int(found.target) == 0
    assert float(found.counterfactual_probability[0, 0]) >= 0.99


@pytest.mark.parametrize("target", ["up", 2, "-1"])
def test_other_targets_are_refused_with_the_classes(target) -> None:
    with pytest.raises(ConfigError, match="0 = 'left', 1 = 'right'"):
        explainer().explain(images(1), target)


def test_a_target_that_is_the_prediction_names_the_way_out() -> None:
    whole = explainer()
    says = int(whole.explain(images(1)).factual_probability.argmax())
    with pytest.raises(ConfigError, match=r"already says .* another class .* probability above"):
        whole.explain(images(1), says)
    with pytest.raises(ConfigError, match="already says"):
        whole.explain(images(1), says, probability=0.5)
    more = whole.explain(images(1), says, probability=0.999)
    assert float(more.counterfactual_probability[0, says]) >= 0.999


def test_a_region_holds_the_change() -> None:
    roi = torch.zeros(SLICES, 1, SIZE, SIZE)
    roi[..., 2:6, :] = 1
    found = explainer(residual_carry=True).explain(images(1), roi=roi)
    assert found.difference.any()
    assert not (found.difference * (1 - roi)).any()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (images(1)[..., :4], "expected"),
        (images(1)[:, :1], "explainer.s preparation"),
        (2 * torch.ones(1, SLICES, 1, SIZE, SIZE), "window"),
        (torch.nan * images(1), "finite"),
        (images(2), "explain_batch"),
        (images(1).expand(-1, -1, 3, -1, -1), r"expected \(b, 2, 1, 8, 8\)"),
        (images(1).numpy(), "images are ndarray: expected a float32 tensor"),
        (images(1).long(), "images are torch.int64"),
    ],
)
def test_images_that_do_not_fit_are_refused(image: Tensor, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        explainer().explain(image)


def test_double_precision_is_taken_as_single() -> None:
    found, same = (explainer().explain(image) for image in (images(1).double(), images(1)))
    assert found.counterfactual.dtype == torch.float32
    assert torch.equal(found.counterfactual, same.counterfactual)


def test_a_method_is_no_name() -> None:
    with pytest.raises(ConfigError, match="method_named"):
        ExplainSettings(method="latent")  # pyright: ignore[reportArgumentType]


def test_the_metric_changes_the_direction_not_the_answer() -> None:
    for metric in ("pattern", "spread", "none"):
        found = explainer(method=Shift(metric=metric)).explain(images(1))
        assert bool(found.reachable), metric


def test_agents_of_another_pair_are_refused() -> None:
    card = AgentCard(["left", "right"], SLICES, "box", "gen")
    check_agent(card, ["left", "right"], SLICES, "gen", "box")
    for change, says in (
        ({"blackbox_hash": "other"}, "black box other"),
        ({"generator_hash": "other"}, "generator other"),
        ({"classes": ["right", "left"]}, "classes"),
        ({"slices": 1}, "1 slice"),
    ):
        with pytest.raises(CheckpointError, match=says):
            check_agent(dataclasses.replace(card, **change), ["left", "right"], SLICES, "gen", "box")
    with pytest.raises(CheckpointError, match=r"no card\.yaml"):
        check_agent(None, ["left", "right"], SLICES)


def test_a_generator_without_noise_has_no_floor() -> None:
    plain = SimpleNamespace(
        card=GeneratorCard(PREPARATION),
        encode=lambda image: Code(Halves.means(image)),
        decode=lambda code: Halves.spread(code.semantic),
    )
    found = Explainer(plain, Balance(), Student()).explain(images(1))
    check = next(check for check in found.trust if check.name == "edit_size")
    assert check.passed
    assert check.value == float("inf")
    assert "no noise bounds from below" in check.message


def test_a_search_of_both_codes_is_held_against_fresh_noise() -> None:
    """The noise of one more x_T is 0.01 a pixel, whatever else the code holds."""
    settings = ExplainSettings(method=Joint(solver=Adam(rate=0.02, steps=30)))
    found = Explainer(Halves(), Balance(), None, settings).explain(images(1))
    check = next(check for check in found.trust if check.name == "edit_size")
    noise = 0.01 * 2**0.5 * 2.063  # of a difference of two; its mean size on the tenth where it is largest
    assert check.value == pytest.approx(float(edit_magnitude(found.difference)) / noise, rel=0.2)


def halves_by_name(folder, generator_hash: str = "") -> Attributes:
    """Attributes "left" and "right": what a spread more of them adds to the mean of that half, 0.05 and 0.02."""
    sizes = torch.tensor([0.05, 0.02])
    directions = torch.diag(sizes)[:, None].expand(2, SLICES, 2).contiguous()
    reader = (torch.diag(1 / sizes)[:, None] / SLICES).expand(2, SLICES, 2).contiguous()
    card = AttributesCard(["left", "right"], [10.0, 20.0], [2.0, 5.0], [-9.0, -9.0], [9.0, 9.0], generator_hash)
    AttributeDirections(card, directions, reader, torch.zeros(SLICES, 2)).save(folder)
    return Attributes(folder, distance_weight=0.01)


def test_the_attribute_that_decides_is_named_with_its_change(tmp_path) -> None:
    image = images(2)
    search = StepSearch(probability=0.75, tolerance=0.001, resolution=0.001, evaluations=30)
    found = explainer(method=halves_by_name(tmp_path), search=search).explain_batch(image)
    for sample, one in enumerate(found):
        assert bool(one.reachable)
        [changed] = one.attributes  # the other one would cost more, and stays exactly as it is
        left, right = Halves.means(image)[sample].mean(0).tolist()
        needed = right - left - float(torch.log(torch.tensor(3.0))) / GAIN
        assert changed.name == "left"
        assert changed.spreads == pytest.approx(needed / 0.05, abs=0.02)
        assert changed.before == pytest.approx(10 + 2 * left / 0.05, abs=1e-3)
        assert changed.after == pytest.approx(changed.before + 2 * changed.spreads, abs=1e-3)
        assert one.trust[0].passed
    assert explainer().explain(image[:1]).attributes == ()


def test_a_frozen_attribute_leaves_the_others_to_change(tmp_path) -> None:
    method = dataclasses.replace(halves_by_name(tmp_path), frozen=("left",))
    [changed] = explainer(method=method).explain(images(1)).attributes
    assert changed.name == "right"
    assert changed.spreads > 0
    with pytest.raises(ConfigError, match="middle do not exist; there are left, right"):
        explainer(method=dataclasses.replace(method, frozen=("middle",)))


def test_what_the_agent_of_attributes_does_not_share_is_not_reached(tmp_path) -> None:
    method = halves_by_name(tmp_path / "attributes")
    card = AttributeAgentCard(["left", "right"], [10.0, 20.0], [2.0, 5.0], ["left", "right"], "")
    AttributeAgent(card, torch.zeros(6, 2)).save(tmp_path / "agent")  # to it nothing matters
    one = explainer(method=dataclasses.replace(method, agent=tmp_path / "agent")).explain(images(1))
    assert not bool(one.reachable)
    check = one.trust[0]
    assert (check.name, check.passed) == ("validity", False)
    before = float(one.factual_probability[0, int(one.target)])
    assert f"the agent of attributes {before:.2f}, asked were 0.75: the target was not reached" in check.message


def test_attribute_directions_of_another_generator_are_refused(tmp_path) -> None:
    method = halves_by_name(tmp_path, generator_hash="a" * 64)
    settings = ExplainSettings(method=method)
    Explainer(Halves(), Balance(), None, settings, generator_hash="a" * 64)
    with pytest.raises(CheckpointError, match="fitted over generator aaaaaaaaaaaa, but this one is bbbbbbbbbbbb"):
        Explainer(Halves(), Balance(), None, settings, generator_hash="b" * 64)
