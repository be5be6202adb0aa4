"""Scripts as commands: how they are run, and the command line that a card or a result names."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jsonargparse import _typehints, auto_cli

from diffcf.errors import DiffcfError, of_the_system
from diffcf.folders import check_writable
from diffcf.signals import ended_as_by_ctrl_c

# What may be a path, alone or as part of a list, a mapping or OPTION=VALUE; blanks are allowed within one.
PATH = re.compile(r"(?<![^\[{(,:=\s'\"])(?:~|\.{0,2}/)[^\[\]{}(),:='\"]*[^\[\]{}(),:='\"\s]")


def command_line(script: str | Path, launcher: str = "python", argv: Sequence[str] | None = None) -> str:
    """The running command line as another checkout can repeat it.

    script: the caller's `__file__`, one folder below the repository's root. launcher: what starts it. argv: `sys.argv`
    where it is not given; a caller that was imported instead of run is named without arguments.

    Paths below the repository become relative, those below DIFFCF_DATA start with $DIFFCF_DATA, and others that are
    absolute, or lead out of the working folder, keep their last part only, within lists, too: a card tells nobody where
    somebody's files lie.
    """
    own = Path(script).resolve()
    root = own.parent.parent
    ran, *arguments = sys.argv if argv is None else argv
    if Path(ran).resolve() != own:
        arguments = []
    words = [PATH.sub(lambda found: _portable(found.group(), root), word) for word in (str(own), *arguments)]
    return " ".join([launcher, *(word if "$DIFFCF_DATA" in word else shlex.quote(word) for word in words)])


def read_config(config: type, args: Sequence[str] | None = None) -> Any:
    """A config from a command line, `sys.argv` where none is given; `--config FILE` may be said several times.

    A class that a file or an option names in place of another begins with its own defaults. jsonargparse would keep
    settings of the same name from the one before it (the weight of `Latent` for `Pixels`), and has no switch for that.

    Errors: SystemExit, as argparse has it.
    """
    with patch.object(_typehints, "discard_init_args_on_class_path_change", _discard_all):
        return auto_cli(config, as_positional=False, args=None if args is None else list(args))


def _discard_all(_: Any, before: Any, now: Any) -> None:
    """Forget the settings of a class before it, in place of those alone that the new one does not have."""
    then, after = ((spec or {}).get("class_path") or "" for spec in (before, now))
    if then and "init_args" in before and then.rpartition(".")[2] != after.rpartition(".")[2]:
        vars(before["init_args"]).clear()


def run_script(main: Callable[[Any], Any], config: type) -> None:
    """Run `main` on a config read from the command line; what diffcf or the system refuses is one message and an exit
    code, and so is Ctrl-C. A run folder that cannot be written to is refused before any work."""
    name, out = Path(sys.argv[0]).name, None
    ended_as_by_ctrl_c()
    try:
        settings = read_config(config)
        out = getattr(settings, "out", None)
        if isinstance(out, Path):
            check_writable(out)
        main(settings)
    except DiffcfError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno is None:  # a library's own
            raise
        said, code = of_the_system(error)
        print(f"{name}: {said}", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        saved = isinstance(out, Path) and any(out.glob("**/checkpoints/*"))
        print(
            f"{name}: interrupted{'; the same command goes on from its last checkpoint' if saved else ''}",
            file=sys.stderr,
        )
        sys.exit(130)


def _portable(word: str, root: Path) -> str:
    path = Path(os.path.normpath(Path(word).expanduser()))
    if not path.is_absolute():
        return path.name if path.parts[:1] == ("..",) else word
    if path.is_relative_to(root):
        return str(path.relative_to(root))
    data = os.environ.get("DIFFCF_DATA")
    if data and path.is_relative_to(data):
        return f"$DIFFCF_DATA/{path.relative_to(data)}"
    return path.name
