"""The command line: `diffcf explain`, `demo`, `check` and `inspect`.

Only the parser lives here, so that `diffcf --help` answers at once; a command's work, and its heavy imports, is in
`diffcf/commands/`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffcf import __version__
from diffcf.errors import DiffcfError, of_the_system
from diffcf.options import CheckOptions, DemoOptions, ExplainOptions, InspectOptions
from diffcf.signals import ended_as_by_ctrl_c

EXIT_CODES = """\
exit codes:
    0  done; for an explanation: all trust checks passed
    1  unexpected failure (--debug shows where)
    2  usage or configuration: an argument, or models that do not fit each other
    3  the scan was refused; the message names the file and the tag or field
    4  weights or a card are missing, unreadable or do not belong together
   10  explanation written, but a trust check failed
   11  explanation written, but the scan is out of distribution for the generator
   12  explanation written, but the search did not reach the asked score (not reachable)
  130  interrupted; nothing is left behind
Of 10, 11 and 12 the first that holds of 11, 12, 10 is given."""


@dataclass(frozen=True)
class Command:
    """A subcommand: its options, what it says about itself, and the module function that does the work."""

    options: type
    summary: str
    run: Callable[[Any], int]


def _explain(options: ExplainOptions) -> int:
    from diffcf.commands.explain import explain

    return explain(options)


def _demo(options: DemoOptions) -> int:
    from diffcf.commands.demo import demo

    return demo(options)


def _check(options: CheckOptions) -> int:
    from diffcf.commands.look import check

    return check(options)


def _inspect(options: InspectOptions) -> int:
    from diffcf.commands.look import inspect

    return inspect(options)


COMMANDS = {
    "explain": Command(ExplainOptions, "explain a classifier's decision on a scan", _explain),
    "demo": Command(DemoOptions, "make a phantom scan and explain it with the weights of the package", _demo),
    "check": Command(CheckOptions, "read a scan and say what it is, or why it is refused", _check),
    "inspect": Command(InspectOptions, "say what a classifier is and what it can give", _inspect),
}


def build_parser() -> Any:
    """The parser of all commands; every option of a command can also stand in a YAML file given with --config."""
    from jsonargparse import ArgumentParser

    style = {"formatter_class": RawDescriptionHelpFormatter, "epilog": EXIT_CODES}
    parser = ArgumentParser(
        prog="diffcf",
        description="What would have to be different in this scan for the classifier to decide otherwise?",
        **style,
    )
    parser.add_argument("--version", action="version", version=f"diffcf {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an unexpected failure came from")
    commands = parser.add_subcommands(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        sub = ArgumentParser(description=command.summary[0].upper() + command.summary[1:] + ".", **style)
        sub.add_argument("--config", action="config", help="YAML file with any of these options")
        for field in dataclasses.fields(command.options):
            _add_option(sub, field)
        commands.add_subcommand(name, sub, help=command.summary)
    return parser


def _add_option(parser: Any, field: dataclasses.Field[Any]) -> None:
    settings: dict[str, Any] = {"help": field.metadata["help"]}
    if field.metadata["kind"] is bool:
        settings["action"] = "store_true"
    else:
        settings |= {"type": field.metadata["kind"], "metavar": field.metadata["metavar"]}
        if field.default is dataclasses.MISSING:
            settings["required"] = True
        else:
            settings["default"] = field.default
    parser.add_argument("--" + field.name.replace("_", "-"), **settings)


def join_negative(arguments: Sequence[str]) -> list[str]:
    """Let a value start with a minus: `--centre-mm -12,3,40` -> `--centre-mm=-12,3,40`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch(r"--(centre-mm|slices)", joined[-1]) and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (usage errors, --help and --version leave through SystemExit)."""
    parsed = build_parser().parse_args(join_negative(sys.argv[1:] if arguments is None else arguments))
    command = COMMANDS[parsed.command]
    values = parsed[parsed.command]
    options = command.options(**{field.name: values[field.name] for field in dataclasses.fields(command.options)})
    ended_as_by_ctrl_c()
    try:
        return command.run(options)
    except DiffcfError as error:
        print(f"diffcf {parsed.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"diffcf {parsed.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `diffcf check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if parsed.debug:
            raise
        if isinstance(error, OSError) and error.errno is not None:  # a library's own has none
            said, code = of_the_system(error)
            print(f"diffcf {parsed.command}: {said}", file=sys.stderr)
            return code
        print(
            f"diffcf {parsed.command}: unexpected {type(error).__name__}: {error}\n"
            f"Run `diffcf --debug {parsed.command} ...` to see where it came from, and report it.",
            file=sys.stderr,
        )
        return 1
