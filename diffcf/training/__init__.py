"""What the scripts in `train/` share: order and noise that depend on nothing but a key, losses, exact resume."""
