"""Times a small model on a machine that is busy with other processes, with three settings of torch's threads.

    python benchmarks/busy_machine.py [--others 4] [--steps 3] [--items 1682] [--hidden 64]

The first setting is torch's default. In the second, waiting threads sleep instead of spinning (passive waiting). The
third combines passive waiting with a number of threads that depends on the size of the model; a small model gets one
thread. The command `trl-rec` uses the third setting. If a Python program of yours uses the trainers of trl-rec, they
choose the number of threads, but they do not turn on passive waiting.

Each setting is measured in a process of its own, while other processes compute without a pause. `--others` is their
number. The measured process samples 16 lists of ten items for each of 8 prompts, as BLADE does before training. Then
it runs a forward and a backward pass over 16 rows of 128 tokens, as a training step does, but without an optimizer
update. `--steps` is the number of these steps. `--others 0` measures the times on a machine without other work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time


SETTINGS = {
    "torch's own threads": (False, False),
    "passive waiting": (True, False),
    "passive waiting, threads by model size": (True, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=4, help="number of busy processes")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--items", type=int, default=1682)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--measure", choices=("default", "chosen"), help="for internal use")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments)
        return

    # Remove the user's own settings of threads, because they would apply to all three measurements.
    from trl_rec.threads import NUMBERS, PASSIVE

    clean = {name: value for name, value in os.environ.items() if name not in (*NUMBERS, *PASSIVE)}
    print(f"{os.cpu_count()} processors, {arguments.others} other processes")
    for name, (is_passive, is_chosen) in SETTINGS.items():
        environment = {**clean, **(PASSIVE if is_passive else {})}
        words = [f"--{key}={getattr(arguments, key)}" for key in ("steps", "items", "hidden")]
        command = [sys.executable, __file__, *words, "--measure", "chosen" if is_chosen else "default"]
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.others)]
        try:
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        finally:
            for other in others:
                other.kill()
        taken = json.loads(output.splitlines()[-1])
        print(
            f"{name}: {taken['threads']} threads, lists {taken['lists']:.1f} s, steps {taken['steps']:.1f} s, "
            f"{taken['cpu']:.1f} s of processor time",
            flush=True,
        )


def measure(arguments: argparse.Namespace) -> None:
    """Samples lists, runs forward and backward passes, and prints the number of threads and the seconds as JSON."""
    import torch
    from rollouts import make_paths, padded, small

    from trl_rec.decoding import sample_item_lists
    from trl_rec.items import TokenTrie
    from trl_rec.models.cpu import adapt_to_cpu

    # 1. Make a model, and prompts of random histories.
    paths, vocab_size = make_paths("item_token", arguments.items)
    trie = TokenTrie.from_sequences(paths)
    model = small(vocab_size, arguments.hidden, 2)
    if arguments.measure == "chosen":
        adapt_to_cpu(model)
    prompts = padded([[2, *row] for row in torch.randint(3, vocab_size, (8, 50)).tolist()])
    batch = torch.randint(3, vocab_size, (16, 128))

    # 2. Sample lists, and run the forward and backward passes.
    start, start_cpu = time.perf_counter(), time.process_time()
    sample_item_lists(model, prompts, trie, num_lists=16, list_length=10)
    lists = time.perf_counter() - start
    for _ in range(arguments.steps):
        model(input_ids=batch, labels=batch).loss.backward()
    steps = time.perf_counter() - start - lists
    cpu = time.process_time() - start_cpu
    print(json.dumps({"threads": torch.get_num_threads(), "lists": lists, "steps": steps, "cpu": cpu}))


if __name__ == "__main__":
    main()
