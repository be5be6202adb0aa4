"""How one model's images look to another: from a generator's preparation to a black box's.

Everything is done on the image that is already cut, so it works on decoded images as well as on scans, and is
differentiable. What the generator's images do not hold cannot be made up: it is refused.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from einops import pack, unpack
from torch import Tensor
from torch.nn import functional as F

from diffcf.cards import Preparation, Window
from diffcf.errors import ConfigError

SAME_LENGTH = 1e-3  # relative; spacings and extents this close are the same


@dataclass(frozen=True)
class View:
    """Images "... h w" in [-1, 1] of `source`'s window -> "... h w" in [-1, 1] of another preparation's.

    window: to rescale to through HU, and clip; None keeps the values. crop: pixels that are left at every edge of the
    source's images. size: to resize to, linear and anti-aliased; None keeps it.
    """

    source: Preparation
    window: Window | None = None
    crop: int = 0
    size: int | None = None

    @property
    def identity(self) -> bool:
        """Whether images come back as they are."""
        return self.window is None and not self.crop and self.size is None

    def __call__(self, image: Tensor) -> Tensor:
        """Adapt images. Errors: ConfigError where they do not have the size of `source`."""
        if tuple(image.shape[-2:]) != (self.source.size, self.source.size):
            raise ConfigError(
                f"images of {tuple(image.shape[-2:])} pixels: this view adapts those of a preparation with size "
                f"{self.source.size}."
            )
        if self.crop:
            image = image[..., self.crop : -self.crop, self.crop : -self.crop]
        if self.size is not None:
            flat, lead = pack([image], "* h w")
            flat = F.interpolate(flat[:, None], (self.size, self.size), mode="bilinear", antialias=True)[:, 0]
            (image,) = unpack(flat, lead, "* h w")
        if self.window is not None:
            image = self.window.to_unit(self.source.window.to_hu(image)).clamp(-1, 1)
        return image


def make_view(source: Preparation, target: Preparation) -> View:
    """The view that shows images of preparation `source` to a model of preparation `target`.

    The number of slices is left alone: a generator works slice by slice. Field "resize": any size. Field "crop": the
    same extent in mm at another spacing, or a smaller square around the same centre at the same spacing. A window that
    the source's does not contain is warned of: values beyond the source's window are not in its images.

    Errors: ConfigError, for another modality or field and where the target would see more than the source shows.
    """
    if source.modality != target.modality:
        raise _refusal(f"modality {source.modality}", f"{target.modality}", "a generator for that modality")
    if source.field != target.field:
        raise _refusal(f"field {source.field!r}", f"{target.field!r}", "a generator that was trained on the same field")
    crop = _margin(source, target) if source.field == "crop" else 0
    left = source.size - 2 * crop
    return View(
        source,
        None if source.window == target.window else _window(source.window, target.window),
        crop,
        None if left == target.size else target.size,
    )


def _margin(source: Preparation, target: Preparation) -> int:
    """Pixels that a crop leaves out at every edge of the source's image; 0 where both show the same square."""
    came, wanted = _in_words(source), _in_words(target)
    if (source.spacing is None) != (target.spacing is None):
        raise _refusal(came, wanted, "a generator with the classifier's spacing: their pixels cannot be compared")
    if source.spacing is None or target.spacing is None or _close(source.spacing, target.spacing):
        spare = source.size - target.size
        if spare < 0:
            raise _refusal(came, wanted, "a generator with a field at least as large")
        if spare % 2:
            raise _refusal(came, wanted, "a size that differs by an even number of pixels, or the centres would differ")
        return spare // 2
    if not _close(source.size * source.spacing, target.size * target.spacing):
        raise _refusal(came, wanted, "a generator with a field of the same extent in mm")
    return 0


def _window(source: Window, target: Window) -> Window:
    low, high = (source.to_hu(edge) for edge in (-1.0, 1.0))
    wanted = tuple(target.to_hu(edge) for edge in (-1.0, 1.0))
    if wanted[0] < low - 1e-6 or wanted[1] > high + 1e-6:
        warnings.warn(
            f"the classifier looks at {wanted[0]:g} to {wanted[1]:g} HU, but the generator's images end at {low:g} and "
            f"{high:g} HU: what lies beyond is shown to it as these limits.",
            stacklevel=4,
        )
    return target


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=SAME_LENGTH)


def _in_words(preparation: Preparation) -> str:
    if preparation.spacing is None:
        return f"a crop of {preparation.size} pixels at the scan's own spacing"
    extent = preparation.size * preparation.spacing
    return f"a crop of {preparation.size} pixels of {preparation.spacing:g} mm ({extent:g} mm)"


def _refusal(came: str, expected: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"the generator's images cannot be shown to this classifier: they are {came}, it expects {expected}. Use "
        f"{remedy}."
    )
