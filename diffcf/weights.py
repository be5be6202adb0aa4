"""Where weights lie and how they are read: names of the package's own sets, safe reading, content hashes.

Nothing here unpickles: safetensors, or `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffcf.cards import CARD_NAME
from diffcf.errors import CheckpointError, ConfigError
from diffcf.folders import share

if TYPE_CHECKING:
    from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
TRUST_NAME = "trust.safetensors"
MODEL_WEIGHTS = "diffusion_pytorch_model.safetensors"  # as a ModelMixin of diffusers names its own
Part = Literal["classifier", "generator", "agent", "onestep"]
# What makes a folder this model and no other; notes, pictures and what held-out scans were like do not.
MODEL_FILES = (".safetensors", ".json", ".pt", ".pth", ".pt2", ".bin")
MODEL_FOLDER = (CARD_NAME, "README.md", *(f"*{suffix}" for suffix in MODEL_FILES))  # what training writes
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


def part_of(name: str | Path, part: Part) -> Path:
    """The folder or file of one part: of a set ("lidc", or a folder that holds the part), or named directly.

    A run folder is such a set, too; that of a classifier holds a `blackbox`.

    Errors: CheckpointError where there is neither.
    """
    path = Path(name)
    for folder in (part, "blackbox") if part == "classifier" else (part,):
        if (path / folder).is_dir():
            return path / folder
    if path.is_file() or (path / CARD_NAME).is_file():
        return path
    try:
        return resolve(f"{name}/{part}")
    except CheckpointError:
        return resolve(name)  # a part named directly, or the error that names what was given


def onestep_beside(generator: Path) -> Path | None:
    """The one-step decoder of a set: the folder `onestep` beside that of its generator; None where there is none."""
    folder = generator.absolute().parent / "onestep"
    return folder if (folder / CARD_NAME).is_file() else None


def content_hash(name: str | Path, part: Part | None = None, *, card: str | Path | None = None) -> str:
    """SHA-256 of a model: the names and contents of its weights, config and card, the same wherever it lies.

    part: which one, where `name` may be a whole set. card: of a bare file of weights; without one that beside it.
    Other files, trust.safetensors and the card's `about`, `trust` and `sampling` do not count: the same weights with
    the same input are the same model, and a bare file with its card is what it would be in a folder.
    """
    path = resolve(name) if part is None else part_of(name, part)
    if path.is_file():
        beside = Path(card) if card is not None else path.parent / CARD_NAME
        files = {path.name: path, **({CARD_NAME: beside} if beside.is_file() else {})}
    else:
        every = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
        files = {relative.as_posix(): file for relative, file in every.items() if _is_of_the_model(relative)}
    digest = hashlib.sha256()
    for relative, file in sorted(files.items()):
        content = _card_of_the_model(file) if relative == CARD_NAME else file.read_bytes()
        digest.update(relative.encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _is_of_the_model(relative: Path) -> bool:
    if relative.name == TRUST_NAME or any(part.startswith(".") for part in relative.parts):
        return False
    return relative.name == CARD_NAME or relative.suffix in MODEL_FILES


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
        raise CheckpointError(
            f"no weights at {path}: copy the model's folder again, or correct the file's name in its card."
        )
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


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, half: bool = False, about: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors; the file is always whole, however often and by whom it is replaced.

    half: store them in half precision, half the size; what reads them computes in single precision all the same.
    about: more of the file's header.

    Errors: ConfigError for finite values that half precision cannot hold.
    """
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if half:
        halved = {name: value.half() if value.is_floating_point() else value for name, value in plain.items()}
        lost = [name for name, value in plain.items() if bool((value.isfinite() & ~halved[name].isfinite()).any())]
        if lost:
            raise ConfigError(f"{lost[0]} holds what half precision cannot hold; nothing is written.")
        plain = halved
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(plain, partial, metadata={"format": "pt", **(about or {})})
    share(partial)
    partial.replace(path)
