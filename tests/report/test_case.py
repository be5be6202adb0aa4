"""The verdict, and what a case refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diffcf.errors import ConfigError
from diffcf.report.case import round_up


@pytest.mark.parametrize(
    ("failed", "reachable", "code"),
    [
        ((), True, 0),
        (("reconstruction",), True, 10),
        (("edit_size", "agent_agreement"), True, 10),
        (("in_distribution", "reconstruction"), True, 11),
        (("validity",), False, 12),
        ((), False, 12),  # reachability is judged by the search, whatever the checks say
        (("validity", "reconstruction"), False, 12),
        (("validity", "in_distribution"), False, 11),
    ],
)
def test_exit_code_takes_11_over_12_over_10(make_case, failed, reachable, code):
    assert make_case(failed=failed, reachable=reachable).verdict.exit_code == code


def test_gravest_failure_comes_first(make_case):
    case = make_case(failed=("reconstruction", "validity", "in_distribution", "edit_size"))
    assert [check.name for check in case.failed] == ["in_distribution", "validity", "reconstruction", "edit_size"]


def test_images_are_in_hu_of_the_window(make_case):
    case = make_case()
    hu = case.image_hu(torch.tensor([-1.0, 0, 1, 3]).reshape(1, 1, 1, 2, 2))
    assert hu.tolist() == [[[-1400, -600], [200, 200]]]
    change = case.image_hu(case.explanation.counterfactual) - case.image_hu(case.explanation.reference)
    assert abs(case.difference_hu - change).max() < 1e-3


def test_refuses_what_does_not_belong_together(make_case):
    case = make_case(slices=3)
    with pytest.raises(ConfigError, match="does not belong to a patch"):
        dataclasses.replace(case, patch=make_case(slices=1).patch)
    with pytest.raises(ConfigError, match="2 scores but 3 class names"):
        dataclasses.replace(case, classes=("a", "b", "c"))


@pytest.mark.parametrize(("value", "expected"), [(0, 1), (1, 1), (1.01, 2), (222, 500), (0.03, 0.05), (600, 1000)])
def test_round_up(value, expected):
    assert round_up(value) == pytest.approx(expected)
    assert round_up(222, (1, 2.5, 10)) == 250
