"""`mirage-env agent`: what it prints and how it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mirage_env import cli

QUICK = ["test.kwargs.size=[32, 32]", "test.kwargs.scene_seed=0", "test.steps=3", "test_episodes=2"]


def agent(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit code of `mirage-env agent` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["mirage-env", "agent", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_eval_prints_means_with_intervals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent(monkeypatch, "eval", "explore", "--agent", "random", *QUICK) == 0
    said = capsys.readouterr().out
    assert "random in MirageSim-v0, 2 episodes of at most 3 steps:" in said
    (known,) = (line.split() for line in said.splitlines() if "known_m3" in line)
    mean, low, high = (float(part.strip("()")) for part in (known[1], known[2], known[4]))
    assert low <= mean <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "explor"), 'unknown agent config "explor"'),
        (("eval", "explore", "--agent", "me"), 'unknown agent "me"; known are explorer, ppo, random'),
        (("eval", "explore", "test.step=3"), 'has no key "step"; did you mean "steps"'),
        (("train", "explore", "world.id=Doom-v0"), 'unknown environment "Doom-v0"'),
        (("train", "explore", "world.kwargs.images=/nowhere"), "no folder or list of pictures at /nowhere"),
        (("watch", "explore", "--from", "nowhere"), "no checkpoint at nowhere/agent.safetensors"),
        (("prove", "small", "methods=[luck]"), 'unknown method "luck"'),
        (("prove", "methods=[luck]"), 'unknown method "luck"'),
    ],
)
def test_mistakes_end_in_one_sentence_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    if arguments[0] in ("train", "watch", "prove"):
        pytest.importorskip("stable_baselines3", reason="the extra `agents` is not installed")
    monkeypatch.chdir(tmp_path)
    assert agent(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.out + captured.err).split())
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())
