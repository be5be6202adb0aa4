"""Training scripts in processes of their own, and what their logs say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]


def launch(script: str, config: Path, out: Path, manifest: Path, processes: int, **changes: object) -> None:
    """train/SCRIPT.py over so many processes of one thread each, on the CPU."""
    given = {"config": config, "out": out, "manifests": f'["{manifest}"]', **changes}
    launch_file(ROOT / "train" / f"{script}.py", processes, given)


def launch_file(path: Path, processes: int, given: dict[str, object]) -> None:
    """A script with these options; `accelerate launch --cpu` would start one process, whatever it is asked for."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    options = [f"--{key}={value}" for key, value in given.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*program, str(path), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path) -> list[float]:
    """The loss of every step."""
    events = EventAccumulator(str(out / "logs"))
    events.Reload()
    return [event.value for event in events.Scalars("loss")]
