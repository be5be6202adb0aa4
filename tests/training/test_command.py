"""Command lines as cards and results name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffcf.training.command import command_line


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
