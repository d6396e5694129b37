"""Times training with sampled items at several sizes of the catalogue, with one token per item.

With sampled items, the softmax compares each target with a few items instead of the whole catalogue. The program
prints the time of the forward and backward pass, the time of the whole step, and the optimizer's share of the step.
The model, the batch and the sampling of items are those of `BearTrainer` with `targets: all`, where every item of a
row but the first is a target. The optimizer's share includes gradient clipping. Clipping and AdamW process the
gradients of all embeddings, so this share grows with the catalogue. Times are CPU seconds, which equal the elapsed
time with one thread on an idle machine.

    OMP_NUM_THREADS=1 python benchmarks/sampled_items.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedModel

from trl_rec.losses import bear_loss, sampled_softmax_loss
from trl_rec.models import logits_at
from trl_rec.models.sampled_columns import SampledColumns, collect_rows, collecting_rows
from trl_rec.trainer.bear.sampling import ItemSampler, counted_negatives, log_probabilities


NUM_SPECIAL = 3  # <pad> <bos> <eos>


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--items", type=int, nargs="+", default=[12_000, 1_000_000])
    parser.add_argument("--sampled_items", type=int, default=256)
    parser.add_argument("--sampled_from", choices=["uniform", "popularity"], default="uniform")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=50, help="items per row")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--plain",
        action="store_true",
        help="keep the gradients of the embeddings dense, instead of collecting them as sparse tensors",
    )
    parser.add_argument("--full", action="store_true", help="also time the full softmax over the smallest catalogue")
    arguments = parser.parse_args()

    print(
        f"{arguments.batch} rows of {arguments.length} items, {arguments.layers} layers, {arguments.hidden} wide, "
        f"{arguments.sampled_items} sampled items, {torch.get_num_threads()} thread(s), median of {arguments.repeats}"
    )
    sizes = sorted(arguments.items)
    found = {size: measure(arguments, size) for size in sizes}
    first = found[sizes[0]][0]
    for size, (passes, optimizer) in found.items():
        print(
            f"{size:>9,} items: forward and backward {passes:.3f} s ({passes / first:.2f} times that of {sizes[0]:,} "
            f"items), step {passes + optimizer:.3f} s, optimizer's share {optimizer / (passes + optimizer):.0%}"
        )
    if arguments.full:
        passes, optimizer = measure(arguments, sizes[0], sampled=False)
        print(f"{sizes[0]:>9,} items, full softmax: forward and backward {passes:.3f} s, optimizer {optimizer:.3f} s")


def measure(arguments: argparse.Namespace, num_items: int, *, sampled: bool = True) -> tuple[float, float]:
    """Returns the median seconds of the forward and backward pass, and the median seconds of the update.

    The update consists of gradient clipping, the step of the optimizer, and setting the gradients to zero.
    """
    torch.manual_seed(0)
    model = make_model(arguments, num_items)
    if not arguments.plain:
        collect_rows(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = sampled_loss if sampled else full_loss
    compute = step(arguments, model, num_items)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    passes = []
    updates = []
    for number in range(arguments.repeats + 1):
        passes.append(seconds(lambda number=number: compute(number).backward()))
        updates.append(seconds(update))
    # The first step is left out, because it also allocates memory.
    return statistics.median(passes[1:]), statistics.median(updates[1:])


def sampled_loss(arguments: argparse.Namespace, model: PreTrainedModel, num_items: int) -> Callable[[int], Tensor]:
    """Returns a function that takes the number of a step, samples the items of this step, and computes the loss."""
    tokens = NUM_SPECIAL + np.arange(num_items)
    popular = tokens[(num_items * np.random.default_rng(0).random(100_000) ** 3).astype(np.int64)]
    sampler = ItemSampler(tokens, popular, arguments.sampled_items, arguments.sampled_from)
    log_q = sampler.log_q(NUM_SPECIAL + num_items)
    inputs, learned, targets = batch(arguments, num_items)

    def compute(number: int) -> Tensor:
        labels = inputs[:, 1:].numpy()
        drawn = [sampler.stream(row, [0, number, index]) for index, row in enumerate(labels)]
        width = max(map(len, drawn))
        streams = torch.tensor(np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for row in drawn]))
        columns = SampledColumns(learned.nonzero()[:, 0], targets, streams.clamp(min=0))
        with logits_at(model, learned, tokens=columns), collecting_rows(model):
            logits = model(input_ids=inputs, use_cache=False).logits[0]
        counted = counted_negatives(streams, columns, arguments.sampled_items)
        return sampled_softmax_loss(logits, log_probabilities(log_q, columns), counted).loss.mean()

    return compute


def full_loss(arguments: argparse.Namespace, model: PreTrainedModel, num_items: int) -> Callable[[int], Tensor]:
    """Returns a function that computes the loss of a step with the softmax over all items."""
    inputs, learned, targets = batch(arguments, num_items)
    tokens = NUM_SPECIAL + torch.arange(num_items)

    def compute(number: int) -> Tensor:
        with logits_at(model, learned, tokens=tokens):
            logits = model(input_ids=inputs, use_cache=False).logits[0]
        settings = {"num_beams": 1, "weight": 0.0, "sharpness": 1.0}
        return bear_loss(logits, targets - NUM_SPECIAL, None, **settings).loss.mean()

    return compute


def batch(arguments: argparse.Namespace, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns input ids `(B, T)`, a mask of the positions that predict the next item, and the items to predict."""
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch, arguments.length)
    inputs = NUM_SPECIAL + torch.randint(num_items, shape, generator=generator)
    learned = torch.ones(shape, dtype=torch.bool)
    learned[:, -1] = False
    return inputs, learned, inputs[:, 1:].flatten()


def make_model(arguments: argparse.Namespace, num_items: int) -> PreTrainedModel:
    """Makes a decoder with tied embeddings, as `trl_rec.models.make_model` does from a tokenizer."""
    config = Phi3Config(
        vocab_size=NUM_SPECIAL + num_items,
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=2,
        attention_dropout=0.2,
        resid_pdrop=0.2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Phi3ForCausalLM(config).train()


def seconds(work: Callable[[], object]) -> float:
    """Returns the processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
