from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.training import loop
from mirage_env.training.loop import LoopConfig, Stage, train

CONFIG = LoopConfig(
    steps=12, learning_rate=0.05, warmup=2, log_every=4, validate_every=4, precision="fp32", save_seconds=0
)


class LineFit(Stage):
    """Learns y = 3 x from noisy batches."""

    name = "line"

    def __init__(self, stop_at: int | None = None):
        torch.manual_seed(0)
        self.model, self.stop_at = nn.Linear(1, 1), stop_at

    def batch(self, generator):
        if generator.initial_seed() == self.stop_at:  # with seed 0 that is the step
            raise KeyboardInterrupt
        return torch.randn(8, 1, generator=generator)

    def losses(self, batch, generator):
        return {"loss": (self.model(batch) - 3 * batch).square().mean()}

    def validate(self):
        return {"slope": float(self.model.weight.detach())}

    def export(self, folder, card):
        (folder / "line.json").write_text(json.dumps({**card, "weight": float(self.model.weight.detach())}))


def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    assert train(LineFit(), CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(LineFit(stop_at=7), CONFIG, tmp_path / "killed")
    assert train(LineFit(), CONFIG, tmp_path / "killed")
    whole, killed = (load_file(tmp_path / name / "line.ckpt.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[k], killed[k]) for k in whole)
    results = [json.loads((tmp_path / name / "line.json").read_text())["weight"] for name in ("whole", "killed")]
    assert results[0] == results[1]


def test_dropout_falls_alike_after_a_kill(tmp_path):
    class Dropped(LineFit):
        def losses(self, batch, generator):
            return {"loss": (self.model(nn.functional.dropout(batch, 0.5)) - 3 * batch).square().mean()}

    assert train(Dropped(), CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Dropped(stop_at=7), CONFIG, tmp_path / "killed")
    torch.rand(5)  # a new process draws other numbers
    assert train(Dropped(), CONFIG, tmp_path / "killed")
    whole, killed = (load_file(tmp_path / name / "line.ckpt.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[k], killed[k]) for k in whole)


def test_what_is_whole_and_exported_stays_as_it_is(tmp_path):
    """Written anew, a card's seconds could differ, and with them the hash that later stages are bound to."""

    class Told(LineFit):
        def exported(self, folder):
            return (folder / "line.json").is_file()

    assert train(Told(), CONFIG, tmp_path)
    written = (tmp_path / "line.json").stat().st_mtime_ns
    assert train(Told(), CONFIG, tmp_path) and (tmp_path / "line.json").stat().st_mtime_ns == written
    (tmp_path / "line.json").unlink()  # killed between the last checkpoint and the export
    assert train(Told(), CONFIG, tmp_path) and (tmp_path / "line.json").is_file()


class Team:
    """Two processes as accelerate shows them, here two threads."""

    num_processes, distributed_type = 2, "MULTI_CPU"

    def __init__(self, rank: int, barrier: Barrier, board: dict[int, torch.Tensor]):
        self.process_index, self.barrier, self.board, self.device = rank, barrier, board, torch.device("cpu")

    def reduce(self, tensor, how):
        assert how == "mean"
        self.board[self.process_index] = tensor
        self.barrier.wait()
        mean = (self.board[0] + self.board[1]) / 2
        self.barrier.wait()
        return mean

    def wait_for_everyone(self):
        self.barrier.wait()


def test_two_processes_do_what_one_does_that_accumulates(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_as_the_first", lambda accelerator, *flags: flags)
    config = replace(CONFIG, save_seconds=1e9)
    assert train(LineFit(), replace(config, accumulate=2), tmp_path / "alone")
    barrier, board = Barrier(2, timeout=60), {}
    stages = [LineFit(), LineFit()]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(train, stages[i], config, tmp_path / "team", accelerator=Team(i, barrier, board))
            for i in (0, 1)
        ]
        assert all(job.result() for job in jobs)
    assert torch.equal(stages[0].model.weight, stages[1].model.weight)
    alone, team = (load_file(tmp_path / name / "line.ckpt.safetensors") for name in ("alone", "team"))
    for key in alone:
        torch.testing.assert_close(alone[key], team[key])


class Shares:
    """FSDP 2 as accelerate lays it out, over a single process: parameters are `DTensor`s all the same."""

    num_processes, process_index, distributed_type, device = 1, 0, "FSDP", torch.device("cpu")

    def prepare(self, model, optimizer):
        names = {id(p): name for name, p in model.named_parameters()}
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for group in optimizer.param_groups:
            group["params"] = [model.get_parameter(names[id(p)]) for p in group["params"]]
        return model, optimizer

    def wait_for_everyone(self):
        pass


def test_shares_are_saved_loaded_and_exported_whole(tmp_path, monkeypatch):
    class State(LineFit):
        def validate(self):
            return {}

        def export(self, folder, card):
            save_file(self.model.to(torch.float64).state_dict(), folder / "line.safetensors")

    monkeypatch.setattr(loop, "_as_the_first", lambda accelerator, *flags: flags)
    assert train(State(), CONFIG, tmp_path / "whole")
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        with pytest.raises(KeyboardInterrupt):
            train(State(stop_at=7), CONFIG, tmp_path / "shares", accelerator=Shares())
        assert train(State(), CONFIG, tmp_path / "shares", accelerator=Shares())
    finally:
        distributed.destroy_process_group()
    for name in ("line.ckpt.safetensors", "line.safetensors"):
        whole, shares = (load_file(tmp_path / kind / name) for kind in ("whole", "shares"))
        assert whole.keys() == shares.keys()
        for key in whole:
            torch.testing.assert_close(whole[key], shares[key])


def test_it_learns_logs_and_exports_its_average(tmp_path):
    config = replace(CONFIG, steps=200, ema=0.9)
    told: list[int] = []
    train(LineFit(), config, tmp_path, report=lambda step, values: told.append(step))
    log = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert told == [row["step"] for row in log] == list(range(4, 201, 4))
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]
    card = json.loads((tmp_path / "line.json").read_text())
    assert card["weight"] == pytest.approx(3.0, abs=0.2) and card["metrics"]["slope"] == card["weight"]
    assert card["steps"] == 200


def test_it_stops_in_time_and_says_so(tmp_path):
    assert not train(LineFit(), CONFIG, tmp_path, stop_after_s=0.0)
    assert not (tmp_path / "line.json").exists()
    while not train(LineFit(), CONFIG, tmp_path, stop_after_s=0.0):
        pass
    assert (tmp_path / "line.json").exists()


def test_the_rate_warms_up_and_decays():
    config = LoopConfig(steps=100, learning_rate=1.0, warmup=10, decay=0.5)
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(30) == 1.0
    assert config.rate(75) == pytest.approx(0.5)
    assert config.rate(99) == pytest.approx(0.02)


def test_an_average_may_be_asked_for_later(tmp_path):
    assert not train(LineFit(), replace(CONFIG, ema=0.0), tmp_path, stop_after_s=0.0)
    assert train(LineFit(), CONFIG, tmp_path)
    assert any(name.startswith("ema.") for name in load_file(tmp_path / "line.ckpt.safetensors"))


def test_a_batch_that_is_not_finite_is_left_out(tmp_path):
    class Bad(LineFit):
        def losses(self, batch, generator):
            losses = super().losses(batch, generator)
            return {"loss": losses["loss"] * (float("nan") if generator.initial_seed() == 3 else 1.0)}

    train(Bad(), CONFIG, tmp_path)
    state = load_file(tmp_path / "line.ckpt.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_damaged_and_foreign_checkpoints_are_told(tmp_path):
    train(LineFit(), CONFIG, tmp_path)
    checkpoint = tmp_path / "line.ckpt.safetensors"

    class Other(LineFit):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(self.model)

    with pytest.raises(WeightsError, match='was not made by stage "line" of this model'):
        train(Other(), CONFIG, tmp_path)
    other_codec = LineFit()
    other_codec.codec_hash = "0" * 64
    with pytest.raises(WeightsError, match="trained on the latents of another codec"):
        train(other_codec, CONFIG, tmp_path)
    checkpoint.write_bytes(checkpoint.read_bytes()[:40])
    with pytest.raises(WeightsError, match=r"is damaged .*; delete it to start this stage anew"):
        train(LineFit(), CONFIG, tmp_path)


def test_the_config_checks_itself():
    with pytest.raises(InvalidValueError, match="steps >= 1"):
        LoopConfig(steps=0)
