"""On a simulated device, the main code paths give the same results as on the CPU, and no operation mixes devices.

Each case is a function of `move`, which moves tensors, tries and models to the simulated device, or leaves them on the
CPU for comparison. Everything that is not moved, such as the argument `exclude`, stays on the host, as in a trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from traceback import format_exc
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.conftest import make_model
from tests.evaluation.logs import make_split
from tests.pretend_device import AVAILABLE, NAME, make_pretend_device
from tests.processes import run_alone
from trl_rec import TokenTrie, rank_candidates, rank_items
from trl_rec.data import PromptFormat, RecDataset
from trl_rec.decoding import TrieLogitsProcessor, list_logps, list_tokens, sample_item_lists
from trl_rec.decoding.lists.beams import beam_list
from trl_rec.decoding.priors import fit_prior
from trl_rec.evaluation import Policy
from trl_rec.evaluation.prior_choice import choose_prior
from trl_rec.items import ItemCatalog
from trl_rec.losses import (
    bear_loss,
    best_of_n_reward,
    dmpo_loss,
    leave_one_out,
    list_policy_loss,
    permutation_loss,
    posterior_cdf,
    soft_lambda_loss,
    softmax_dpo_loss,
    standardized,
)
from trl_rec.models import completion_logps, legal_completion_logps, read_completions
from trl_rec.models import make_tokenizer as make_scratch_tokenizer
from trl_rec.ragged import Ragged


pytestmark = [
    pytest.mark.slow,  # it starts processes
    pytest.mark.skipif(not AVAILABLE, reason="this version of torch does not support backends in Python"),
]

Move = Callable[[Any], Any]
Case = Callable[[Move], list[Tensor]]
EOS, END = 1, 2
# These titles contain chains of forced tokens (each is the only legal one), a title that is the beginning of another
# title, and two items with the same path.
TITLES = [[30, 31, 5, END], [30, 31, 5, 8, 8, END], [30, 31, 5, 8, 8, END], [30, 31, 7, 9, 9, END], [6, 5, END]]
EQUALLY_LONG = [[5, 11, 20], [5, 11, 21], [5, 12, 20], [6, 11, 20], [6, 13, 22]]
PROMPTS = {
    "input_ids": torch.tensor([[0, 3, 14, 15], [26, 5, 35, 8]]),
    "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
}
EXCLUDED = [[1], []]


def trie(move: Move) -> list[Tensor]:
    """Calls methods of the trie with nodes and tokens, and looks up nodes in tensors that the trie computes once."""
    tree = move(TokenTrie.from_sequences(TITLES))
    nodes = move(torch.tensor([[0, 1], [3, -1]]))
    known = nodes.clamp(min=0)
    texts = move(torch.tensor([[30, 31, 5, END], [30, 31, 31, 5]]))
    return [
        *tree.children(nodes),
        tree.walk(texts),
        tree.last_tokens(known, 2),
        tree.forced_ends[known],
        tree.lowest_items[known],
        tree.above(known, known),
        tree.items_at(tree.leaves[0]),
    ]


def processor(move: Move) -> list[Tensor]:
    """Runs the logits processor. Its trie is made on the CPU, and the processor moves it to the device of the
    scores."""
    constrain = TrieLogitsProcessor(TokenTrie.from_sequences(TITLES), 1, eos_token_id=EOS, exclude=EXCLUDED)
    return [constrain(move(torch.tensor([[3, 30, 31], [3, 6, 5]])), move(torch.linspace(-1, 1, 80).view(2, 40)))]


def beam_search(move: Move, *, family: str, paths: list[list[int]]) -> list[Tensor]:
    return [*rank_items(_model(move, family), PROMPTS, TokenTrie.from_sequences(paths), num_beams=3, exclude=EXCLUDED)]


def whole_vocabulary(move: Move) -> list[Tensor]:
    options = {"num_beams": 2, "top_k": 4, "renormalize": False, "length_penalty": 1.0}
    return [*rank_items(_model(move), PROMPTS, TokenTrie.from_sequences(TITLES), **options)]


def list_sampling(move: Move, *, family: str, paths: list[list[int]], greedy: bool) -> list[Tensor]:
    options = {"num_lists": 2, "list_length": 3, "exclude": EXCLUDED, "seed": 4, "greedy": greedy}
    return [*sample_item_lists(_model(move, family), PROMPTS, TokenTrie.from_sequences(paths), **options)]


def list_search(move: Move) -> list[Tensor]:
    tree = TokenTrie.from_sequences(TITLES)
    return [*beam_list(_model(move), PROMPTS, tree, list_length=3, num_beams=2, exclude=EXCLUDED)]


def candidate_ordering(move: Move, *, single_pass: bool) -> list[Tensor]:
    names = torch.tensor([[3, 4, 5], [7, 6, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return [*rank_candidates(_model(move), PROMPTS, names, mask, single_pass=single_pass)]


def bear(move: Move) -> list[Tensor]:
    logits = move(torch.linspace(-3, 3, 12).view(3, 4)).requires_grad_()
    target = move(torch.tensor([0, 3, 1]))
    legal = move(torch.tensor([[True, False, True, True], [True] * 4, [False, True, False, False]]))
    return _with_gradient(bear_loss(logits, target, legal, num_beams=2, weight=0.5, sharpness=2.0), logits)


def blade(move: Move) -> list[Tensor]:
    """Computes BLADE's Best-of-N rewards and its loss. The rewards are on the device, as in a trainer."""
    rewards = move(torch.tensor([[0.1, 0.5, 0.5], [0.0, 1.0, 0.2]], dtype=torch.float64))
    references = move(torch.tensor([[0.2, 0.5], [0.3, 0.3]], dtype=torch.float64))
    at_most, below = posterior_cdf(rewards, references, dynamic_coefficient=0.5)
    targets = best_of_n_reward(at_most, below, best_of=4.0)
    logps = move(torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -1.0, -1.5]], dtype=torch.float64)).requires_grad_()
    output = list_policy_loss(logps, logps.detach() - 0.3, leave_one_out(targets) + standardized(targets))
    return [at_most, targets, *_with_gradient(output, logps)]


def alro(move: Move) -> list[Tensor]:
    logps = move(torch.linspace(-2, 2, 18).view(2, 3, 3)).requires_grad_()
    ratings = move(torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, 0.0]]))
    gold_rank = move(torch.tensor([[2, 0, 1], [1, 0, 2]]))
    mask = move(torch.tensor([[True, True, True], [True, True, False]]))
    by_place = soft_lambda_loss(logps, ratings, gold_rank, mask, delta="model")
    by_order = permutation_loss(logps, logps.flip(1), mask)
    return [*_with_gradient(by_place, logps), *_with_gradient(by_order, logps)]


def softmax_dpo(move: Move) -> list[Tensor]:
    """Computes the losses of Softmax-DPO and of its variant DMPO."""
    logratios = move(torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.2, 0.9]])).requires_grad_()
    mask = move(torch.tensor([[True, True], [True, False]]))
    outputs = [loss(logratios[:, 0], logratios[:, 1:], mask, beta=0.7) for loss in (softmax_dpo_loss, dmpo_loss)]
    return [part for output in outputs for part in _with_gradient(output, logratios)]


def shared_rows(move: Move, *, family: str) -> list[Tensor]:
    """Computes the log-probabilities of lists in three ways, and the gradient of their sum.

    The softmax is over the vocabulary, over the legal tokens, or over the legal tokens of items that are neither
    earlier in the list nor excluded. The model family decides whether the completions of a prompt share one row.
    """
    model = _model(move, family)
    tree = move(TokenTrie.from_sequences(EQUALLY_LONG))
    items = move(torch.tensor([[[0, 3], [4, 1]], [[2, 0], [3, 4]]]))
    lists = list_tokens(tree, items)
    prompts = (move(PROMPTS["input_ids"]), move(PROMPTS["attention_mask"]).bool())
    read = read_completions(model, *prompts, lists.token_ids, lists.mask, scored=lists.branches)
    logps = [
        completion_logps(read, lists.token_ids, lists.branches),
        legal_completion_logps(read, lists.token_ids, lists.branches, tree, lists.nodes),
        list_logps(read, items, tree, exclude=[[2], []], temperature=2.0),
    ]
    total = torch.stack([part.sum() for part in logps]).sum()
    return [*logps, *torch.autograd.grad(total, list(model.parameters()))]


def prior_choice(move: Move, *, surface: str, kind: str, list_length: int | None = None) -> list[Tensor]:
    """Chooses the setting of a prior (its strength and `eps`, see docs/priors.md), as `trl-rec evaluate` does. Only
    the model is on the device."""
    ids = [f"i{number}" for number in range(6)]
    codes = Ragged.from_lists([[f"<a_{number % 2}>", f"<b_{number // 2}>"] for number in range(6)], object)
    catalog = ItemCatalog(pa.table({"item_id": ids, "title": ids})).with_surface(surface, codes)
    tokenizer = make_scratch_tokenizer(catalog)
    rows = make_split([(0, [0, 1], [2]), (1, [3], [4, 5])])
    dataset = RecDataset(Path(), catalog, pa.table({"user_id": ["a", "b"]}), rows, rows, rows, {})
    policy = Policy(
        _model(move),
        PromptFormat.for_catalog(catalog, tokenizer, list_length=list_length),
        TokenTrie.from_catalog(catalog, tokenizer, lists=list_length is not None),
        pad_token_id=0,
    )
    prior, choice = choose_prior(policy, dataset, fit_prior(kind, dataset), k=2)
    alone = replace(policy, prior=prior).rank_by_prior(rows, 2)
    exact = [] if list_length else [replace(policy, prior=prior).rank_exhaustively(rows, 2)]
    values = torch.tensor([one["value"] for one in choice.grid])
    return [move(values), *(move(torch.from_numpy(one.items)) for one in (alone, *exact))]


CASES: dict[str, Case] = {
    "trie": trie,
    "processor": processor,
    "beam search, chains": partial(beam_search, family="llama", paths=TITLES),
    "beam search, equal lengths": partial(beam_search, family="qwen3", paths=EQUALLY_LONG),
    "beam search, a cache row per beam": partial(beam_search, family="mistral-window", paths=EQUALLY_LONG),
    "beam search, whole vocabulary": whole_vocabulary,
    "list sampling, chains": partial(list_sampling, family="llama", paths=TITLES, greedy=False),
    "list sampling, equal lengths": partial(list_sampling, family="gpt2", paths=EQUALLY_LONG, greedy=False),
    "greedy list": partial(list_sampling, family="llama", paths=TITLES, greedy=True),
    "beam search over lists": list_search,
    "candidate ordering": partial(candidate_ordering, single_pass=False),
    "candidate ordering, single pass": partial(candidate_ordering, single_pass=True),
    "BEAR": bear,
    "BLADE": blade,
    "ALRO": alro,
    "Softmax-DPO": softmax_dpo,
    "shared rows": partial(shared_rows, family="llama"),
    "separate rows": partial(shared_rows, family="mistral-window"),
    "setting of a prior, all items scored": partial(prior_choice, surface="item_token", kind="transition"),
    "setting of a prior, best items re-ranked": partial(prior_choice, surface="semantic_id", kind="transition"),
    "setting of a prior, lists": partial(prior_choice, surface="item_token", kind="popularity", list_length=2),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The traceback of each case, or "" if the case passes. One process runs all cases, because starting a process
    takes longer than the cases."""
    output = tmp_path_factory.mktemp("pretend") / "outcomes"
    run_alone(run_all, output)
    return torch.load(output)


@pytest.mark.parametrize("name", CASES)
def test_results_equal_those_of_the_cpu(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


def test_a_planted_mismatch_is_caught(tmp_path: Path) -> None:
    run_alone(plant, tmp_path / "run")


def run_all(output: Path) -> None:
    """Compares the results of each case on the two devices, and saves the tracebacks of failures."""
    device = make_pretend_device()  # before the first backward pass, which starts a thread per device
    outcomes = dict.fromkeys(CASES, "")
    for name, case in CASES.items():
        try:
            assert_same(case(lambda anything: anything.to(device)), case(lambda anything: anything), device)
        except Exception:
            outcomes[name] = format_exc()
    torch.save(outcomes, output)


def assert_same(found: list[Tensor], expected: list[Tensor], device: torch.device) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.device == device
        largest = float(other.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if other.is_floating_point() else 0.0
        # The CPU has an attention kernel of its own, which rounds differently.
        assert_close(one.detach().cpu(), other.detach(), atol=1e-5 * max(1.0, largest), rtol=1e-5)


def plant(output: Path) -> None:
    """Mixes devices on purpose, with a different argument on the CPU each time."""
    device = make_pretend_device()
    on_device = TokenTrie.from_sequences(TITLES).to(device)
    node = torch.tensor([0, 1])
    mixed: list[Callable[[], object]] = [
        lambda: on_device.children(node),
        lambda: TokenTrie.from_sequences(TITLES).children(node.to(device)),
        lambda: bear_loss(torch.ones(2, 3, device=device), node, None, num_beams=1, weight=1.0, sharpness=1.0),
        lambda: make_model().to(device)(input_ids=PROMPTS["input_ids"]),
    ]
    for attempt in mixed:
        with pytest.raises(RuntimeError, match=f"mixes tensors of the CPU and of {NAME}"):
            attempt()
    with pytest.raises(RuntimeError, match="numpy"):
        node.to(device).numpy()


def _model(move: Move, family: str = "llama") -> Any:
    return move(make_model(family))


def _with_gradient(output: Any, leaf: Tensor) -> list[Tensor]:
    return [output.loss, *output.metrics.values(), *torch.autograd.grad(output.loss.sum(), leaf)]
