"""Where weights lie and how they are read: names of the package's own sets, safe reading, content hashes.

Nothing here unpickles: safetensors, or `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffcf.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
# What may change in a folder without making it another model: words, what held-out scans were like, how it is sampled.
NOT_THE_MODEL = ("README.md", "trust.safetensors")
NOT_OF_THE_CARD = ("about", "trust", "sampling")
WRAPPERS = ("state_dict", "model", "model_state_dict")


def bundled() -> list[str]:
    """Names of the sets that come with the package, such as "lidc"."""
    return sorted(path.name for path in ASSETS.iterdir() if path.is_dir()) if ASSETS.is_dir() else []


def resolve(name: str | Path) -> Path:
    """A file or folder: as given where it exists, otherwise of the package ("lidc/generator").

    Errors: CheckpointError that lists the bundled names.
    """
    path = Path(name)
    if path.exists():
        return path
    asset = ASSETS / path
    if not path.is_absolute() and ".." not in path.parts and asset.exists():
        return asset
    known = ", ".join(bundled()) or "none"
    raise CheckpointError(f"{name} is neither a file or folder nor a bundled set of weights (bundled: {known}).")


def content_hash(name: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files; the same wherever it lies.

    Hidden files, README.md, trust.safetensors and the card's `about`, `trust` and `sampling` do not count: the same
    weights with the same input are the same model.
    """
    path = resolve(name)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix()):
        relative = file.relative_to(path)
        if not file.is_file() or relative.name in NOT_THE_MODEL or any(part.startswith(".") for part in relative.parts):
            continue
        content = _card_of_the_model(file) if relative.name == "card.yaml" else file.read_bytes()
        digest.update(relative.as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _card_of_the_model(file: Path) -> bytes:
    """What a card says of the model itself, in an order of its own; the plain bytes where it is no mapping."""
    import yaml

    try:
        card = yaml.safe_load(file.read_bytes())
    except yaml.YAMLError:
        return file.read_bytes()
    if not isinstance(card, dict):
        return file.read_bytes()
    kept = {str(key): value for key, value in card.items() if key not in NOT_OF_THE_CARD}
    return json.dumps(kept, sort_keys=True, default=str).encode()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name, on the CPU and in the dtype they are stored in.

    A `.safetensors` file, or a state dict of PyTorch, which is read with `weights_only=True`; one that lies under
    "state_dict", "model" or "model_state_dict" is taken out. Errors: CheckpointError where the file is missing or
    damaged, would have to be unpickled, or holds no state dict.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; the card's `weights` names the file beside it.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} does not load as plain tensors ({reason}). A whole pickled model is never read, since it can run "
            "any code: save its state dict, or safetensors.torch.save_file(model.state_dict(), ...)."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no state dict (names to tensors) but {type(found).__name__}.")
    return dict(found)
