"""explanation.json: everything an explanation says in numbers, under stable keys, without a time or a random name.

The same seed gives the same bytes on the same machine, the section "cost" aside.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcf.report.case import Case, to_numpy

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1  # raised when a key changes its meaning


def document(case: Case) -> dict[str, Any]:
    """The explanation as plain data: verdict, trust, decision, search, path, change, input, provenance and cost."""
    explanation, patch, window = case.explanation, case.patch, case.window
    verdict = case.verdict
    change = case.difference_hu

    def scores(probability: Tensor) -> dict[str, float]:
        values = to_numpy(probability).reshape(-1)
        return {name: float(value) for name, value in zip(case.classes, values, strict=True)}

    def asked(probability: Tensor) -> dict[str, float] | None:
        """Scores of an agent, None where no agent was asked."""
        return scores(probability) if bool(probability.isfinite().all()) else None

    steps = to_numpy(explanation.path_steps)
    order = np.argsort(steps, kind="stable")
    return {
        "schema": SCHEMA,
        "verdict": {"name": verdict.name, "exit_code": verdict.exit_code, "sentence": verdict.sentence},
        "trust": [
            {
                "name": check.name,
                "passed": bool(check.passed),
                "value": float(check.value),
                "threshold": float(check.threshold),
                "message": check.message,
            }
            for check in (*case.failed, *(check for check in explanation.trust if check.passed))
        ],
        "decision": {
            "classes": list(case.classes),
            "prediction": case.classes[int(explanation.factual_probability[0].argmax())],
            "target": case.classes[case.target],
            "asked_probability": case.probability,
            "reachable": bool(explanation.reachable[0]),
            "blackbox": {
                "factual": scores(explanation.factual_probability),
                "reconstruction": scores(explanation.reconstruction_probability),
                "counterfactual": scores(explanation.counterfactual_probability),
            },
            "agent": {"factual": asked(explanation.agent_probability)},
        },
        "search": {
            "converged": bool(explanation.solution.converged[0]),
            "steps": int(explanation.solution.steps[0]),
            "residual": float(explanation.solution.residual[0]),
            "residual_carry": explanation.residual_carry,
            "path_previewed": explanation.path_previewed,
        },
        "attributes": [dataclasses.asdict(changed) for changed in explanation.attributes],
        "path": [
            {
                "step": float(steps[point]),
                "blackbox": scores(explanation.path_probability[point, 0]),
                "agent": asked(explanation.path_agent_probability[point, 0]),
            }
            for point in order
        ],
        "change": {
            "unit": case.unit,
            "reference": case.reference_name,
            "mean_absolute": float(np.abs(change).mean(dtype=np.float64)),
            "largest_increase": float(max(change.max(), 0)),
            "largest_decrease": float(min(change.min(), 0)),
        },
        "input": {
            "scan": case.scan.provenance.path,
            "format": case.scan.provenance.format,
            "modality": case.scan.provenance.modality,
            "series_uid": case.scan.provenance.series_uid,
            "files": len(case.scan.provenance.files),
            "notes": list(case.scan.provenance.notes),
            "slices": list(patch.slices),
            "box_voxels": list(patch.box),
            "pixel_mm": list(patch.spacing),
            "resampled": patch.resampled,
            "window": {"centre": window.centre, "width": window.width},
        },
        "provenance": dict(case.provenance),
        "cost": {
            "generator_forwards": explanation.cost.generator_forwards,
            "generator_backwards": explanation.cost.generator_backwards,
            "blackbox_forwards": explanation.cost.blackbox_forwards,
            "seconds": explanation.cost.seconds,
            "peak_memory_mb": explanation.cost.peak_memory_mb,
        },
    }


def write_document(case: Case, path: Path) -> Path:
    """Write explanation.json; a number that is not finite becomes null, which JSON has a word for."""
    text = json.dumps(_finite(document(case)), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
