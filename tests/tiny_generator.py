"""A diffusion autoencoder small enough for float64 and finite differences."""

from __future__ import annotations

from diffcf.generators.diffae import DiffusionAutoencoder

SIZE = 16


def tiny(code: str = "global", prediction: str = "epsilon", **changes) -> DiffusionAutoencoder:
    settings = {
        "image_size": SIZE,
        "block_channels": (16, 16),
        "attention_levels": 0,
        "code_dim": 8 if code == "global" else 4,
        "encoder_channels": (8, 16),
        "norm_groups": 4,
        **changes,
    }
    return DiffusionAutoencoder(code=code, prediction=prediction, **settings)
