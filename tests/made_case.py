"""A case made by hand: a soft blob on lung-like noise, one that the counterfactual makes smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffcf.cards import Preparation, Window
from diffcf.report import Case
from diffcf.scans import prepare
from diffcf.types import Code, Cost, Explanation, Provenance, Scan, Solution, TrustCheck

CHECKS = (
    "in_distribution", "reconstruction", "reconstruction_decision", "validity", "agent_agreement", "edit_size",
)  # fmt: skip


def blob(size: int, radius: float) -> np.ndarray:
    """A smooth disc, 1 in its middle and 0 outside."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return 1 / (1 + np.exp((np.hypot(y, x) - radius) / 1.2))


def made_scan(slices: int = 3, size: int = 40) -> Scan:
    """A CT-like volume with LPS-like orientation, as a DICOM series would give."""
    rng = np.random.default_rng(0)
    volume = -850 + 60 * rng.standard_normal((slices, size, size)) + 900 * blob(size, 7)
    affine = np.array([[-0.7, 0, 0, 14], [0, -0.7, 0, 14], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])
    provenance = Provenance(path="scans/patient-007", format="dicom", modality="CT", series_uid="1.2.3")
    return Scan(volume.round().astype(np.float32), (2.5, 0.7, 0.7), affine, provenance)


def made_case(
    slices: int = 1,
    failed: tuple[str, ...] = (),
    reachable: bool = True,
    residual_carry: bool = False,
    scan: Scan | None = None,
    points: int = 9,
    **preparation: Any,
) -> Case:
    """A case whose numbers are all made here; images are float32 "1 s 1 h w" in window units."""
    scan = scan or made_scan()
    settings = {"window": Window(-600, 1600), "size": 32, "slices": slices, "spacing": None, **preparation}
    patch = prepare(scan, Preparation(**settings))
    unit = torch.from_numpy(patch.unit())[None, :, None]
    reconstruction = (0.98 * unit + 0.01 * torch.randn(unit.shape)).clip(-1, 1)
    reference = unit if residual_carry else reconstruction
    ring = torch.from_numpy(blob(unit.shape[-1], 7) - blob(unit.shape[-1], 4)).float()
    strengths = torch.linspace(-0.5, 1, points)
    images = torch.stack([(reference - strength * 0.5 * ring).clip(-1, 1) for strength in strengths])
    score = torch.sigmoid(4 * (strengths - 0.45))
    path = torch.stack([1 - score, score], -1)[:, None]
    counterfactual = images[-1]
    messages = {name: f"made value 0.30, expected at most 0.10 ({name})" for name in failed}
    one = torch.ones(1)
    return Case(
        explanation=Explanation(
            factual=unit,
            reconstruction=reconstruction,
            counterfactual=counterfactual,
            reference=reference,
            difference=counterfactual - reference,
            factual_code=Code(torch.zeros(1, slices, 4)),
            counterfactual_code=Code(torch.ones(1, slices, 4)),
            factual_probability=torch.tensor([[0.86, 0.14]]),
            reconstruction_probability=torch.tensor([[0.84, 0.16]]),
            counterfactual_probability=path[-1],
            agent_probability=torch.tensor([[0.8, 0.2]]),
            target=torch.tensor([1]),
            solution=Solution(torch.ones(1, slices, 4), one.bool(), 12 * one.int(), 0.01 * one),
            reachable=one.bool() if reachable else ~one.bool(),
            path_steps=strengths * 3,
            path_images=images,
            path_probability=path,
            path_agent_probability=path * 0.9 + 0.05,
            residual_carry=residual_carry,
            path_previewed=False,
            cost=Cost(220, 0, 12, 3.5, 812.0),
            trust=tuple(
                TrustCheck(name, name not in failed, 0.3 if name in failed else 0.05, 0.1, messages.get(name, "fine"))
                for name in CHECKS
            ),
        ),
        scan=scan,
        patch=patch,
        classes=("malignant", "benign"),
        probability=0.8,
        provenance={"seed": 0, "versions": {"diffcf": "0"}},
    )
