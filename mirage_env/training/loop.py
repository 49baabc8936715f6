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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mirage_env.errors import InvalidValueError, WeightsError
from mirage_env.resources import revision
from mirage_env.training.log import TrainingLog


@dataclass(frozen=True)
class LoopConfig:
    steps: int
    learning_rate: float = 1e-3
    warmup: int = 200
    """Steps of linear warm-up."""
    decay: float = 0.5
    """The last share of the steps, over which the rate falls linearly to zero."""
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float = 1.0
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones validated and exported."""
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0
    log_every: int = 50
    validate_every: int = 1000
    save_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.decay <= 1:
            raise InvalidValueError(f"need steps >= 1 and 0 <= decay <= 1, got {self.steps} and {self.decay}")

    def rate(self, step: int) -> float:
        """Learning rate of `step`: warm-up, plateau, linear decay."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * warm * min(1.0, left)


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

    @abstractmethod
    def batch(self, generator: torch.Generator) -> Any:
        """One batch, prepared in full precision: geometry must not meet a bfloat16 product."""

    @abstractmethod
    def losses(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars of the batch, computed in the loop's precision; "loss" is the one that is minimised."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics of `self.model` as it stands, on data that training never draws."""

    def strip(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """What the model makes of data that training never draws, beside the truth, for people to look at."""
        return None

    @abstractmethod
    def export(self, folder: Path, card: dict) -> None:
        """Writes the weights of `self.model` as the package loads them; `card` holds what the model card states."""


def train(
    stage: Stage,
    config: LoopConfig,
    folder: Path,
    device: str = "cpu",
    stop_after_s: float = math.inf,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> bool:
    """Trains until `config.steps` or for `stop_after_s` seconds; True when done, and then the weights are exported.

    Call again with the same folder to go on where the last call (or the last save before a kill) left off.
    """
    # autocast brings bfloat16 to RMSNorm weights in float32: right, only not in one kernel
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.ckpt.safetensors"
    parameters = stage.parameters()
    optimizer = torch.optim.AdamW(parameters.values(), betas=config.betas, weight_decay=config.weight_decay)
    ema = {n: p.detach().clone() for n, p in parameters.items()}
    step, seconds = 0, 0.0
    if checkpoint.exists():
        step, seconds = _load(checkpoint, stage, parameters, ema, optimizer)

    log = TrainingLog(folder, stage.name)
    started = saved = time.monotonic()
    generator = torch.Generator(device)
    stage.model.train()
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        generator.manual_seed(config.seed * 1_000_003 + step)
        batch = stage.batch(generator)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses = stage.losses(batch, generator)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), config.gradient_clip)
        if torch.isfinite(norm):  # one bad batch must not undo a night
            optimizer.step()
        step += 1
        blend = 1.0 - min(config.ema, step / (step + 10.0))
        torch._foreach_lerp_(list(ema.values()), [p.detach() for p in parameters.values()], blend)

        now = time.monotonic()
        elapsed = seconds + now - started
        if step % config.log_every == 0 or step == config.steps:
            values = {name: float(v.detach()) for name, v in losses.items()} | {
                "grad_norm": float(norm),
                "seconds": elapsed,
            }
            if step % config.validate_every == 0 or step == config.steps:
                values |= _validate(stage, parameters, ema, log, step)
            log.values(step, values)
            report(step, values)
        out_of_time = now - started > stop_after_s
        if step == config.steps or out_of_time or now - saved > config.save_seconds:
            _save(checkpoint, stage, config, step, elapsed, parameters, ema, optimizer)
            saved = now
        if out_of_time and step < config.steps:
            log.close()
            return False
    log.close()

    with _swapped(parameters, ema), torch.no_grad():
        stage.model.eval()
        card = {"stage": stage.name, "steps": step, "seconds": round(seconds + time.monotonic() - started)}
        stage.export(folder, card | {"loop": asdict(config), "metrics": stage.validate()})
    return True


def _validate(
    stage: Stage, parameters: dict[str, nn.Parameter], ema: dict[str, Tensor], log: TrainingLog, step: int
) -> dict[str, float]:
    with _swapped(parameters, ema), torch.no_grad():
        stage.model.eval()
        metrics = stage.validate()
        if (strip := stage.strip()) is not None:
            log.strip(step, strip)
        stage.model.train()
    return metrics


class _swapped:
    """The averaged weights in place of the trained ones, for as long as the block runs."""

    def __init__(self, parameters: dict[str, nn.Parameter], ema: dict[str, Tensor]):
        self.parameters, self.ema = parameters, ema

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.ema[name] = self.ema[name], parameter.data

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
) -> None:
    tensors = {f"model.{n}": p.detach() for n, p in parameters.items()} | {f"ema.{n}": t for n, t in ema.items()}
    for n, p in parameters.items():
        for key, value in optimizer.state[p].items():
            tensors[f"optimizer.{n}.{key}"] = value
    metadata = {
        "stage": stage.name,
        "codec_hash": stage.codec_hash,
        "step": step,
        "seconds": seconds,
        "config": asdict(config),
        "revision": revision(),
    }
    temporary = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"mirage": json.dumps(metadata)})
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
        p.data.copy_(stored[f"model.{n}"])
        ema[n].copy_(stored[f"ema.{n}"])
        prefix = f"optimizer.{n}."
        optimizer.state[p] = {k[len(prefix) :]: v.to(p.device) for k, v in stored.items() if k.startswith(prefix)}
    return metadata["step"], metadata["seconds"]
