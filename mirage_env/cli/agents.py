"""Agents that live in worlds: agent pool, train, eval, watch, prove."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mirage_env.cli.console import Meter, out, parse_size
from mirage_env.errors import InvalidValueError, UnknownNameError

app = typer.Typer(
    help="Agents that live in these worlds: train, examine and watch them.\n\n"
    "In this order: [bold]pool[/] draws pictures to make worlds from (or bring a folder of your own), [bold]train[/] "
    "learns in them, [bold]eval[/] and [bold]watch[/] put the agent into true scenes that it has never seen, "
    "[bold]prove[/] does all that for every method and compares them. Configs are YAML in envs_config/agents; every "
    "value can be said anew as key=value.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
_Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as [bold]key=value[/], such as ppo.learning_rate=1e-3.")
]


@app.command("train")
def agent_train(
    config: Annotated[str, typer.Argument(help="A name in envs_config/agents, or the path of a .yaml file.")],
    overrides: _Overrides = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Checkpoint, curve, TensorBoard; name it again to go on.")
    ] = Path("runs/agent"),
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes, to go on with another call.")] = math.inf,
) -> None:
    """Train PPO in a world. [dim]mirage-env agent train explore world.kwargs.images=photos ppo.total_steps=20000[/]

    Named configs: explore, point-goal. The same command goes on where it was cut off; curve.jsonl and tensorboard/ in
    the folder tell how it learns.
    """
    from mirage_env.agents.config import load
    from mirage_env.agents.worlds import check_world

    plan = load(config, overrides or ())
    check_world(plan.world)  # a mistake is told before a folder is made
    _needs_stable_baselines3()
    from mirage_env.agents.ppo import train

    with Meter("training", plan.ppo.total_steps, unit="steps") as meter:

        def tell(done: int, total: int, values: dict[str, float]) -> None:
            meter.update(done, total, "  ".join(f"{key} {value:.3g}" for key, value in values.items()))

        whole = train(plan, folder, minutes, tell)
    out.print(f"{'done' if whole else 'not finished; the same command goes on'}: {escape(str(folder))}")


@app.command("eval")
def agent_eval(
    config: Annotated[str, typer.Argument(help="As for [bold]train[/]; its [bold]test[/] world is the examination.")],
    overrides: _Overrides = None,
    agent: Annotated[str, typer.Option(help="ppo, explorer or random; unless said, what the config names.")] = "",
    folder: Annotated[Path, typer.Option("--from", help="Where PPO was trained.")] = Path("runs/agent"),
) -> None:
    """Examine an agent: mean scores with 95% intervals. [dim]mirage-env agent eval explore --agent explorer[/]

    Whoever is examined walks in the same episodes: the k-th is reset with first_test_seed + k. spl is success weighted
    by the shortest way over the way walked; known_m3 are cubic metres that became known.
    """
    from mirage_env.agents.config import load
    from mirage_env.agents.evaluation import evaluate, make_agent, summary

    plan = load(config, overrides or ())
    name = _agent_name(agent or plan.agent)
    seeds = range(plan.first_test_seed, plan.first_test_seed + plan.test_episodes)
    with Meter("episodes", plan.test_episodes, unit="episodes") as meter:
        scores = evaluate(lambda env: make_agent(name, plan, env, folder), plan.test, seeds, meter.update)
    out.print(f"{name} in {plan.test.id}, {plan.test_episodes} episodes of at most {plan.test.steps} steps:")
    for key, (mean, low, high, _) in summary(scores).items():
        out.print(f"  {key:<14} {mean:9.3f}  ({low:.3f} to {high:.3f})")


@app.command("watch")
def agent_watch(
    config: Annotated[str, typer.Argument(help="As for [bold]train[/]; its [bold]test[/] world is filmed.")],
    overrides: _Overrides = None,
    agent: Annotated[str, typer.Option(help="ppo, explorer or random; unless said, what the config names.")] = "",
    folder: Annotated[Path, typer.Option("--from", help="Where PPO was trained.")] = Path("runs/agent"),
    video: Annotated[Path, typer.Option("--out", help="The video, with the map beside the picture.")] = Path(
        "agent.mp4"
    ),
) -> None:
    """Film one episode. [dim]mirage-env agent watch explore --agent explorer test.id=Mirage-v0[/]"""
    from mirage_env.agents.config import load
    from mirage_env.agents.evaluation import film, make_agent
    from mirage_env.artefacts import prepare_folder

    plan = load(config, overrides or ())
    name = _agent_name(agent or plan.agent)
    prepare_folder(video.parent)
    scores = film(lambda env: make_agent(name, plan, env, folder), plan.test, plan.first_test_seed, video)
    out.print(f"{escape(str(video))}: " + ", ".join(f"{key} {value:.3g}" for key, value in scores.items()))


@app.command("pool")
def agent_pool(
    folder: Annotated[Path, typer.Option("--out", help="Where the pictures go.")] = Path("runs/pool"),
    count: Annotated[int, typer.Option(min=1, help="How many scenes give one picture each.")] = 64,
    first: Annotated[
        int, typer.Option(min=0, help="Seed of the first scene; training's begin at 1000000.")
    ] = 1_000_000,
    stride: Annotated[int, typer.Option(min=1, help="From one seed to the next.")] = 9,
    size: Annotated[str, typer.Option(help="Pixels: 64, or HEIGHTxWIDTH.")] = "64",
) -> None:
    """Draw single pictures of simulated scenes, to make worlds from. [dim]mirage-env agent pool --count 16[/]"""
    from mirage_env.agents.worlds import draw_pool

    with Meter("pictures", count, unit="pictures") as meter:
        draw_pool(folder, range(first, first + count * stride, stride), parse_size(size), meter.update)
    out.print(f"{count} pictures in {escape(str(folder))}")


@app.command("prove")
def agent_prove(
    config: Annotated[str, typer.Argument(help="A name in envs_config/proof, or the path of a .yaml file.")] = "full",
    overrides: _Overrides = None,
    folder: Annotated[Path, typer.Option("--out", help="Cells, table and curves; name it again to go on.")] = Path(
        "runs/proof"
    ),
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes, to go on with another call.")] = math.inf,
    videos: Annotated[bool, typer.Option(help="Film one episode of every method in the end.")] = False,
) -> None:
    """Does an agent that learned in dreams do well in the true world? [dim]mirage-env agent prove small[/]

    Trains PPO in generated worlds, in the simulator, in drafts and without eyes, and examines all of them, random and
    scripted agents in the same true scenes. Every (task, method, seed) is done once and kept: call it again to go on,
    with more seeds or tasks=\\[point_goal], or run it twice at once to use two cores.
    """
    from mirage_env.agents.config import PROOFS, load

    _needs_stable_baselines3()
    from mirage_env.agents.proof import ProofConfig, film_cells, prove, write_report

    if "=" in config:  # the name may be left out
        config, overrides = "full", [config, *(overrides or ())]
    plan = load(config, overrides or (), ProofConfig, PROOFS)
    with Meter("proof", 1, unit="steps") as meter:

        def tell(cell: str, done: int, total: int, values: dict[str, float]) -> None:
            meter.update(done, total, cell + "  " + "  ".join(f"{key} {value:.3g}" for key, value in values.items()))

        whole = prove(plan, folder, minutes, tell)
    table = write_report(plan, folder)
    if videos:
        film_cells(plan, folder)
    out.print(escape(table.read_text("utf-8")), soft_wrap=True)
    out.print(f"{'complete' if whole else 'not complete; the same command goes on'}: {escape(str(table))}")


def _agent_name(name: str) -> str:
    from mirage_env.agents.evaluation import AGENTS

    if name not in AGENTS:
        raise UnknownNameError("agent", name, AGENTS)
    if name == "ppo":
        _needs_stable_baselines3()
    return name


def _needs_stable_baselines3() -> None:
    from importlib.util import find_spec

    if find_spec("stable_baselines3") is None:
        raise InvalidValueError('PPO needs Stable-Baselines3; install it with pip install "mirage-env[agents]"')
