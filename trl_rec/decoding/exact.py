"""Computes the exact scores of every item of the catalogue, or of given items, without a search.

The scores equal those of the beam search `rank_items`. `score_catalog` computes the log-probabilities of all edges of
the trie, where an edge leads from a node to a child. The model reads each prompt once, and then the tokens of the
trie's inner nodes, in chunks, after the cached prompt. An attention mask lets each token see only the prompt and its
own path, so the paths of a chunk are read together, and a common prefix is read only once per chunk. Each chunk is
then removed from the cache, so memory does not grow with the number of chunks. Models that cannot use such a mask read
the prompt again for each path.

`score_items` reads the paths of a few items as completions of the prompt.

Legend: B: prompts, K: given items per prompt, I: items, Q: nodes that are read together, S: nodes among them whose
logits are needed, C: children (padded), T: tokens per path (padded), V: vocabulary, or the tokens of the trie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.decoding.beam import RankedItems, best_first, child_logps
from trl_rec.decoding.checks import check_no_nan, checked_prompts, evaluating
from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.lists.constraint import ListTokens, list_logps, list_tokens
from trl_rec.decoding.prompt_cache import SeparateRows, SharedPrompt, open_cache
from trl_rec.decoding.trie_weights import look_up
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.trie import TokenTrie
from trl_rec.models.completions import completion_logps, read_completions
from trl_rec.ranges import COUNT, FINITE


if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Maximum number of nodes that are read together per prompt. The attention mask grows with the square of this number.
MOST_NODES = 1024
# Maximum number of tokens in a forward pass, over all of its rows: for example 256 nodes for each of 16 prompts. The
# tokens of the prompts count only in `_score_separately`, where each path has a row with its own copy of the prompt.
MOST_TOKENS = 1 << 12
# Maximum number of logits that a forward pass returns. In float32, this number of logits takes 128 MB.
MOST_LOGITS = 1 << 25


@torch.no_grad()
def score_catalog(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    renormalize: bool = True,
    length_penalty: float = 0.0,
) -> Tensor:
    """Computes the exact score of every item for each prompt.

    Args:
        model, prompts, trie, renormalize, length_penalty: As in [`rank_items`].

    Returns:
        `torch.Tensor` of shape `(B, I)`: The scores by item index, float32. An item that is not in the trie has the
        score -inf.
    """
    FINITE.check("length_penalty", length_penalty)
    input_ids, attention_mask = checked_prompts(model, prompts, trie)
    trie = trie.to(input_ids.device)

    with evaluating(model):
        cache = open_cache(model, input_ids, attention_mask, trie.max_depth, trie.tokens if renormalize else None)
        if isinstance(cache, SeparateRows):
            given = {"input_ids": input_ids, "attention_mask": attention_mask}
            by_place = _score_separately(model, given, trie, renormalize, length_penalty)
        else:
            by_place = _score_leaves(cache, trie, renormalize)[:, trie.leaves]
            if length_penalty:
                by_place = by_place / trie.depths(trie.leaves) ** length_penalty
    check_no_nan(by_place)

    scores = by_place.new_full((len(input_ids), len(trie.item_positions)), -torch.inf)
    return scores.index_copy_(1, trie.items.long(), by_place)


def rank_scores(
    scores: Tensor,
    trie: TokenTrie,
    top_k: int,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    weights: ItemWeights | None = None,
) -> RankedItems:
    """Ranks items by the scores `(B, I)` of [`score_catalog`].

    `exclude`, `weights` and the order of equal scores are as in [`rank_items`].
    """
    COUNT.check("top_k", top_k)
    trie = trie.to(scores.device)
    excluded = Excluded(trie, exclude, len(scores))
    weighted = look_up(trie, weights, excluded)
    if weights is not None:
        places = trie.item_positions.clamp(min=0).expand_as(scores)
        scores = scores + weighted.item_bonus(places)

    # Set the scores of excluded items to -inf. Padding in `excluded.places` becomes the index of an additional column.
    items = torch.cat([trie.items, trie.items.new_full((1,), scores.shape[1])])[excluded.places].long()
    padded = torch.cat([scores, scores.new_full((len(scores), 1), -torch.inf)], 1)
    padded = padded.scatter(1, items, -torch.inf)
    ties = torch.arange(padded.shape[1], device=scores.device).expand_as(padded)
    best = best_first(padded, ties, top_k)
    best_scores = padded.gather(1, best) + weighted.constant
    ranked = torch.where(best_scores > -torch.inf, best, -1)

    missing = (0, top_k - best.shape[1])
    return RankedItems(F.pad(ranked, missing, value=-1), F.pad(best_scores, missing, value=-torch.inf))


@torch.no_grad()
def score_items(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    items: Tensor,
    *,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    renormalize: bool = True,
    length_penalty: float = 0.0,
) -> Tensor:
    """Computes the exact scores of given items.

    Args:
        model, prompts, trie, renormalize, length_penalty: As in [`rank_items`].
        items (`torch.Tensor` of shape `(B, K)`): Item indices; -1 is padding.
        exclude (`torch.Tensor` or lists of `int`, *optional*): Items to remove *before* the softmax, which can raise
            the scores of other items. `exclude` requires `renormalize`. List decoding excludes items in the same way.
            [`rank_items`] excludes items after the softmax, so the other scores do not change.

    Returns:
        `torch.Tensor` of shape `(B, K)`: The scores, at least float32; -inf for padding, and for an excluded item
        (unless it shares its path with an item that is not excluded).
    """
    FINITE.check("length_penalty", length_penalty)
    if exclude is not None and not renormalize:
        raise ValueError("exclude requires renormalize=True; leave exclude out, or set renormalize=True")
    input_ids, attention_mask = checked_prompts(model, prompts, trie)
    trie = trie.to(input_ids.device)
    items = items.to(input_ids.device)

    # Read as many items together as `MOST_TOKENS` and `MOST_LOGITS` allow.
    num_columns = len(trie.tokens) if renormalize else model.config.get_text_config().vocab_size
    longest = _to_read(list_tokens(trie, items.unsqueeze(-1)), renormalize).sum(-1).amax() if items.numel() else 1
    tokens_per_item = len(input_ids) * max(1, int(longest))
    step = max(1, min(MOST_TOKENS // tokens_per_item, MOST_LOGITS // (tokens_per_item * num_columns)))
    parts = [input_ids.new_zeros(len(items), 0, dtype=torch.float32)]
    with evaluating(model):
        for some in items.split(step, dim=1):
            parts.append(_score_paths(model, input_ids, attention_mask, trie, some, exclude, renormalize))
    scores = torch.cat(parts, 1)
    check_no_nan(scores)

    if length_penalty:
        known = items.clamp(min=0)
        scores = scores / trie.depths(trie.leaves[trie.item_positions[known].long()]) ** length_penalty
    return scores.masked_fill(items < 0, -torch.inf)


def _score_paths(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: TokenTrie,
    items: Tensor,
    exclude: Tensor | Sequence[Sequence[int]] | None,
    renormalize: bool,
) -> Tensor:
    """Returns the log-probability of each item's path, `(B, K)`, from one forward pass."""
    lists = items.unsqueeze(-1)  # each item as a list of one item, (B, K, 1)
    paths = list_tokens(trie, lists)
    read = read_completions(
        model,
        input_ids,
        attention_mask,
        paths.token_ids,
        _to_read(paths, renormalize),
        scored=paths.branches if renormalize else paths.mask,
        tokens=trie.tokens if renormalize else None,
    )
    if renormalize:
        return list_logps(read, lists, trie, exclude=exclude).sum(-1)
    return completion_logps(read, paths.token_ids, paths.mask).sum(-1)


def _to_read(paths: ListTokens, renormalize: bool) -> Tensor:
    """Returns a mask of the path tokens that the model must read, `(B, K, T)`.

    With `renormalize`, a token that is the only legal one (a forced token) has log-probability 0. So the forced tokens
    at the end of a path are not read. The paths of titles often end in many forced tokens.
    """
    if not renormalize:
        return paths.mask
    return paths.branches.flip(-1).cumsum(-1).flip(-1) > 0


class _Chunk(NamedTuple):
    """Nodes that are read together. The nodes whose logits are needed come last.

    Args:
        nodes (`torch.Tensor` of shape `(Q,)`): The nodes.
        seen (`torch.Tensor` of shape `(Q, Q)`): True where node `i` (row) attends to node `j` (column).
        num_scored (`int`): S, the number of nodes whose logits are needed.
    """

    nodes: Tensor
    seen: Tensor
    num_scored: int


def _score_leaves(cache: SharedPrompt, trie: TokenTrie, renormalize: bool) -> Tensor:
    """Returns the log-probability of the path to each node, `(B, num_nodes)`."""
    num_prompts = len(cache.logits)
    scores = cache.logits.new_zeros(num_prompts, trie.num_nodes, dtype=torch.float32)

    def keep(logits: Tensor, nodes: Tensor) -> None:
        """Stores the log-probabilities of the children of the nodes `(S,)`, given the logits `(B, S, V)`."""
        width = int((trie.row_offsets[nodes + 1] - trie.row_offsets[nodes]).max())
        logps, children = child_logps(trie, logits, nodes.expand(num_prompts, -1), width, renormalize)
        legal = children[0] > 0  # (S, C); padding is 0, which is the root
        scores[:, children[0][legal]] = logps[:, legal]

    # 1. Compute the log-probability of each edge, stored at the node that the edge leads to. With `renormalize`, the
    # edge to an only child keeps its initial value 0, which is its log-probability.
    keep(cache.logits, torch.zeros(1, dtype=torch.int64, device=scores.device))
    for chunk in _chunks(trie, _nodes_per_chunk(num_prompts, cache.logits.shape[-1]), renormalize):
        tokens = trie.child_tokens[chunk.nodes - 1].long()  # edge `n - 1` leads to node `n`
        logits = cache.read_beside(tokens, trie.depths(chunk.nodes), chunk.seen, chunk.num_scored)
        keep(logits, chunk.nodes[-chunk.num_scored :])

    # 2. Sum the edges along the paths, level by level.
    bounds = trie.depth_offsets.tolist()
    for start, stop in zip(bounds[1:-1], bounds[2:], strict=True):
        scores[:, start:stop] += scores[:, trie.parents[start:stop].long()]
    return scores


def _nodes_per_chunk(num_prompts: int, num_columns: int) -> int:
    """Returns how many nodes may be read together for each of the prompts."""
    return max(1, min(MOST_NODES, MOST_TOKENS // num_prompts, MOST_LOGITS // (num_prompts * num_columns)))


def _chunks(trie: TokenTrie, size: int, renormalize: bool) -> Iterator[_Chunk]:
    """Yields the nodes to read, in chunks of at most `size` nodes, not counting ancestors that are read again.

    The root is in no chunk, because the logits after the prompt already predict the root's children.
    """
    # 1. Find the nodes to read (`needed`), and those of them whose logits are needed (`scored`). With `renormalize`,
    # the edge to an only child has log-probability 0. So only nodes with several children are scored, and nodes with a
    # single leaf below them are not read.
    num_children = trie.row_offsets.diff()
    is_inner = num_children > 0
    needed = is_inner
    scored = is_inner
    if renormalize:
        needed = _num_leaves_below(trie) > 1
        scored = num_children > 1
    nodes = needed.nonzero().squeeze(1)
    nodes = nodes[nodes > 0]
    if not len(nodes):
        return

    # 2. Sort the nodes so that each node is followed by the nodes below it. Then every ancestor of a node in a chunk
    # is either in the chunk itself or an ancestor of the chunk's first node.
    order = trie.item_starts[nodes].long() * (trie.max_depth + 1) + trie.depths(nodes)
    nodes = nodes[order.argsort()]

    for some in nodes.split(size):
        # 3. Add the ancestors of the first node. Their own logits are not needed again.
        first = some[:1]
        depths = torch.arange(1, int(trie.depths(first)), device=nodes.device)
        above = trie.above(trie.item_starts[first].long(), depths)

        # 4. Move the nodes whose logits are needed to the end. Skip the chunk if there is no such node.
        wanted = scored[some]
        if not wanted.any():
            continue
        together = torch.cat([above, some[~wanted], some[wanted]])
        yield _Chunk(together, _is_above(trie, together), int(wanted.sum()))


def _num_leaves_below(trie: TokenTrie) -> Tensor:
    """Returns the number of leaves below each node, `(num_nodes,)`. It is 1 for a leaf."""
    # Count the leaves up to each place in `trie.items`.
    first_of_leaf = torch.ones(trie.num_items + 1, dtype=torch.int64, device=trie.items.device)
    first_of_leaf[0] = 0
    first_of_leaf[2:] = trie.leaves[1:] != trie.leaves[:-1]
    before = first_of_leaf.cumsum(0)  # (num_items + 1,): entry `i` counts the leaves of the first `i` items
    return before[trie.item_ends.long()] - before[trie.item_starts.long()]


def _is_above(trie: TokenTrie, nodes: Tensor) -> Tensor:
    """Returns whether node `j` (column) lies on the path to node `i` (row) or is node `i` itself, `(Q, Q)`."""
    starts = trie.item_starts[nodes]
    ends = trie.item_ends[nodes]
    depths = trie.depths(nodes)
    contains = (starts <= starts.unsqueeze(1)) & (ends.unsqueeze(1) <= ends)
    return contains & (depths <= depths.unsqueeze(1))


def _score_separately(
    model: PreTrainedModel, prompts: Mapping[str, Tensor], trie: TokenTrie, renormalize: bool, length_penalty: float
) -> Tensor:
    """Returns the scores of the items in the order of `trie.items`, `(B, num_items)`.

    The prompt is read again for each path. This function is for models for which `open_cache` returns `SeparateRows`.
    """
    num_prompts, prompt_length = prompts["input_ids"].shape
    step = max(1, MOST_TOKENS // (num_prompts * (prompt_length + trie.max_depth)))

    # Score one item per leaf, so that items that share a leaf have exactly the same score.
    leaves, leaf_numbers = trie.leaves.unique_consecutive(return_inverse=True)
    parts = [
        score_items(
            model,
            prompts,
            trie,
            items.long().expand(num_prompts, -1),
            renormalize=renormalize,
            length_penalty=length_penalty,
        )
        for items in trie.items[trie.item_starts[leaves].long()].split(step)
    ]
    return torch.cat(parts, 1).float()[:, leaf_numbers]
