"""Computes, for each prompt, the bonus that item weights give to the nodes and items of a trie.

The weight w of an item adds `strength * log w(item)` to the score of the item, up to a constant per prompt (see
[`ItemWeights`]). A beam search chooses among subtrees before it reaches any item, so it has to look ahead. The *bound*
of a node is the largest weight below the node. On the way from a node to a child, a beam gains
`strength * (log bound(child) - log bound(node))`. The *bonus* of a node is the sum of the gains on the way from the
root to the node. The search ranks correctly for two reasons:

- Along the path of an item, the gains add up to `strength * (log w(item) - log bound(root))`. This is what the weight
  adds to the score of the item, up to the constant. If several items share a leaf, the gains are those of the largest
  weight. After the search, `item_bonus` gives each of these items the bonus of its own weight.
- No gain is positive, so a beam that scores below the finished items can never overtake them.

If the positive weights below a node are all equal, each step below this node gains 0, or -inf if all weights below the
child are 0. Therefore a filter, whose weights are 0 and 1, has the same effect on the order of the items as excluding
the items with weight 0.

The bound is not the sum of the weights below a node. Gains from sums would add up in the same way, but the search
would favour large subtrees over likely items.

A place is a position in `trie.items`.

Legend: B prompts, F filters, I items, S items per prompt that have a weight for this prompt only (padded), E excluded
items per prompt (padded), N nodes or places.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.trie import TokenTrie
from trl_rec.losses.output import at_least_float32


def look_up(trie: TokenTrie, weights: ItemWeights | None, excluded: Excluded) -> TrieWeights | Unweighted:
    """Returns the weights of a batch of prompts, without the excluded items, in the form that a search needs."""
    if weights is None:
        return Unweighted(excluded)
    weights = weights.to(trie.items.device)
    if weights.strength == 0 and weights.items is None:
        return Filtered(trie, weights, excluded)
    return TrieWeights(trie, weights, excluded)


def log_weights(trie: TokenTrie, weights: ItemWeights, items: Tensor) -> Tensor:
    """Returns `strength * log(w / W)` for each of the items `(B, K)`, and -inf for padding and items of weight 0.

    Here, w is the weight of the item, and W the sum of the weights of all items.
    """
    weighted = look_up(trie, weights, Excluded(trie, None, len(items)))
    places = trie.item_positions[items.clamp(min=0)].long()
    known = (items >= 0) & (places >= 0)
    bonus = weighted.item_bonus(places.clamp(min=0)) + weighted.constant
    return bonus.masked_fill(~known, -torch.inf)


class Unweighted:
    """Replaces [`TrieWeights`] if no weights are given. It handles only excluded items.

    Attributes:
        removes_items (`bool`): Whether item weights can remove items. Excluded items do not count here.
    """

    constant = 0.0
    removes_items = False

    def __init__(self, excluded: Excluded) -> None:
        self._excluded = excluded

    def emptied(self, nodes: Tensor) -> Tensor:
        """Returns, for each of the nodes `(B, N)`, whether every item below it is excluded."""
        return self._excluded.emptied(nodes)

    def guided(self, scores: Tensor, nodes: Tensor) -> Tensor:
        """Returns the scores unchanged."""
        return scores

    def item_bonus(self, places: Tensor) -> Tensor:
        """Returns zeros, `(B, N)`."""
        return torch.zeros(places.shape, device=places.device)


class Filtered(Unweighted):
    """Replaces [`TrieWeights`] if weights only remove items. It needs no table with an entry per node and prompt.

    The items below a node are a slice of `trie.items`. So the number of allowed items below a node is a difference of
    two running counts. No item is left below the node if all of its allowed items are excluded.

    Args:
        trie (`TokenTrie`): The trie.
        weights (`ItemWeights`): Weights of strength 0, without weights per prompt, on the device of the trie.
        excluded (`Excluded`): The excluded items of each prompt.
    """

    removes_items = True

    def __init__(self, trie: TokenTrie, weights: ItemWeights, excluded: Excluded) -> None:
        self._trie = trie
        self._filter = _filter_of(weights, len(excluded.places), trie.items.device)  # (B,)
        shared, allowed = _shared_by_place(trie, weights)  # (1, I) and (F, I)
        self._allowed = allowed & (shared > 0)
        self._counts = torch.nn.functional.pad(
            self._allowed.cumsum(1), (1, 0)
        )  # (F, I + 1): number of allowed items before each place
        super().__init__(excluded.among(_at(self._allowed, self._filter, excluded.places).bool()))

    def emptied(self, nodes: Tensor) -> Tensor:
        """Returns, for each of the nodes `(B, N)`, whether every item below it is excluded or not allowed."""
        starts = self._trie.item_starts[nodes]
        ends = self._trie.item_ends[nodes]
        allowed = _at(self._counts, self._filter, ends) - _at(self._counts, self._filter, starts)
        return self._excluded.count(starts, ends) == allowed

    def item_bonus(self, places: Tensor) -> Tensor:
        """Returns 0 if the item at a place is allowed, and -inf otherwise, for the places `(B, N)`."""
        return torch.where(_at(self._allowed, self._filter, places).bool(), 0.0, -torch.inf)

    def removed(self) -> Tensor:
        """Returns whether the item at each place in `trie.items` is not allowed, `(B, I)`."""
        return ~self._allowed[self._filter]


class TrieWeights:
    """The weights of a batch of prompts, looked up by node and by item.

    The bonus of an item is `strength * (log w - log bound(root))`. The bonus of a node is the same with the node's
    bound in place of `w`. Only excluded items can have a positive bonus, because the bounds ignore excluded items.

    A table stores the bonus of every node for every prompt. The table is first computed from the weights that all
    prompts share. Then the entries of each prompt are raised along the paths of the items with weights of their
    own, and lowered along the paths of the excluded items. The bonus of a node is -inf exactly if every item below the
    node is excluded or has weight 0, because the largest of several weights is 0 only if all of these weights are 0.

    Args:
        trie (`TokenTrie`): The trie.
        weights (`ItemWeights`): The weights, on the device of the trie.
        excluded (`Excluded`): The excluded items of each prompt.

    Attributes:
        constant (`torch.Tensor` of shape `(B, 1)`): `strength * (log bound(root) - log W)`. The bonus of an item
            plus this constant is `strength * log(w / W)`, the term that the weights add to the item's score.
    """

    removes_items = True

    def __init__(self, trie: TokenTrie, weights: ItemWeights, excluded: Excluded) -> None:
        num_prompts = len(excluded.places)
        self._trie = trie
        self._strength = weights.strength
        self._filter = _filter_of(weights, num_prompts, trie.items.device)  # (B,)
        shared, allowed = _shared_by_place(trie, weights)  # (1, I) and (F, I)
        self._places, own = _own_by_place(trie, weights, num_prompts)  # both (B, S)

        dtype = torch.promote_types(shared.dtype, own.dtype)
        self._shared = (shared * allowed).to(dtype)  # (F, I)
        self._values = (own * _at(allowed, self._filter, self._places)).to(dtype)

        # 1. Find the bound of each node, as `strength * log bound`: -inf where all weights are 0.
        bounds = self._scaled_logs(_largest_below(trie, self._shared))[self._filter]  # (B, num_nodes)
        self._raise_bounds(bounds)
        if excluded.places.shape[1]:
            self._lower_bounds(bounds, excluded)

        # 2. Subtract the bound of the root, so that equal weights give the bonus 0.
        root = bounds[:, :1]
        self._root = torch.where(root > -torch.inf, root, 0.0)
        self._bonus = bounds.sub_(self._root)

        # 3. The sum of all weights, W, includes the weights of excluded items.
        total = self._shared.sum(1)[self._filter] + self._values.sum(1)
        self.constant = torch.where(total > 0, self._root.squeeze(1) - self._scaled_logs(total), 0.0).unsqueeze(1)

    def _scaled_logs(self, weights: Tensor) -> Tensor:
        """Returns `strength * log w`; -inf for weight 0, whatever the strength."""
        if self._strength:
            return (self._strength * weights.log()).float()
        return torch.where(weights > 0, 0.0, -torch.inf).float()

    def removed(self) -> Tensor:
        """Returns whether the item at each place in `trie.items` has weight 0, `(B, I)`."""
        weights = self._shared[self._filter]
        padded = torch.cat([weights, weights.new_zeros(len(weights), 1)], 1).scatter_add_(
            1, self._places, self._values
        )
        return padded[:, :-1] == 0

    def bonus(self, nodes: Tensor) -> Tensor:
        """Returns the bonus of each of the nodes `(B, N)`; -inf if every item below a node is excluded or has weight
        0."""
        return self._bonus.gather(1, nodes)

    def emptied(self, nodes: Tensor) -> Tensor:
        """Returns, for each of the nodes `(B, N)`, whether every item below it is excluded or has weight 0."""
        return self.bonus(nodes) == -torch.inf

    def guided(self, scores: Tensor, nodes: Tensor) -> Tensor:
        """Returns the scores `(B, N)` of beams at the nodes `(B, N)`, plus the bonus of each beam's node."""
        return scores + self.bonus(nodes)

    def item_bonus(self, places: Tensor) -> Tensor:
        """Returns the bonus of the item at each of the places `(B, N)`; -inf for items of weight 0."""
        return self._scaled_logs(self._weights(places)) - self._root

    def _weights(self, places: Tensor) -> Tensor:
        """Returns the weight of the item at each of the places `(B, N)`; 0 for padding."""
        own = torch.zeros_like(places, dtype=self._values.dtype)
        if self._places.shape[1]:
            column = _column_of(places, self._places)
            has_own = self._places.gather(1, column) == places
            own = torch.where(has_own, self._values.gather(1, column), 0.0)
        return _at(self._shared, self._filter, places) + own

    def _raise_bounds(self, bounds: Tensor) -> None:
        """Raises the bounds `(B, num_nodes)` on the paths to each prompt's items with weights of their own."""
        scores = self._scaled_logs(_at(self._shared, self._filter, self._places) + self._values)
        for nodes in _paths(self._trie, self._places):
            bounds.scatter_reduce_(1, nodes, scores, "amax")

    def _lower_bounds(self, bounds: Tensor, excluded: Excluded) -> None:
        """Recomputes the bounds `(B, num_nodes)` on the paths to each prompt's excluded items, without these items."""
        trie = self._trie

        # 1. Find the leaves of the excluded items. Padding becomes the last item. If that item is not excluded, the
        # bounds on its path are recomputed but do not change.
        places = excluded.places.clamp(max=trie.num_items - 1).long()
        leaves = trie.leaves[places]  # (B, E)

        # 2. The bound of a leaf is the largest weight among its items that are not excluded.
        columns = torch.arange(trie.max_shared, device=places.device)
        at_leaves = (trie.item_starts[leaves].unsqueeze(-1) + columns).flatten(1)  # (B, E * max_shared)
        ends = trie.item_ends[leaves].repeat_interleave(trie.max_shared, 1)
        is_left = (at_leaves < ends) & ~_contains(excluded.places, at_leaves)
        weights = torch.where(is_left, self._weights(at_leaves), 0.0)
        largest = weights.unflatten(1, (-1, trie.max_shared)).amax(-1)
        bounds.scatter_(1, leaves, self._scaled_logs(largest))

        # 3. The bound of any other node is the largest bound of its children. Start with the deepest level. If there
        # are few excluded items, only the nodes on their paths are recomputed; otherwise, the whole level is.
        offsets = trie.depth_offsets.tolist()
        for depth in range(trie.max_depth - 1, -1, -1):
            # The nodes of this level are from `start` to `middle`, and their children from there to `stop`.
            start, middle, stop = offsets[depth : depth + 3]
            nodes = trie.above(places, torch.full_like(places, depth))
            width = trie.depth_widths[depth]
            if nodes.shape[1] * width < stop - middle:
                # A path that ends above this level has an arbitrary node here, perhaps of another level.
                _, children, legal = trie.children(nodes, width)
                below = bounds.gather(1, children.flatten(1)).view(children.shape)
                largest = torch.where(legal, below, -torch.inf).amax(-1)
                branches = legal.any(-1) & (nodes >= start) & (nodes < middle)
                bounds.scatter_(1, nodes, torch.where(branches, largest, bounds.gather(1, nodes)))
            else:
                is_leaf = trie.row_offsets[start : middle + 1].diff() == 0
                level = torch.where(is_leaf, bounds[:, start:middle], -torch.inf)
                parents = (trie.parents[middle:stop].long() - start).expand(len(level), -1)
                bounds[:, start:middle] = level.scatter_reduce_(1, parents, bounds[:, middle:stop], "amax")


def _filter_of(weights: ItemWeights, num_prompts: int, device: torch.device) -> Tensor:
    """Returns the row of `weights.allowed` that applies to each prompt, `(B,)`.

    Raises ValueError if the weights are for a different number of prompts.
    """
    for name in ("items", "allowed_of"):
        tensor = getattr(weights, name)
        if tensor is not None and len(tensor) != num_prompts:
            raise ValueError(
                f"weights.{name} has {len(tensor)} rows for {num_prompts} prompts; give one row per prompt"
            )
    if weights.allowed_of is None:
        return torch.zeros(num_prompts, dtype=torch.int64, device=device)
    return weights.allowed_of.long()


def _shared_by_place(trie: TokenTrie, weights: ItemWeights) -> tuple[Tensor, Tensor]:
    """Returns two tensors, indexed by place.

    The first contains the shared weight of the item at the place, before filters are applied, `(1, I)`. The second
    contains whether each filter allows the item, `(F, I)`.
    """
    num_items = len(trie.item_positions)
    for name in ("shared", "allowed"):
        tensor = getattr(weights, name)
        if tensor is not None and tensor.shape[-1] != num_items:
            what = weights.called.get(name, f"weights.{name}")
            raise ValueError(
                f"{what} has {tensor.shape[-1]} items, but the trie has {num_items}; give one value per item of the "
                "catalogue"
            )

    # By default, the shared weights are 1, or 0 if `weights.items` is given.
    items = trie.items.long()
    if weights.shared is None:
        shared = torch.full((trie.num_items,), float(weights.items is None), device=items.device)
    else:
        shared = at_least_float32(weights.shared)[items]

    # By default, a single filter allows all items.
    if weights.allowed is None:
        allowed = torch.ones_like(items, dtype=torch.bool).unsqueeze(0)
    else:
        allowed = weights.allowed[:, items]
    return shared.unsqueeze(0), allowed


def _own_by_place(trie: TokenTrie, weights: ItemWeights, num_prompts: int) -> tuple[Tensor, Tensor]:
    """Returns the places of each prompt's items with weights of their own, and these weights, `(B, S)` each.

    The places of a prompt are distinct and ascending, and padded with `num_items`.
    """
    if weights.items is None or weights.values is None:
        empty = torch.zeros(num_prompts, 0, device=trie.items.device)
        return empty.to(trie.items.dtype), empty

    # 1. Look up the places.
    items = weights.items.long()
    known = (items >= 0) & (items < len(trie.item_positions))
    places = torch.where(known, trie.item_positions[torch.where(known, items, 0)], -1)
    unknown = (places < 0) & (items >= 0)
    if bool(unknown.any()):
        raise ValueError(
            f"weights.items contains {int(items[unknown][0])}, which is not one of the {trie.num_items} items "
            "of the trie; pass item indices of the catalogue from which the trie was built"
        )
    places = torch.where(places < 0, trie.num_items, places)

    # 2. Add up the weights of repeated items. Sorting makes equal places adjacent, and each run of equal places gets
    # one column.
    places, order = places.sort(dim=1, stable=True)
    values = torch.where(items < 0, 0.0, at_least_float32(weights.values)).gather(1, order)
    is_first = torch.ones_like(places, dtype=torch.bool)
    is_first[:, 1:] = places[:, 1:] != places[:, :-1]
    run = is_first.long().cumsum(1) - 1
    distinct = torch.full_like(places, trie.num_items).scatter(1, run, places)
    return distinct, torch.zeros_like(values).scatter_add(1, run, values)


def _at(table: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Returns `table[rows, places]` of a table `(F, I)` for rows `(B,)` and places `(B, N)`; 0 for padding."""
    index = rows.unsqueeze(1) * table.shape[1] + places.clamp(max=table.shape[1] - 1)
    return torch.where(places < table.shape[1], table.flatten()[index], 0)


def _contains(places: Tensor, others: Tensor) -> Tensor:
    """Returns whether each of the places `others` `(B, N)` is in the same row of the ascending `places` `(B, E)`."""
    if not places.shape[1]:
        return torch.zeros_like(others, dtype=torch.bool)
    return places.gather(1, _column_of(others, places)) == others


def _column_of(wanted: Tensor, places: Tensor) -> Tensor:
    """Returns the column of each wanted place `(B, N)` in the same row of the ascending `places` `(B, S)`, S > 0.

    The column of a place that the row does not contain is arbitrary.
    """
    return torch.searchsorted(places, wanted.to(places.dtype).contiguous()).clamp(max=places.shape[1] - 1)


def _paths(trie: TokenTrie, places: Tensor) -> Iterator[Tensor]:
    """Yields the nodes `(B, N)` on the paths to the items at the places `(B, N)`, from the leaves up to the root.

    The root ends every path, and is repeated after short paths. Padding has the path of the last item.
    """
    nodes = trie.leaves[places.clamp(max=trie.num_items - 1).long()]
    for _ in range(trie.max_depth + 1):
        yield nodes
        nodes = trie.parents[nodes].long()


def _largest_below(trie: TokenTrie, weights: Tensor) -> Tensor:
    """Returns the largest weight below each node, `(F, num_nodes)`. The weights `(F, I)` are given by place."""
    largest = weights.new_zeros(len(weights), trie.num_nodes)
    largest.scatter_reduce_(1, trie.leaves.expand_as(weights), weights, "amax")

    # Levels are processed from the deepest upwards, and each node passes its maximum to its parent.
    offsets = trie.depth_offsets.tolist()
    for start, stop in reversed(list(zip(offsets[1:-1], offsets[2:], strict=True))):
        parents = trie.parents[start:stop].long().expand(len(weights), -1)
        largest.scatter_reduce_(1, parents, largest[:, start:stop].clone(), "amax")
    return largest
