"""The learning loop: play, learn, evaluate, log, checkpoint. A round of episodes counts wholly or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from .exploration import epsilon_at
from .interrupts import deferred_interrupt
from .metrics import WALL_CLOCK, MetricsLog
from .replay_buffer import importance_at, pad
from .rollout import Start, play_episodes
from .seeding import Stream, generator, integer
from .subprocess_env import EnvProcessError
from .team_env import TeamEnv
from .types import Episode, Metrics

if TYPE_CHECKING:
    from .agent import QMIX

LEARNING_METRICS = ("loss", "q_tot", "td_error", "grad_norm")


def learn(
    agent: QMIX,
    envs: Sequence[TeamEnv],
    episodes: int,
    log_dir: Path | None,
    checkpoint_dir: Path | None,
    checkpoint_every: int,
    progress: bool,
    callback: Callable[[QMIX, Metrics], object] | None,
    keep_checkpoints: int,
) -> None:
    """See `QMIX.learn`."""
    if agent.episode >= episodes:
        return
    if checkpoint_dir is not None and agent.episode == 0 and agent.checkpoint_exists(checkpoint_dir):
        raise FileExistsError(
            f"{checkpoint_dir} holds the checkpoint of an earlier run, and this agent is new; go on from it with "
            "QMIX.load, or choose another checkpoint_dir"
        )
    log = MetricsLog(log_dir, agent.episode) if log_dir is not None else None
    shown = {"disable": not progress, "unit": "episode", "dynamic_ncols": True, "mininterval": 1}
    bar = tqdm(total=episodes, initial=agent.episode, **shown)
    whole = agent.state_dict()
    try:
        while agent.episode < episodes:
            started = agent.episode
            # A round ends at a multiple of n_envs, wherever it starts: a run that was cut short falls in step again.
            played = _play(agent, envs[: min(len(envs) - started % len(envs), episodes - started)])
            rows = [_learn_from(agent, *one) for one in played]
            if log is not None:
                with deferred_interrupt():
                    for row in rows:
                        log.write(row)
            whole = agent.state_dict()
            due = started // checkpoint_every < agent.episode // checkpoint_every or agent.episode == episodes
            if checkpoint_dir is not None and due:
                if log is not None:
                    with deferred_interrupt():
                        log.sync()
                agent.save(checkpoint_dir, keep_checkpoints)
            told = {"return": f"{rows[-1]['return']:.3f}", "epsilon": f"{rows[-1]['epsilon']:.2f}"}
            bar.set_postfix(told, refresh=False)
            bar.update(len(rows))
            if callback is not None:
                for row in rows:
                    callback(agent, row)
    except BaseException as error:
        with suppress(EnvProcessError):  # a dead process cannot go back; `error` tells of it
            agent.load_state_dict(whole)
        if checkpoint_dir is not None and isinstance(error, KeyboardInterrupt):
            agent.save(checkpoint_dir, keep_checkpoints)
        raise
    finally:
        bar.close()
        if log is not None:
            with deferred_interrupt():
                log.close()


Played = tuple[Episode, dict[str, float], float, float]
"""An episode, what its infos agree on, its epsilon, and its share of the seconds."""


def _play(agent: QMIX, envs: Sequence[TeamEnv]) -> list[Played]:
    """The agent's next episodes, one in each environment. Nothing of the agent changes."""
    began = time.perf_counter()
    network, numbers = agent.learner.network, range(agent.episode, agent.episode + len(envs))
    starts = [
        Start(
            seed=integer(agent.seed, Stream.TRAINING, number),
            epsilon=epsilon_at(agent.config, number),
            rng=generator(agent.seed, Stream.EXPLORATION, number),
            noise=network.draw_noise(generator(agent.seed, Stream.NOISE, number)) if network.noisy else None,
        )
        for number in numbers
    ]
    played = play_episodes(envs, agent.new_team(), starts)
    seconds = (time.perf_counter() - began) / len(envs)
    return [(*one, start.epsilon, seconds) for one, start in zip(played, starts, strict=True)]


def _learn_from(agent: QMIX, episode: Episode, scalars: dict[str, float], epsilon: float, seconds: float) -> Metrics:
    """Takes one episode into the buffer, learns, and evaluates when it is time."""
    began, config = time.perf_counter(), agent.config
    agent.buffer.add(episode)
    agent.return_scale.add(episode.rewards, config.gamma)
    agent.episode += 1
    agent.env_steps += len(episode)
    learned = _update(agent)
    row: Metrics = {
        "episode": agent.episode,
        "return": episode.total_reward,
        "length": len(episode),
        "epsilon": epsilon,
        **learned,
        "updates": agent.learner.updates,
        "env_steps": agent.env_steps,
        **{f"info/{key}": value for key, value in scalars.items()},
    }
    if config.eval_every and agent.episode % config.eval_every == 0:
        evaluation = agent.evaluate(episodes=config.eval_episodes)
        row |= {"eval/return": evaluation.mean, "eval/standard_error": evaluation.standard_error}
    return row | {WALL_CLOCK: seconds + time.perf_counter() - began}


def _update(agent: QMIX) -> Metrics:
    """Means over the updates of one episode; None before learning starts."""
    config, learner = agent.config, agent.learner
    if agent.episode < config.learning_starts:
        return dict.fromkeys(LEARNING_METRICS)
    scale = agent.return_scale if config.standardise_returns else None
    results = []
    for _ in range(config.updates_per_episode):
        rng = generator(agent.seed, Stream.REPLAY, learner.updates)
        if config.priority_alpha == 0:
            batch = pad(agent.buffer.sample(config.batch_size, rng), learner.device)
            results.append(learner.update(batch, scale))
            continue
        beta = importance_at(config, agent.episode)
        drawn, episodes, weights = agent.buffer.sample_by_priority(config.batch_size, config.priority_alpha, beta, rng)
        batch = pad(episodes, learner.device)
        results.append(learner.update(batch, scale, torch.tensor(weights, device=learner.device)))
        agent.buffer.set_priorities(drawn, results[-1].episode_errors)
    return {name: sum(getattr(result, name) for result in results) / len(results) for name in LEARNING_METRICS}
