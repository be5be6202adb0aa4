"""Command lines as cards and results name them."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diffcf.cards import Preparation
from diffcf.errors import CheckpointError
from diffcf.training import command
from diffcf.training.command import command_line, run_script


def test_it_names_no_place_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    monkeypatch.setenv("DIFFCF_DATA", str(tmp_path / "data"))
    argv = [
        str(root / "evaluation" / "toy.py"),
        "--config",
        str(root / "configs" / "a.yaml"),
        f"--manifest={tmp_path / 'data' / 'x.csv'}",
        f"--cache={tmp_path / 'secret' / 'cache'}",
        "--seed=1",
        "--manifests",
        f"[{tmp_path / 'some' / 'a.csv'}, {tmp_path / 'data' / 'b c.csv'},runs/c.csv]",
        f"--ways={{ours: {tmp_path / 'gen'}, theirs: runs/gen}}",
        "--out=../../elsewhere/run",
        "--agent=~/somebody/agent",
        "--data=LIDC-IDRI, 32 x 32 crops with/without a nodule",
        "a b",
    ]
    assert command_line(root / "evaluation" / "toy.py", argv=argv) == (
        "python evaluation/toy.py --config configs/a.yaml --manifest=$DIFFCF_DATA/x.csv --cache=cache --seed=1 "
        "--manifests [a.csv, $DIFFCF_DATA/b c.csv,runs/c.csv] '--ways={ours: gen, theirs: runs/gen}' --out=run "
        "--agent=agent "
        "'--data=LIDC-IDRI, 32 x 32 crops with/without a nodule' 'a b'"
    )


def test_a_script_that_was_imported_has_no_arguments(tmp_path: Path) -> None:
    line = command_line(tmp_path / "train" / "toy.py", "accelerate launch", ["pytest", "-x"])
    assert line == "accelerate launch train/toy.py"


@dataclass
class Config:
    """Of a script that writes to a run folder."""

    out: Path
    preparation: Preparation
    ran: bool = False


def ended(monkeypatch: pytest.MonkeyPatch, main: Any, *args: str) -> int:
    """The exit code of a script with this `main`."""
    monkeypatch.setattr("sys.argv", ["train/toy.py", *args])
    monkeypatch.setattr(command, "ended_as_by_ctrl_c", lambda: None)
    with pytest.raises(SystemExit) as end:
        run_script(main, Config)
    return int(end.value.code)  # type: ignore[arg-type]


def raising(error: BaseException) -> Any:
    def main(config: Config) -> None:
        raise error

    return main


def test_what_is_refused_is_one_message_and_a_code(monkeypatch, tmp_path: Path, capsys) -> None:
    out = f"--out={tmp_path / 'run'}"
    (tmp_path / "file").write_text("")
    never = raising(AssertionError("main was reached"))
    for main, args, code, says in (
        (raising(CheckpointError("no weights.")), [out], 4, "toy.py: no weights."),
        (raising(PermissionError(13, "Permission denied", "a.csv")), [out], 2, "Permission denied: a.csv. Give"),
        (raising(OSError(28, "No space left on device")), [out], 1, "toy.py: No space left on device."),
        (never, [out, "--preparation.slices=0"], 2, "slices 0: expected 1 or more"),
        (never, [f"--out={tmp_path / 'file' / 'run'}"], 2, "is a file. Give a folder"),
    ):
        assert ended(monkeypatch, main, *args) == code
        assert says in capsys.readouterr().err


def test_ctrl_c_says_whether_the_run_can_go_on(monkeypatch, tmp_path: Path, capsys) -> None:
    out = f"--out={tmp_path / 'run'}"
    assert ended(monkeypatch, raising(KeyboardInterrupt()), out) == 130
    assert capsys.readouterr().err == "toy.py: interrupted\n"
    (tmp_path / "run" / "part" / "checkpoints" / "step_3").mkdir(parents=True)
    assert ended(monkeypatch, raising(KeyboardInterrupt()), out) == 130
    assert "the same command goes on from its last checkpoint" in capsys.readouterr().err


def test_a_lost_terminal_ends_as_by_ctrl_c(monkeypatch, tmp_path: Path) -> None:
    from diffcf.signals import ended_as_by_ctrl_c

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        ended_as_by_ctrl_c()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        ended_as_by_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
