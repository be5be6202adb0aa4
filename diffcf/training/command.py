"""Scripts as commands: how they are run, and the command line that a card or a result names."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from diffcf.errors import DiffcfError

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


def run_script(main: Callable[[Any], Any], config: type) -> None:
    """Run `main` on a config read from the command line; what diffcf refuses is one message and an exit code."""
    settings = auto_cli(config, as_positional=False)
    try:
        main(settings)
    except DiffcfError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


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
