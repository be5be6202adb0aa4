"""Classifiers aligned with regions, and what judges them."""

from __future__ import annotations

import pytest
from scripts import result, run

from diffcf.cards import ClassifierCard, read_card
from diffcf.errors import ConfigError


def test_alignment_is_trained_and_judged(trained) -> None:
    run("train", "align", "--method", "Vanilla", "--out", "runs/tiny/plain")
    for seed in ("0", "1"):
        run("train", "align", "--seed", seed, "--out", f"runs/tiny/align{'-1' * int(seed)}")
    for name, method in (("plain", "Vanilla"), ("align", "CounterfactualAlignment")):
        assert read_card(ClassifierCard, trained[0] / "runs/tiny" / name / "blackbox").about["method"] == method
    run("evaluation", "alignment")
    plain, aligned = result(trained[0], "alignment")["rows"]
    assert (plain["seeds"], aligned["seeds"]) == (1, 2)
    assert [plain["default"], aligned["default"]] == [False, True]
    assert plain["accuracy_gap"] == 0
    assert plain["n"] == aligned["n"] == 20
    assert plain["reversal_gap"] == pytest.approx(plain["reversal_accuracy"] - plain["accuracy"])
    for row in (plain, aligned):
        for key in ("saliency", "gradcam", "hirescam", "occlusion", "change", "roi"):
            assert 0 <= row[f"{key}_precision_low"] <= row[f"{key}_precision"] <= row[f"{key}_precision_high"] <= 1
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert 0 < row["chance"] < 0.5
    assert "accuracy_std" in aligned
    assert 0 <= aligned["decoded_roi"] <= 1
    for more in ("", "_decoded"):
        assert (trained[0] / f"runs/tiny/figures/alignment_tiny_panels{more}.png").stat().st_size > 5000
    twice = ("--runs.aligned", '{"a": "runs/tiny/align/blackbox", "b": "runs/tiny/align/blackbox"}')
    run("evaluation", "tuning", *twice)
    rows = result(trained[0], "tuning")["rows"]
    assert [(row["method"], row["chosen"]) for row in rows] == [("plain", True), ("aligned", True), ("aligned", False)]
    card = read_card(ClassifierCard, trained[0] / "runs/tiny/plain/blackbox")
    assert rows[0]["auc"] == card.about["validation"]["auc"]
    for sources, said in (
        ('{"a": "runs/tiny/align-1/blackbox"}', "differ in seed"),
        ('{"a": "runs/tiny/classifier/blackbox"}', "no black box of train/align.py"),
    ):
        with pytest.raises(ConfigError, match=said):
            run("evaluation", "tuning", "--runs.aligned", sources)
    run("evaluation", "implicit")
    measured = result(trained[0], "implicit")["rows"]
    good = [row for row in measured if "sign" in row]
    assert {row["method"] for row in good} <= {"gauss_newton", "cg", "jacobian_free"}
    assert all(-1 <= row["cosine"] <= 1 for row in good)
    cost = {row["method"]: row for row in measured if "saved_mb" in row}
    assert cost["search alone"]["adjoint_ratio"] == 0
    assert cost["gauss_newton"]["saved_mb"] < cost["unrolled"]["saved_mb"]
    plain, aligned = (row for row in measured if "step_ratio" in row)
    assert plain["step_ratio"] == 1
    assert aligned["step_ratio"] > 1
