"""explanation.json."""

from __future__ import annotations

import dataclasses
import json

from diffcf.report import document, write_document


def test_holds_what_the_explanation_holds(make_case, tmp_path):
    case = make_case(slices=3, failed=("edit_size",))
    read = json.loads(write_document(case, tmp_path / "explanation.json").read_text())
    assert read["verdict"] == {"name": "trust_check_failed", "exit_code": 10, "sentence": case.verdict.sentence}
    assert read["trust"][0]["name"] == "edit_size"
    assert not read["trust"][0]["passed"]
    assert len(read["trust"]) == 6
    decision = read["decision"]
    assert (decision["prediction"], decision["target"]) == ("malignant", "benign")
    assert abs(decision["blackbox"]["factual"]["malignant"] - 0.86) < 1e-6
    assert abs(sum(decision["blackbox"]["counterfactual"].values()) - 1) < 1e-6
    steps = [point["step"] for point in read["path"]]
    assert steps == sorted(steps)
    assert len(steps) == 9
    assert read["search"]["path_previewed"] is case.explanation.path_previewed
    assert read["change"]["largest_decrease"] == case.difference_hu.min()
    assert read["input"]["slices"] == [0, 1, 2]
    assert read["provenance"] == case.provenance


def test_same_case_same_bytes_but_for_the_cost(make_case, tmp_path):
    case = make_case()
    cost = dataclasses.replace(case.explanation.cost, seconds=99.0, peak_memory_mb=1.0)
    again = dataclasses.replace(case, explanation=dataclasses.replace(case.explanation, cost=cost))
    one, two = document(case), document(again)
    assert one.pop("cost") != two.pop("cost")
    assert json.dumps(one) == json.dumps(two)


def test_a_number_that_is_not_finite_becomes_null(make_case, tmp_path):
    case = make_case()
    check = dataclasses.replace(case.explanation.trust[0], value=float("nan"), threshold=float("inf"))
    case = dataclasses.replace(case, explanation=dataclasses.replace(case.explanation, trust=(check,)))
    read = json.loads(write_document(case, tmp_path / "explanation.json").read_text())
    assert read["trust"][0]["value"] is None
    assert read["trust"][0]["threshold"] is None
