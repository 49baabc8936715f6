"""A policy and its optimizer as one safetensors file: no pickle, strict, and only for the spaces it was made in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from safetensors import SafetensorError, safe_open

from mirage_env.artefacts import whole_file
from mirage_env.errors import WeightsError
from mirage_env.resources import revision
from mirage_env.weights import save_tensors


def save_checkpoint(
    path: Path, policy: Any, seen: spaces.Space[Any], moves: spaces.Space[Any], card: dict[str, Any]
) -> None:
    """Writes the state of an SB3 `policy`, made for these spaces, whole or not at all."""
    tensors = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    for index, state in policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    about = {**card, "kind": "agent", "spaces": describe(seen, moves), "revision": revision()}
    with whole_file(path) as partial:
        copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        save_tensors(partial, copies, {"card": json.dumps(about)})


def read_card(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; raises WeightsError where it is missing, damaged or holds no agent."""
    try:
        with safe_open(path, "pt") as file:
            card: dict[str, Any] = json.loads((file.metadata() or {}).get("card", "{}"))
    except FileNotFoundError:
        raise WeightsError(f"no checkpoint at {path}; train one with mirage-env agent train") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"the checkpoint {path} is damaged ({' '.join(str(error).split())})") from None
    if card.get("kind") != "agent":
        raise WeightsError(f"{path} holds no agent; name a checkpoint that mirage-env agent train wrote")
    return card


def load_checkpoint(path: Path, policy: Any, seen: spaces.Space[Any], moves: spaces.Space[Any]) -> dict[str, Any]:
    """Fills policy and optimizer, returns the card; raises WeightsError for a checkpoint from other spaces."""
    card = read_card(path)
    if card["spaces"] != (here := describe(seen, moves)):
        raise WeightsError(
            f"{path} was trained for {card['spaces']}, but this world has {here}; "
            "use the observations, size and action mode of the training"
        )
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    try:
        policy.load_state_dict({n.removeprefix("policy."): v for n, v in stored.items() if n.startswith("policy.")})
    except RuntimeError:
        raise WeightsError(f"{path} does not fit the configured network; use the config it was trained with") from None
    optimizer = policy.optimizer.state_dict()
    for name, value in stored.items():
        if name.startswith("optimizer."):
            _, index, entry = name.split(".")
            optimizer["state"].setdefault(int(index), {})[entry] = value
    policy.optimizer.load_state_dict(optimizer)
    return card


def describe(seen: spaces.Space[Any], moves: spaces.Space[Any]) -> str:
    """Observations and actions in words that two equal pairs of spaces share."""
    names = ", ".join(f"{name} {tuple(space.shape or ())}" for name, space in sorted(seen.spaces.items()))  # type: ignore[attr-defined]
    return f"{names}; " + (f"{moves.n} actions" if isinstance(moves, spaces.Discrete) else f"actions {moves.shape}")
