"""Compares requests per second and latency of `trl-rec serve` with and without batching, for 1 and 8 clients.

The two servers run in separate processes, and are measured in turns. Both serve the same model, which has random
weights and one token per item. Each client is a thread that sends its next request as soon as it has received the
response to the previous one. Histories have 20 items.

    python benchmarks/serving.py [--model RUN_FOLDER] [--items 2000] [--hidden_size 64] [--num_layers 2]
        [--seconds 10] [--rounds 2]

With `--model`, both servers serve the model of a run folder instead.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from trl_rec import ItemCatalog
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.models import make_model, make_tokenizer


CLIENTS = (1, 8)
UNBATCHED = {"batch_size": 1, "batch_ms": 0.0}


def make_run(folder: Path, num_items: int, hidden_size: int, num_layers: int) -> None:
    """Saves a run folder whose model has random weights."""
    torch.manual_seed(0)
    ids = [str(item) for item in range(num_items)]
    catalog = ItemCatalog(pa.table({"item_id": ids, "title": [f"Item {item}" for item in ids]}), "item_token")
    tokenizer = make_tokenizer(catalog)
    model = make_model(tokenizer, hidden_size=hidden_size, num_layers=num_layers)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"num_beams": 10, "renormalize": True, "length_penalty": 0.0, "max_length": 512, "prompt": {}}
    save_recommender(folder, catalog, settings)


def run_server(settings: dict[str, Any], port: int) -> None:
    """Runs a server until its process is terminated."""
    from trl_rec.serving import ServingConfig, serve

    serve(ServingConfig(port=port, **settings))


def measure(port: int, num_clients: int, seconds: float, ids: list[str]) -> list[float]:
    """Lets clients send requests for some seconds, and returns the latency of every request, in seconds."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (start := time.perf_counter()) < end:
            body = json.dumps({"history": rng.sample(ids, 20), "k": 10})
            connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--hidden_size", type=int, default=64)
    parser.add_argument("--num_layers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.model or temporary)
        if arguments.model is None:
            make_run(folder, arguments.items, arguments.hidden_size, arguments.num_layers)
        compare(folder, arguments.seconds, arguments.rounds)


def compare(folder: Path, seconds: float, rounds: int) -> None:
    """Starts both servers, measures them in turns, and prints the table."""
    # 1. Start both servers, and wait until they accept connections.
    ids = ItemCatalog.load(folder / "catalog").ids
    context = multiprocessing.get_context("spawn")
    servers = {}
    for name, settings in (("batched", {}), ("unbatched", UNBATCHED)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = context.Process(target=run_server, args=({"model": str(folder), **settings}, port))
        process.start()
        servers[name] = (port, process)
    for port, _ in servers.values():
        wait_for(port)

    # 2. Measure in turns. Each measurement follows a second of requests that do not count, to warm up.
    found: dict[tuple[str, int], list[float]] = {(name, number): [] for name in servers for number in CLIENTS}
    for _ in range(rounds):
        for number in CLIENTS:
            for name, (port, _) in servers.items():
                measure(port, number, 1, ids)
                found[name, number] += measure(port, number, seconds, ids)
    for _, process in servers.values():
        process.terminate()
        process.join()

    # 3. Print the table.
    print(f"{'server':<10} {'clients':>7} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8}")
    for (name, number), latencies in found.items():
        p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
        print(f"{name:<10} {number:>7} {len(latencies) / seconds / rounds:>11.2f} {p50:>8.1f} {p99:>8.1f}")
    ratio = len(found["batched", 8]) / len(found["unbatched", 8])
    tail = percentile(found["batched", 8], 99) / percentile(found["batched", 1], 50)
    print(f"With 8 clients, batching gives {ratio:.1f} times as many requests per second.")
    print(f"With batching, p99 of 8 clients is {tail:.1f} times p50 of one client.")


def wait_for(port: int) -> None:
    """Waits until a server accepts connections."""
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError("the server did not start")


def percentile(latencies: list[float], percent: int) -> float:
    """Returns a percentile in milliseconds."""
    return 1000 * statistics.quantiles(latencies, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    main()
