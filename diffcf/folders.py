"""A results folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffcf.errors import ConfigError


def check_free(folder: Path, marker: str, *, overwrite: bool = False) -> None:
    """Refuse a folder that holds something; with `overwrite`, only what holds no `marker` (a glob) is refused.

    Errors: ConfigError.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give the name of a folder that is new or empty.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{folder} is not empty; give another folder, or --overwrite to replace it.")
    if not any(folder.glob(marker)):
        raise ConfigError(
            f"{folder} is not empty and holds no {marker}: it is no earlier result, so it is not overwritten. Give "
            "another folder, or remove it yourself."
        )


@contextmanager
def whole_folder(folder: Path, marker: str, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends, and is removed when it fails.

    Errors: ConfigError as in `check_free`, before the block runs.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder, marker, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        check_free(folder, marker, overwrite=overwrite)  # someone may have filled it meanwhile
        if folder.is_dir():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
