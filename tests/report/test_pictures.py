"""Panel, strip and animation: what they say is in them, and the same case gives the same bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_case import made_scan
from PIL import Image

from diffcf.commands.explain import summary
from diffcf.report import document, draw_panel, write_animation, write_panel, write_strip
from diffcf.report.path import chosen_points, draw_strip, ordered


def words(figure) -> str:
    texts = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        texts += [text.get_text() for text in axes.texts] + [axes.get_xlabel(), axes.get_ylabel()]
    return "\n".join(texts)


def test_panel_says_scores_window_scale_and_reference(make_case):
    said = words(draw_panel(make_case(slices=3)))
    for piece in ("malignant → benign", "P(benign) = 0.14", "P(benign) = 0.90", "counterfactual − reconstruction",
                  "centre −600, width 1600 HU", "0.7 × 0.7 mm", "5 mm", "change in HU", "slice 2", "R"):  # fmt: skip
        assert piece in said
    assert "FAILED" not in said.upper()
    assert "counterfactual − factual" in words(draw_panel(make_case(residual_carry=True)))


def test_what_is_no_ct_counts_in_grey_levels(make_case):
    scan = made_scan()
    other = dataclasses.replace(scan, provenance=dataclasses.replace(scan.provenance, modality="other"))
    case = make_case(scan=other, modality="other")
    assert "HU" not in words(draw_panel(case))
    assert "change in grey levels" in words(draw_panel(case))
    assert document(case)["change"]["unit"] == "grey levels"
    assert "grey levels" in summary(case)


def test_a_name_is_no_formula(make_case, tmp_path):
    scan = made_scan()
    odd = dataclasses.replace(scan, provenance=dataclasses.replace(scan.provenance, path="n$a_{$.nii"))
    case = dataclasses.replace(make_case(scan=odd), classes=("a$_{", "b$^{"))
    for write, name in ((write_panel, "a.png"), (write_strip, "b.png"), (write_animation, "c.gif")):
        assert write(case, tmp_path / name).stat().st_size > 1000


def test_panel_opens_with_failed_checks_in_red(make_case):
    figure = draw_panel(make_case(failed=("reconstruction", "in_distribution")))
    first = figure.texts[0]
    assert first.get_text().startswith("OUT OF DISTRIBUTION")
    assert first.get_text().index("in distribution:") < first.get_text().index("reconstruction:")
    assert first.get_color() == "#b3001b"
    assert first.get_position()[1] > max(text.get_position()[1] for text in figure.texts[1:])


def test_difference_is_centred_at_zero_on_one_scale(make_case):
    figure = draw_panel(make_case(slices=3))
    maps = [axes.images[0] for axes in figure.axes if axes.images and axes.images[0].get_cmap().name == "RdBu_r"]
    assert len(maps) == 3
    limits = {image.get_clim() for image in maps}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    assert high >= max(np.abs(image.get_array()).max() for image in maps)


def test_a_picture_without_geometry_gets_no_scale(make_case):
    case = make_case()
    source = dataclasses.replace(case.scan.provenance, format="image", grid_shape=(40, 40))
    said = words(draw_panel(dataclasses.replace(case, scan=dataclasses.replace(case.scan, provenance=source))))
    assert "pixel size unknown" in said
    assert " mm" not in said


def test_null_edit_draws(make_case):
    case = make_case()
    explanation = dataclasses.replace(case.explanation, difference=case.explanation.difference * 0)
    assert "largest change 0 HU" in words(draw_panel(dataclasses.replace(case, explanation=explanation)))


@pytest.mark.parametrize(
    ("write", "name"), [(write_panel, "a.png"), (write_strip, "a.png"), (write_animation, "a.gif")]
)
def test_same_case_same_bytes(make_case, tmp_path, write, name):
    case = make_case(slices=2)
    one = write(case, tmp_path / name).read_bytes()
    assert one == write(case, tmp_path / f"again-{name}").read_bytes()


def test_animation_goes_there_and_back(make_case, tmp_path):
    with Image.open(write_animation(make_case(slices=3, points=5), tmp_path / "path.gif")) as read:
        assert read.n_frames == 8
        assert read.info["loop"] == 0
        assert min(read.size) >= 200


def test_path_is_sorted_and_knows_its_ends(make_case):
    case = make_case()
    order = [4, 0, 8, 2, 1, 3, 5, 7, 6]
    explanation = case.explanation
    keys = ("path_steps", "path_images", "path_probability", "path_agent_probability")
    shuffled = dataclasses.replace(explanation, **{key: getattr(explanation, key)[order] for key in keys})
    way = ordered(dataclasses.replace(case, explanation=shuffled))
    assert (np.diff(way.steps) > 0).all()
    assert (np.diff(way.blackbox) > 0).all()
    assert way.counterfactual == 8
    assert abs(way.steps[way.start]) == np.abs(way.steps).min()


def test_the_strip_does_not_call_an_attempt_a_counterfactual(make_case):
    assert "counterfactual" in words(draw_strip(make_case()))
    said = words(draw_strip(make_case(reachable=False)))
    assert "best attempt" in said
    assert "counterfactual" not in said


@pytest.mark.parametrize("count", [1, 3, 7, 8, 21, 100])
def test_chosen_points(count):
    always = [count // 3, count - 1]
    chosen = chosen_points(count, always)
    assert len(chosen) <= 7
    assert chosen == sorted(set(chosen))
    assert {0, count - 1, *always} <= set(chosen)
    assert len(chosen) >= min(count, 5)
