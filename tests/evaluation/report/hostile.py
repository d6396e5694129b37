"""Makes a dataset folder and a run folder whose titles, groups and names contain code that the page of a report
must not run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trl_rec.data import RecDataset, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import PopularityBaseline, evaluate_baselines, evaluate_split
from trl_rec.evaluation.kept.writing import write_evaluation


# If the page did not escape the titles, most of them would add elements to the page, or end the markup around them: an
# attribute, the style sheet, a comment, the `<pre>` block of the recipe or an SVG. The last three titles contain
# control characters or character references.
TITLES = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</style><script>document.title='owned'</script>",
    "</title></pre></svg><script>document.title='owned'</script>",
    '" onmouseover="alert(1)" style="background:url(ADDRESS/attribute)',
    "<img src='ADDRESS/image'><iframe src='ADDRESS/frame'></iframe>",
    "<link rel=stylesheet href='ADDRESS/style'><script src='ADDRESS/script'></script>",
    "<svg onload=alert(1)><a href='javascript:alert(1)'>click</a>",
    "--><!-- {{ 7 * 7 }} {% raw %} ${7*7} $x^2$ \\frac",
    "\x1b[31mred\x1b[0m \x07bell\x00null",
    "\u202egnirts desrever\u2066 isolated \u200bzero width\ufeff",
    "&lt;b&gt; &amp; &#x3c;script&#x3e;",
]
NAME = "<b onclick=alert(1)>BEAR</b> \x1b[31m\u202e"  # the name of the recommender
GROUPS = ["<script>alert(1)</script>", "$\\frac{1}{2}$", "a\u202eb\x1b[31m", "</svg><img src=x onerror=alert(1)>"]


def hostile_run(folder: Path, address: str = "http://127.0.0.1:9") -> Path:
    """Makes a dataset and a run folder with hostile texts wherever a run has texts, and returns the run folder.

    Args:
        folder: An empty folder.
        address: The address of a server to which the page must not send any request.
    """
    titles = [title.replace("ADDRESS", address) for title in TITLES]
    dataset = _dataset(folder, titles)
    ranked = (
        PopularityBaseline()
        .fit(dataset.train, len(dataset.catalog))
        .rank(split_rows(dataset.test, "history"), 10, True)
    )
    results = evaluate_baselines(dataset, rewards={"ndcg": 1.0, "mgu": 1.0})
    results[NAME] = evaluate_split(ranked, dataset, rewards={"ndcg": 1.0, "mgu": 1.0})

    run = folder / '<i>run</i> & "more"'
    write_evaluation(
        run,
        results,
        dataset=dataset,
        split="test",
        ks=[1, 5, 10],
        exclude_history=True,
        settings={"dataset": str(dataset.path), "note": TITLES[0]},
        recommender=NAME,
        seed=0,
    )
    dataset.catalog.save(run / "catalog")
    log = [
        {"step": step, "loss": 1 / step, "kl": 0.1, "blade/quantile": 0.5, "blade/tied_pairs": 0.1, TITLES[0]: 1.0}
        for step in (1, 2, 3)
    ]
    (run / "eval.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in log))
    (run / "recipe.yaml").write_text("\n".join(f"# {title}" for title in titles), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps({"versions": {TITLES[2]: TITLES[3]}}))
    return run


def _dataset(folder: Path, titles: list[str]) -> RecDataset:
    """Returns a dataset of twenty users, with one item per title and twelve plain items."""
    titles = [*titles, *(f"plain item {number}" for number in range(12))]
    ids = [f"i{number}" for number in range(len(titles))]
    groups = [GROUPS[number % len(GROUPS)] for number in range(len(titles))]
    rng = np.random.default_rng(0)
    chosen = [(user, item) for user in range(20) for item in rng.permutation(len(titles))[:8].tolist()]

    source = folder / "log"
    source.mkdir()
    pq.write_table(pa.table({"item_id": ids, "title": titles, "genre": groups}), source / "items.parquet")
    interactions = {
        "user_id": [f"<u onclick=alert(1)>{user}" for user, _ in chosen],
        "item_id": [ids[item] for _, item in chosen],
        "timestamp": list(range(len(chosen))),
    }
    pq.write_table(pa.table(interactions), source / "interactions.parquet")
    return prepare(str(source), folder / "data", group_column="genre")
