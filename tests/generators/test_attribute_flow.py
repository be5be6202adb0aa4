"""A flow of attributes against the map of a Gaussian, finite differences, and an effect that no direction can have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from diffcf.cards import AttributesCard
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.attribute_flow import AttributeFlow, FlowNetwork, load_attributes
from diffcf.generators.attributes import AttributeDirections
from diffcf.training.attributes import Effects, FlowLoss, judge_flow, one_changed, slopes

NAMES = ["size", "light"]
SIZE, DIM = 4, 2


def network(steps: int = 4, seed: int = 0) -> FlowNetwork:
    torch.manual_seed(seed)
    return FlowNetwork(len(NAMES), SIZE, DIM, (8,), (8, 8), steps)


def card() -> AttributesCard:
    return AttributesCard(NAMES, [0.0] * 2, [1.0] * 2, [-2.0] * 2, [2.0] * 2, "a hash")


def codes(count: int, slices: int = 2, seed: int = 1) -> Tensor:
    return 3 + 2 * torch.randn(count, slices, DIM, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class Gaussian(FlowNetwork):
    """The exact velocity from white noise to codes that are normal around `pattern * light` with deviation `width`."""

    width = 0.5

    def pattern(self) -> Tensor:
        return torch.linspace(-1, 1, DIM * SIZE * SIZE).reshape(DIM, SIZE, SIZE)

    def forward(self, x: Tensor, time: Tensor, amounts: Tensor) -> Tensor:
        t = time[:, None, None, None]
        mean = self.pattern().to(x) * amounts[:, 1][:, None, None, None]
        slope = (t * self.width**2 - (1 - t)) / ((1 - t) ** 2 + (t * self.width) ** 2)
        return mean + slope * (x - t * mean)


def gaussian(steps: int = 40) -> Gaussian:
    torch.manual_seed(0)
    return Gaussian(len(NAMES), SIZE, DIM, (8,), (8, 8), steps)


def test_the_flow_of_a_gaussian_is_mean_and_deviation() -> None:
    """u -> m + s u: noise keeps its place, and other amounts move the code by the difference of the means."""
    net, u = gaussian(), torch.randn(3, DIM, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    amounts = torch.tensor([[0.3, -1.0], [0.0, 0.5], [1.0, 2.0]])
    mean = net.pattern() * amounts[:, 1][:, None, None, None]
    z = mean + net.width * u
    torch.testing.assert_close(net.moved(u, amounts), z, atol=2e-3, rtol=0)
    torch.testing.assert_close(net.moved(z, amounts, back=True), u, atol=4e-3, rtol=0)


def test_other_amounts_move_codes_in_their_own_units_by_the_difference_of_the_means() -> None:
    net = gaussian()
    net.standardise(codes(50).flatten(0, 1))
    flow, z = AttributeFlow(net, card()), codes(3)
    own = torch.tensor([[0.3, -1.0], [0.0, 0.5], [1.0, 1.0]])
    other = own + torch.tensor([5.0, 0.75])  # only the second one does anything
    moved = flow.predict(flow.abduct(z, own), other) - z
    expected = 0.75 * net.pattern() * net.get_buffer("spread")
    torch.testing.assert_close(moved, expected.expand_as(moved), atol=2e-2, rtol=0)


def test_own_amounts_give_the_code_itself_whatever_the_steps_lose() -> None:
    flow, z = AttributeFlow(network(steps=1), card()), codes(3)
    amounts = flow.read(z)
    assert amounts.shape == (3, 2)
    torch.testing.assert_close(flow.predict(flow.abduct(z, amounts), amounts), z, atol=1e-4, rtol=1e-5)


def test_the_slices_of_a_scan_are_read_together_and_moved_apart() -> None:
    flow, z = AttributeFlow(network(), card()), codes(2, slices=3)
    torch.testing.assert_close(flow.read(z), torch.stack([flow.read(z[:, k : k + 1]) for k in range(3)]).mean(0))
    own, other = flow.read(z), torch.ones(2, 2)
    whole = flow.predict(flow.abduct(z, own), other)
    for k in range(3):
        one = flow.predict(flow.abduct(z[:, k : k + 1], own), other)
        torch.testing.assert_close(whole[:, k : k + 1], one, atol=1e-4, rtol=1e-4)


def test_the_gradient_in_the_amounts_is_that_of_finite_differences() -> None:
    flow, z = AttributeFlow(network(), card()).double(), codes(1).double()
    held, weight = flow.abduct(z, flow.read(z)).detach(), torch.randn(z.shape).double()

    def of(amounts: Tensor) -> Tensor:
        return (flow.predict(held, amounts) * weight).sum()

    at = torch.tensor([[0.4, -0.7]], dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(of(at), at)
    for k in range(2):
        step = torch.zeros(1, 2, dtype=torch.float64)
        step[0, k] = 1e-5
        with torch.no_grad():
            numeric = (of(at + step) - of(at - step)) / 2e-5
        torch.testing.assert_close(slope[0, k], numeric, rtol=1e-5, atol=1e-6)


def test_the_loss_is_that_of_a_rectified_flow_and_of_the_reader() -> None:
    net, z = gaussian(), codes(5, 1)[:, 0]
    net.standardise(z)
    amounts, time = torch.randn(5, 2), torch.rand(5)
    noise = torch.randn_like(z)
    views = torch.flip(z, [-1])
    velocity, whole = (
        FlowLoss(net).of_the_velocity(z, amounts, time, noise),
        FlowLoss(net)(z, views, amounts, time, noise),
    )
    plain = (z - z.mean((0, 2, 3), keepdim=True)) / z.std((0, 2, 3), keepdim=True)
    x = (1 - time)[:, None, None, None] * noise + time[:, None, None, None] * plain
    torch.testing.assert_close(velocity, (net(x, time, amounts) - (plain - noise)).square().mean())
    read = net.reader(torch.flip(plain, [-1]))
    torch.testing.assert_close(whole, velocity + (read - amounts).square().mean())


class Loud(nn.Module):
    """Reads the mean of the upper half as one amount, and of the lower half as the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, codes: Tensor) -> Tensor:
        return self.gain * rearrange(codes, "b d (half h) w -> b half (d h w)", half=2).mean(2)


def test_effects_are_held_to_what_is_read_and_do_not_move_the_reader() -> None:
    """Of a flow that moves every code by `pattern` times the light: what is read of that is known."""
    net = gaussian(steps=20)
    net.reader = Loud()
    loss, random = FlowLoss(net), torch.Generator().manual_seed(5)
    own, other = torch.randn(8, 2, generator=random), torch.randn(8, 2, generator=random)
    z = net.width * torch.randn(8, DIM, SIZE, SIZE, generator=random) + net.pattern() * own[:, 1][:, None, None, None]
    slope = torch.tensor([0.5, 0.9])
    moved = (other - own)[:, 1:] * net.reader(net.pattern()[None])
    expected = (moved - slope * (other - own)).square().mean()
    assert loss.of_effects(z, own, other, slope).item() == pytest.approx(expected.item(), rel=1e-2)
    assert loss.of_effects(z, own, own, slope).item() == pytest.approx(0, abs=1e-5)

    net = network()
    for other_amounts in (None, own[:0], other[:3]):
        net.zero_grad()
        FlowLoss(net, weight=7.0)(z, z, own, torch.full((8,), 0.4), torch.zeros_like(z), other_amounts).backward()
        gradients = [
            torch.cat([weight.grad.flatten() for weight in part.parameters() if weight.grad is not None])
            for part in (net.reader, net.project)
        ]
        if other_amounts is None:
            first = gradients
    torch.testing.assert_close(gradients[0], first[0])
    assert not torch.allclose(gradients[1], first[1])


def test_slopes_and_changed_amounts() -> None:
    random = torch.Generator().manual_seed(6)
    amounts = torch.randn(400, 3, generator=random)
    read = amounts @ torch.tensor([[0.6, 0.3, 0.0], [0.0, -0.4, 0.0], [0.2, 0.0, 1.7]]) + 0.5
    torch.testing.assert_close(slopes(amounts, read), torch.tensor([0.6, 0.0, 1.0]), atol=1e-4, rtol=0)
    changed = one_changed(amounts[:50], amounts, random)
    differs = changed != amounts[:50]
    assert (differs.sum(1) <= 1).all()
    assert differs.any(0).all()
    rows, columns = differs.nonzero(as_tuple=True)
    assert all(changed[i, k] in amounts[:, k] for i, k in zip(rows.tolist(), columns.tolist(), strict=True))


def test_slopes_of_rows_that_do_not_tell_all_attributes_are_numbers() -> None:
    amounts = torch.randn(40, 2, generator=torch.Generator().manual_seed(6))
    amounts[:, 1] = 1.0
    found = slopes(amounts, 0.7 * amounts)
    assert found.isfinite().all()
    assert float(found[0]) == pytest.approx(0.7, abs=1e-4)


def test_slices_of_a_scan_are_judged_with_the_amounts_of_another_one() -> None:
    """A flow that moves along light: with every scan's slices alike, two say what one says."""
    net = gaussian(4)
    amounts = torch.randn(6, 2, generator=torch.Generator().manual_seed(4))
    z = (net.pattern() * amounts[:, 1][:, None, None, None]) + 0.01
    net.standardise(z)
    one, two = judge_flow(net, z, amounts), judge_flow(net, *(each.repeat_interleave(2, 0) for each in (z, amounts)), 2)
    # Times and noises are others; with the amounts of the own scan for half of the slices it would be half as much.
    assert two["told"] == pytest.approx(one["told"], rel=0.3)


def test_it_learns_an_effect_that_depends_on_another_attribute() -> None:
    """More light makes a large one brighter and a small one darker: on average nothing, so directions see nothing."""
    random = torch.Generator().manual_seed(3)
    pattern = torch.linspace(-1, 1, DIM * SIZE * SIZE).reshape(DIM, SIZE, SIZE)

    def scans(count: int) -> tuple[Tensor, Tensor]:
        amounts = torch.randn(count, 2, generator=random)
        effect = amounts.prod(1)[:, None, None, None] * pattern
        return effect + 0.3 * torch.randn(effect.shape, generator=random), amounts

    net, (z, amounts), (held_out, own) = network(), scans(512), scans(128)
    net.standardise(z)
    before, adam, loss = judge_flow(net, held_out, own), torch.optim.AdamW(net.parameters(), 5e-3), FlowLoss(net)
    for _ in range(80):
        index = torch.randint(512, (64,), generator=random)
        value = loss(
            z[index],
            z[index],
            amounts[index],
            torch.rand(64, generator=random),
            torch.randn(z[index].shape, generator=random),
        )
        adam.zero_grad()
        value.backward()
        adam.step()
    after = judge_flow(net, held_out, own)
    assert after["velocity"] < before["velocity"]
    assert after["told"] > 0.05
    flow, directions = (
        AttributeFlow(net.eval(), card()),
        AttributeDirections.fit(NAMES, z[:, None], amounts, (held_out[:, None], own), ""),
    )

    def cosine(model: Any) -> float:
        change = model.predict(model.abduct(held_out[:, None], own), own + torch.tensor([0.0, 1.0])) - held_out[:, None]
        true = own[:, :1, None, None] * pattern
        return float(torch.cosine_similarity(change[:, 0].detach().flatten(), true.flatten(), dim=0))

    assert cosine(flow) > 0.8
    assert abs(cosine(directions)) < 0.3


def test_it_is_kept_and_read_again_and_other_folders_are_refused(tmp_path) -> None:
    flow, z = AttributeFlow(network(steps=3), card()), codes(2)
    flow.save(tmp_path / "flow")
    again = load_attributes(tmp_path / "flow")
    assert isinstance(again, AttributeFlow)
    assert again.card == flow.card
    torch.testing.assert_close(again.read(z), flow.read(z))
    torch.testing.assert_close(again.abduct(z, torch.ones(2, 2)), flow.abduct(z, torch.ones(2, 2)))
    assert not any(weight.requires_grad for weight in again.parameters())
    with pytest.raises(CheckpointError, match="no card"):
        load_attributes(tmp_path)
    (tmp_path / "flow" / "attributes.safetensors").touch()
    with pytest.raises(CheckpointError, match="both directions and a flow"):
        load_attributes(tmp_path / "flow")
    (tmp_path / "flow" / "attributes.safetensors").unlink()
    (tmp_path / "flow" / "diffusion_pytorch_model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load_attributes(tmp_path / "flow")


def test_codes_of_another_generator_and_sizes_that_do_not_halve_are_refused() -> None:
    flow = AttributeFlow(network(), card())
    for wrong in (torch.zeros(2, 1, 7), torch.zeros(2, 1, DIM, 8, 8)):
        with pytest.raises(ConfigError, match=r"expected .'b', 's', 2, 4, 4.*, maps of the generator"):
            flow.read(wrong)
    with pytest.raises(ConfigError, match="6 x 6 over 3 levels of channels"):
        FlowNetwork(2, 6, 2, (8, 8, 8), (8,))


@pytest.mark.parametrize("wrong", [{"share": 1.2}, {"share": -0.1}, {"batch": 0}])
def test_effects_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected a share of the steps between 0 and 1"):
        Effects(**wrong)
