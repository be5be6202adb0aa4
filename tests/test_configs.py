"""What a YAML file says is what a script gets: named classes, bare settings, and every file of configs/."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from scripts import ROOT, load

from diffcf.alignment.loss import Inner
from diffcf.counterfactuals.joint import Joint
from diffcf.counterfactuals.methods import Latent, LatentShift, Method, Minimal, Pixels, Shift
from diffcf.counterfactuals.solvers import Adam, GradientDescent, ProximalGradient
from diffcf.data.phantom.labels import MALIGNANCY
from diffcf.data.phantom.nodule import DRAWN
from diffcf.distances import L1, Distance, GroupL1, Proximal, SmoothL1, SquaredL2
from diffcf.implicit import (
    Adjoint,
    Detached,
    GaussNewton,
    Implicit,
    InnerSolver,
    ProximalSteps,
    SubgradientSteps,
    Unrolled,
)
from diffcf.training.command import read_config

ALIGN = sorted((ROOT / "configs/align").rglob("*.yaml"))
ACAT = sorted((ROOT / "configs/acat").rglob("*.yaml"))
EVALUATION = sorted((ROOT / "configs/evaluation").glob("*.yaml"))
NAMED = {
    "distance": [SquaredL2("mean"), L1("mean"), SmoothL1(0.1, "mean"), GroupL1()],
    "solver": [GaussNewton(2, 5, 6), ProximalSteps(7, 0.3), SubgradientSteps(9, 0.2)],
    "adjoint": [Implicit("cg", ridge=0.5), Unrolled(False), Detached()],
}


@dataclasses.dataclass
class Searches:
    """Holds what configs of counterfactuals hold."""

    method: Method | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)


def read(said: dict[str, Any], folder: Path) -> Searches:
    """What a YAML file of this content gives."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(said))
    config: Any = read_config(Searches, ["--config", str(path)])
    return config


def spoken(value: Any) -> dict[str, Any]:
    """As YAML names an object: its class and its plain settings."""
    settings = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {"class_path": type(value).__name__, "init_args": {k: v for k, v in settings.items() if v is not None}}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in NAMED.items() for value in values], ids=str
)
def test_a_named_part_of_an_inner_problem_is_what_comes(field: str, value: Any, tmp_path: Path) -> None:
    inner = read({"inner": {field: spoken(value)}}, tmp_path).inner
    assert inner == dataclasses.replace(Inner(), **{field: value})
    assert type(getattr(inner, field)) is type(value)


def test_every_part_of_an_inner_problem_is_named_above() -> None:
    """A new class belongs into the list."""
    package = {Distance: "distance", Proximal: "distance", InnerSolver: "solver", Adjoint: "adjoint"}
    for base, field in package.items():
        own = {kind for kind in base.__subclasses__() if kind.__module__.startswith("diffcf.")} - {Proximal}
        assert own <= {type(value) for value in NAMED[field]}


@pytest.mark.parametrize("field", NAMED)
def test_a_class_may_be_named_alone(field: str, tmp_path: Path) -> None:
    for value in NAMED[field]:
        inner = read({"inner": {field: {"class_path": type(value).__name__}}}, tmp_path).inner
        assert type(getattr(inner, field)) is type(value)


def test_settings_without_a_class_are_of_the_default(tmp_path: Path) -> None:
    said = {"distance": {"reduction": "mean"}, "solver": {"steps": 4, "halvings": 1}, "adjoint": {"method": "cg"}}
    inner = read({"inner": said}, tmp_path).inner
    assert inner == Inner(distance=SquaredL2("mean"), solver=GaussNewton(4, 1), adjoint=Implicit("cg"))


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"inner": {"distance": {"class_path": "Nearness"}}}, "Nearness"),
        ({"inner": {"distance": {"class_path": "GaussNewton"}}}, "GaussNewton"),
        ({"inner": {"distance": {"eps": 0.1}}}, "eps"),
        ({"inner": {"solver": {"class_path": "Steps"}}}, "Steps"),
        ({"inner": {"solver": {"class_path": "ProximalSteps", "init_args": {"halvings": 1}}}}, "halvings"),
        ({"inner": {"adjoint": {"class_path": "Detached", "init_args": {"method": "cg"}}}}, "method"),
        ({"inner": {"adjoint": {"class_path": "Distance"}}}, "Distance"),
        ({"method": {"class_path": "Latent", "init_args": {"solver": {"class_path": "GaussNewton"}}}}, "GaussNewton"),
    ],
)
def test_what_is_no_part_is_refused(said: dict[str, Any], refused: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        read(said, tmp_path)
    assert refused in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "solver"),
    [
        (Minimal, Adam(0.3, 4)),
        (Minimal, GradientDescent(0.3, 4)),
        (Joint, Adam(0.3, 4)),
        (Joint, GradientDescent(0.3, 4)),
        (Latent, ProximalGradient(0.3, 4)),
        (Latent, Adam(0.3, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_named_solver_of_a_search_is_what_comes(method: type, solver: Any, tmp_path: Path) -> None:
    said = {"class_path": method.__name__, "init_args": {"solver": spoken(solver)}}
    assert read({"method": said}, tmp_path).method == method(solver=solver)
    bare = {"class_path": method.__name__, "init_args": {"solver": {"steps": 4}}}
    assert read({"method": bare}, tmp_path).method == method(solver=dataclasses.replace(method().solver, steps=4))


@dataclasses.dataclass
class Default:
    """Has a default whose settings have the names of others' settings."""

    method: Method = dataclasses.field(default_factory=lambda: Latent(distance_weight=7.0))


@pytest.mark.parametrize("method", [Minimal, Pixels, Joint, Shift, LatentShift])
def test_another_class_begins_with_its_own_defaults(method: type[Method], tmp_path: Path) -> None:
    name = method.__name__
    assert read_config(Default, ["--method", name]).method == method()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"method": {"class_path": "Joint", "init_args": {"asked": 0.6}}}))
    first = ["--config", str(path)]
    assert read_config(Default, [*first, "--method", name]).method == (
        Joint(asked=0.6) if method is Joint else method()
    )
    path.with_name("second.yaml").write_text(yaml.safe_dump({"method": {"class_path": name}}))
    second = [*first, "--config", str(path.with_name("second.yaml"))]
    assert read_config(Default, second).method == (Joint(asked=0.6) if method is Joint else method())


def test_settings_of_the_same_class_are_kept(tmp_path: Path) -> None:
    assert read_config(Default, ["--method.asked", "0.6"]).method == Latent(distance_weight=7.0, asked=0.6)
    assert read_config(Default, ["--method", "Pixels", "--method.asked", "0.6"]).method == Pixels(asked=0.6)
    deep = ["--method.solver.class_path", "Adam", "--method.solver.rate", "0.3"]
    assert read_config(Default, deep).method == Latent(distance_weight=7.0, solver=Adam(rate=0.3))


def check(said: Any, got: Any, default: Any, where: str) -> None:
    """What was said is what came: the classes, and every setting."""
    if isinstance(said, dict) and isinstance(got, dict):
        assert list(said) == list(got), where
        for key, value in said.items():
            check(value, got[key], None, f"{where}.{key}")
    elif isinstance(said, dict):
        named = "class_path" in said
        assert named or default is None or type(got) is type(default), where
        assert not named or type(got).__name__ == said["class_path"].rpartition(".")[2], where
        defaults = {field.name: field for field in dataclasses.fields(got)}
        given = said.get("init_args", {}) if named else said
        for key, value in given.items():
            made = defaults[key].default_factory
            own = None if made is dataclasses.MISSING else made()  # type: ignore[misc]
            check(value, getattr(got, key), own, f"{where}.{key}")
        # What was not said is the class's own default, whatever class an earlier file named.
        for key in (defaults.keys() - given.keys()) if named and type(default) is not type(got) else ():
            assert getattr(got, key) == getattr(type(got)(**{k: getattr(got, k) for k in given}), key), f"{where}.{key}"
    elif isinstance(said, list):
        assert len(said) == len(got), where
        for one, other in zip(said, got, strict=True):
            check(one, other, None, where)
    else:
        assert got == (Path(said) if isinstance(got, Path) else said), where


def read_whole(script: ModuleType, path: Path, before: Sequence[Path] = ()) -> Any:
    """The config of a file, read after others, whose every setting is checked."""
    files = [part for one in (*before, path) for part in ("--config", str(one))]
    got, *earlier = (read_config(script.Config, files[:end]) for end in (len(files), 2 * len(before)) if end)
    for key, said in yaml.safe_load(path.read_text()).items():
        check(said, getattr(got, key), getattr(earlier[0], key) if earlier else None, f"{path.name}.{key}")
    return got


@pytest.mark.parametrize("path", [*ALIGN, *ACAT, ROOT / "configs/tiny/align.yaml"], ids=lambda path: path.stem)
def test_training_files_mean_what_they_say(path: Path) -> None:
    over = {"align": "lidc", "acat": "lidc_background"}
    kind = path.relative_to(ROOT / "configs").parts[0].replace("tiny", "align")
    before = [ROOT / f"configs/{kind}/{over[kind]}.yaml"] if path.parent.parent.name == kind else []
    read_whole(load("train", kind), path, before)


@pytest.mark.parametrize("path", EVALUATION, ids=lambda path: path.stem)
def test_evaluation_files_mean_what_they_say(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    script, _, name = path.stem.partition("_")
    config = read_whole(load("evaluation", script), path)
    assert config.name == name
    assert config.data
    if script not in ("tuning", "cost"):  # which read cards alone, and training scans
        assert getattr(config, "how", config).split == ("val" if name.endswith("settings") else "test")


@pytest.mark.parametrize("name", ["l1", "l1_scaled", "l2_scaled"])
def test_a_distance_changes_the_search_and_nothing_else(name: str) -> None:
    """Paper 001, Table 7: what differs between its rows is the distance, and what it needs."""
    script, base = load("train", "align"), ROOT / "configs/align/lidc.yaml"
    files = ["--config", str(base), "--config", str(ROOT / f"configs/align/distances/{name}.yaml")]
    plain, other = (read_config(script.Config, part) for part in (files[:2], files))
    assert (type(other.method.inner.distance) is L1) == name.startswith("l1")
    assert (other.method.inner.scaled != "no") == name.endswith("scaled")
    assert dataclasses.replace(other.method, inner=plain.method.inner) == plain.method
    assert dataclasses.replace(other, method=plain.method) == plain


def test_the_hierarchy_of_phantoms_cuts_what_their_label_is_drawn_from_at_its_middle() -> None:
    written = [ROOT / "configs/align/phantom_nodule.yaml", ROOT / "configs/align/methods/hierarchical_phantom.yaml"]
    files = [part for path in written for part in ("--config", str(path))]
    config = read_config(load("train", "align").Config, files)
    assert set(config.attributes.names) == set(MALIGNANCY.terms)
    assert config.attributes.above == {name: DRAWN[name][0] for name in config.attributes.names}
    assert config.architecture_args["attributes"] == config.attributes.names


@pytest.mark.parametrize("path", sorted((ROOT / "configs/evaluation").glob("alignment_*.yaml")), ids=lambda p: p.stem)
def test_what_the_comment_of_a_table_trains_is_what_it_judges(path: Path) -> None:
    """Every file that its command lines name is there, and every folder that they write is judged."""
    comment = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for shell, meant in re.findall(r"\b(of|to)=(\S+)", comment):
        comment = comment.replace(f"${shell}", meant)
    for name in re.findall(r"configs/[\w/]+\.yaml", comment):
        assert (ROOT / name).is_file(), name
    methods = yaml.safe_load(path.read_text())["methods"]
    judged = {source.removesuffix("/blackbox") for sources in methods.values() for source in sources}
    for out in re.findall(r"--out (runs/align\S+)", comment):
        assert any(re.fullmatch(re.sub(r"\\\$\w+", "[^/]+", re.escape(out)), source) for source in judged), out


@pytest.mark.parametrize(("name", "machines"), [("ddp_8gpu", 1), ("multi_node_64gpu", 8)])
def test_files_of_accelerate_start_a_process_a_gpu(name: str, machines: int) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes) == (machines, 8 * machines)
    line = ["--config_file", str(path), "--machine_rank", str(machines - 1), "--main_process_ip", "10.0.0.1", "run.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    assert args.multi_gpu
    assert [args.use_fsdp, args.use_deepspeed, args.cpu] == [False, False, False]
    assert (args.num_processes, args.num_machines, args.machine_rank) == (8 * machines, machines, machines - 1)
    assert args.main_process_ip == "10.0.0.1"
    assert args.mixed_precision == "no"
