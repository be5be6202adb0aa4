"""A slice that is being drawn: where its pixels lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffcf.data.phantom.anatomy import Body
from diffcf.data.phantom.shapes import pixel_centres, smooth_noise


@dataclass(frozen=True)
class Plane:
    """A slice as it is drawn: pixel positions in mm on the patient's own axes (turned and gently warped), "h w"."""

    y: np.ndarray
    x: np.ndarray
    pixel: float
    level: float
    body: Body

    @property
    def blur(self) -> float:
        """Width in mm of the edge between two tissues: that of the scanner, a pixel at least."""
        return max(1.3, self.pixel)


def plane_of(rng: np.random.Generator, size: int, pixel: float, level: float, body: Body) -> Plane:
    """Turn, shift and warp a slice's pixels: no patient is symmetric."""
    y, x = pixel_centres(size, pixel)
    angle = np.radians(body.turn)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y, x = y - np.float32(body.shift[0] + 4), x - np.float32(body.shift[1])
    turned_y, turned_x = cosine * y - sine * x, cosine * x + sine * y
    shape = (size, size)
    warp_y = smooth_noise(rng, shape, 70 / pixel) * 3.5 + smooth_noise(rng, shape, 26 / pixel) * 1.1
    warp_x = smooth_noise(rng, shape, 70 / pixel) * 3.5 + smooth_noise(rng, shape, 26 / pixel) * 1.1
    return Plane((turned_y + warp_y).astype(np.float32), (turned_x + warp_x).astype(np.float32), pixel, level, body)
