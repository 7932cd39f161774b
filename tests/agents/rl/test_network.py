from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO

from aats_agents.policy_file import PolicyFile, load, save
from aats_agents.prior import Prior
from aats_agents.rl.network import Actor, CandidatePolicy, prior_weights
from aats_agents.rl.value import CandidateValuePolicy, MaskedDQN
from aats_agents.scorer import NEVER, Scorer
from tests.agents.rl.toy import K, ToyVecEnv
from tests.agents.rl_samples import random_batch, random_weights

PRIORS = [None, Prior()]


def tensors(batch: tuple[np.ndarray[Any, Any], ...]) -> dict[str, torch.Tensor]:
    features, packet, mask = (torch.as_tensor(values) for values in batch)
    return {"features": features, "globals": packet, "mask": mask.to(torch.float32)}


def actor(seed: int, prior: Prior | None, *, attention: bool) -> Actor:
    batch = random_batch(0)
    made = Actor(batch[0].shape[-1], batch[1].shape[-1], 16, prior, attention)
    made.restore(random_weights(seed, attention=attention))
    return made


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("k", [1, 12, 64])
def test_torch_and_numpy_give_the_same_logits(
    prior: Prior | None, attention: bool, k: int, tmp_path: Path
) -> None:
    made = actor(1, prior, attention=attention)
    save(PolicyFile(made.export(), prior), tmp_path / "p.safetensors")
    scorer = load(tmp_path / "p.safetensors").scorer
    batch = random_batch(k, 32, k=k)
    with torch.no_grad():
        wanted = made(tensors(batch)).numpy()
    found, mask = scorer.logits(*batch), batch[2]
    np.testing.assert_allclose(found[mask], wanted[mask], rtol=1e-5, atol=1e-4)
    learned = Scorer(scorer.weights).logits(*batch)
    made.prior = None
    with torch.no_grad():
        np.testing.assert_allclose(learned[mask], made(tensors(batch)).numpy()[mask], atol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_the_order_of_candidates_does_not_matter(attention: bool) -> None:
    made = actor(2, Prior(), attention=attention)
    features, packet, mask = random_batch(3, 8)
    order = np.random.default_rng(0).permutation(features.shape[1])
    with torch.no_grad():
        logits = made(tensors((features, packet, mask))).numpy()
        again = made(tensors((features[:, order], packet, mask[:, order]))).numpy()
    np.testing.assert_allclose(again[mask[:, order]], logits[:, order][mask[:, order]], atol=2e-4)


def test_weights_of_another_network_are_refused() -> None:
    made = actor(2, None, attention=False)
    with pytest.raises(ValueError, match="do not fit"):
        made.restore(random_weights(1, hidden=8))


# --- inside Stable-Baselines3 -----------------------------------------------------------------


def ppo(seed: int = 0, **shape: Any) -> MaskablePPO:
    shape = {"hidden": 16, "prior": prior_weights(Prior())} | shape
    return MaskablePPO(
        CandidatePolicy, ToyVecEnv(4, 0), n_steps=8, batch_size=32, n_epochs=2, seed=seed,
        learning_rate=0.01, device="cpu", policy_kwargs=shape,
    )  # fmt: skip


def test_a_new_policy_is_its_prior() -> None:
    features, packet, mask = random_batch(4, 64, k=K)
    policy: Any = ppo().policy
    with torch.no_grad():
        logits = policy.actor(tensors((features, packet, mask))).numpy()
    prior = Prior().logits(features, packet, mask)
    np.testing.assert_allclose(logits[mask], prior[mask], rtol=1e-5, atol=1e-4)
    held = {"features": features, "globals": packet, "mask": mask.astype(np.int8)}
    chosen, _ = policy.predict(held, deterministic=True, action_masks=mask)
    assert (chosen == np.where(mask, prior, -np.inf).argmax(axis=-1)).all()


@pytest.mark.parametrize("shape", [{}, {"prior": None, "attention": True, "hidden": 8}])
def test_a_model_that_was_saved_is_the_same_when_loaded(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    model = ppo(**shape)
    model.learn(32)
    model.save(tmp_path / "m")
    again = MaskablePPO.load(tmp_path / "m", device="cpu")
    features, packet, mask = random_batch(5, 8, k=K)
    held: Any = {"features": features, "globals": packet, "mask": mask.astype(np.int8)}
    observed, _ = model.policy.obs_to_tensor(held)
    with torch.no_grad():
        one, other = model.policy(observed, True, mask), again.policy(observed, True, mask)
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("k", [3, 2 * K])
def test_the_distribution_is_over_as_many_candidates_as_there_are(k: int) -> None:
    policy: Any = ppo().policy
    features, packet, mask = random_batch(6, 5, k=k)
    observed = tensors((features, packet, mask))
    distribution = policy.get_distribution(observed, action_masks=mask)
    found = distribution.distribution.probs.detach().numpy()
    assert found.shape == (5, k)
    assert (found[~mask] < 1e-6).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


def test_actor_and_critic_share_nothing() -> None:
    policy: Any = ppo().policy
    parts = policy.mlp_extractor
    mine = {id(p) for p in parts.actor.parameters()}
    assert not mine & {id(p) for p in parts.critic.parameters()}
    assert len(list(policy.parameters())) == len(list(parts.parameters()))


def test_after_one_update_the_policy_has_moved_from_its_prior() -> None:
    model = ppo()
    before = model.policy.actor.export()  # type: ignore[operator, union-attr]
    model.learn(32)
    after = model.policy.actor.export()  # type: ignore[operator, union-attr]
    assert not np.array_equal(before["score.1.weight"], after["score.1.weight"])


# --- values -----------------------------------------------------------------------------------


def dqn() -> MaskedDQN:
    shape = {"hidden": 16, "prior": None}
    return MaskedDQN(
        CandidateValuePolicy, ToyVecEnv(4, 0), learning_starts=16, buffer_size=200,
        batch_size=16, train_freq=1, seed=0, device="cpu", policy_kwargs=shape,
    )  # fmt: skip


def test_values_of_what_is_not_legal_are_never_the_best() -> None:
    model = dqn()
    features, packet, mask = random_batch(7, 64, k=K)
    with torch.no_grad():
        values = model.q_net(tensors((features, packet, mask))).numpy()
    assert (values[~mask] == NEVER).all()
    assert (values[mask] > NEVER).all()
    held = {"features": features, "globals": packet, "mask": mask.astype(np.int8)}
    for rate in (0.0, 1.0):
        model.exploration_rate = rate
        chosen, _ = model.predict(held)
        assert np.take_along_axis(mask, chosen[:, None], 1).all()
    assert len(set(chosen.tolist())) > 1


def test_double_dqn_bootstraps_by_the_targets_value_of_the_online_choice() -> None:
    """One step of training against a target worked out by hand."""
    model = dqn()
    model.learn(40)
    model.q_net_target.actor.restore(random_weights(8))  # type: ignore[operator, union-attr]
    replay: Any = model.replay_buffer
    batch = replay.sample(16)
    replay.sample = lambda size: batch
    with torch.no_grad():
        online = model.q_net(batch.next_observations).numpy()
        target = model.q_net_target(batch.next_observations).numpy()
        held = model.q_net(batch.observations).numpy()
    ahead = target[np.arange(16), online.argmax(axis=1)] * (1 - batch.dones.numpy()[:, 0])
    wanted = batch.rewards.numpy()[:, 0] + model.gamma * ahead
    error = np.abs(held[np.arange(16), batch.actions.numpy()[:, 0]] - wanted)
    loss = np.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    model.train(1, 16)
    assert model.logger.name_to_value["train/loss"] == pytest.approx(loss, rel=1e-4)
