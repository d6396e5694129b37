"""Slow reference implementations of constrained decoding: `generate` with `TrieLogitsProcessor`, and one forward pass
per item."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from trl_rec.decoding import ItemWeights, TrieLogitsProcessor
from trl_rec.items import TokenTrie


Ranking = list[tuple[int, float]]


def generate_rankings(
    model: PreTrainedModel,
    prompts: dict[str, Tensor],
    trie: TokenTrie,
    *,
    num_beams: int,
    exclude: list[list[int]] | None = None,
    renormalize: bool = True,
    length_penalty: float = 0.0,
    has_eos: bool = True,
    weights: ItemWeights | None = None,
) -> list[Ranking]:
    """Returns a ranking per prompt: the items of each beam that `generate` returns with a finite score, together with
    this score. The items of a leaf are in the order of the catalogue. Excluded items are left out."""
    width = prompts["input_ids"].shape[1]
    processor = TrieLogitsProcessor(
        trie, width, eos_token_id=1, renormalize=renormalize, exclude=exclude, weights=weights
    )
    config = GenerationConfig(
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=trie.max_depth,
        length_penalty=length_penalty,
        early_stopping="never",
        do_sample=False,
        eos_token_id=1 if has_eos else None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    output = model.generate(**prompts, generation_config=config, logits_processor=LogitsProcessorList([processor]))
    scores = output.sequences_scores.view(-1, num_beams)
    leaves = trie.walk(output.sequences[:, width:]).amax(-1).view(-1, num_beams)
    rankings = []
    for row in range(len(scores)):
        left_out = exclude[row] if exclude is not None else []
        finite = [beam for beam in range(num_beams) if scores[row, beam] > -1e7]
        items = [
            (item, float(scores[row, beam])) for beam in finite for item in trie.items_at(leaves[row, beam]).tolist()
        ]
        rankings.append([pair for pair in items if pair[0] not in left_out])
    return rankings


@torch.no_grad()
def brute_force(
    model: PreTrainedModel,
    prompt: list[int],
    sequences: list[list[int]],
    *,
    renormalize: bool,
    length_penalty: float = 0.0,
) -> Ranking:
    """Returns every item with its score, best first. Items with equal scores are ordered by their index. Each score
    comes from a separate forward pass without a KV cache or padding."""
    scored = []
    for item, sequence in enumerate(sequences):
        logits = model(input_ids=torch.tensor([prompt + sequence])).logits[0, len(prompt) - 1 : -1].float()
        score = 0.0
        for position, token in enumerate(sequence):
            legal = sorted({other[position] for other in sequences if other[:position] == sequence[:position]})
            pool = logits[position, legal] if renormalize else logits[position]
            score += float(logits[position, token] - pool.logsumexp(0))
        scored.append((item, score / len(sequence) ** length_penalty))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))
