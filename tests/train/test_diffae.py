"""train/diffae.py as it is launched: files, exact resume, two processes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_data import write_tiny_data
from train_runs import launch, launch_file, losses

from diffcf.cards import Preparation, Sampling
from diffcf.data.shards import write_shards
from diffcf.errors import ConfigError
from diffcf.generators.generator import load_generator
from diffcf.training.source import Streaming
from diffcf.trust import TrustStatistics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"), scans=100)


@pytest.fixture(scope="module")
def shards(manifest, tmp_path_factory) -> Path:
    """Six shards of 20 slices."""
    preparation = Preparation(size=16, slices=2, field="resize")
    return write_shards([manifest], preparation, tmp_path_factory.mktemp("shards") / "tiny", shards=6).folder


def read_config(script: ModuleType, path: Path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(script.Config, "c")
    text = "\n".join("  " + line for line in path.read_text().splitlines())
    return parser.instantiate(parser.parse_string(f"c:\n{text}")).c


def configure(script: ModuleType, manifest: Path, out: Path, **changes):
    tiny = read_config(script, ROOT / "configs" / "tiny" / "diffae.yaml")
    return dataclasses.replace(tiny, manifests=[manifest], out=out, **changes)


def configure_shards(script: ModuleType, shards: Path, out: Path, **changes):
    given = {"manifests": [], "shards": Streaming(shards, buffer=32), **changes}
    return dataclasses.replace(read_config(script, ROOT / "configs" / "tiny" / "diffae.yaml"), out=out, **given)


def weights(out: Path, step: int = 24) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:09d}" / "tensors.safetensors")


def test_a_generator_is_trained_and_written(script, manifest, tmp_path, capsys) -> None:
    figures = script.main(configure(script, manifest, tmp_path / "run"))
    assert set(figures) == {"psnr", "ssim", "psnr_random", "ssim_random"}
    generator = load_generator(tmp_path / "run" / "generator")
    assert generator.card.preparation.size == 16
    assert generator.sampling.steps == 3
    trust = TrustStatistics.load(tmp_path / "run" / "generator")
    assert len(trust.held_out["psnr"]) == 20
    logged = losses(tmp_path / "run")
    assert len(logged) == 24
    assert sum(logged[-6:]) < sum(logged[:6])
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    assert events.Tags()["images"] == ["reconstruction"]
    assert "step 24: loss" in capsys.readouterr().out


# An epoch has 15 steps (60 scans of 2 slices, batches of 8): both are cut in its middle.
@pytest.mark.parametrize(("cut", "channels_last"), [pytest.param(10, False, marks=pytest.mark.slow), (7, True)])
def test_a_cut_run_resumes_bit_for_bit(script, manifest, tmp_path, cut: int, channels_last: bool) -> None:
    def run(out: str, steps: int) -> None:
        # Without a cooldown the learning rate does not depend on the end of the run.
        changes = {"cooldown": 0.0, "steps": steps, "channels_last": channels_last}
        script.main(configure(script, manifest, tmp_path / out, **changes))

    run("whole", 17)
    run("cut", cut)
    run("cut", 17)
    whole, resumed = weights(tmp_path / "whole", 17), weights(tmp_path / "cut", 17)
    assert whole.keys() == resumed.keys()
    assert {name.partition("/")[0] for name in whole} == {"model", "optimiser", "ema"}
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_cut_run_on_shards_resumes_bit_for_bit_in_its_second_epoch(script, shards, tmp_path) -> None:
    short = {"batch": 24, "cooldown": 0.0, "sampling": Sampling(steps=1), "val_images": 2}  # five steps an epoch
    for out, steps in (("whole", 8), ("cut", 7), ("cut", 8)):
        script.main(configure_shards(script, shards, tmp_path / out, steps=steps, **short))
    whole, resumed = weights(tmp_path / "whole", 8), weights(tmp_path / "cut", 8)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(TrustStatistics.load(tmp_path / "cut" / "generator").held_out["psnr"]) == 20


def test_shards_train_as_memory_does_on_the_same_slices(script, manifest, shards, tmp_path, monkeypatch) -> None:
    """With the order of memory, all that is left of a difference is float16, in which resampled slices are kept."""
    memory = script.InMemory([manifest], Preparation(size=16, slices=2, field="resize"), 8, 0)
    script.main(configure(script, manifest, tmp_path / "memory", steps=4))
    seen = script.Streamed(Streaming(shards), memory.read["train"].preparation, 120, 0).at(0)
    position = {key: place for place, key in enumerate(seen[1])}

    def at(self, step: int) -> tuple[torch.Tensor, list[int]]:
        keys = memory.at(step)[1]
        return seen[0][[position[key] for key in keys]], keys

    monkeypatch.setattr(script.Streamed, "at", at)
    script.main(configure_shards(script, shards, tmp_path / "shards", steps=4))
    torch.testing.assert_close(losses(tmp_path / "memory"), losses(tmp_path / "shards"), rtol=0, atol=1e-3)


def test_manifests_or_shards_are_given_and_fit(script, manifest, shards, tmp_path) -> None:
    good = configure_shards(script, shards, tmp_path / "run")
    for given in ({"manifests": [manifest]}, {"shards": None}):
        with pytest.raises(ConfigError, match="manifests or shards, one of the two"):
            script.main(dataclasses.replace(good, **given))
    with pytest.raises(ConfigError, match="another preparation: slices 2 in place of 1"):
        script.main(dataclasses.replace(good, preparation=Preparation(size=16, field="resize")))


def test_a_run_on_other_shards_is_not_resumed(script, manifest, shards, tmp_path) -> None:
    script.main(configure_shards(script, shards, tmp_path / "run", steps=1))
    preparation = Preparation(size=16, slices=2, field="resize")
    other = write_shards([manifest], preparation, tmp_path / "other", shards=3).folder
    with pytest.raises(ConfigError, match="another content of shards, shards"):
        script.main(configure_shards(script, other, tmp_path / "run", steps=2))


def test_another_run_s_folder_is_refused(script, manifest, tmp_path) -> None:
    script.main(configure(script, manifest, tmp_path / "run", steps=2))
    with pytest.raises(ConfigError, match="another batch, learning_rate"):
        script.main(configure(script, manifest, tmp_path / "run", steps=4, batch=4, learning_rate=0.1))


def test_too_few_held_out_scans_give_no_trust_statistics(script, tmp_path, capsys) -> None:
    few = write_tiny_data(tmp_path / "data", scans=30)
    script.main(configure(script, few, tmp_path / "run", steps=1))
    assert "too few" in capsys.readouterr().out
    assert load_generator(tmp_path / "run" / "generator").card.trust is None


def test_a_diverged_run_stops(script, manifest, tmp_path) -> None:
    with pytest.raises(ConfigError, match="the loss is nan"):
        script.main(configure(script, manifest, tmp_path / "run", learning_rate=1e30, warmup=0, clip=1e30))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "generator").exists()


def test_weighted_timesteps_in_channels_last_train_what_is_written_as_ever(script, manifest, tmp_path) -> None:
    plain, last = ({"loss": "l2", "min_snr": 5.0, "steps": 6, "channels_last": layout} for layout in (False, True))
    script.main(configure(script, manifest, tmp_path / "plain", **plain))
    script.main(configure(script, manifest, tmp_path / "last", **last))
    torch.testing.assert_close(losses(tmp_path / "plain"), losses(tmp_path / "last"), rtol=0, atol=1e-4)
    one, other = weights(tmp_path / "plain", 6), weights(tmp_path / "last", 6)
    assert {name: value.stride() for name, value in one.items()} == {n: value.stride() for n, value in other.items()}
    script.main(configure(script, manifest, tmp_path / "all alike", **{**plain, "min_snr": None}))
    assert losses(tmp_path / "all alike")[0] > losses(tmp_path / "plain")[0]


def test_an_unknown_argument_of_the_network_is_named(script, manifest, tmp_path) -> None:
    with pytest.raises(ConfigError, match="colour"):
        script.main(configure(script, manifest, tmp_path / "run", model={"colour": 3}))


def test_bfloat16_passes_train_single_precision_weights(script, manifest, tmp_path) -> None:
    script.main(configure(script, manifest, tmp_path / "run", steps=4, precision="bf16"))
    assert {value.dtype for name, value in weights(tmp_path / "run", 4).items()} == {torch.float32}


@pytest.mark.parametrize("path", sorted([*(ROOT / "configs" / "diffae").glob("*.yaml")]), ids=lambda path: path.stem)
def test_configs_are_valid_and_their_networks_can_be_built(script, path: Path) -> None:
    config = read_config(script, path)
    with torch.device("meta"):
        model = script.DiffusionAutoencoder(image_size=config.preparation.size, **config.model)
    assert sum(weight.numel() for weight in model.parameters()) > 1e6


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_and_resume_exactly(manifest, tmp_path) -> None:
    tiny = ROOT / "configs" / "tiny" / "diffae.yaml"
    launch("diffae", tiny, tmp_path / "one", manifest, 1, cooldown=0)
    launch("diffae", tiny, tmp_path / "two", manifest, 2, cooldown=0)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 24
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=0, atol=1e-4)
    launch("diffae", tiny, tmp_path / "cut", manifest, 2, cooldown=0, steps=12)
    launch("diffae", tiny, tmp_path / "cut", manifest, 2, cooldown=0)
    whole, resumed = weights(tmp_path / "two"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # One process or two can be told apart by rounding only: if the launcher had started one, this would be equal.
    assert any(not torch.equal(whole[name], value) for name, value in weights(tmp_path / "one").items())


NOTED = """
import json, runpy
from pathlib import Path
from torch import distributed
from diffcf.training import source

plain, told = source.Streamed.at, {{"keys": []}}

def at(self, step):
    image, keys = plain(self, step)
    told["keys"].append(keys)
    told.update(processes=distributed.get_world_size(), rank=distributed.get_rank())
    return image, keys

source.Streamed.at = at
runpy.run_path("{script}", run_name="__main__")
Path("{out}", f"keys{{told['rank']}}.json").write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_two_processes_train_on_their_own_shards_and_resume_exactly(shards, tmp_path) -> None:
    tiny, script = ROOT / "configs" / "tiny" / "diffae.yaml", tmp_path / "noted.py"

    def train(out: str, steps: int) -> list[list[list[int]]]:
        """The keys of each process and step."""
        (tmp_path / out).mkdir(exist_ok=True)
        script.write_text(NOTED.format(script=ROOT / "train" / "diffae.py", out=tmp_path / out))
        given = {"config": tiny, "manifests": "[]", "shards.folder": shards, "shards.buffer": 32, "cooldown": 0}
        short = {"batch": 24, "sampling.steps": 1, "val_images": 2, "steps": steps}
        launch_file(script, 2, {**given, **short, "out": tmp_path / out})
        told = [json.loads((tmp_path / out / f"keys{rank}.json").read_text()) for rank in range(2)]
        assert [one["processes"] for one in told] == [2, 2]
        return [one["keys"] for one in told]

    whole = train("whole", 8)
    first, rest = train("cut", 7), train("cut", 8)
    assert [before + after for before, after in zip(first, rest, strict=True)] == whole
    epoch = [key for keys in whole for step in keys[:5] for key in step]
    assert len(set(epoch)) == len(epoch) == 120
    one, other = weights(tmp_path / "whole", 8), weights(tmp_path / "cut", 8)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_compiled_loss_trains_as_the_plain_one(script, manifest, tmp_path) -> None:
    script.main(configure(script, manifest, tmp_path / "plain", steps=6))
    script.main(configure(script, manifest, tmp_path / "compiled", steps=6, compile=True))
    plain, compiled = weights(tmp_path / "plain", 6), weights(tmp_path / "compiled", 6)
    assert plain.keys() == compiled.keys()
    torch.testing.assert_close(losses(tmp_path / "plain"), losses(tmp_path / "compiled"), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_loss_trains_in_two_processes_and_resumes_exactly(manifest, tmp_path) -> None:
    tiny, how = ROOT / "configs" / "tiny" / "diffae.yaml", {"compile": "true", "cooldown": 0, "save_every": 4}
    launch("diffae", tiny, tmp_path / "one", manifest, 1, cooldown=0, steps=8)
    launch("diffae", tiny, tmp_path / "two", manifest, 2, **how, steps=8)
    torch.testing.assert_close(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=0, atol=1e-4)
    launch("diffae", tiny, tmp_path / "cut", manifest, 2, **how, steps=4)
    launch("diffae", tiny, tmp_path / "cut", manifest, 2, **how, steps=8)
    whole, resumed = weights(tmp_path / "two", 8), weights(tmp_path / "cut", 8)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
