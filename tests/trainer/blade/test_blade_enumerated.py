"""Tests BLADE on a catalogue so small that all lists can be enumerated: its gradient, and the policy that training
converges to.

There are two prompts. For each of them, all lists have different rewards. The expected values are computed from the
probabilities of all lists, and from the reference lists, which the trainer samples for each prompt before training.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from tests.data.test_rows import make_split
from tests.oracles.lists import token_logps
from tests.trainer.blade.blade_runs import DEFAULTS, first_batch
from trl_rec.evaluation.rewards import ListBatch
from trl_rec.items import ItemCatalog
from trl_rec.models import make_model, make_tokenizer
from trl_rec.trainer import BladeConfig, BladeTrainer


NUM_ITEMS, BEST_OF, COEFFICIENT, PRIOR = 4, 4, 0.3, 0.5
LISTS = list(permutations(range(NUM_ITEMS), 2))
# The reward of each list, indexed by prompt, first item and second item.
WORTH = np.stack([np.random.default_rng(seed).permutation(16).reshape(4, 4) for seed in (3, 4)]) / 15
CATALOG = ItemCatalog(
    pa.table({"item_id": list("abcd"), "title": [f"Thing {name}" for name in "abcd"]}), surface="item_token"
)
TOKENIZER = make_tokenizer(CATALOG)
TOKENS = [tokens.tolist() for tokens in CATALOG.surface_ids(TOKENIZER)]
CONVERGING = {"max_steps": 120, "optim": "adamw_torch", "adam_beta2": 0.99, "learning_rate": 0.007}
CONVERGING |= {"lr_scheduler_type": "linear", "max_grad_norm": 0.0, "num_generations": 64}


def worth(batch: ListBatch) -> np.ndarray:
    prompts = batch.histories.values  # each history is one item, 0 or 1
    return WORTH[prompts[:, None], batch.lists[..., 0], batch.lists[..., 1]]


def make_policy(spread: float, seed: int = 1) -> Any:
    """Makes a model whose lists have very different probabilities."""
    model = make_model(TOKENIZER, hidden_size=16, dropout=0.0, max_length=32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator) * (parameter.ndim > 1)
    return model


def make(output: Path, model: Any = None, **options: Any) -> BladeTrainer:
    ref_model = options.pop("ref_model", None)
    settings = {
        "list_length": 2,
        "eval_ks": [2],
        "rewards": {"worth": 1.0},
        "per_device_train_batch_size": 2,
        "max_length": 16,
    }
    settings |= {"num_references": 64, "best_of": BEST_OF, "eval_exclude_history": False, "logging_steps": 40}
    return BladeTrainer(
        make_policy(0.15) if model is None else model,
        ref_model,
        BladeConfig(str(output), **{**DEFAULTS, **settings, **options}),
        train_dataset=make_split([([0], [2, 3]), ([1], [2, 3])]),
        processing_class=TOKENIZER,
        catalog=CATALOG,
        reward_functions={"worth": worth},
    )


def list_logps(model: Any, prompt: int) -> Tensor:
    """Returns the log-probability of every list after a prompt, in float64, with a gradient."""
    tokens = [TOKENIZER.bos_token_id, *TOKENS[prompt]]
    return torch.stack([token_logps(model.eval(), tokens, TOKENS, chosen).sum() for chosen in LISTS]).double()


def laws(model: Any) -> list[Tensor]:
    """Returns the probability of every list, for each prompt."""
    with torch.no_grad():
        return [list_logps(model, prompt).exp() for prompt in (0, 1)]


def rewards(prompt: int) -> Tensor:
    return torch.tensor([WORTH[prompt][chosen] for chosen in LISTS])


def best_of_n(trainer: BladeTrainer, prompt: int, policy: Tensor, coefficient: float) -> Tensor:
    """Returns the learning target of each list, which is what training maximises apart from the KL penalty. The target
    depends on the reference lists and, with the weight `coefficient`, on the rollouts. Here, the probabilities of the
    policy replace the rollouts, as if infinitely many rollouts were drawn."""
    own, drawn = rewards(prompt).unsqueeze(1), trainer.train_dataset["references"][prompt]
    references = torch.tensor([WORTH[prompt][tuple(chosen)] for chosen in drawn])
    size = len(references) + 2 * PRIOR

    def estimate(lower: Any) -> Tensor:
        offline = (lower(references, own).sum(1) + PRIOR) / size
        return (1 - coefficient) * offline + coefficient * (lower(own.squeeze(1), own) * policy).sum(1)

    at_most, below = estimate(torch.le), estimate(torch.lt)
    return sum(at_most ** (BEST_OF - 1 - power) * below**power for power in range(BEST_OF)).log()


def tilted(start: Tensor, values: Tensor) -> Tensor:
    """Returns the policy that is proportional to `start * exp(values)`."""
    return (start.log() + values).softmax(0)


def fixed_point(trainer: BladeTrainer, prompt: int, start: Tensor) -> Tensor:
    """Returns the policy that equals `start` tilted by the policy's own learning targets."""
    policy = start
    for _ in range(300):
        policy = (policy * tilted(start, best_of_n(trainer, prompt, policy, COEFFICIENT))).sqrt()
        policy = policy / policy.sum()
    assert divergence(policy, tilted(start, best_of_n(trainer, prompt, policy, COEFFICIENT))) < 1e-12
    return policy


def divergence(one: Tensor, other: Tensor) -> float:
    """Returns the KL divergence KL(one || other)."""
    return float((one * (one / other).log()).sum())


@pytest.mark.slow
def test_best_of_n_converges_to_the_policy_tilted_by_the_reference_lists(tmp_path: Path) -> None:
    trainer = make(tmp_path, target="best_of_n", **CONVERGING)
    starts = laws(trainer.model)
    trainer.train()
    for prompt, (policy, start) in enumerate(zip(laws(trainer.model), starts, strict=True)):
        expected = tilted(start, best_of_n(trainer, prompt, start, 0.0))
        assert divergence(start, expected) > 0.5
        assert divergence(policy, expected) < 0.01


def test_blade_converges_to_its_fixed_point_and_not_to_the_policy_of_best_of_n(tmp_path: Path) -> None:
    trainer = make(tmp_path, target="blade", dynamic_coefficient=COEFFICIENT, **CONVERGING)
    starts = laws(trainer.model)
    trainer.train()
    for prompt, (policy, start) in enumerate(zip(laws(trainer.model), starts, strict=True)):
        expected, static = fixed_point(trainer, prompt, start), tilted(start, best_of_n(trainer, prompt, start, 0.0))
        assert divergence(policy, expected) < 0.01 < 0.03 < divergence(policy, static)
        assert float(policy @ rewards(prompt)) > float(static @ rewards(prompt)) + 0.02
        assert divergence(policy, start) > divergence(static, start) + 0.1


@pytest.mark.slow
def test_training_on_a_plain_reward_converges_to_the_policy_tilted_by_it(tmp_path: Path) -> None:
    options = {"target": "reward", "beta": 0.5, "standardize": False, "num_references": 0}
    trainer = make(tmp_path, **{**CONVERGING, **options, "max_steps": 80})
    starts = laws(trainer.model)
    trainer.train()
    for prompt, (policy, start) in enumerate(zip(laws(trainer.model), starts, strict=True)):
        expected = tilted(start, rewards(prompt) / 0.5)
        assert divergence(start, expected) > 0.1
        assert divergence(policy, expected) < 0.01


@pytest.mark.parametrize("target", ["best_of_n", pytest.param("reward", marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_the_reward_minus_the_kl(tmp_path: Path, target: str) -> None:
    """The gradient is averaged over many rollouts of a policy that differs from its reference. `beta` is neither 0 nor
    1."""
    options = {
        "target": target,
        "beta": 0.7,
        "standardize": False,
        "num_generations": 16,
        "ref_model": make_policy(0.15),
    }
    trainer = make(tmp_path, make_policy(0.2, seed=2), **options)
    inputs, model, drawn = first_batch(trainer), trainer.model, []
    starts, loss = laws(trainer.ref_model), torch.zeros(())
    for prompt in (0, 1):
        logps, start = list_logps(model, prompt), starts[prompt]
        values = rewards(prompt) if target == "reward" else best_of_n(trainer, prompt, start, 0.0)
        loss = loss - (logps.exp() * (values - 0.7 * (logps - start.log()).detach())).sum() / 2
    exact = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))]).double()
    for step in range(100):
        trainer.state.global_step = step
        grads = torch.autograd.grad(trainer.compute_loss(model, inputs), list(model.parameters()))
        drawn.append(torch.cat([grad.flatten() for grad in grads]).double())
    told = torch.stack(drawn)
    error = told.std(0) / len(told) ** 0.5
    z = ((told.mean(0) - exact) / error)[error > 1e-7]  # a token that is never read has no gradient
    assert len(z) > 3000 and z.abs().max() < 5 and z.square().mean() < 1.5
    assert (exact / error)[error > 1e-7].abs().max() > 20  # so the exact gradient is not 0
