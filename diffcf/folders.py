"""Results folders and kept arrays that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from diffcf.errors import ConfigError


def check_free(folder: Path, ours: Sequence[str], *, overwrite: bool = False) -> None:
    """Refuse a folder that holds something; with `overwrite`, only what is not wholly an earlier result.

    ours: globs of the files that a result consists of, first the one that no result is without; none for what is never
    replaced, a data set.

    Errors: ConfigError.
    """
    if not ours:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is not an empty folder; name another one, or remove it first.")
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give the name of a folder that is new or empty.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{folder} is not empty; give another folder, or --overwrite to replace it.")
    if not any(folder.glob(ours[0])):
        raise ConfigError(
            f"{folder} is not empty and holds no {ours[0]}: it is no earlier result, so it is not overwritten. Give "
            "another folder, or remove it yourself."
        )
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_dir() or not any(fnmatch(path.name, pattern) for pattern in ours)
    ]
    if others:
        raise ConfigError(
            f"{folder} holds more than an earlier result ({others[0]}{', ...' if len(others) > 1 else ''}), so it is "
            "not overwritten. Give another folder, or move the rest away."
        )


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before the work is done (ConfigError)."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{folder} cannot be made: {there} is a file. Give a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: {there} cannot be written to; give a folder that you may write.")


@contextmanager
def whole_folder(folder: Path, ours: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends, and is removed when it fails.

    Errors: ConfigError as in `check_free`, before the block runs, and where no folder can be made there.
    """
    folder = Path(os.path.realpath(folder))  # of a link, what it leads to is filled
    check_free(folder, ours, overwrite=overwrite)
    if folder.exists() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"{folder} is a mount point, or in a folder that you may not write: no whole result can take its place. "
            f"Give a new folder inside it, such as {folder / 'result'}."
        )
    ours_alone = secrets.token_hex(4)  # a process number comes again
    temporary, old = (folder.with_name(f".{folder.name}.{ours_alone}.{end}") for end in ("tmp", "old"))
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}); give a folder that you may write.") from error
    try:
        yield temporary
        check_free(folder, ours, overwrite=overwrite)  # someone may have filled it meanwhile
        if folder.is_dir():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def share(path: Path) -> None:
    """Give a file the permissions of any new one: `tempfile` and safetensors leave theirs to its owner alone."""
    any_new = path.with_name(f"{path.name}.{os.getpid()}")
    any_new.touch()
    path.chmod(any_new.stat().st_mode)
    any_new.unlink()


def read_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray | None:
    """An array that `write_array` kept, or None where there is none or another one (it is then made again)."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        return None
    return array


def write_array(path: Path, array: np.ndarray) -> None:
    """Write beside the target, then rename over it, so that readers (and other processes) see whole files only.

    Errors: OSError of a folder that cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
        share(Path(temporary))
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
