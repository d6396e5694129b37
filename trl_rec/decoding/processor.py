"""Constrains `model.generate`, or an engine that accepts logits processors, to the items of a trie.

For beam search, `rank_items` gives the same results faster. The processor is for sampling strategies and engines that
`rank_items` does not cover. The processor keeps no state. Each call walks the generated tokens from the root, so beams
may be reordered freely.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.trie_weights import TrieWeights, look_up
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.trie import TokenTrie


class TrieLogitsProcessor(LogitsProcessor):
    """Allows only tokens that continue a catalogue item. A complete item is followed by EOS, with score 0.

    Scores may be logits or, as in beam search, log-probabilities. Leave `remove_invalid_values` of `generate` at its
    default, False, because True replaces NaN and infinite scores by finite ones. Pass a new `GenerationConfig` to
    `generate`. Otherwise, `generate` also applies the sampling settings of the model's own configuration, such as
    `temperature`, after this processor.

    Args:
        trie (`TokenTrie`): The catalogue's paths.
        prompt_length (`int`): Number of columns of the padded prompts. The generated tokens begin after them.
        eos_token_id (`int`): The token to emit after a complete item.
        renormalize (`bool`, *optional*, defaults to `True`): Whether to take the softmax over the legal tokens.
        exclude (lists of `int`, *optional*): Items to leave out, one list per prompt. They are removed after the
            softmax. The rows of `input_ids` must be in the order of the prompts, with all beams of a prompt together.
        weights ([`ItemWeights`], *optional*): Weights of the items. Weights that differ between prompts must be in
            the order of the prompts in `input_ids`. Under beam search without a length penalty, the scores of
            `generate` equal those of [`rank_items`]. If several items share a path, `generate` returns this path once,
            with the score of the best of the items. Under sampling, `generate` normalises the scores at each step.
            Therefore an item with probability `p` and weight `w` is not drawn in proportion to `p * w ** strength`.
    """

    def __init__(
        self,
        trie: TokenTrie,
        prompt_length: int,
        *,
        eos_token_id: int,
        renormalize: bool = True,
        exclude: Sequence[Sequence[int]] | None = None,
        weights: ItemWeights | None = None,
    ) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.eos_token_id = eos_token_id
        self.renormalize = renormalize
        self.exclude = exclude
        self.weights = weights

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores `(rows, V)`, with -inf for all tokens that are not legal."""
        # 1. Score the legal tokens of each row.
        trie = self.trie.to(scores.device)
        nodes, complete = self._nodes(trie, input_ids[:, self.prompt_length :])
        tokens, children, legal = trie.children(nodes)
        legal_scores = scores.gather(1, tokens).masked_fill(~legal, -torch.inf)
        if self.renormalize:
            legal_scores = torch.where(legal, legal_scores.log_softmax(-1), -torch.inf)

        # 2. Remove excluded items, and add the effect of the item weights to each child's score.
        legal_scores = self._with_weights(trie, legal_scores, nodes, children)

        # 3. Scatter the scores to the vocabulary. All padding points to token 0; taking the maximum keeps the score of
        # token 0 where it is legal.
        masked = torch.full_like(scores, -torch.inf)
        masked.scatter_reduce_(1, tokens, legal_scores, "amax")
        masked[:, self.eos_token_id] = torch.where(complete, 0.0, masked[:, self.eos_token_id])
        return masked

    def _with_weights(self, trie: TokenTrie, scores: Tensor, nodes: Tensor, children: Tensor) -> Tensor:
        """Adds the effect of the item weights to the scores `(rows, C)` of the children. Removes excluded items."""
        if self.exclude is None and self.weights is None:
            return scores

        # 1. Arrange the children of all beams of a prompt in one row. Remove those below which every item is excluded
        # or has weight 0.
        num_prompts = self._num_prompts(len(scores))
        weighted = look_up(trie, self.weights, Excluded(trie, self.exclude, num_prompts))
        below = children.view(num_prompts, -1)
        scores = scores.masked_fill(weighted.emptied(below).view_as(scores), -torch.inf)
        if not isinstance(weighted, TrieWeights):
            return scores

        # 2. The bonus of a node is what the weights add to the score of a beam on its way from the root to the node
        # (see `trie_weights.py`). Add to each child the difference between its bonus and that of its parent. The root
        # has the bonus 0. At the root, also add `constant`, so that all weights are divided by their sum.
        nodes = nodes.view(num_prompts, -1)
        reached = torch.where(nodes == 0, -weighted.constant, weighted.bonus(nodes)).view(-1, 1)
        gains = weighted.bonus(below).view_as(scores) - reached
        return torch.where(scores > -torch.inf, scores + gains, -torch.inf)

    def _num_prompts(self, num_rows: int) -> int:
        """Returns the number of prompts. If `exclude` is None, and the weights are the same for all prompts, each row
        counts as a prompt."""
        if self.exclude is not None:
            return len(self.exclude)
        for rows in (self.weights.items, self.weights.allowed_of) if self.weights is not None else ():
            if rows is not None:
                return len(rows)
        return num_rows

    def _nodes(self, trie: TokenTrie, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the node that each row has reached, and whether it is a leaf; both are `(rows,)`. EOS and padding
        after an item are ignored."""
        path = trie.walk(generated)
        steps = torch.arange(path.shape[1], device=path.device)
        last = torch.where(path >= 0, steps, 0).amax(1)
        nodes = path.gather(1, last.unsqueeze(1)).squeeze(1)
        complete = trie.row_offsets[nodes] == trie.row_offsets[nodes + 1]

        strayed = ~complete & (last < generated.shape[1])
        if bool(strayed.any()):
            row = int(strayed.nonzero()[0])
            raise ValueError(
                f"row {row} left the trie after {int(last[row])} tokens; check that prompt_length "
                f"{self.prompt_length} is the number of columns of the padded prompts"
            )
        return nodes, complete
