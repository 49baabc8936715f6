"""One training loop for every stage: resumable to the same result after a kill, exported when it is done.

The batch and the noise of step k are a pure function of (seed, k), so a resumed run needs no random state: it goes on
with exactly the numbers that the uninterrupted run would have drawn.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.precision import has_fast_bf16
from mirage_env.resources import revision
from mirage_env.training.log import TrainingLog
from mirage_env.weights import save_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class LoopConfig:
    steps: int
    learning_rate: float = 1e-3
    warmup: int = 200
    """Steps of linear warm-up."""
    decay: float = 0.5
    """The last share of the steps, over which the rate falls to zero."""
    falls: Literal["linear", "cosine"] = "linear"
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float = 1.0
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones validated and exported; 0: no average is held."""
    accumulate: int = 1
    """How many batches add up to a step."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Of products, bf16 by autocast. auto: bfloat16 where the device is faster in it, as validations always do."""
    seed: int = 0
    log_every: int = 50
    validate_every: int = 1000
    save_seconds: float = 120.0

    def __post_init__(self) -> None:
        if min(self.steps, self.accumulate) < 1 or not 0 <= self.decay <= 1:
            raise InvalidValueError(
                "need steps >= 1, accumulate >= 1 and 0 <= decay <= 1, got "
                f"{self.steps}, {self.accumulate} and {self.decay}"
            )

    def bf16(self, device: torch.device | str) -> bool:
        """Whether products are in bfloat16 there."""
        return self.precision == "bf16" or (self.precision == "auto" and has_fast_bf16(device))

    def rate(self, step: int) -> float:
        """Learning rate of `step`: warm-up, plateau, decay."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        left = min(1.0, left)
        return self.learning_rate * warm * (left if self.falls == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


@dataclass(frozen=True)
class Training:
    """A stage's YAML; every kind of stage adds its `loss`."""

    loop: LoopConfig


class Stage(ABC):
    """What is trained, on what, and how it is judged."""

    name: str
    model: nn.Module
    """Only parameters that require a gradient are trained."""
    codec_hash: str | None = None
    """sha256 of the codec whose latents this stage learns on; a checkpoint of another codec is refused."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def network(self) -> nn.Module:
        """What is called with gradients, and so what is laid out over several devices."""
        return self.model

    @abstractmethod
    def batch(self, generator: torch.Generator) -> Any:
        """One batch, prepared in full precision: geometry must not meet a bfloat16 product."""

    @abstractmethod
    def losses(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of the batch, computed in the loop's precision; "loss" is the one that is minimised."""

    def extra_state(self) -> dict[str, Tensor]:
        """What else a checkpoint must hold for `restore`: what the stage itself learns beside `parameters`."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `extra_state` gave."""
        assert not state

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics of `self.model` as it stands, on data that training never draws."""

    def strip(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """What the model makes of data that training never draws, beside the truth, for people to look at."""
        return None

    @abstractmethod
    def export(self, folder: Path, card: dict) -> None:
        """Writes the weights of `self.model` as the package loads them; `card` holds what the model card states."""

    def exported(self, folder: Path) -> bool:
        """Whether `export` has been here."""
        return (folder / f"{self.name}.safetensors").is_file()


def train(
    stage: Stage,
    config: LoopConfig,
    folder: Path,
    device: str = "cpu",
    stop_after_s: float = math.inf,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    accelerator: Accelerator | None = None,
) -> bool:
    """Trains until `config.steps` or for `stop_after_s` seconds; True when done, and then the weights are exported.

    Call again with the same folder to go on where the last call (or the last save before a kill) left off. With an
    `accelerator` there are as many processes as its launcher says: every one draws batches of its own, their
    gradients count together, and the first one writes. n processes do what one does that accumulates n batches, up to
    the order of sums. Under FSDP 2 the network is laid out over them, else every process holds all of it.
    """
    # autocast brings bfloat16 to RMSNorm weights in float32: right, only not in one kernel
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of views: nothing here writes into one
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.ckpt.safetensors"
    optimizer = torch.optim.AdamW(stage.parameters().values(), betas=config.betas, weight_decay=config.weight_decay)
    rank, processes, sharded = 0, 1, False
    if accelerator is not None:
        sharded = accelerator.distributed_type == "FSDP"
        if sharded and accelerator.prepare(stage.network(), optimizer)[0] is not stage.network():
            raise InvalidValueError("of FSDP only version 2 is known; launch with envs_config/accelerate/fsdp.yaml")
        rank, processes = accelerator.process_index, accelerator.num_processes
    parameters = stage.parameters()
    ema = {n: p.detach().clone() for n, p in parameters.items()} if config.ema else {}
    step, seconds = 0, 0.0
    if checkpoint.exists():
        step, seconds = _load(checkpoint, stage, parameters, ema, optimizer)
    if step >= config.steps and stage.exported(folder):  # to write it anew could change its hash
        return True

    log = TrainingLog(folder, stage.name) if rank == 0 else None
    metrics: dict[str, float] | None = None
    started = saved = time.monotonic()
    generator = torch.Generator(device)
    bf16 = config.bf16(device)
    if accelerator is not None:
        [bf16] = _as_the_first(accelerator, bf16)
    stage.model.train()
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        optimizer.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            generator.manual_seed(config.seed * 1_000_003 + (step * config.accumulate + part) * processes + rank)
            torch.manual_seed(generator.initial_seed())  # dropout draws from the global one
            batch = stage.batch(generator)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                losses = stage.losses(batch, generator)
            (losses["loss"] / config.accumulate).backward()
        if processes > 1 and not sharded:
            _share_gradients(accelerator, parameters)
        norm = _whole(nn.utils.clip_grad_norm_(parameters.values(), config.gradient_clip))
        if torch.isfinite(norm):  # one bad batch must not undo a night
            optimizer.step()
        step += 1
        blend = 1.0 - min(config.ema, step / (step + 10.0))
        if ema:
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in parameters.values()], blend)

        now = time.monotonic()
        elapsed = seconds + now - started
        if step % config.log_every == 0 or step == config.steps:
            values = {name: float(v.detach()) for name, v in losses.items()} | {
                "grad_norm": float(norm),
                "seconds": elapsed,
            }
            if step % config.validate_every == 0 or step == config.steps:
                metrics = _validate(stage, parameters, ema, log, step)
                values |= metrics
            if log is not None:
                log.values(step, values)
                report(step, values)
        out_of_time, due = now - started > stop_after_s, now - saved > config.save_seconds
        if accelerator is not None:  # clocks differ, and all must save together
            out_of_time, due = _as_the_first(accelerator, out_of_time, due)
        if step == config.steps or out_of_time or due:
            _save(checkpoint, stage, config, step, elapsed, parameters, ema, optimizer, write=rank == 0)
            saved = now
        if out_of_time and step < config.steps:
            break
    if log is not None:
        log.close()
    if step < config.steps:
        return False

    with _swapped(parameters, ema), torch.no_grad():
        stage.model.eval()
        card = {"stage": stage.name, "steps": step, "seconds": round(seconds + time.monotonic() - started)}
        card |= {"loop": asdict(config), "metrics": metrics or stage.validate()}
        _gather(stage.network(), keep=rank == 0)
        if rank == 0:
            stage.export(folder, card)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return True


def _share_gradients(accelerator: Accelerator, parameters: dict[str, nn.Parameter]) -> None:
    """Every process gets the mean of all; which parameters have gradients must not depend on the batch."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    mean = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _as_the_first(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """What the first process says."""
    from accelerate.utils import broadcast

    return [bool(flag) for flag in broadcast(torch.tensor(flags, device=accelerator.device, dtype=torch.uint8))]


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a share; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _gather(network: nn.Module, keep: bool) -> None:
    """Whole parameters, in main memory, in place of shares, for the process that keeps them; every one must take part.

    To unshard would not do: a module that is asked for its state gives shares again. Afterwards it is no FSDP module
    any more, which would look for its shares whenever it is moved.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
            module.__class__ = type(module).__mro__[2]  # `fully_shard` has put FSDPModule in front of it
    for module in network.modules():
        for name, share in list(module.named_parameters(recurse=False)):
            if isinstance(share, DTensor):
                whole = _whole(share)
                if keep:
                    setattr(module, name, nn.Parameter(whole.cpu(), share.requires_grad))


def _share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, laid out like another."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


def _validate(
    stage: Stage, parameters: dict[str, nn.Parameter], ema: dict[str, Tensor], log: TrainingLog | None, step: int
) -> dict[str, float]:
    with _swapped(parameters, ema), torch.no_grad():
        stage.model.eval()
        metrics = stage.validate()
        if log is not None and (strip := stage.strip()) is not None:
            log.strip(step, strip)
        stage.model.train()
    return metrics


class _swapped:
    """The averaged weights in place of the trained ones, for as long as the block runs."""

    def __init__(self, parameters: dict[str, nn.Parameter], ema: dict[str, Tensor]):
        self.parameters, self.ema = parameters, ema

    def _swap(self) -> None:
        for name, average in self.ema.items():
            trained = self.parameters[name].detach()
            kept = trained.clone()
            trained.copy_(average)  # in place: a share must stay where FSDP looks for it
            average.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def _save(
    path: Path,
    stage: Stage,
    config: LoopConfig,
    step: int,
    seconds: float,
    parameters: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    write: bool,
) -> None:
    tensors = {f"model.{n}": p.detach() for n, p in parameters.items()} | {f"ema.{n}": t for n, t in ema.items()}
    for n, p in parameters.items():
        for key, value in optimizer.state[p].items():
            tensors[f"optimizer.{n}.{key}"] = value
    tensors |= {f"extra.{n}": t for n, t in stage.extra_state().items()}
    metadata = {
        "stage": stage.name,
        "codec_hash": stage.codec_hash,
        "step": step,
        "seconds": seconds,
        "config": asdict(config),
        "revision": revision(),
    }
    tensors = {k: _whole(v).contiguous() for k, v in tensors.items()}
    if write:
        temporary = path.with_suffix(".tmp")
        save_tensors(temporary, tensors, {"mirage": json.dumps(metadata)})
        os.replace(temporary, path)


def _load(
    path: Path,
    stage: Stage,
    parameters: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, float]:
    """Restores weights, averages and optimiser; returns the steps and the seconds already spent."""
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("mirage", "{}"))
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise WeightsError(f"the checkpoint {path} is damaged ({error}); delete it to start this stage anew") from None
    shapes = {k[6:]: v.shape for k, v in stored.items() if k.startswith("model.")}
    if metadata.get("stage") != stage.name or shapes != {n: p.shape for n, p in parameters.items()}:
        raise WeightsError(
            f'the checkpoint {path} was not made by stage "{stage.name}" of this model; use another folder'
        )
    if metadata.get("codec_hash") != stage.codec_hash:
        raise WeightsError(f"the checkpoint {path} was trained on the latents of another codec; use another folder")
    for n, p in parameters.items():
        p.data.copy_(_share(stored[f"model.{n}"], p))
        if ema:
            average = stored.get(f"ema.{n}", stored[f"model.{n}"])  # one that is asked for later begins here
            ema[n].copy_(_share(average, p))
        prefix = f"optimizer.{n}."
        of_p = {k[len(prefix) :]: v for k, v in stored.items() if k.startswith(prefix)}
        optimizer.state[p] = {k: _share(v, p) if v.dim() else v.to(p.device) for k, v in of_p.items()}
    stage.restore({k[6:]: v for k, v in stored.items() if k.startswith("extra.")})
    return metadata["step"], metadata["seconds"]
