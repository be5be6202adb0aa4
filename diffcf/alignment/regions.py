"""The experts' regions of a data set, checked before anything is trained with them."""

from __future__ import annotations

import warnings

from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError

SHOWN = 5


def regions_of(scans: ScanDataset, widen: int) -> Tensor:
    """The masks of every scan, widened by so many pixels on all sides: "n s 1 h w" of 0 and 1.

    Expert contours lie on the border of what they outline, and the border's outside is part of what is seen.

    Errors: ConfigError where a scan has no mask, or an empty one in its field, or everything is inside, with the rows;
    a warning where the regions cover so much that nothing can lie outside.
    """
    if scans.masks is None:
        raise ConfigError("these scans were loaded without masks; load them with mask=True.")
    if widen < 0:
        raise ConfigError(f"widen {widen}: expected pixels, 0 or more.")
    names = [str(row.path) for row in scans.rows]
    missing = (~scans.has_mask).nonzero().squeeze(1).tolist()
    _refuse([names[i] for i in missing], "no mask", "leave these rows out of the manifest, or give them one")
    region = scans.masks
    area = reduce(region, "n s 1 h w -> n", "mean")
    empty = (area == 0).nonzero().squeeze(1).tolist()
    _refuse(
        [names[i] for i in empty],
        "a mask that is empty in the field",
        "the mask lies outside the crop, or shows nothing",
    )
    if widen:
        flat = rearrange(region, "n s 1 h w -> (n s) 1 h w")
        flat = F.max_pool2d(flat, 2 * widen + 1, stride=1, padding=widen)
        region = rearrange(flat, "(n s) 1 h w -> n s 1 h w", s=region.shape[1])
    area = reduce(region, "n s 1 h w -> n", "mean")
    whole = (area == 1).nonzero().squeeze(1).tolist()
    _refuse([names[i] for i in whole], "a region that is the whole field", "nothing can be misplaced there; narrow it")
    if float(area.median()) > 0.5:
        warnings.warn(
            f"half of the regions cover more than {float(area.median()):.0%} of their field: to keep a change inside "
            "says little. Use tighter masks, a larger field or a smaller `widen`.",
            stacklevel=2,
        )
    return region


def _refuse(rows: list[str], what: str, remedy: str) -> None:
    if rows:
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        raise ConfigError(f"{len(rows)} scan(s) with {what}: {', '.join(rows[:SHOWN])}{more}; {remedy}.")
