"""Samples lists in a loop. Each round chooses one token for every incomplete list, until all lists are complete.

Legend: B: prompts, G: lists per prompt, R = B * G, K: items per list, D: tokens of the longest path, C: children
(padded).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trl_rec.decoding.beam import best_first
from trl_rec.decoding.lists.decoder import ListDecoder, ListLogits, Lists


# To choose a token, a random integer is multiplied by the total probability of the legal tokens, which is scaled to an
# integer. Both integers have about this many bits, so that the product fits into an int64.
NOISE_BITS = 31


class ListSampler:
    """Samples the lists of a batch of prompts.

    Args:
        decoder (`ListDecoder`): The decoder that writes the lists.
        temperature (`float`): Divides the logits.
        noise (`torch.Tensor` of shape `(B, G, K * D)`, *optional*): Random integers of `NOISE_BITS` bits, one for each
            depth of each item. Without noise, the lists are greedy: each choice takes the token with the highest
            score, which is its log-probability, plus a bonus if the decoder was given item weights.
    """

    def __init__(self, decoder: ListDecoder, *, temperature: float, noise: Tensor | None) -> None:
        self.decoder = decoder
        self.trie = decoder.trie
        self.temperature = temperature
        self.noise = None if noise is None else noise.flatten(0, 1)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Samples the lists. Returns their items, `(B, G, K)`, and the log-probability of the choice at each depth of
        each item, `(B, G, K * D)`; 0 where there was no choice."""
        decoder = self.decoder
        max_steps = decoder.max_steps
        output: ListLogits | None
        lists, output = decoder.begin()
        dtype = torch.promote_types(output.logits.dtype, torch.float32)
        # Lists that are already complete write into an extra last column, which is dropped.
        logps = output.logits.new_zeros(len(lists.nodes), max_steps + 1, dtype=dtype)

        for step in range(1, max_steps + 1):
            # 1. Choose a child for each list that is not complete, and record its log-probability.
            active = lists.ranks < decoder.list_length
            place = lists.ranks * self.trie.max_depth + self.trie.depths(lists.nodes)
            chosen, logp = self._choose(lists, output, place)
            logps.scatter_(1, torch.where(active, place, max_steps).unsqueeze(1), logp.unsqueeze(1))

            # 2. Move each list to its child, and let the model read the new tokens.
            lists = decoder.move(lists, chosen, active)
            output = decoder.read(lists, lists.ranks < decoder.list_length, step)
            if output is None:
                break
        return lists.items[:, :-1].view(*decoder.shape, -1), logps[:, :-1].view(*decoder.shape, -1)

    def _choose(self, lists: Lists, output: ListLogits, place: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the child that each list moves to, and the child's log-probability; both have the shape `(R,)`."""
        logps, children = self.decoder.logps(lists, output, self.temperature)
        if self.noise is None:
            guided = self.decoder.guided(logps.float(), children)
            column = best_first(guided, self.trie.lowest_items[children].expand_as(logps), 1)
        else:
            noise = self.noise.gather(1, place.clamp(max=self.noise.shape[1] - 1).unsqueeze(1))
            column = _sampled_columns(logps, noise)

        # If the logits contain NaN, the choice may be padding (node 0). Move to the first child instead. The
        # caller of `draw` reports the NaN.
        chosen = children.expand_as(logps).gather(1, column).squeeze(1)
        first_child = self.trie.row_offsets[lists.nodes] + 1
        return torch.where(chosen > 0, chosen, first_child), logps.gather(1, column).squeeze(1)


def _sampled_columns(logps: Tensor, noise: Tensor) -> Tensor:
    """Returns the sampled column of each row, `(R, 1)`, by inverse transform sampling with the noise `(R, 1)`."""
    # Sums of integers are exact on every device, so a column of probability 0 is never drawn.
    mass = logps.exp().mul_(2**NOISE_BITS).long().cumsum(1)
    column = torch.searchsorted(mass, (noise * mass[:, -1:]) >> NOISE_BITS, right=True)
    return column.clamp(max=logps.shape[1] - 1)  # only NaN gives an index beyond the last column
