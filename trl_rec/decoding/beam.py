"""Ranks a catalogue's items by beam search over its trie.

The search works like the beam search of `generate`. The beams of a prompt advance one token per step, and each step
keeps the best `num_beams` continuations. A continuation that completes an item is set aside as a finished leaf. Three
things make this search faster than `generate`:

- A step gathers the children of the beams' trie nodes. It never masks the vocabulary and never loops over beams in
  Python.
- The prompt is stored once in the key-value cache, however many beams continue it. Models that do not support this get
  one cache row per beam (see `prompt_cache.py`).
- Forced tokens are skipped: no forward pass is spent on them alone. A token is forced if it is the only legal token at
  its node. With `renormalize=True`, log-probabilities are normalised over the legal tokens. A forced token then has
  log-probability 0, so a beam keeps its score in a chain of forced tokens. The model reads the whole chain at once,
  just before the beam branches again. Nothing is skipped with `renormalize=False`, with one cache row per beam, or if
  every depth has a node that branches.

In each round of the loop, every prompt moves to the next depth at which at least one of its beams branches. Prompts
can be at different depths, so they do not wait for each other. Skipping forced tokens saves many forward passes, but
each round must then copy four integers from the device to the host, to choose the size of its forward pass. Without
skipping, each round extends every beam by one token, and copies nothing to the host.

Legend: B: prompts, P: tokens per prompt (padded), K: beams per prompt, A: active beams per prompt (the beams that
branch in this round), C: children per node (padded), N: continuations per prompt, E: excluded items per prompt
(padded), V: tokens with a logit (`trie.tokens` with `renormalize=True`, otherwise the whole vocabulary).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.decoding.checks import check_no_nan, checked_prompts, evaluating
from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.prompt_cache import Pending, open_cache
from trl_rec.decoding.trie_weights import TrieWeights, Unweighted, look_up
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.trie import TokenTrie
from trl_rec.ranges import COUNT, FINITE


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RankedItems(NamedTuple):
    """The best items of each prompt, sorted by descending score. If fewer than `top_k` items are found, the remaining
    ranks have item -1 and score -inf.

    Args:
        items (`torch.Tensor` of shape `(B, top_k)`): Item indices.
        scores (`torch.Tensor` of shape `(B, top_k)`): The score of each item.
    """

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
    weights: ItemWeights | None = None,
) -> RankedItems:
    """Finds the best items for each prompt by beam search over the trie. The model's `generation_config` is ignored.

    Args:
        model (`PreTrainedModel`): A decoder-only causal language model with a key-value cache.
        prompts (`Mapping[str, torch.Tensor]`): `input_ids` and `attention_mask` of shape `(B, P)`, padded on the left.
        trie (`TokenTrie`): The catalogue, in the model's vocabulary.
        num_beams (`int`): Width of the search. If it is at least the number of items, every item is scored.
        top_k (`int`, *optional*, defaults to `num_beams`): Number of ranks to return. The search finds at most
            `num_beams` paths (token sequences of items). With a larger `top_k`, the last ranks stay empty unless items
            share a path.
        exclude (`torch.Tensor` or lists of `int`, *optional*): Items to leave out: one list per prompt, or a tensor of
            shape `(B, E)` padded with -1. Excluded items, and subtrees in which every item is excluded, are removed
            after the softmax. The softmax is not computed again, so the scores of the other items do not change.
        renormalize (`bool`, *optional*, defaults to `True`): If True, log-probabilities are normalised over the legal
            tokens, as in a training loss with a softmax over the legal tokens. If False, they are normalised over the
            whole vocabulary.
        length_penalty (`float`, *optional*, defaults to `0.0`): The log-probability of an item is divided by
            `n ** length_penalty`, where `n` is the number of tokens of the item (for a title, including EOS).
        weights ([`ItemWeights`], *optional*): Weights of the items, such as a prior or a filter. For an item with
            weight `w`, `weights.strength * log(w / W)` is added to the score, where `W` is the sum of the weights of
            all items. Items with weight 0 are left out.

    Returns:
        [`RankedItems`]: Items and scores of shape `(B, top_k)`. Equal scores are ordered by ascending item index.
    """
    top_k = num_beams if top_k is None else top_k
    COUNT.check("num_beams", num_beams)
    COUNT.check("top_k", top_k)
    FINITE.check("length_penalty", length_penalty)
    input_ids, attention_mask = checked_prompts(model, prompts, trie)
    trie = trie.to(input_ids.device)
    with evaluating(model):
        cache = open_cache(model, input_ids, attention_mask, trie.max_depth, trie.tokens if renormalize else None)
        return search_items(cache, trie, num_beams, top_k, exclude, renormalize, length_penalty, weights)


class BeamCache(Protocol):
    """Interface of the caches that [`search_items`] accepts. The model has already read the prompts into the cache.

    Attributes:
        logits (`torch.Tensor` of shape `(B, 1, V)`): The logits after the prompt.
        shared (`bool`): Whether beams may have different numbers of pending tokens, which the model has not read yet.
        has_logps (`bool`): Whether `logits` and the result of `extend` contain log-probabilities instead of logits,
            one for each token of `trie.tokens`. Log-probabilities that are not among the best `num_beams` of their
            beam may be replaced by -inf.
    """

    logits: Tensor
    shared: bool
    has_logps: bool

    def extend(self, pending: Pending) -> tuple[Tensor, Tensor, Tensor]:
        """Reads the pending tokens of the active beams.

        Returns:
            `logits (B, A, V)`, the logits after each active beam; `slots (B, A)`, the index of each active beam among
            the K beams; and `valid (B, A)`, False where a slot has no active beam.
        """

    def reorder(self, parents: Tensor) -> None:
        """Makes beam `k` a continuation of beam `parents[:, k]`."""


def search_items(
    cache: BeamCache,
    trie: TokenTrie,
    num_beams: int,
    top_k: int,
    exclude: Tensor | Sequence[Sequence[int]] | None,
    renormalize: bool,
    length_penalty: float,
    weights: ItemWeights | None,
) -> RankedItems:
    """Runs the search of [`rank_items`] on a cache that contains the prompts. The other arguments are as in
    [`rank_items`]."""
    excluded = Excluded(trie, exclude, len(cache.logits))
    weighted = look_up(trie, weights, excluded)
    finished = _search(cache, trie, weighted, num_beams, renormalize, length_penalty)
    check_no_nan(finished.scores)
    return _rank_leaves(finished, trie, excluded, weighted, top_k)


class _Beams(NamedTuple):
    """The beams that the search still extends. Each tensor has the shape `(B, K)`.

    Args:
        nodes: The trie node that each beam has reached. If forced tokens are skipped, this is the end of the chain of
            forced tokens: a node with several children, or a leaf.
        scores: The log-probability of each beam; -inf marks an empty slot.
        num_read: Number of tokens of each beam that the model has read.
    """

    nodes: Tensor
    scores: Tensor
    num_read: Tensor

    def gather(self, index: Tensor) -> _Beams:
        """Returns the beams at `index` `(B, K')`."""
        return _Beams(*(tensor.gather(1, index) for tensor in self))


class _Finished(NamedTuple):
    """The best leaves found so far, and their scores without the item weights, `(B, at most num_beams)`. The leaves
    are sorted by their scores with the item weights, best first."""

    nodes: Tensor
    scores: Tensor


def _search(
    cache: BeamCache,
    trie: TokenTrie,
    weighted: TrieWeights | Unweighted,
    num_beams: int,
    renormalize: bool,
    length_penalty: float,
) -> _Finished:
    """Returns the best `num_beams` leaves for each prompt in the cache."""
    # If log-probabilities are normalised over the legal tokens, a forced token has log-probability 0, so chains of
    # forced tokens can be skipped. Skipping is certain to save a round only if there is a depth at which no node
    # branches. A cache with one row per beam cannot skip: it reads one token of every beam per step.
    skips = renormalize and cache.shared and 1 in trie.depth_widths

    # 1. Start with one beam per prompt, at the root or at the end of the chain of forced tokens that starts there.
    beams = _first_beams(trie, weighted, len(cache.logits), skips)
    finished = _Finished(beams.nodes[:, :0], beams.scores[:, :0])

    for step in range(trie.max_depth):  # a prompt branches at most once per depth
        # 2. Find the depth at which each prompt branches next. Beams that end at or before this depth are finished.
        branch_depth, ended = _next_branching(trie, beams)
        finished = _keep_best(finished, trie, weighted, beams, ended, num_beams, length_penalty)

        # 3. Drop the beams that have ended, and the beams that score too low to be among the best `num_beams` leaves.
        beams = _drop_hopeless(beams, weighted, ended, finished, num_beams, length_penalty)

        # 4. For every beam that branches at this depth, let the model read the pending tokens. The other beams wait at
        # the end of their forced tokens. In the first round, the prompt's logits already predict the first token, so a
        # forward pass is needed only if that token is forced and was skipped.
        active = (beams.scores > -torch.inf) & (trie.depths(beams.nodes) == branch_depth)  # (B, K)
        pending, max_children = _pending(trie, beams, active, step, skips)
        if not pending.num_active:
            break
        if step == 0 and not (skips and trie.depth_widths[0] == 1):
            logits = cache.logits  # (B, 1, V)
            slots = torch.zeros_like(active, dtype=torch.int64)
            valid = active
        else:
            logits, slots, valid = cache.extend(pending)  # (B, A, V), (B, A), (B, A)

        # 5. Score the children of the active beams. The continuations are these children and the waiting beams.
        nodes = beams.nodes.gather(1, slots)
        logps, children = (_given_logps if cache.has_logps else child_logps)(
            trie, logits, nodes, max_children, renormalize
        )
        grown, parents = _children_as_beams(trie, beams, slots, valid, logps, children, weighted, skips)
        continuations, parents = _with_waiting(grown, parents, beams, active)  # (B, N)

        # 6. Of the best `num_beams` continuations, those that complete an item at the next depth are finished.
        completes = _is_leaf(trie, continuations.nodes) & (trie.depths(continuations.nodes) == branch_depth + 1)
        ties = trie.lowest_items[continuations.nodes]
        guided = weighted.guided(continuations.scores, continuations.nodes)
        best = best_first(guided, ties, num_beams)
        finished = _keep_best(
            finished, trie, weighted, continuations.gather(best), completes.gather(1, best), num_beams, length_penalty
        )

        # 7. Of the continuations that do not complete an item at the next depth, the best `num_beams` are the beams of
        # the next round. Reorder the cache accordingly.
        running = continuations._replace(scores=continuations.scores.masked_fill(completes, -torch.inf))
        best = best_first(guided.masked_fill(completes, -torch.inf), ties, num_beams)
        beams = running.gather(best)
        cache.reorder(parents.gather(1, best))

    # 8. Any beam that is still at a leaf has the score NaN: comparisons with NaN are False, so the beam was never
    # marked as ended. Keep it, so that the caller sees the NaN.
    return _keep_best(finished, trie, weighted, beams, _is_leaf(trie, beams.nodes), num_beams, length_penalty)


def _first_beams(trie: TokenTrie, weighted: TrieWeights | Unweighted, num_prompts: int, skips: bool) -> _Beams:
    """Returns one beam per prompt, `(B, 1)`. Its slot is empty if every item is excluded or has weight 0."""
    root = torch.zeros(num_prompts, 1, dtype=torch.int64, device=trie.items.device)
    nodes = trie.forced_ends[root].long() if skips else root
    scores = torch.where(weighted.emptied(root), -torch.inf, 0.0)
    return _Beams(nodes, scores, num_read=torch.zeros_like(root))


def _is_leaf(trie: TokenTrie, nodes: Tensor) -> Tensor:
    return trie.row_offsets[nodes] == trie.row_offsets[nodes + 1]


def _next_branching(trie: TokenTrie, beams: _Beams) -> tuple[Tensor, Tensor]:
    """Returns the depth at which each prompt branches next, `(B, 1)`, and a mask of the beams that end at this depth
    or before it, `(B, K)`."""
    alive = beams.scores > -torch.inf
    leaf = _is_leaf(trie, beams.nodes)
    depths = trie.depths(beams.nodes)

    never = trie.max_depth + 1  # the branch depth of prompts without a beam that still branches
    branch_depth = torch.where(alive & ~leaf, depths, never).amin(1, keepdim=True)
    return branch_depth, alive & leaf & (depths <= branch_depth)


def _keep_best(
    finished: _Finished,
    trie: TokenTrie,
    weighted: TrieWeights | Unweighted,
    beams: _Beams,
    ended: Tensor,
    num_beams: int,
    length_penalty: float,
) -> _Finished:
    """Returns the best `num_beams` leaves among the finished ones and the leaves of the beams that have `ended`."""
    scores = beams.scores.masked_fill(~ended, -torch.inf)
    if length_penalty:
        scores = scores / trie.depths(beams.nodes).clamp(min=1) ** length_penalty

    nodes = torch.cat([finished.nodes, beams.nodes], 1)
    scores = torch.cat([finished.scores, scores], 1)
    best = best_first(weighted.guided(scores, nodes), trie.lowest_items[nodes], num_beams)
    return _Finished(nodes.gather(1, best), scores.gather(1, best))


def _drop_hopeless(
    beams: _Beams,
    weighted: TrieWeights | Unweighted,
    ended: Tensor,
    finished: _Finished,
    num_beams: int,
    length_penalty: float,
) -> _Beams:
    """Empties the slots of beams that have ended, and of beams whose scores are below those of `num_beams` finished
    leaves.

    Without a length penalty, the score of a beam can only fall as the beam grows. With a length penalty it can also
    rise, so no beam is dropped because of its score.
    """
    scores = beams.scores.masked_fill(ended, -torch.inf)
    if finished.scores.shape[1] == num_beams and not length_penalty:
        lowest = weighted.guided(finished.scores[:, -1:], finished.nodes[:, -1:])
        scores = scores.masked_fill(weighted.guided(scores, beams.nodes) < lowest, -torch.inf)
    return beams._replace(scores=scores)


def _pending(trie: TokenTrie, beams: _Beams, active: Tensor, step: int, skips: bool) -> tuple[Pending, int]:
    """Returns the tokens that the model must read before the active beams branch, and C. No node of an active beam has
    more than C children."""
    depths = trie.depths(beams.nodes)
    lengths = depths - beams.num_read  # (B, K)

    # 1. Size the forward pass. Without skipping, the depth of every beam equals `step`, and every beam has one token
    # to read, except in the first round, which needs no forward pass.
    if skips:
        num_active, num_inner, longest, max_children = _round_sizes(trie, beams.nodes, lengths, active)
    else:
        num_active = active.shape[1]
        num_inner = 0
        longest = 1
        max_children = trie.depth_widths[step]

    # 2. Look up the tokens.
    tokens = trie.last_tokens(beams.nodes, longest)  # (B, K, longest)
    return Pending(tokens, lengths, depths, active, num_active, num_inner), max_children


def _round_sizes(trie: TokenTrie, nodes: Tensor, lengths: Tensor, active: Tensor) -> list[int]:
    """Returns four maxima: active beams per prompt, inner tokens per prompt, pending tokens per beam, and children per
    node.

    The inner tokens of a beam are all its pending tokens except the last one. Inactive beams are ignored. These four
    integers are all that a round copies from the device to the host.
    """
    num_children = trie.row_offsets[nodes + 1] - trie.row_offsets[nodes]
    inner = torch.where(active, lengths - 1, 0).clamp(min=0)
    sizes = [
        active.sum(1).amax(),
        inner.sum(1).amax(),
        torch.where(active, lengths, 0).amax(),
        torch.where(active, num_children, 0).amax(),
    ]
    return torch.stack(sizes).tolist()


def child_logps(
    trie: TokenTrie, logits: Tensor, nodes: Tensor, max_children: int, renormalize: bool
) -> tuple[Tensor, Tensor]:
    """Returns the log-probability of each child (-inf for padding) and the child nodes. Both are `(B, A, C)`."""
    tokens, children, legal = trie.children(nodes, max_children)
    columns = trie.columns(tokens) if renormalize else tokens
    scores = logits.gather(-1, columns).float().masked_fill(~legal, -torch.inf)
    normalizer = scores.logsumexp(-1, keepdim=True) if renormalize else logits.float().logsumexp(-1, keepdim=True)
    return torch.where(legal, scores - normalizer, -torch.inf), children


def _given_logps(
    trie: TokenTrie, logps: Tensor, nodes: Tensor, max_children: int, renormalize: bool
) -> tuple[Tensor, Tensor]:
    """Does the same as [`child_logps`] for log-probabilities of `trie.tokens`, which need no normalisation."""
    tokens, children, legal = trie.children(nodes, max_children)
    return logps.gather(-1, trie.columns(tokens)).float().masked_fill(~legal, -torch.inf), children


def _children_as_beams(
    trie: TokenTrie,
    beams: _Beams,
    slots: Tensor,
    valid: Tensor,
    logps: Tensor,
    children: Tensor,
    weighted: TrieWeights | Unweighted,
    skips: bool,
) -> tuple[_Beams, Tensor]:
    """Returns one beam for each of the `children` `(B, A, C)` of the active beams, and the slot of its parent. All
    returned tensors have the shape `(B, A * C)`.

    A child gets the score -inf if every item below it is excluded or has weight 0. This happens after the softmax, so
    the scores of the other children do not change.
    """
    branching = beams.gather(slots)  # (B, A)
    scores = torch.where(valid, branching.scores, -torch.inf).unsqueeze(-1) + logps
    scores = scores.flatten(1).masked_fill(weighted.emptied(children.flatten(1)), -torch.inf)

    nodes = trie.forced_ends[children].long() if skips else children
    num_read = trie.depths(branching.nodes).unsqueeze(-1).expand_as(children)
    parents = slots.unsqueeze(-1).expand_as(children)
    return _Beams(nodes.flatten(1), scores, num_read.flatten(1)), parents.flatten(1)


def _with_waiting(grown: _Beams, parents: Tensor, beams: _Beams, active: Tensor) -> tuple[_Beams, Tensor]:
    """Appends the waiting beams (those that are not active) to the grown beams (the children of the active beams).
    Returns beams and parents, both `(B, A * C + K)`.

    A waiting beam is its own parent. The slots of active beams are appended as empty slots.
    """
    waiting = beams._replace(scores=beams.scores.masked_fill(active, -torch.inf))
    own_slots = torch.arange(active.shape[1], device=active.device).expand_as(active)
    continuations = _Beams(*(torch.cat(pair, 1) for pair in zip(grown, waiting, strict=True)))
    return continuations, torch.cat([parents, own_slots], 1)


def _rank_leaves(
    finished: _Finished, trie: TokenTrie, excluded: Excluded, weighted: TrieWeights | Unweighted, top_k: int
) -> RankedItems:
    """Ranks the items of the finished leaves, without excluded items and items with weight 0. Items that share a leaf
    get separate ranks."""
    # 1. Lay out each leaf's items side by side, `width` columns per leaf. Without item weights, the items of a leaf
    # have equal scores, so the first `top_k` of them that are not excluded are enough.
    width = trie.max_shared
    if not weighted.removes_items:
        width = min(width, top_k + excluded.places.shape[1])
    starts = trie.item_starts[finished.nodes].unsqueeze(-1)
    ends = trie.item_ends[finished.nodes].unsqueeze(-1)
    places = (starts + torch.arange(width, device=starts.device)).flatten(1)  # (B, K * width)

    # 2. Excluded items, items with weight 0 and the unused columns after a leaf's last item get the score -inf.
    counts = places < ends.expand(-1, -1, width).flatten(1)
    places = torch.where(counts, places, 0)
    counts &= excluded.count(places, places + 1) == 0
    scores = finished.scores.unsqueeze(-1).expand(-1, -1, width).flatten(1).masked_fill(~counts, -torch.inf)
    scores = scores + weighted.item_bonus(places)

    # 3. Sort, and pad the missing ranks.
    items = trie.items[places].long()
    best = best_first(scores, items, top_k)
    scores = scores.gather(1, best) + weighted.constant
    items = torch.where(scores > -torch.inf, items.gather(1, best), -1)
    missing = (0, top_k - best.shape[1])
    return RankedItems(F.pad(items, missing, value=-1), F.pad(scores, missing, value=-torch.inf))


def best_first(scores: Tensor, ties: Tensor, count: int) -> Tensor:
    """Returns the indices of the `count` best of the float32 scores `(B, N)`, in descending order. Equal scores are
    ordered by ascending `ties`.

    NaN counts as the best score, so that it survives until the end of the search, where it is reported.
    """
    # One integer key combines score and tie, so a single top-k sorts by both. The bits of floats, read as integers,
    # are in the order of the floats once the bits of negative numbers, except the sign bits, are flipped. Adding 0.0
    # turns -0.0 into 0.0. Without this, the two zeros would not count as equal, because their bits differ.
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0
    bits = scores.view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    key = (bits << 32) + (0x7FFFFFFF - ties)
    return key.topk(min(count, key.shape[1]), dim=1).indices
