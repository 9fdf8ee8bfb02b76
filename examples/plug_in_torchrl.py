"""Search with QMIX of TorchRL with action masks, through its PettingZooWrapper.

python examples/plug_in_torchrl.py
"""

from __future__ import annotations

import torch
from scores import print_scores, run
from tensordict.nn import TensorDictModule as Module
from tensordict.nn import TensorDictSequential as Sequential
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import PettingZooWrapper
from torchrl.modules import EGreedyModule, MultiAgentMLP, QMixer, QValueModule
from torchrl.objectives import SoftUpdate
from torchrl.objectives.multiagent import QMixerLoss

from prune_env import make_env
from prune_env.common.settings import Count, Seed

MASK, ACTION, VALUES, CHOSEN = (("conv", name) for name in ("action_mask", "action", "action_value", "chosen"))


def main(episodes: Count = 300, seed: Seed = 0) -> None:
    """Search, and compare the best plan with those of random search and uniform pruning.

    Args:
        episodes: Number of training episodes.
        seed: Seed of the algorithm.
    """
    game = make_env("small_cnn", "digits", target_macs=0.3)
    torch.manual_seed(seed)
    # TorchRL groups the agents conv_0, conv_1, ... as `conv` and reads the masks from the infos.
    env = PettingZooWrapper(game, return_state=True)
    agents, rates, rounds = len(game.possible_agents), len(game.config.rates), game.config.rounds
    network = MultiAgentMLP(
        len(game.observation_names), rates, agents, centralised=False, share_params=True, depth=2, num_cells=64
    )
    greedy = Sequential(
        Module(network, in_keys=[("conv", "observation")], out_keys=[VALUES]),
        QValueModule(
            action_value_key=VALUES, action_mask_key=MASK, out_keys=[ACTION, VALUES, CHOSEN], spec=env.action_spec
        ),
    )
    steps = episodes * rounds // 2
    explore = EGreedyModule(
        env.action_spec, eps_end=0.02, annealing_num_steps=steps, action_key=ACTION, action_mask_key=MASK
    )
    mixer = Module(
        QMixer(state_shape=game.state_space.shape, mixing_embed_dim=32, n_agents=agents, device="cpu"),
        in_keys=[CHOSEN, "state"],
        out_keys=["chosen_action_value"],
    )
    loss = QMixerLoss(greedy, mixer, delay_value=True, action_space="categorical")
    loss.set_keys(action=ACTION, action_value=VALUES, local_value=CHOSEN)
    loss.make_value_estimator(gamma=1.0)  # the undiscounted return of an episode
    target = SoftUpdate(loss, tau=0.05)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(20_000), batch_size=64)
    policy = Sequential(greedy, explore)
    for _ in range(episodes):
        episode = env.rollout(rounds, policy)  # [T]
        explore.step(episode.numel())
        episode["next", "reward"] = episode["next", "conv", "reward"].mean(-2)  # all agents get the reward of the team
        replay.extend(episode)
        for batch in (replay.sample() for _ in range(4)):
            optimizer.zero_grad()
            loss(batch)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)  # training is much slower without clipping
            optimizer.step()
            target.step()
    print_scores(game, "TorchRL QMIX", seed)


if __name__ == "__main__":
    run(main, __doc__)
