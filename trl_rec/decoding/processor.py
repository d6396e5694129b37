"""The trie as a logits processor, for `model.generate` and for engines that accept its processors.

For beam search, `rank_items` gives the same results faster; the processor is for sampling strategies and engines that
`rank_items` does not cover. It keeps no state: each call walks the generated tokens from the root, so beams may be
reordered freely.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trl_rec.decoding.excluded import Excluded
from trl_rec.items.trie import TokenTrie


class TrieLogitsProcessor(LogitsProcessor):
    """Allows only tokens that continue a catalogue item. A complete item is followed by EOS, with score 0.

    Accepts logits as well as log-probabilities, which beam search passes. Leave `remove_invalid_values` of `generate`
    at False, its default, and pass a new `GenerationConfig`: the warpers of a model's own configuration would act
    after the trie.

    Args:
        trie (`TokenTrie`): The catalogue.
        prompt_length (`int`): Number of columns of the padded prompts. The tokens after them are walked.
        eos_token_id (`int`): The token to emit after a complete item.
        renormalize (`bool`, *optional*, defaults to `True`): Whether to take the softmax over the legal tokens.
        exclude (lists of `int`, *optional*): Items to leave out, one list per prompt. They are removed after the
            softmax. The rows passed in must be the prompts in order, each repeated for its beams.
    """

    def __init__(
        self,
        trie: TokenTrie,
        prompt_length: int,
        *,
        eos_token_id: int,
        renormalize: bool = True,
        exclude: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.eos_token_id = eos_token_id
        self.renormalize = renormalize
        self.exclude = exclude

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores `(rows, V)`, with -inf for all tokens that are not legal."""
        # 1. Score the legal tokens of each row.
        trie = self.trie.to(scores.device)
        nodes, complete = self._nodes(trie, input_ids[:, self.prompt_length :])
        tokens, children, legal = trie.children(nodes)
        legal_scores = scores.gather(1, tokens).masked_fill(~legal, -torch.inf)
        if self.renormalize:
            legal_scores = torch.where(legal, legal_scores.log_softmax(-1), -torch.inf)

        # 2. Remove excluded items.
        if self.exclude is not None:
            copies = len(scores) // len(self.exclude)
            excluded = Excluded(trie, [row for row in self.exclude for _ in range(copies)], len(scores))
            legal_scores = legal_scores.masked_fill(excluded.emptied(children), -torch.inf)

        # 3. Write the scores into the vocabulary. All padding points to token 0; the maximum keeps the score that
        # token 0 has if it is legal.
        masked = torch.full_like(scores, -torch.inf)
        masked.scatter_reduce_(1, tokens, legal_scores, "amax")
        masked[:, self.eos_token_id] = torch.where(complete, 0.0, masked[:, self.eos_token_id])
        return masked

    def _nodes(self, trie: TokenTrie, generated: Tensor) -> tuple[Tensor, Tensor]:
        """The node that each row has reached, and whether it is a leaf, `(rows,)` each. EOS and padding after an item
        are ignored."""
        path = trie.walk(generated)
        steps = torch.arange(path.shape[1], device=path.device)
        last = torch.where(path >= 0, steps, 0).amax(1)
        nodes = path.gather(1, last.unsqueeze(1)).squeeze(1)
        complete = trie.row_offsets[nodes] == trie.row_offsets[nodes + 1]

        strayed = ~complete & (last < generated.shape[1])
        if bool(strayed.any()):
            row = int(strayed.nonzero()[0])
            raise ValueError(
                f"row {row} left the trie after {int(last[row])} tokens; was prompt_length {self.prompt_length} right?"
            )
        return nodes, complete
