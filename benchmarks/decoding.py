"""Compares the time of `rank_items` with that of `generate` in a beam search over a catalogue of titles.

`generate` is called with `prefix_allowed_tokens_fn`, the usual way to restrict the output in transformers. The
function passed as this argument walks a trie of Python dicts for every beam and every token. Both methods renormalise
log-probabilities over the legal tokens, get the same prompts, and should return the same lists. The program prints
their times, the peak memory of the tensors of `rank_items` (beyond the model), and the number of prompts for which
both methods return the same list.

    python benchmarks/decoding.py DATASET_FOLDER --model FOLDER_OR_GGUF [--tiny] [--prompts 8] [--num_beams 10]
        [--runs 3] [--dtype float32|bfloat16|nf4]

`DATASET_FOLDER` is the output of `trl-rec prepare`. `--tiny` uses the model's tokenizer with a 2-layer model of random
weights. `--dtype nf4` quantises a model from a folder. With bfloat16 and nf4, the two methods return different lists
for some prompts, because `generate` computes its logits in bfloat16, and `rank_items` in float32.

    python benchmarks/decoding.py DATASET_FOLDER --weights RUN_FOLDER [--prompts 64] [--num_beams 10] [--runs 20]

With `--weights`, the program instead compares the CPU times of `rank_items` with and without item weights (factors on
the probabilities of items). Calls with and without weights take turns. All prompts share one weight per item, and each
prompt also has 1,000 weights of its own. In this case, the program uses one thread, and excludes the items of the
history from the lists. `RUN_FOLDER` is the output of a training verb. If this folder specifies more beams than
`--num_beams`, its number of beams is used.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from bear_step import DTYPES, PeakBytes
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data import PromptFormat, load
from trl_rec.data.dataset import split_rows
from trl_rec.decoding import ItemWeights, Recommender, rank_items
from trl_rec.decoding.padding import left_padded
from trl_rec.items import TokenTrie
from trl_rec.models import load_model, load_tokenizer
from trl_rec.ragged import Ragged


def python_trie(paths: Ragged) -> dict:
    """Returns the trie as nested dicts, one level per token."""
    root: dict = {}
    for row in range(len(paths)):
        node = root
        for token in paths[row].tolist():
            node = node.setdefault(token, {})
    return root


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, Tensor],
    root: dict,
    beams: int,
    longest: int,
) -> Tensor:
    """Returns the token ids `(prompts, beams, T)` of `generate`'s beams under the Python trie."""
    width = prompts["input_ids"].shape[1]

    def allowed(_: int, sequence: Tensor) -> list[int]:
        node = root
        for token in sequence[width:].tolist():
            node = node.get(token, {})
        return list(node) or [tokenizer.eos_token_id]

    config = GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=longest,
        length_penalty=0.0,
        renormalize_logits=True,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    sequences = model.generate(**prompts, generation_config=config, prefix_allowed_tokens_fn=allowed)
    return sequences[:, width:].view(len(prompts["input_ids"]), beams, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--model")
    parser.add_argument("--weights", metavar="RUN_FOLDER")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--num_beams", type=int, default=10)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    arguments = parser.parse_args()
    if arguments.weights is not None:
        time_weights(arguments.dataset, arguments.weights, arguments.num_beams, arguments.prompts, arguments.runs)
    elif arguments.model is not None:
        compare(arguments)
    else:
        parser.error("pass --model, or --weights")


def compare(arguments: argparse.Namespace) -> None:
    """Times `rank_items` against `generate`."""
    arguments.prompts = arguments.prompts or 8
    arguments.runs = arguments.runs or 3

    # Load the model, and build both tries.
    dataset = load(arguments.dataset)
    tokenizer = load_tokenizer(arguments.model)
    if arguments.tiny:
        torch.manual_seed(0)
        size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        model: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **size)
        ).eval()
        model = model.to(DTYPES[arguments.dtype]["dtype"])
    else:
        model = load_model(arguments.model, **DTYPES[arguments.dtype])
    trie = TokenTrie.from_catalog(dataset.catalog.with_surface("title"), tokenizer)
    prompt_format = PromptFormat.for_catalog(dataset.catalog.with_surface("title"), tokenizer)
    root = python_trie(prompt_format.paths)

    # Make the prompts for both methods from the last ten items of each history.
    histories = split_rows(dataset.test.select(range(arguments.prompts)), "history").tail(10)
    prompts = left_padded(prompt_format.encode(histories), tokenizer.pad_token_id)
    width = prompts["input_ids"].shape[1]
    print(f"{trie.num_items} titles of at most {trie.max_depth} tokens; {arguments.prompts} prompts of {width} tokens")

    # Time both methods in turns.
    ours_seconds: list[float] = []
    theirs_seconds: list[float] = []
    for run in range(arguments.runs):
        start = time.perf_counter()
        ranked = rank_items(model, prompts, trie, num_beams=arguments.num_beams)
        ours_seconds.append(time.perf_counter() - start)

        start = time.perf_counter()
        theirs = generate(model, tokenizer, prompts, root, arguments.num_beams, trie.max_depth)
        theirs_seconds.append(time.perf_counter() - start)
        print(f"run {run + 1}: rank_items {ours_seconds[-1]:.2f} s, generate {theirs_seconds[-1]:.2f} s", flush=True)

    # Measure memory in a separate search, because counting the bytes slows a search down.
    with PeakBytes() as bytes_:
        rank_items(model, prompts, trie, num_beams=arguments.num_beams)

    same = sum(listed(trie, row) == items.tolist() for row, items in zip(theirs, ranked.items, strict=True))
    ratio = median(theirs_seconds) / median(ours_seconds)
    print(f"rank_items is {ratio:.1f} times faster (medians of {arguments.runs} runs)")
    print(f"rank_items has {bytes_.peak / 2**20:.0f} MiB of tensors at the peak, beyond the model")
    print(f"the same lists for {same} of {len(theirs)} prompts")


def time_weights(folder: str, run: str, num_beams: int, num_prompts: int | None, num_runs: int | None) -> None:
    """Times `rank_items` with and without weights, with the model of a run folder."""
    torch.set_num_threads(1)
    num_prompts = num_prompts or 64
    num_runs = num_runs or 20
    recommender = Recommender.from_pretrained(run)
    trie = recommender.trie
    num_beams = max(num_beams, recommender.settings["num_beams"])

    # Make the prompts and exclusions of the first test users, and random weights.
    histories = split_rows(load(folder).test.select(range(num_prompts)), "history")
    max_length = recommender.settings["max_length"]
    encoded = recommender.prompt_format.encode(histories, max_length=max_length)
    prompts = left_padded(encoded, recommender.tokenizer.pad_token_id)
    exclude = torch.from_numpy(recommender.prompt_format.exclusions(histories).padded())
    torch.manual_seed(0)
    items = torch.randint(0, trie.num_items, (num_prompts, 1_000))
    weights = ItemWeights(shared=torch.rand(trie.num_items) + 0.1, items=items, values=torch.rand(items.shape))

    # Time both kinds of calls in turns. The first call of each kind builds caches of the trie, so it is not counted.
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(num_runs + 1):
        for name, given in (("without", None), ("with", weights)):
            start = time.process_time()
            rank_items(recommender.model, prompts, trie, num_beams=num_beams, exclude=exclude, weights=given)
            seconds[name].append(time.process_time() - start)
    plain, weighted = (median(values[1:]) for values in seconds.values())
    ratio = median(b / a for a, b in zip(seconds["without"][1:], seconds["with"][1:], strict=True))
    print(f"{trie.num_items} items, {num_prompts} prompts, {num_beams} beams: {plain:.3f} CPU s without weights,")
    print(f"{weighted:.3f} CPU s with weights; ratio {ratio:.3f} (medians of {num_runs} pairs)")


def listed(trie: TokenTrie, sequences: Tensor) -> list[int]:
    """Returns the items of the generated sequences `(beams, T)`, at most `beams` items in total.

    Items that share a title take one rank each.
    """
    leaves = trie.walk(sequences).amax(-1)  # node numbers grow along a path, and are -1 after its end
    return [item for leaf in leaves for item in trie.items_at(leaf).tolist()][: len(sequences)]


if __name__ == "__main__":
    main()
