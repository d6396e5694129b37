"""Tests what a BLADE step draws, what it computes from the rollouts, and how many steps learn from the same
rollouts."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracles import blade as oracle
from tests.oracles import metrics
from tests.oracles.lists import token_logps
from tests.trainer.blade.blade_runs import NUM_PROMPTS, drawn, first_batch, logged, make_trainer, other_model
from tests.trainer.runs import make_folder
from trl_rec.evaluation.torch_rewards import RewardTensors
from trl_rec.trainer import BladeTrainer
from trl_rec.trainer.base.sampling import RepeatedBatches
from trl_rec.trainer.blade.rollouts import Rollouts, rollout_metrics


ALL = {"per_device_train_batch_size": NUM_PROMPTS}  # every row in one batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rollouts")
    make_folder(path)
    return path


def worth(items: list[int], targets: list[int], history: list[int], shares: list) -> float:
    """Returns NDCG - 2 MGU of one list. MGU is the absolute difference between the share of a group in the list and
    its share in the history, averaged over the groups."""
    unfairness = metrics.mgu(metrics.group_share(items, shares), metrics.group_share(history, shares))
    return metrics.accuracy([items], [targets], len(items))[0][2] - 2 * unfairness


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_log_probabilities_equal_those_of_single_lists(
    folder: Path, tmp_path: Path, exclude: bool, temperature: float
) -> None:
    """The expected values are computed for one list at a time, without padding, under the policy and under a reference
    with other weights."""
    options = {"eval_exclude_history": exclude, "temperature": temperature, "num_generations": 3, "max_prompts": 4}
    trainer = make_trainer(folder, tmp_path, model=other_model(folder), ref_model="loaded", **options)
    inputs = first_batch(trainer)
    rollouts = drawn(trainer, inputs)
    paths = [trainer.prompt_format.paths[item].tolist() for item in range(len(trainer.catalog))]
    with torch.no_grad():
        for place, row in enumerate(inputs["row"].tolist()):
            prompt = trainer.train_dataset[row]["prompt_ids"]
            excluded = trainer.train_dataset[row]["history"] if exclude else []
            for k in range(3):
                chosen = tuple(rollouts.items[place, k].tolist())
                told = rollouts.old_logps[place, k], rollouts.ref_logps[place, k]
                for model, logp in zip((trainer.model.eval(), trainer.ref_model), told, strict=True):
                    expected = token_logps(model, prompt, paths, chosen, excluded, temperature).sum()
                    assert float(logp) == pytest.approx(float(expected), abs=1e-4)


def test_lists_contain_distinct_items_and_none_of_the_history(folder: Path, tmp_path: Path) -> None:
    histories = {}
    for exclude in (True, False):
        trainer = make_trainer(folder, tmp_path, eval_exclude_history=exclude, num_generations=24, **ALL)
        inputs = first_batch(trainer)
        for items in (drawn(trainer, inputs).items, inputs["references"]):
            assert (items.sort(-1).values.diff(dim=-1) > 0).all()
            assert items.min() >= 0 and items.max() < len(trainer.catalog)
            known = (items.unsqueeze(-1) == inputs["history"][:, None, None]).any(-1)
            histories.setdefault(exclude, []).append(bool(known.any()))
    assert histories == {True: [False, False], False: [True, True]}


def test_a_low_temperature_draws_likelier_lists(folder: Path, tmp_path: Path) -> None:
    likely = []
    for temperature in (0.05, 1.0, 20.0):
        trainer = make_trainer(folder, tmp_path, model=other_model(folder), temperature=temperature, **ALL)
        inputs = first_batch(trainer)
        items = drawn(trainer, inputs).items
        trainer.args.temperature = 1.0
        likely.append(
            [trainer._logps(trainer.model, inputs, some).mean().item() for some in (items, inputs["references"])]
        )
    for low, middle, high in zip(*likely, strict=True):
        assert low > middle + 0.05 and middle > high + 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"target": "blade", "dynamic_coefficient": 0.25},
        {"target": "best_of_n", "prior": 2.0},
        {"target": "rank", "best_of": 3},
        {"target": "blade", "standardize": True, "beta": 0.1},
        {"target": "reward"},
        {"target": "reward", "beta": 0.5, "standardize": False, "num_references": 0},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_advantages_agree_with_loops(folder: Path, tmp_path: Path, options: dict) -> None:
    """The expected rewards, learning targets and advantages are computed in loops, one prompt at a time, from the
    items and the log-probabilities of the rollouts. The learning target of a rollout is what the policy learns to
    maximise, apart from the KL penalty."""
    rewards = {"ndcg": 1.0, "mgu": 2.0}
    trainer = make_trainer(folder, tmp_path, model=other_model(folder), ref_model="loaded", rewards=rewards, **options)
    inputs, shares, args = first_batch(trainer), trainer.catalog.group_shares()[1].tolist(), trainer.args
    rollouts = drawn(trainer, inputs)
    coefficient = {"blade": options.get("dynamic_coefficient", 0.3), "best_of_n": 0.0, "rank": 1.0}.get(args.target)
    beta = options.get("beta", 0.001 if args.target == "reward" else 1.0)
    for place, row in enumerate(inputs["row"].tolist()):
        targets, history = (trainer.train_dataset[row][name] for name in ("targets", "history"))
        for items, told in (
            (rollouts.items[place], rollouts.rewards.total[place]),
            (
                inputs["references"][place] if args.num_references else torch.empty(0, 3),
                rollouts.reference_rewards[place],
            ),
        ):
            assert told.tolist() == pytest.approx(
                [worth(one, targets, history, shares) for one in items.tolist()], abs=1e-6
            )
        own, references = rollouts.rewards.total[place].tolist(), rollouts.reference_rewards[place].tolist()
        values = own
        if coefficient is not None:
            pairs = oracle.posterior_cdf(own, references, Fraction(coefficient), Fraction(args.prior))
            values = [oracle.best_of_n_reward(*pair, int(args.best_of)) for pair in pairs]
        assert rollouts.targets[place].tolist() == pytest.approx(values, abs=1e-5)
        log_ratio = (rollouts.old_logps - rollouts.ref_logps)[place].tolist()
        values = [value - beta * ratio for value, ratio in zip(values, log_ratio, strict=True)]
        expected = oracle.standardized(values, 1e-4) if args.standardize else oracle.leave_one_out(values)
        assert rollouts.advantages[place].tolist() == pytest.approx(expected, abs=1e-4)
    assert (rollouts.old_logps - rollouts.ref_logps).abs().max() > 0.1


def test_the_advantages_of_a_prompt_do_not_depend_on_its_batch(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, model=other_model(folder), ref_model="loaded", max_prompts=8)
    trainer.draw_references()
    rows = list(trainer.train_dataset)
    together = drawn(trainer, trainer.data_collator(rows))
    alone = [drawn(trainer, trainer.data_collator([row])) for row in rows]
    assert len({len(row["prompt_ids"]) for row in rows}) > 3  # so that padding differs
    assert torch.equal(torch.cat([one.items for one in alone]), together.items)
    assert torch.allclose(torch.cat([one.advantages for one in alone]), together.advantages, atol=1e-4)
    assert len(together.items.flatten(1).unique(dim=0)) == 8


def test_each_step_draws_different_rollouts(folder: Path, tmp_path: Path) -> None:
    trainer, drawn_items = make_trainer(folder, tmp_path, **ALL), []
    inputs = first_batch(trainer)
    for step, seed in ((0, 42), (1, 42), (0, 43), (0, 42)):
        trainer.state.global_step, trainer.args.seed = step, seed
        drawn_items.append(drawn(trainer, inputs).items)
    again = drawn_items.pop()
    assert torch.equal(again, drawn_items[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (drawn_items[one] != drawn_items[other]).any(-1).float().mean() > 0.9
    # The 8 reference lists of a prompt are drawn with another seed than its 8 rollouts, so they differ too.
    assert (inputs["references"] != drawn_items[0]).any(-1).float().mean() > 0.9


def test_a_second_training_draws_from_its_current_policy(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, max_steps=1, learning_rate=0.5)
    trainer.train(), trainer.train()
    assert logged(trainer, "blade/ratio") == [1.0] and logged(trainer, "kl")[0] != 0.0


def test_several_steps_on_the_same_rollouts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts are drawn once for two steps of two batches each. In the second step, the probability ratios are no
    longer 1, and some are clipped."""
    seen, valued, compute = [], [], BladeTrainer.compute_loss
    value = BladeTrainer._valued

    def watch(self: BladeTrainer, model: Any, inputs: dict, *given: Any, **options: Any) -> Any:
        seen.append((self.state.global_step, inputs["row"].tolist()))
        return compute(self, model, inputs, *given, **options)

    monkeypatch.setattr(BladeTrainer, "compute_loss", watch)
    monkeypatch.setattr(BladeTrainer, "_valued", lambda *given: valued.append(value(*given)) or valued[-1])
    options = {"num_iterations": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "learning_rate": 0.5}
    # An epoch has one global batch of 8 rows. Three of the 11 rows are left over.
    trainer = make_trainer(folder, tmp_path, **options, max_prompts=11)
    trainer.train()
    steps = [[rows for at, rows in seen if at == step] for step in range(6)]
    assert [len(rows) for rows in steps] == [2] * 6 and len(valued) == 6
    assert all(first == second for first, second in zip(steps[::2], steps[1::2], strict=True))
    epochs = [frozenset(sum(rows, [])) for rows in steps[::2]]
    assert all(len(rows) == 8 for rows in epochs) and len(set(epochs)) > 1
    ratio, clipped = logged(trainer, "blade/ratio"), logged(trainer, "blade/clipped")
    assert ratio[::2] == [1.0] * 3 and clipped[::2] == [0.0] * 3
    assert all(abs(one - 1) > 1e-3 for one in ratio[1::2]) and all(one > 0.05 for one in clipped[1::2])
    for name in ("reward", "kl", "blade/quantile"):
        told = logged(trainer, name)
        assert told[::2] == told[1::2] and len(set(told)) == 3
    assert any(abs(loss) > 1e-3 for loss in logged(trainer, "loss")[1::2])


def test_each_global_batch_is_repeated_num_iterations_times() -> None:
    batches = RepeatedBatches(11, 4, 3, seed=5)
    order = list(batches)
    assert len(order) == len(batches) == 24
    first, second = order[:4], order[12:16]
    assert order == first * 3 + second * 3 and len({*first, *second}) == 8 <= 11
    assert list(batches) == order != list(RepeatedBatches(11, 4, 3, seed=6))
    batches.set_epoch(1)
    assert len(list(batches)) == 24 and list(batches) != order
    assert sorted(RepeatedBatches(8, 4, 1, seed=0)) == list(range(8))
    with pytest.raises(ValueError, match="one batch needs 4 rows, but the number of rows is 3; use smaller"):
        RepeatedBatches(3, 4, 2, seed=0)


def test_the_data_seed_determines_the_order_of_rows(folder: Path, tmp_path: Path) -> None:
    told = []
    for data_seed in (0, 1, None, 42):
        trainer = make_trainer(folder, tmp_path, num_iterations=2, data_seed=data_seed)
        told.append(list(trainer._get_train_sampler()))
    assert told[0] != told[1] != told[2] == told[3] != told[0]  # None means the seed, which is 42


@pytest.mark.parametrize("num_references", [0, 1, 5])
def test_metrics_agree_with_a_slow_loop(num_references: int) -> None:
    draw, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    num_rows, num_rollouts, num_items = 7, 4, 6
    items = torch.from_numpy(draw.integers(-1, num_items + 1, (num_rows, num_rollouts, 3)))  # some are not items
    parts = {name: torch.from_numpy(draw.integers(0, 3, (num_rows, num_rollouts)) / 2) for name in ("ndcg", "own")}
    references = torch.from_numpy(draw.integers(0, 5, (num_rows, num_references)) / 2)
    logps, ref_logps, targets = (torch.randn(num_rows, num_rollouts, generator=generator) for _ in range(3))
    targets = targets.round()
    targets[2] = targets[2, 0]  # a prompt whose rollouts all have the same learning target
    rewards = RewardTensors(parts["ndcg"] + parts["own"], parts)
    rollouts = Rollouts(items, rewards, references, targets, ref_logps, logps, logps)
    told = rollout_metrics(rollouts, num_items)
    for row in range(num_rows):
        expected = slow_metrics(rollouts, row, num_items)
        assert expected.keys() == told.keys()
        for name, value in expected.items():
            assert float(told[name][row]) == pytest.approx(value, abs=1e-6), name
    assert ("blade/quantile" in told) == (num_references > 0)
    assert bool(told["blade/dead_groups"][2]) and not told["blade/dead_groups"].all()


def slow_metrics(rollouts: Rollouts, row: int, num_items: int) -> dict[str, float]:
    """Returns the metrics of one prompt, computed in loops over its lists."""
    count, total = len(rollouts.items[row]), rollouts.rewards.total[row].tolist()
    found = {"reward": sum(total) / count}
    found |= {f"rewards/{name}": sum(values[row].tolist()) / count for name, values in rollouts.rewards.parts.items()}
    ratios = [
        float(ours - theirs) for ours, theirs in zip(rollouts.old_logps[row], rollouts.ref_logps[row], strict=True)
    ]
    found["kl"] = sum(ratios) / count
    found["blade/kl_k3"] = sum(np.exp(-ratio) - 1 + ratio for ratio in ratios) / count
    found["blade/logps"] = float(sum(rollouts.old_logps[row])) / count
    targets = rollouts.targets[row].tolist()
    found["blade/target_std"] = np.std(targets)
    pairs = [(i, k) for i in range(count) for k in range(count) if i != k]
    found["blade/tied_pairs"] = sum(targets[i] == targets[k] for i, k in pairs) / len(pairs)
    found["blade/dead_groups"] = float(len(set(targets)) == 1)
    others = [[targets[k] for k in range(count) if k != i] for i in range(count)]
    found["blade/zero_advantages"] = (
        sum(sum(rest) == own * len(rest) for own, rest in zip(targets, others, strict=True)) / count
    )
    references = rollouts.reference_rewards[row].tolist()
    if len(references):
        beaten = [sum(1.0 * (other < own) + 0.5 * (other == own) for other in references) for own in total]
        found["blade/quantile"] = sum(beaten) / count / len(references)
        found["blade/saturated"] = sum(own >= max(references) for own in total) / count
    lists = rollouts.items[row].tolist()
    found["blade/invalid"] = sum(not 0 <= item < num_items for some in lists for item in some)
    found["blade/duplicates"] = sum(len(some) - len(set(some)) for some in lists)
    return found
