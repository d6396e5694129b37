"""Beam search over a catalogue: the items that a model would write next, best first.

The search is `generate`'s: all beams of a prompt advance one token at a time, the best `num_beams` candidates of each
step survive, and a candidate that ends an item among them joins the finished ones. It differs in what it does not do.
It gathers the children of the beams' trie nodes and never masks the vocabulary, never loops over beams in Python, and
keeps one copy of the prompt. Over the legal tokens (`renormalize=True`) a token that is the only legal one costs
nothing, so a beam in such a forced chain keeps slot and score, and the model reads the chain in one go when the beam
next branches. Prompts do not wait for each other: each round handles every prompt's next branching. Where chains are
skipped, a round reads four integers back from the device to size its forward pass, which saves many forward passes;
elsewhere the loop reads nothing back.

Legend: B prompts, K beams, A active beams (those that branch now), C children (padded), E excluded items, N
candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.prompt_cache import Pending, SeparateRows, SharedPrompt, open_cache
from trl_rec.items.trie import TokenTrie


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RankedItems(NamedTuple):
    """Items by descending score, `(B, top_k)` each. A rank that no item fills holds item -1 and score -inf."""

    items: Tensor
    scores: Tensor


@torch.no_grad()
def rank_items(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    num_beams: int,
    top_k: int | None = None,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    renormalize: bool = True,
    length_penalty: float = 0.0,
) -> RankedItems:
    """The best items for each prompt, by beam search under the trie. The model's own `generation_config` plays no
    part.

    Args:
        model: A decoder-only causal language model with a key-value cache.
        prompts: `input_ids` and `attention_mask` of shape `(B, P)`, padded on the left.
        trie: The catalogue, in the model's vocabulary.
        num_beams: Width of the search. As wide as the catalogue, every item is scored.
        top_k (*optional*, defaults to `num_beams`): Ranks to return; `num_beams` paths fill as many, and more where
            items share a path and take a rank each.
        exclude (*optional*): Items to leave out, one list a prompt, or `(B, E)` padded with -1. They, and subtrees
            they leave empty, are taken out after the softmax, which is not renormalised, so that the other items keep
            their order.
        renormalize: Whether scores are log-probabilities over the legal tokens (what training under the trie fits), or
            over the whole vocabulary.
        length_penalty: Scores are divided by the number of generated tokens, EOS included, to this power.
    """
    top_k = num_beams if top_k is None else top_k
    input_ids, attention_mask = checked_prompts(model, prompts, trie, num_beams, top_k)
    trie = trie.to(input_ids.device)
    excluded = Excluded(trie, exclude, len(input_ids))
    with evaluating(model):
        cache = open_cache(model, input_ids, attention_mask, trie.max_depth)
        finished = _search(cache, trie, excluded, num_beams, renormalize, length_penalty)
    if bool(finished.scores.isnan().any()):
        raise ValueError("the model's logits hold NaN; its weights are broken or its number format is too small")
    return _rank_leaves(finished, trie, excluded, top_k)


class _Beams(NamedTuple):
    """Hypotheses of shape `(B, K)`: trie node, log-probability (-inf: none), and how many tokens of it the model has
    read.

    A node is where the hypothesis can next branch, or its leaf: forced tokens are taken at once where chains are
    skipped.
    """

    nodes: Tensor
    scores: Tensor
    read: Tensor

    def gather(self, index: Tensor) -> _Beams:
        """The beams at `index` `(B, K')`."""
        return _Beams(*(tensor.gather(1, index) for tensor in self))


class _Finished(NamedTuple):
    """Leaves and their final scores, `(B, at most num_beams)`, best first."""

    nodes: Tensor
    scores: Tensor


def _search(
    cache: SharedPrompt | SeparateRows,
    trie: TokenTrie,
    excluded: Excluded,
    num_beams: int,
    renormalize: bool,
    length_penalty: float,
) -> _Finished:
    skips = renormalize and cache.shared and 1 in trie.depth_widths
    root = torch.zeros(len(cache.logits), 1, dtype=torch.int64, device=cache.logits.device)
    start = trie.forced_ends[root].long() if skips else root
    beams = _Beams(start, torch.where(excluded.emptied(root), -torch.inf, 0.0), root)
    finished = _Finished(root[:, :0], beams.scores[:, :0])
    for depth in range(trie.max_depth):
        event, landed = _next_event(trie, beams)
        finished = _keep_best(finished, trie, beams, landed, num_beams, length_penalty)
        beams = _without_hopeless(beams, landed, finished, num_beams, length_penalty)
        active = (beams.scores > -torch.inf) & (trie.depths(beams.nodes) == event)
        pending, width = _pending(trie, beams, active, depth, skips)
        if not pending.num_active:
            break
        if depth == 0 and not (skips and trie.depth_widths[0] == 1):
            logits, slots, counts = cache.logits, root, active
        else:
            logits, slots, counts = cache.extend(pending)
        logps, children = _child_logps(trie, logits, beams.nodes.gather(1, slots), width, renormalize)
        candidates, parents = _candidates(trie, beams, active, slots, counts, logps, children, excluded, skips)
        ending = _is_leaf(trie, candidates.nodes) & (trie.depths(candidates.nodes) == event + 1)
        chosen = best_first(candidates.scores, trie.lowest_items[candidates.nodes], num_beams)
        finished = _keep_best(
            finished, trie, candidates.gather(chosen), ending.gather(1, chosen), num_beams, length_penalty
        )
        running = candidates.scores.masked_fill(ending, -torch.inf)
        chosen = best_first(running, trie.lowest_items[candidates.nodes], num_beams)
        beams = candidates._replace(scores=running).gather(chosen)
        cache.reorder(parents.gather(1, chosen))
    return _keep_best(finished, trie, beams, _is_leaf(trie, beams.nodes), num_beams, length_penalty)


def _is_leaf(trie: TokenTrie, nodes: Tensor) -> Tensor:
    return trie.row_offsets[nodes] == trie.row_offsets[nodes + 1]


def _next_event(trie: TokenTrie, beams: _Beams) -> tuple[Tensor, Tensor]:
    """`(B, 1)`: the depth at which a beam of the prompt next branches; and which beams `(B, K)` have ended before that
    step."""
    alive, leaf, depths = beams.scores > -torch.inf, _is_leaf(trie, beams.nodes), trie.depths(beams.nodes)
    never = trie.max_depth + 1
    event = torch.where(alive & ~leaf, depths, never).amin(1, keepdim=True)
    return event, alive & leaf & (depths <= event)


def _keep_best(
    finished: _Finished, trie: TokenTrie, beams: _Beams, ended: Tensor, num_beams: int, length_penalty: float
) -> _Finished:
    """The best `num_beams` of those finished before and the beams that have `ended` now."""
    scores = beams.scores.masked_fill(~ended, -torch.inf)
    if length_penalty:
        scores = scores / trie.depths(beams.nodes).clamp(min=1) ** length_penalty
    nodes, scores = torch.cat([finished.nodes, beams.nodes], 1), torch.cat([finished.scores, scores], 1)
    chosen = best_first(scores, trie.lowest_items[nodes], num_beams)
    return _Finished(nodes.gather(1, chosen), scores.gather(1, chosen))


def _without_hopeless(
    beams: _Beams, landed: Tensor, finished: _Finished, num_beams: int, length_penalty: float
) -> _Beams:
    """Drops beams that have landed, and those that can only end below the worst of `num_beams` finished ones. With a
    length penalty a longer hypothesis may still gain, so all stay."""
    scores = beams.scores.masked_fill(landed, -torch.inf)
    if finished.scores.shape[1] == num_beams and not length_penalty:
        scores = scores.masked_fill(scores < finished.scores[:, -1:], -torch.inf)
    return beams._replace(scores=scores)


def _pending(trie: TokenTrie, beams: _Beams, active: Tensor, depth: int, skips: bool) -> tuple[Pending, int]:
    """What the model reads next, and the most children of the nodes it will be asked about."""
    depths = trie.depths(beams.nodes)
    lengths = depths - beams.read
    if skips:  # the one read from the device in a round
        widths = trie.row_offsets[beams.nodes + 1] - trie.row_offsets[beams.nodes]
        inner = torch.where(active, lengths - 1, 0).clamp(min=0).sum(1).amax()
        sizes = [
            active.sum(1).amax(),
            inner,
            torch.where(active, lengths, 0).amax(),
            torch.where(active, widths, 0).amax(),
        ]
        num_active, num_inner, longest, width = torch.stack(sizes).tolist()
    else:
        num_active, num_inner, longest, width = active.shape[1], 0, 1, trie.depth_widths[depth]
    tokens, nodes = [], beams.nodes
    for _ in range(longest):  # from the last token of each chain upwards
        tokens.append(trie.child_tokens[(nodes - 1).clamp(min=0)].long())
        nodes = trie.parents[nodes].long()
    chain = torch.stack(tokens[::-1], -1) if tokens else active.new_empty(*active.shape, 0, dtype=torch.int64)
    return Pending(chain, lengths, depths, active, num_active, num_inner), width


def _child_logps(
    trie: TokenTrie, logits: Tensor, nodes: Tensor, width: int, renormalize: bool
) -> tuple[Tensor, Tensor]:
    """Log-probability of each child `(B, A, C)`, -inf where there is none, and the child nodes."""
    tokens, children, legal = trie.children(nodes, width)
    scores = logits.gather(-1, tokens).float().masked_fill(~legal, -torch.inf)
    normalizer = scores.logsumexp(-1, keepdim=True) if renormalize else logits.float().logsumexp(-1, keepdim=True)
    return torch.where(legal, scores - normalizer, -torch.inf), children


def _candidates(
    trie: TokenTrie,
    beams: _Beams,
    active: Tensor,
    slots: Tensor,
    counts: Tensor,
    logps: Tensor,
    children: Tensor,
    excluded: Excluded,
    skips: bool,
) -> tuple[_Beams, Tensor]:
    """The children of the active beams and the beams that wait in a forced chain, `(B, A * C + K)`, and the slot each
    comes from."""
    branching = beams.gather(slots)
    scores = torch.where(counts, branching.scores, -torch.inf).unsqueeze(-1) + logps
    scores = scores.flatten(1).masked_fill(excluded.emptied(children.flatten(1)), -torch.inf)
    nodes = trie.forced_ends[children].long() if skips else children
    read = trie.depths(branching.nodes).unsqueeze(-1).expand_as(children)
    waiting = beams._replace(scores=beams.scores.masked_fill(active, -torch.inf))
    grown = _Beams(nodes.flatten(1), scores, read.flatten(1))
    own = torch.arange(active.shape[1], device=slots.device).expand_as(active)
    parents = torch.cat([slots.unsqueeze(-1).expand_as(children).flatten(1), own], 1)
    return _Beams(*(torch.cat(pair, 1) for pair in zip(grown, waiting, strict=True))), parents


def _rank_leaves(finished: _Finished, trie: TokenTrie, excluded: Excluded, top_k: int) -> RankedItems:
    """Each leaf's items in catalogue order, a rank each, without the excluded ones."""
    num_prompts, width = len(finished.nodes), min(trie.max_shared, top_k + excluded.places.shape[1])
    starts, ends = trie.item_starts[finished.nodes].unsqueeze(-1), trie.item_ends[finished.nodes].unsqueeze(-1)
    places = (starts + torch.arange(width, device=starts.device)).flatten(1)
    kept = places < ends.expand(-1, -1, width).flatten(1)
    places = torch.where(kept, places, 0)
    kept &= excluded.count(places, places + 1) == 0
    scores = finished.scores.unsqueeze(-1).expand(-1, -1, width).flatten(1).masked_fill(~kept, -torch.inf)
    items = trie.items[places].long()
    chosen = best_first(scores, items, top_k)
    ranked = (
        torch.full((num_prompts, top_k), -1, device=items.device),
        scores.new_full((num_prompts, top_k), -torch.inf),
    )
    scores = scores.gather(1, chosen)
    ranked[0][:, : chosen.shape[1]] = torch.where(scores > -torch.inf, items.gather(1, chosen), -1)
    ranked[1][:, : chosen.shape[1]] = scores
    return RankedItems(*ranked)


def best_first(scores: Tensor, ties: Tensor, count: int) -> Tensor:
    """Indices of the `count` best of `(B, N)` float32 scores in descending order, the lower of `ties` first among
    equals.

    One integer key holds both: the bits of a float order like an integer once those of negative numbers are flipped. A
    NaN comes first, so that it reaches the end and is reported.
    """
    bits = (scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0).view(
        torch.int32
    )  # + 0.0: no -0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    key = (bits << 32) + (0x7FFFFFFF - ties)
    return key.topk(min(count, key.shape[1]), dim=1).indices


def checked_prompts(
    model: PreTrainedModel, prompts: Mapping[str, Tensor], trie: TokenTrie, num_beams: int, top_k: int
) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` on the model's device, once everything fits together."""
    input_ids, attention_mask = prompts["input_ids"].to(model.device), prompts["attention_mask"].to(model.device)
    if not input_ids.numel() or not bool(attention_mask.any(1).all()):
        raise ValueError("there is no prompt, or an empty one; a prompt needs a token at least, such as BOS")
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left; set tokenizer.padding_side = 'left'")
    if num_beams < 1 or top_k < 1:
        raise ValueError(f"num_beams and top_k must be at least 1, not {num_beams} and {top_k}")
    config = model.config.get_text_config()
    if trie.max_token >= config.vocab_size:
        raise ValueError(
            f"the trie holds token {trie.max_token}, the model's vocabulary ends at {config.vocab_size - 1}; build the trie "
            "with the model's own tokenizer, and resize the model's embeddings after adding tokens"
        )
    longest, room = input_ids.shape[1] + trie.max_depth, config.to_dict().get("max_position_embeddings")
    if room is not None and longest > room:
        told = f"prompt and longest item take {longest} tokens, the model has {room} positions"
        raise ValueError(f"{told}; encode prompts with max_length={room}")
    return input_ids, attention_mask


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside, the mode found outside."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
