"""What evaluation scripts share: which scans are looked at, and at the end a table and `docs/results/NAME.json`."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch import Tensor

from diffcf.metrics.classification import bootstrap_interval
from diffcf.training.command import command_line

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "results"


class Evaluation(Protocol):
    """What every script's Config says of its result."""

    @property
    def name(self) -> str:
        """The result is SCRIPT_NAME.json."""
        ...

    @property
    def data(self) -> str:
        """Which data, in words."""
        ...

    @property
    def seed(self) -> int:
        """Of whatever was drawn."""
        ...

    @property
    def out(self) -> Path:
        """Folder of the result."""
        ...


def first_of_each_class(
    labels: Tensor, among: Iterable[int], most: int = 0, patients: Sequence[str] | None = None
) -> list[int]:
    """Which scans are looked at: the first of each class, one class after the other.

    labels: int "n". among: indices to choose from, in order, as of what the black box classifies correctly. most: at
    most so many of each class; 0 takes all. patients: whose each scan is ("n"), for one scan a patient; whoever was
    chosen for one class is not for a later one.
    """
    among = list(among)
    chosen: list[int] = []
    for label in sorted({int(labels[i]) for i in among}):
        of_class = [i for i in among if int(labels[i]) == label]
        if patients is not None:
            known = {patients[i] for i in chosen}
            first = {patients[i]: i for i in reversed(of_class)}
            of_class = [i for i in of_class if first[patients[i]] == i and patients[i] not in known]
        chosen += of_class[: most or len(of_class)]
    return chosen


def write_result(
    script: str, config: Evaluation, table: str, rows: Sequence[Mapping[str, Any]], console: Console | None = None
) -> Path:
    """Print `rows` as a table and write OUT/SCRIPT_NAME.json; returns the file.

    script: the caller's `__file__`. table: what the figures are, in a line. rows: flat mappings of text, numbers and
    booleans; KEY_low and KEY_high are the interval of KEY. Numbers keep six digits, and what is not finite becomes
    null.
    """
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    console = console or Console()
    shown = render_table(table, plain, console.width)
    # No figure is ever cut: on a narrower screen the lines wrap.
    wide = Console(file=console.file, width=max(console.width, _width(shown)), force_terminal=console.is_terminal)
    wide.print(shown)
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / f"{Path(script).stem}_{config.name}.json"
    result = {
        "table": table,
        "command": command_line(script),
        "commit": git_commit(),
        "device": device_in_words(),
        "seed": config.seed,
        "data": config.data,
        "rows": plain,
    }
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def mean_row(values: Mapping[str, Any], groups: Sequence[Hashable], *, resamples: int, seed: int) -> dict[str, float]:
    """Means KEY of figures that each case has ("n"), with KEY_low and KEY_high: the 95% bootstrap interval.

    groups: whose each case is ("n"); whole patients are resampled. A case whose figure is NaN does not count.
    """
    row = {}
    for key, figures in values.items():
        each = np.asarray(figures, dtype=np.float64)
        low, high = bootstrap_interval(
            lambda index, each=each: mean_of(each[index]), groups=groups, resamples=resamples, seed=seed
        )
        row |= {key: mean_of(each), f"{key}_low": low, f"{key}_high": high}
    return row


def over_seeds(seeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Figures of every case, the means over the seeds that have them; NaN where none has."""
    each = {}
    for key in seeds[0]:
        stacked = np.stack([cases[key] for cases in seeds])
        known = ~np.isnan(stacked)
        total = np.where(known, stacked, 0).sum(0)
        each[key] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    return each


def mean_of(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where that is nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def render_table(title: str, rows: Sequence[Mapping[str, Any]], width: int = 80) -> Table:
    """A rich table of flat rows. What is the same in all of several rows goes below it.

    Intervals stand behind their figure as [low, high] where the table then fits into `width` columns.
    """
    same, shown = columns_of(rows)
    for intervals in (True, False):
        table = Table(title=title, caption=", ".join(f"{key} {value}" for key, value in same.items()) or None)
        for key in shown:
            figure = any(isinstance(row.get(key), (int, float)) for row in rows)
            table.add_column(key, justify="right" if figure else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(cell(row, key, intervals) for key in shown))
        if _width(table) <= width:
            break
    return table


def columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What is the same in all of several rows, and the keys of a table's columns."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    bounds = {f"{key}_{end}" for key in keys for end in ("low", "high")}
    everywhere = {key: rows[0].get(key) for key in keys if len(rows) > 1 and len({row.get(key) for row in rows}) == 1}
    same = {key: value for key, value in everywhere.items() if isinstance(value, (str, int)) and key != "method"}
    return same, [key for key in keys if key not in bounds and key not in same and key != "default"]


def _width(table: Table) -> int:
    wide = Console(width=10_000)
    return Measurement.get(wide, wide.options, table).maximum


def git_commit() -> str:
    """The commit that produced a result, '-dirty' where the tree differs from it (results and figures aside)."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":(exclude)docs/results", ":(exclude)docs/figures")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def device_in_words() -> dict[str, Any]:
    """Processor and accelerator by model, threads and torch version; nothing that names the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, str)) or value is None:
        return value
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, (bool, int)):
        return number
    if isinstance(number, float):
        return float(f"{number:.6g}") if math.isfinite(number) else None
    raise TypeError(f"a result's row holds {type(value).__name__}; rows are flat: text, numbers, booleans or None")


def cell(row: Mapping[str, Any], key: str, interval: bool = True) -> str:
    """A figure as text, its interval behind it where it has one and `interval` asks for it."""
    value = row.get(key)
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return (
        f"{value:.3f} [{low:.3f}, {high:.3f}]" if interval and low is not None and high is not None else f"{value:.3f}"
    )
