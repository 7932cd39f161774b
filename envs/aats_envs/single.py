"""One packet on one knowledge network, as a Gymnasium environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from aats.errors import ScenarioError
from aats_envs.episodes import KEYS, Episodes, key_of, one
from aats_envs.render import RENDER_MODES, picture, text
from aats_envs.simulator import Reward
from aats_envs.source import FORMULA, OBSERVED, PROBES, simulator_of, source_of
from aats_envs.spaces import action_space, observation_space

Observed = dict[str, npt.NDArray[Any]]


class KnowledgeNetworkEnv(gym.Env[Observed, np.int64]):
    """An AI packet looks for a way through a network of nodes that hold data.

    ## Description

    A packet carries a model and has no destination. At each stop it sees what the nodes in its
    topology advertise and what it remembers of them, and chooses the next one: a data node, which
    trains the model on what it holds; an MPVU, which measures the model; or home. Adverts may be
    stale or lie, labels may be wrong, nodes may be slow or out of reach. The packet is to come
    home with every target verified, having spent as little as it can.

    What it sees is worked out by the function that a node's daemon uses (`aats.routing`), seconds
    and bytes are those of the simulated world, and training goes by a law that was fitted to real
    training. Before each choice the packet asks a few nodes, by a fixed rule, for the score of its
    model on a minibatch; that costs what it costs.

    ## Action Space

    `Discrete(k)`: a row of the observation, that is the stop to go to next. Which rows are legal
    is in `observation["mask"]`, in `info["action_mask"]` and in `action_masks()`; there always is
    one. A choice that is not legal sends the packet home, as a node does with a packet whose
    policy fails.

    ## Observation Space

    A `Dict` of `features` [k, F], `globals` [G] (float32) and `mask` [k] (int8, 1 where legal).
    Rows of `features` are stops in no order that matters; rows without a stop are zero. `log`
    means the logarithm of 1 + the value over that of 1 + the largest; seconds are logarithms too,
    0 for a millisecond and 1 for 10^6 s; a ratio is 0 for the usual, -1 for a hundredth and 1 for
    a hundred times as much. A value past its range is clipped.

    `features`:

    | Num | Name | Min | Max | Meaning |
    |-----|------|-----|-----|---------|
    | 0 | is_data | 0 | 1 | a data node: training |
    | 1 | is_mpvu | 0 | 1 | an MPVU: a verdict |
    | 2 | is_home | 0 | 1 | home |
    | 3 | is_here | 0 | 1 | the packet is there |
    | 4 | need_supply | 0 | 1 | what targets lack times clean samples on offer, saturating |
    | 5 | log_samples | 0 | 1 | advertised samples; log, at most 10^6 |
    | 6 | samples_ratio | -1 | 1 | samples over the median data node's; ratio |
    | 7 | quality | 0 | 1 | advertised quality |
    | 8 | freshness | 0 | 1 | of the newest sample: 1 now, 1/2 a day ago |
    | 9 | advert_age | 0 | 1 | age of the advert, of 120 s |
    | 10 | log_transfer | 0 | 1 | to move there; seconds |
    | 11 | log_compute | 0 | 1 | to train there, as advertised; seconds |
    | 12 | log_probe | 0 | 1 | until a probe's answer is there; seconds |
    | 13 | log_verify | 0 | 1 | from there to the nearest MPVU; seconds |
    | 14 | links | 0 | 1 | links of the way there; log, at most 128 |
    | 15 | cost_ratio | -1 | 1 | transfer + compute over the median data node's; ratio |
    | 16 | visits_share | 0 | 1 | of the visits to data nodes |
    | 17 | is_new | 0 | 1 | never visited |
    | 18 | hops_since | 0 | 1 | links crossed since the last visit, 0 for never; log, at most 128 |
    | 19 | last_gain | -1 | 1 | skill gained at the last visit |
    | 20 | hurt | 0 | 1 | the last visit did harm |
    | 21 | labels_known | 0 | 1 | share of the skills there whose histogram is shown |
    | 22 | label_entropy | 0 | 1 | of the histogram, over that of equal classes |
    | 23 | label_hhi | 0 | 1 | sum of squared class shares |
    | 24 | label_weakest | 0 | 1 | share of the weakest class times the number of classes |
    | 25 | label_balance | 0 | 1 | entropy of what was used so far plus this node's |
    | 26 | has_probe | 0 | 1 | probed just now |
    | 27 | probe_gain | -1 | 1 | trusted loss that a few steps there take away; nats |
    | 28 | probe_alignment | -1 | 1 | cosine of its gradient and the trusted one |
    | 29 | probe_loss | 0 | 1 | on its minibatch; nats, log, at most 20 |
    | 30 | probe_gradient_norm | 0 | 1 | log, at most 1000 |
    | 31 | probe_allowed | 0 | 1 | answers probes |
    | 32 | has_past | 0 | 1 | probed at an earlier stop |
    | 33 | past_gain | -1 | 1 | what that probe found, as above |
    | 34 | past_alignment | -1 | 1 | |
    | 35 | past_loss | 0 | 1 | |
    | 36 | past_age | 0 | 1 | links crossed since that probe; log, at most 128 |
    | 37 | trust | 0 | 1 | share of visits there that kept what was learned |

    `globals`:

    | Num | Name | Min | Max | Meaning |
    |-----|------|-----|-----|---------|
    | 0 | belief_mean | 0 | 1 | mean over targets of belief / target, at most 1 |
    | 1 | belief_min | 0 | 1 | the smallest of them |
    | 2 | gap | 0 | 1 | mean share of a target that is lacking |
    | 3 | margin | -1 | 1 | ten times the smallest of belief - target |
    | 4 | optimism | 0 | 1 | by how much the last verdict was below the belief |
    | 5 | believed_share | 0 | 1 | of the targets |
    | 6 | verified_share | 0 | 1 | of the targets |
    | 7 | hops_used | 0 | 1 | of the budget |
    | 8 | seconds_used | 0 | 1 | of the budget, 0 where there is none |
    | 9 | bytes_used | 0 | 1 | the same |
    | 10 | joules_used | 0 | 1 | the same |
    | 11 | visits | 0 | 1 | to data nodes; log, at most 128 |
    | 12 | visits_since_verdict | 0 | 1 | log, at most 128 |
    | 13 | has_verdict | 0 | 1 | an MPVU has measured it |
    | 14 | log_candidates | 0 | 1 | stops in its topology; log, at most 1000 |
    | 15 | log_targets | 0 | 1 | log, at most 64 |
    | 16 | log_size | 0 | 1 | bytes of the packet; log, at most 10^12 |
    | 17 | is_seek | 0 | 1 | phase: data nodes are legal |
    | 18 | is_verify | 0 | 1 | phase: MPVUs are legal |
    | 19 | is_return | 0 | 1 | phase: home is legal |

    ## Starting State

    An untrained model at home, on a network drawn from the family or scenario. The network, its
    data, targets and budget, and all luck of the journey follow from one key, drawn from the
    environment's random source at each reset and told in `info["network"]`.

    ## Rewards

    `scale * (progress * (gamma * after - before) - cost)`: before and after are the mean share of
    the targets that the packet believes it reaches (0 after the end), cost is what was spent in
    units of what a usual stop of this network takes. At the end come `success + progress` for
    every target verified, less `failure` otherwise. See `aats_envs.simulator.Reward`.

    ## Episode End

    Termination: the packet is home. It may go there when every target is verified, has to when its
    budget just covers the way, and is sent there after an illegal choice. Truncation: more than
    256 decisions (`max_episode_steps` of `gymnasium.make`).

    ## Information

    | Key | Value |
    |-----|-------|
    | action_mask | [k] int8, 1 where legal |
    | nodes | [k] the node of each row, -1 for an empty one |
    | at | the node where the packet is |
    | stage | "seek", "verify" or "return" |
    | accuracy | [T] what the packet believes of each skill |
    | target | [T] what it is to reach; 0 pads |
    | verified | [T] whether an MPVU has found it reached |
    | hops, seconds, bytes, joules | spent so far; hops are links crossed |
    | probe_bytes | of the bytes, those for probes |
    | cost | spent so far as rewards weigh it, in usual stops of this network |
    | is_success | home with every target verified |
    | ending | "verified", "over budget", "nowhere to go" or "illegal" at the end, else "" |
    | network | key of the journey: `reset(options={"network": key})` begins it again |

    What is spent includes the probes before the next choice.

    ## Arguments

    | Argument | Type | Default | Meaning |
    |----------|------|---------|---------|
    | preset | str | "" | a family of `aats_envs.presets`; "train" if nothing else is given |
    | scenario | str | None | in place of it: folder or file of a scenario |
    | family | dict | None | in place of it: values of a `Family`, the others have defaults |
    | pool_size | int | None | layouts (256 if None), or seeds of a scenario (32) |
    | k | int | 32 | rows of the observation, at least 6 |
    | probes | int | 3 | nodes probed before a choice, at most |
    | fidelity | str | "formula" | of learning: or "rows"; of a scenario, "torch" |
    | reward | dict | None | fields of `aats_envs.simulator.Reward` that differ |
    | render_mode | str | None | "rgb_array" or "ansi" |

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("aats_envs:aats/KnowledgeNetwork-v0", preset="small")
    >>> observation, info = env.reset(seed=0)
    >>> action = env.action_space.sample(info["action_mask"])
    >>> observation, reward, terminated, truncated, info = env.step(action)
    >>> env.close()

    ```

    ## Vectorized environment

    `gymnasium.make_vec` makes `aats_envs.vector.KnowledgeNetworkVectorEnv`, many times as fast; for
    Stable-Baselines3 there is `aats_envs.sb3.KnowledgeVecEnv`. Row i of a batch seeded s lives
    through what this environment does when it is seeded s + i.

    ## Version History

    * v0: first version. Observations are those of `aats.routing.features.OBSERVATION_VERSION` 2.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 Gymnasium declares it so
        "render_modes": RENDER_MODES, "render_fps": 4,
    }  # fmt: skip

    def __init__(
        self,
        *,
        preset: str = "",
        scenario: str | Path | None = None,
        family: Mapping[str, Any] | None = None,
        pool_size: int | None = None,
        k: int = OBSERVED,
        probes: int = PROBES,
        fidelity: str = FORMULA,
        reward: Mapping[str, float] | Reward | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *RENDER_MODES):
            allowed = f"known modes are {', '.join(RENDER_MODES)}"
            raise ScenarioError("environment: render_mode", render_mode, allowed)
        source = source_of(
            preset=preset, scenario=scenario, family=family, pool_size=pool_size, fidelity=fidelity
        )
        self._episodes = Episodes(
            simulator_of(
                1,
                source,
                k=k,
                probes=probes,
                reward=reward,
                max_steps=sys.maxsize,
            )
        )
        self.observation_space = observation_space(k)
        self.action_space = action_space(k)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Begin a journey.

        Args:
            seed: Of the environment's random source.
            options: `network` is the key of a journey to begin again.
        """
        super().reset(seed=seed)
        key = (options or {}).get("network")
        if key is None:
            key = key_of(self.np_random)
        elif not 0 <= key < KEYS:
            raise ScenarioError("environment: options['network']", key, "0 to 2^63 - 1 is wanted")
        self._episodes.begin([0], [key])
        self._episodes.sim.look()
        return self._now()

    def step(self, action: np.int64) -> tuple[Observed, SupportsFloat, bool, bool, dict[str, Any]]:
        """Go to a stop and work there.

        Args:
            action: A row of the observation.

        Raises:
            ValueError: If it is not within 0 to k - 1.
        """
        outcome = self._episodes.step(action)
        terminated = bool(outcome.terminated[0])
        if terminated:
            self._episodes.finish(np.zeros(1, np.int64), outcome)
        else:
            self._episodes.sim.look()
        observed, info = self._now()
        return observed, float(outcome.reward[0]), terminated, False, info

    def _now(self) -> tuple[Observed, dict[str, Any]]:
        return one(self._episodes.seen()), one(self._episodes.told())

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return [k] which choices are legal, as sb3-contrib asks for it."""
        return np.array(self._episodes.sim.seen.mask[0])

    def render(self) -> Any:
        """Return a picture [H, W, 3] (uint8) or a text of the journey, as `render_mode` says."""
        if self.render_mode == "rgb_array":
            return picture(self._episodes, 0)
        return text(self._episodes, 0) if self.render_mode == "ansi" else None
