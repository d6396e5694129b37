"""The loop that draws lists: one choice a list and round, until every list is complete. Lists that end early wait for
the others.

Legend: B prompts, G lists a prompt, R = B * G, K items a list, D tokens of the longest path, C children (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trl_rec.decoding.beam import best_first
from trl_rec.decoding.list_steps import ListLogits, Lists, ListSteps


NOISE_BITS = 31  # noise times the sum of all probabilities, in as many bits each, fits an integer


class ListSampler:
    """Draws the lists of a batch of prompts.

    Args:
        steps (`ListSteps`): What they are written with.
        temperature (`float`): Divides the logits.
        noise (`torch.Tensor` of shape `(B, G, K * D)`): Integers of `NOISE_BITS` bits, one for each depth of each
            item.
        greedy (`bool`): Takes the likeliest token, whatever the noise.
    """

    def __init__(self, steps: ListSteps, *, temperature: float, noise: Tensor, greedy: bool) -> None:
        self.steps, self.trie, self.temperature, self.greedy = steps, steps.trie, temperature, greedy
        self.noise = noise.flatten(0, 1)

    def draw(self) -> tuple[Tensor, Tensor]:
        """The items `(B, G, K)`, and `(B, G, K * D)`: the log-probability of the choice at each depth of each item,
        else 0."""
        steps, most = self.steps, self.steps.most
        heard: ListLogits | None
        lists, heard = steps.begin()
        dtype = torch.promote_types(heard.logits.dtype, torch.float32)
        logps = heard.logits.new_zeros(
            len(lists.nodes), most + 1, dtype=dtype
        )  # the last column is for what is not kept
        for step in range(1, most + 1):
            active = lists.ranks < steps.list_length
            place = lists.ranks * self.trie.max_depth + self.trie.depths(lists.nodes)
            chosen, logp = self._choose(lists, heard, place)
            logps.scatter_(1, torch.where(active, place, most).unsqueeze(1), logp.unsqueeze(1))
            lists = steps.move(lists, chosen, active)
            heard = steps.hear(lists, lists.ranks < steps.list_length, step)
            if heard is None:
                break
        return lists.items[:, :-1].view(*steps.shape, -1), logps[:, :-1].view(*steps.shape, -1)

    def _choose(self, lists: Lists, heard: ListLogits, place: Tensor) -> tuple[Tensor, Tensor]:
        """The child that each list goes to, and its log-probability, `(R,)` each."""
        logps, children = self.steps.logps(lists, heard, self.temperature)
        if self.greedy:
            column = best_first(logps.float(), self.trie.lowest_items[children].expand_as(logps), 1)
        else:
            column = _drawn(logps, self.noise.gather(1, place.clamp(max=self.noise.shape[1] - 1).unsqueeze(1)))
        chosen = children.expand_as(logps).gather(1, column).squeeze(1)
        first = self.trie.row_offsets[lists.nodes] + 1  # where a NaN, which is reported at the end, has chosen nothing
        return torch.where(chosen > 0, chosen, first), logps.gather(1, column).squeeze(1)


def _drawn(logps: Tensor, noise: Tensor) -> Tensor:
    """`(R, 1)`: the column that each row's noise falls on. In whole numbers, so that the sums are exact and a column
    without probability is never drawn, whatever the device."""
    mass = logps.exp().mul_(2**NOISE_BITS).long().cumsum(1)
    column = torch.searchsorted(mass, (noise * mass[:, -1:]) >> NOISE_BITS, right=True)
    return column.clamp(max=logps.shape[1] - 1)  # only a NaN leads beyond
