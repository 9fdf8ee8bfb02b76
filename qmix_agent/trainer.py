"""The learning loop: play, learn, evaluate, log, checkpoint. An episode counts wholly or not at all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from .exploration import epsilon_at
from .interrupts import deferred_interrupt
from .metrics import WALL_CLOCK, MetricsLog
from .replay_buffer import pad
from .rollout import play_episode
from .seeding import Stream, generator, integer
from .types import Metrics

if TYPE_CHECKING:
    from .agent import QMIX

LEARNING_METRICS = ("loss", "q_tot", "td_error", "grad_norm")


def learn(
    agent: QMIX,
    episodes: int,
    log_dir: Path | None,
    checkpoint_dir: Path | None,
    checkpoint_every: int,
    progress: bool,
    callback: Callable[[QMIX, Metrics], object] | None,
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
    bar = tqdm(total=episodes, initial=agent.episode, disable=not progress, unit="episode", dynamic_ncols=True)
    whole = agent.state_dict()
    try:
        while agent.episode < episodes:
            row = _train_episode(agent)
            if log is not None:
                with deferred_interrupt():
                    log.write(row)
            whole = agent.state_dict()
            if checkpoint_dir is not None and (agent.episode % checkpoint_every == 0 or agent.episode == episodes):
                if log is not None:
                    with deferred_interrupt():
                        log.sync()
                agent.save(checkpoint_dir)
            bar.update()
            bar.set_postfix({"return": f"{row['return']:.3f}", "epsilon": f"{row['epsilon']:.2f}"})
            if callback is not None:
                callback(agent, row)
    except BaseException as error:
        agent.load_state_dict(whole)
        if checkpoint_dir is not None and isinstance(error, KeyboardInterrupt):
            agent.save(checkpoint_dir)
        raise
    finally:
        bar.close()
        if log is not None:
            with deferred_interrupt():
                log.close()


def _train_episode(agent: QMIX) -> Metrics:
    """Plays one episode, learns from the buffer, and evaluates when it is time."""
    started = time.perf_counter()
    config, env = agent.config, agent.team_env
    epsilon = epsilon_at(config, agent.episode)
    episode, scalars = play_episode(
        env,
        agent.new_team(),
        epsilon,
        seed=integer(agent.seed, Stream.TRAINING, agent.episode),
        rng=generator(agent.seed, Stream.EXPLORATION, agent.episode),
    )
    agent.buffer.add(episode)
    agent.reward_scale.add(episode.total_reward)
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
    return row | {WALL_CLOCK: time.perf_counter() - started}


def _update(agent: QMIX) -> Metrics:
    """Means over the updates of one episode; None before learning starts."""
    config, learner = agent.config, agent.learner
    if agent.episode < config.learning_starts:
        return dict.fromkeys(LEARNING_METRICS)
    scale = agent.reward_scale.factor if config.standardise_rewards else 1.0
    results = []
    for _ in range(config.updates_per_episode):
        rng = generator(agent.seed, Stream.REPLAY, learner.updates)
        batch = pad(agent.buffer.sample(config.batch_size, rng), learner.device)
        results.append(dataclasses.asdict(learner.update(batch, scale)))
    return {name: sum(result[name] for result in results) / len(results) for name in LEARNING_METRICS}
