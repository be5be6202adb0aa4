"""Cases that the black box cannot decide, pushed to either class (paper 004, section 3.4 and Fig. 2).

    python evaluation/indeterminate.py --config configs/evaluation/indeterminate_lidc.yaml

The held-out scans whose two highest scores are closest are pushed to a confident score of each class in turn. A row
says how many reach it (`validity`), how monotonely the black box's score rises along the path from one class to the
other (`monotone`: share of steps on which it does not fall; `monotone_paths`: paths that never fall by more than 0.01),
and how the change differs between both directions: `opposite` is the correlation of the two signed changes over pixels,
-1 where what one adds the other takes away. The strips of the first cases are written as a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, mean_row, write_result
from einops import rearrange

from diffcf.counterfactuals import rising_share
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings
from diffcf.training.command import run_script
from diffcf.types import Explanation

FALL = 0.01


@dataclass(frozen=True)
class Config:
    """Which models, judged on what.

    Args:
        name: the result is written to docs/results/indeterminate_NAME.json.
        manifest: CSV file; rows of `split` are looked through, labelled or not.
        classifier, generator, agent: folders or bundled names.
        probability: the confident score asked of the black box.
        within: a case is indeterminate where its two highest scores differ by at most this.
        cases: at most so many, the least determinate first.
        pictures: so many of them are drawn, to FIGURES/indeterminate_NAME.png.
        figures: folder of the picture.
        split: test, or val while something is still being chosen.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the noise floor and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    classifier: str
    generator: str
    agent: str
    probability: float = 0.9
    within: float = 0.3
    cases: int = 24
    pictures: int = 2
    figures: Path = RESULTS.parent / "figures"
    split: str = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


def least_determinate(probability: torch.Tensor, within: float, cases: int) -> list[int]:
    """Positions of scans, "n k" -> at most `cases`, whose two highest scores differ by at most `within`."""
    top = probability.topk(2, dim=1).values
    margin = top[:, 0] - top[:, 1]
    order = margin.argsort().tolist()
    return [i for i in order if float(margin[i]) <= within][:cases]


def opposition(changes: list[torch.Tensor]) -> float:
    """Correlation over pixels of two changes of the same scan; NaN where one is nothing."""
    one, other = (change.flatten().double() for change in changes)
    if not float(one.abs().sum()) or not float(other.abs().sum()):
        return float("nan")
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


def draw(pairs: list[list[Explanation]], classes: tuple[str, ...], path: Path) -> None:
    """Two rows a case as in Fig. 2: images along the path to each class, and the change at its end."""
    from matplotlib.figure import Figure

    count = len(pairs[0][0].path_steps)
    figure = Figure(figsize=(1.35 * (count + 1), 1.6 * 2 * len(pairs)), layout="constrained")
    axes = figure.subplots(2 * len(pairs), count + 1, squeeze=False)
    for row, explanation in enumerate(one for pair in pairs for one in pair):
        target, middle = int(explanation.target[0]), explanation.path_images.shape[2] // 2
        images = rearrange(explanation.path_images[:, 0, middle], "n 1 h w -> n h w").cpu().numpy()
        change = explanation.difference[0, middle, 0].cpu().numpy()
        limit = max(float(np.abs(change).max()), 1e-6)
        for column, axis in enumerate(axes[row]):
            if column < count:
                axis.imshow(images[column], cmap="gray", vmin=-1, vmax=1)
                axis.set_title(f"{float(explanation.path_probability[column, 0, target]):.2f}", fontsize=8)
            else:
                axis.imshow(change, cmap="seismic", vmin=-limit, vmax=limit)
                axis.set_title("change", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row][0].set_ylabel(f"to {classes[target]}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(config: Config) -> list[dict[str, Any]]:
    """Push every indeterminate case to both classes; prints and writes the table, returns its rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    explainer = Explainer.load(config.generator, config.classifier, config.agent, ExplainSettings(), device=device)
    preparation = explainer.preparation
    scans = ScanDataset(Manifest.read(config.manifest), preparation, split=config.split)
    view = explainer.blackbox.view_of(explainer.preparation)
    with torch.no_grad():
        scores = torch.cat([explainer.blackbox(view(part.to(device))) for part in scans.images.split(64)]).softmax(1)
    chosen = least_determinate(scores.cpu(), config.within, config.cases)
    if not chosen:
        raise ConfigError(f"no scan's two highest scores lie within {config.within}; raise `within`.")
    images, patients = scans.images[chosen].to(device), [scans.patients[i] for i in chosen]
    pairs: list[list[Explanation]] = [[] for _ in chosen]
    for target in range(len(explainer.classes)):
        asked = explainer.explain_batch(images, [target] * len(chosen), config.probability, config.seed)
        for pair, explanation in zip(pairs, asked, strict=True):
            pair.append(explanation)
    table = []
    for target, name in enumerate(explainer.classes):
        mine = [pair[target] for pair in pairs]
        paths = [one.path_probability[:, 0, target] for one in mine]
        values = {
            "validity": [float(one.reachable[0]) for one in mine],
            "monotone": [float(rising_share(path)) for path in paths],
            "monotone_paths": [float(bool((path.diff() >= -FALL).all())) for path in paths],
            "start": [float(one.reconstruction_probability[0, target]) for one in mine],
            "end": [float(one.counterfactual_probability[0, target]) for one in mine],
            "proximity_l1": [float(one.difference.abs().mean()) * preparation.window.width / 2 for one in mine],
            "opposite": [opposition([pair[0].difference, pair[1].difference]) for pair in pairs],
        }
        row = {
            "method": f"to {name!r} at {config.probability:g}",
            "data": config.name,
            "split": config.split,
            "classifier": explainer.blackbox.card.architecture,
            "n": len(mine),
            "patients": len(set(patients)),
            "default": True,
            **mean_row(values, patients, resamples=config.resamples, seed=config.seed),
        }
        table.append(row)
    if config.pictures:
        draw(pairs[: config.pictures], explainer.classes, config.figures / f"indeterminate_{config.name}.png")
    write_result(__file__, config, "Indeterminate held-out cases pushed to either class (paper 004, Fig. 2)", table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
