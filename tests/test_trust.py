"""Trust statistics against closed forms, and every check at its threshold."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from scipy.spatial.distance import cdist, mahalanobis

from diffcf.errors import CheckpointError, ConfigError
from diffcf.trust import (
    ORDER,
    CodeDensity,
    Evidence,
    TrustStatistics,
    appearance,
    edit_magnitude,
    fit_trust,
    trust_checks,
    worst_psnr,
)
from diffcf.types import Code


def correlated(n: int, dims: int = 6) -> torch.Tensor:
    mixing = torch.linspace(0.5, 3, dims) * torch.linalg.qr(torch.randn(dims, dims)).Q
    return torch.randn(n, dims) @ mixing + 2


class Copying:
    """A generator whose code is the image and whose decoding adds a known error."""

    def __init__(self, error: float) -> None:
        self.error = error

    def encode(self, image: torch.Tensor) -> Code:
        return Code(rearrange(image, "b s c h w -> b s (c h w)"))

    def decode(self, code: Code) -> torch.Tensor:
        image = rearrange(code.semantic, "b s (c h w) -> b s c h w", c=1, h=16)
        return image + self.error * torch.where(image > 0, -1.0, 1.0)


def scans(n: int, spread: float = 0.1, level: float = 0.0) -> torch.Tensor:
    return (level + spread * torch.randn(n, 2, 1, 16, 16)).clamp(-0.9, 0.9)


@pytest.fixture
def statistics() -> TrustStatistics:
    return fit_trust(Copying(0.02), scans(80), scans(40), about={"steps": 20})


def test_with_every_direction_kept_the_distance_is_mahalanobis_s() -> None:
    codes = correlated(400)
    density = CodeDensity.fit(codes, directions=6)
    points = correlated(5) + 3
    inverse = torch.linalg.inv(torch.cov(codes.T)).double().numpy()
    expected = [mahalanobis(p, codes.mean(0), inverse) / 6**0.5 for p in points.numpy()]
    torch.testing.assert_close(density.distance(points).tolist(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(density.distance(codes).square().mean().item(), 1.0, rtol=0.02, atol=0)


def test_directions_beyond_the_kept_ones_share_one_variance() -> None:
    codes = torch.randn(4000, 10) * torch.tensor([5.0] + [1.0] * 9)
    density = CodeDensity.fit(codes, directions=1)
    assert float(density.variance[0]) == pytest.approx(25, rel=0.1)
    assert float(density.rest) == pytest.approx(1, rel=0.1)
    along, across = torch.zeros(2, 10).index_put((torch.tensor([0, 1]), torch.tensor([0, 5])), torch.tensor(5.0))
    ratio = density.distance(density.mean + across[None]) / density.distance(density.mean + along[None])
    assert float(ratio) == pytest.approx(5, rel=0.1)


def test_codes_that_never_vary_do_not_divide_by_zero() -> None:
    codes = torch.cat([torch.randn(50, 2), torch.ones(50, 3)], 1)
    assert torch.isfinite(CodeDensity.fit(codes).distance(codes)).all()


def test_appearance_sees_levels_and_roughness() -> None:
    flat, noisy = torch.zeros(1, 1, 16, 16), 0.3 * torch.randn(1, 1, 16, 16)
    assert appearance(flat).shape == (1, 34)
    assert (appearance(flat)[:, :13] == 0).all()
    assert (appearance(noisy)[:, -5:] > appearance(flat)[:, -5:]).all()
    torch.testing.assert_close(appearance(noisy), appearance(noisy.flip(-1)), rtol=0, atol=0.1)


def test_statistics_are_those_of_the_held_out_scans(statistics: TrustStatistics) -> None:
    assert statistics.psnr_limit == pytest.approx(20 * math.log10(2 / 0.02), abs=0.01)  # the error is 0.02 everywhere
    fresh = scans(30)
    codes = Copying(0).encode(fresh).semantic
    assert (statistics.code_distance(codes) < statistics.code_limit).float().mean() > 0.8
    assert (statistics.appearance_distance(fresh) < statistics.appearance_limit).float().mean() > 0.8
    strange = scans(5, level=0.7)
    assert (statistics.appearance_distance(strange) > statistics.appearance_limit).all()
    assert (statistics.code_distance(Copying(0).encode(strange).semantic) > statistics.code_limit).all()


def test_of_many_held_out_scans_some_are_measured() -> None:
    assert len(fit_trust(Copying(0.02), scans(30), scans(1000)).held_out["psnr"]) == 334


def test_one_strange_slice_is_enough(statistics: TrustStatistics) -> None:
    scan = scans(1)
    scan[:, 1] = scans(1, level=0.7)[:, 1]
    assert float(statistics.appearance_distance(scan)) > statistics.appearance_limit
    reconstruction = scan.clone()
    reconstruction[:, 0] += 0.5
    assert float(worst_psnr(reconstruction, scan)) == pytest.approx(20 * math.log10(2 / 0.5), abs=1e-3)
    assert float(worst_psnr(scan, scan)) == 100


def test_the_distance_to_the_fifth_neighbour(statistics: TrustStatistics) -> None:
    scan = scans(1)
    seen = (appearance(scan[0]) - statistics.centre) / statistics.spread
    expected = sorted(cdist(seen[:1].numpy(), statistics.appearances.numpy())[0])[4]
    single = scan[:, :1]
    assert float(statistics.appearance_distance(single)) == pytest.approx(expected, rel=1e-4)


def test_saved_and_loaded(statistics: TrustStatistics, tmp_path) -> None:
    statistics.save(tmp_path)
    again = TrustStatistics.load(tmp_path)
    assert again.about == {"steps": 20}
    assert again.psnr_limit == statistics.psnr_limit
    fresh = scans(3)
    torch.testing.assert_close(again.appearance_distance(fresh), statistics.appearance_distance(fresh))
    codes = Copying(0).encode(fresh).semantic
    torch.testing.assert_close(again.code_distance(codes), statistics.code_distance(codes))


def test_what_is_no_statistics_is_refused(statistics: TrustStatistics, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"train/trust\.py"):
        TrustStatistics.load(tmp_path)
    (tmp_path / "trust.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match="does not hold trust statistics"):
        TrustStatistics.load(tmp_path)
    with pytest.raises(ConfigError, match="another generator"):
        statistics.code_distance(torch.zeros(1, 2, 7))
    with pytest.raises(ConfigError, match="at least 20"):
        fit_trust(Copying(0), scans(30), scans(19))


def test_an_edit_is_measured_where_it_is() -> None:
    difference = torch.zeros(2, 1, 1, 10, 10)
    difference[0, 0, 0, 0] = -0.5  # a tenth of the pixels
    difference[1] = 0.5
    assert edit_magnitude(difference).tolist() == pytest.approx([0.5, 0.5])


GOOD = Evidence(
    factual=(0.8, 0.2), reconstruction=(0.78, 0.22), counterfactual=(0.2, 0.8), agent=(0.7, 0.3), target=1,
    probability=0.75, edit=0.05, floor=0.1, code_distance=0.5, appearance_distance=0.5, psnr=40.0, edited_distance=0.5,
)  # fmt: skip
KNOWN = SimpleNamespace(
    code_limit=1.0, appearance_limit=1.0, psnr_limit=35.0, held_out={"psnr": torch.linspace(34, 44, 11)}
)


def test_a_good_explanation_passes_everything() -> None:
    checks = trust_checks(GOOD, KNOWN)
    assert all(check.passed for check in checks)
    assert {check.name for check in checks} == set(ORDER) - {"trust_statistics"}


@pytest.mark.parametrize(
    ("change", "failed", "says"),
    [
        ({"code_distance": 1.01}, "in_distribution", "its code is unlike"),
        ({"appearance_distance": 1.01}, "in_distribution", "its intensities are unlike"),
        ({"edited_distance": 10.01}, "plausibility", "unlike what the generator knows"),
        ({"psnr": 34.9}, "reconstruction", "34.9 dB"),
        ({"reconstruction": (0.69, 0.31)}, "reconstruction_decision", "moves the black box by 0.11"),
        ({"factual": (0.52, 0.48), "reconstruction": (0.48, 0.52)}, "reconstruction_decision", "from 'a' to 'b'"),
        ({"counterfactual": (0.26, 0.74)}, "validity", "not reached"),
        ({"agreed": 0.3}, "validity", "the agent of attributes 0.30, asked were 0.75: the target was not reached"),
        ({"agent": (0.4, 0.6)}, "agent_agreement", "disagrees"),
        ({"edit": 0.009}, "edit_size", "too little"),
        ({"edit": 0.0, "floor": 0.0}, "edit_size", "nothing had to change"),
    ],
)
def test_each_check_fails_alone_and_comes_first(change: dict, failed: str, says: str) -> None:
    checks = trust_checks(replace(GOOD, **change), KNOWN, classes=("a", "b"))
    assert [check.name for check in checks if not check.passed] == [failed]
    assert checks[0].name == failed
    assert says in checks[0].message


def test_the_gravest_failure_comes_first() -> None:
    bad = replace(GOOD, psnr=1.0, code_distance=9.0, counterfactual=(0.9, 0.1), edit=0.0)
    failed = [check.name for check in trust_checks(bad, KNOWN) if not check.passed]
    assert failed == ["in_distribution", "validity", "reconstruction", "edit_size"]


def test_low_scores_asked_for_need_no_flip() -> None:
    modest = replace(GOOD, counterfactual=(0.6, 0.4), probability=0.4)
    assert all(check.passed for check in trust_checks(modest, KNOWN))


def test_a_generator_without_x_t_has_no_floor() -> None:
    assert all(check.passed for check in trust_checks(replace(GOOD, floor=0.0), KNOWN))


def test_without_statistics_nobody_can_judge() -> None:
    checks = trust_checks(replace(GOOD, code_distance=None, appearance_distance=None, psnr=None), None)
    assert not checks[0].passed
    assert checks[0].name == "trust_statistics"
    assert "train/trust.py" in checks[0].message
