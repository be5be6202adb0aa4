"""The saliency maps of many scans, kept on disk by what they were made from, and made by several processes together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffcf.errors import ConfigError
from diffcf.folders import read_array, write_array
from diffcf.saliency.protocol import SaliencyMethod, normalised

CACHE_VERSION = 1  # raise it when a method gives other values than before
KEPT_AS = np.float16  # steps of at most 0.0005 in [0, 1], finer than any picture or threshold of a map


def maps_of(
    method: SaliencyMethod,
    classifier: nn.Module,
    images: Tensor,
    generator: Any = None,
    *,
    folder: Path,
    versions: str,
    batch: int = 16,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The `normalised` maps of images "n s c h w" -> float32 "n s 1 h w" in [0, 1], on the CPU; one that is kept in
    `folder` is never made again.

    A map is kept in half precision, in a file named by the image's values, the method's settings and `versions`. It is
    there whole or not at all: a run that is cut off loses one batch, and a damaged file is made anew.

    versions: what tells the weights of classifier and generator from others, such as their content hashes. batch: scans
    at once. rank, world: this process and how many there are; all call this together, and each makes its share of what
    is missing. wait: returns when all have called it (`Accelerator.wait_for_everyone`). device: where the images go;
    None is where the classifier's weights are.

    Errors: ConfigError for a folder that cannot be written to, and for maps that no map can be (`check_maps`).
    """
    device = device or next((weight.device for weight in classifier.parameters()), images.device)
    shape = (images.shape[1], 1, *images.shape[3:])
    keys = [_key(image, method, versions) for image in images]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}  # equal images have one map
    known = {key: kept for key in first if (kept := _read(folder, key, shape)) is not None}
    missing = sorted(set(first) - set(known))
    wait()  # nobody keeps a map before all have seen what is missing
    for some in _parts(missing[rank::world], batch):
        chosen = images[[first[key] for key in some]].to(device)
        made = normalised(method(classifier, chosen, generator=generator)).float().cpu()
        check_maps(made, chosen)
        for key, one in zip(some, made, strict=True):
            try:
                write_array(folder / f"{key}.npy", one.numpy().astype(KEPT_AS))
            except OSError as error:
                raise ConfigError(
                    f"no map can be kept in {folder} ({error.strerror}); give a folder that you may write."
                ) from error
    wait()
    for key in missing:
        kept = _read(folder, key, shape)
        if kept is None:
            raise ConfigError(f"{folder / key}.npy is gone or damaged since it was written; run this again.")
        known[key] = kept
    return torch.from_numpy(np.stack([known[key] for key in keys])).float()


def check_maps(maps: Tensor, images: Tensor) -> None:
    """Refuse maps that are not those of images "n s c h w": "n s 1 h w", finite, in [0, 1] (ConfigError)."""
    expected = (*images.shape[:2], 1, *images.shape[3:])
    if tuple(maps.shape) != expected:
        raise ConfigError(
            f"saliency maps of shape {tuple(maps.shape)} for images of {tuple(images.shape)}: expected {expected}, one "
            "map of every slice, as large as the slice."
        )
    if not bool(maps.isfinite().all()):
        raise ConfigError("saliency maps hold NaN or infinity; check the classifier and the generator.")
    if not maps.numel():
        return
    low, high = float(maps.min()), float(maps.max())
    if low < 0 or high > 1:
        raise ConfigError(f"saliency maps from {low:g} to {high:g}: expected [0, 1], as `normalised` makes them.")


def _key(image: Tensor, method: SaliencyMethod, versions: str) -> str:
    said = f"{CACHE_VERSION}|{method!r}|{versions}|{tuple(image.shape)}|{image.dtype}|"
    values = image.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(said.encode() + values).hexdigest()


def _read(folder: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    return read_array(folder / f"{key}.npy", shape, KEPT_AS)


def _parts(keys: Sequence[str], size: int) -> list[Sequence[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]
