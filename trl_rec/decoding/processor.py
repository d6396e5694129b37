"""The trie as a logits processor, for `model.generate` and engines that take its processors.

`rank_items` is faster and does the same; this is for sampling strategies and engines that it does not cover. The
processor keeps no state: it walks each row's generated tokens from the root, so beams may be reordered at will.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trl_rec.decoding.excluded import Excluded
from trl_rec.items.trie import TokenTrie


class TrieLogitsProcessor(LogitsProcessor):
    """Leaves the tokens that continue a catalogue item. After a complete item only EOS is left, at no cost.

    Works on log-probabilities (beam search passes those) as on logits. Pass `remove_invalid_values=False` (the
    default) to `generate`, and build its `GenerationConfig` afresh: warpers that a model's own configuration brings
    along would act after the trie.

    Args:
        trie: The catalogue.
        prompt_length: Columns of the padded prompts; what follows is walked.
        eos_token_id: What to emit after a complete item.
        renormalize: Whether to take the softmax over the legal tokens.
        exclude (*optional*): Items to leave out, one list a prompt. Taken out after the softmax; rows are prompts in
            order, each repeated for its beams.
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
        self.trie, self.prompt_length, self.eos_token_id = trie, prompt_length, eos_token_id
        self.renormalize, self.exclude = renormalize, exclude

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of shape `(rows, V)` with everything illegal at -inf."""
        trie = self.trie.to(scores.device)
        nodes, complete = self._nodes(trie, input_ids[:, self.prompt_length :])
        tokens, children, legal = trie.children(nodes)
        legal_scores = scores.gather(1, tokens).masked_fill(~legal, -torch.inf)
        if self.renormalize:
            legal_scores = torch.where(legal, legal_scores.log_softmax(-1), -torch.inf)
        if self.exclude is not None:
            copies = len(scores) // len(self.exclude)
            excluded = Excluded(trie, [row for row in self.exclude for _ in range(copies)], len(scores))
            legal_scores = legal_scores.masked_fill(excluded.emptied(children), -torch.inf)
        masked = torch.full_like(scores, -torch.inf)
        # illegal columns all point at token 0: amax keeps a legal score that stands there
        masked.scatter_reduce_(1, tokens, legal_scores, "amax")
        masked[:, self.eos_token_id] = torch.where(complete, 0.0, masked[:, self.eos_token_id])
        return masked

    def _nodes(self, trie: TokenTrie, generated: Tensor) -> tuple[Tensor, Tensor]:
        """The node each row has reached, and whether its item is complete; EOS and padding after an item are passed
        over."""
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
