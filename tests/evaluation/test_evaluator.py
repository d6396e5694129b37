"""Compares the metrics of rankings with hand-worked values and slow loops, and tests the input that is rejected."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.oracles import metrics as oracle
from trl_rec.evaluation.evaluator import evaluate_rankings, per_user_metrics
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged


RANKED = np.array([[0, 1, 2], [3, 0, -1]])
RELEVANT = [[2, 4], [3]]


def make_catalog(groups=("a", "a", "b", "b", "c")):
    ids = [str(index) for index in range(5)]
    return ItemCatalog(pa.table({"item_id": ids, "title": ids, "genre": list(groups)}), group_column="genre")


def test_accuracy_needs_only_rankings_and_relevant_items():
    result = evaluate_rankings(RANKED, RELEVANT, ks=(1, 3))
    assert result["recall@3"] == 0.75
    assert result["hit@1"] == 0.5
    assert result["mrr@3"] == pytest.approx((1 / 3 + 1) / 2)
    kinds = ("recall", "hit", "ndcg", "mrr", "div_ratio", "or_ratio")
    assert set(result) == {f"{kind}@{k}" for kind in kinds for k in (1, 3)} | {"invalid", "duplicates", "num_users"}
    assert (result["invalid"], result["duplicates"], result["num_users"]) == (0, 0, 2)


def test_catalog_histories_and_popularity_add_their_metrics():
    catalog, histories, popularity = make_catalog(), [[0, 4], [1, 4]], np.array([5, 4, 3, 2, 1])
    result = evaluate_rankings(
        RANKED, RELEVANT, ks=(1, 3), catalog=catalog, histories=histories, popularity=popularity
    )
    shares = catalog.group_shares()[1].tolist()
    recommended, consumed = oracle.group_share([0, 1, 2, 3, 0], shares), oracle.group_share([0, 4, 1, 4], shares)
    assert result["coverage@3"] == 0.8
    assert result["gini@3"] == pytest.approx(oracle.gini(RANKED.tolist(), 5))
    assert result["popularity@3"] == pytest.approx((5 + 4 + 3 + 2 + 5) / 5)
    assert result["popularity@1"] == pytest.approx((5 + 2) / 2)
    assert result["ild@3"] == pytest.approx(np.mean([oracle.ild(row, shares) for row in RANKED.tolist()]))
    assert "ild@1" not in result
    assert result["mgu@3"] == pytest.approx(oracle.mgu(recommended, consumed))
    assert result["dgu@3"] == pytest.approx(oracle.dgu(recommended, consumed))


def test_histories_may_contain_retired_items():
    catalog, histories = replace(make_catalog(), num_retired=1), [[0, 4], [1, 4]]
    result = evaluate_rankings(RANKED, RELEVANT[1:] * 2, ks=(3,), catalog=catalog, histories=histories)
    shares = catalog.group_shares()[1].tolist()
    consumed = oracle.group_share([0, 4, 1, 4], shares)
    assert result["mgu@3"] == pytest.approx(oracle.mgu(oracle.group_share([0, 1, 2, 3, 0], shares), consumed))
    with pytest.raises(ValueError, match="histories, row 1: 5 is not an item index; give whole numbers from 0 to 4"):
        evaluate_rankings(RANKED, RELEVANT[1:] * 2, ks=(3,), catalog=catalog, histories=[[0], [5]])


def test_every_form_of_rows_gives_the_same_metrics():
    forms = [
        Ragged.from_lists(RELEVANT),
        pa.array(RELEVANT),
        pa.chunked_array([pa.array(RELEVANT[:1]), pa.array(RELEVANT[1:])]),
    ]
    for form in forms:
        assert evaluate_rankings(RANKED, form, ks=(3,)) == evaluate_rankings(RANKED, RELEVANT, ks=(3,))


def test_invalid_and_repeated_items_are_counted_and_are_not_hits():
    ranked = np.array([[5, 2, 2, -1], [3, -4, 3, 3]])
    result = evaluate_rankings(ranked, RELEVANT, ks=(4,), catalog=make_catalog())
    assert (result["invalid"], result["duplicates"]) == (2, 3)
    assert result["recall@4"] == 0.75
    assert result["coverage@4"] == 0.4
    assert result["div_ratio@4"] == 0.25
    assert result["ild@4"] == 0
    # Without the size of the catalogue, only -4 is known to be invalid.
    assert evaluate_rankings(ranked, RELEVANT, ks=(4,))["invalid"] == 1


def test_metrics_are_the_means_of_the_per_user_values():
    result, per_user = evaluate_rankings(RANKED, RELEVANT, ks=(2,)), per_user_metrics(RANKED, RELEVANT, ks=(2,))
    assert set(per_user) == {"recall@2", "hit@2", "ndcg@2", "mrr@2"}
    for name, values in per_user.items():
        assert values.shape == (2,) and result[name] == values.mean()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"relevant": [[1], []]}, "relevant, row 1: the user has no relevant items"),
        ({"relevant": [[1]]}, "relevant has 1 rows, but ranked has 2"),
        ({"relevant": [[1], [5]], "num_items": 5}, "relevant, row 1: 5.* is not an item index"),
        ({"relevant": [[-1], [2]]}, "relevant, row 0: -1.* is not an item index"),
        ({"relevant": [[1], [float("nan")]]}, "relevant, row 1: nan is not an item index"),
        ({"relevant": [[1], [1.5]]}, "relevant, row 1: 1.5 is not an item index"),
        ({"ks": (1, 4)}, "contains a value outside 1 to 3, the number of ranks"),
        ({"ks": ()}, "contains a value outside 1 to 3, the number of ranks"),
        ({"ks": (0,)}, "contains a value outside 1 to 3, the number of ranks"),
        ({"ranked": RANKED.astype(float)}, "ranked has the type float64"),
        ({"ranked": RANKED[0]}, r"ranked has the shape \(3,\)"),
        ({"ranked": RANKED[:0]}, r"ranked has the shape \(0, 3\)"),
        ({"histories": [[1]], "catalog": make_catalog()}, "histories has 1 rows, but ranked has 2"),
        ({"catalog": make_catalog(), "num_items": 6}, r"catalog \(5\) and num_items \(6\) disagree"),
        ({"popularity": np.array([1, np.nan, 1, 1, 1])}, "popularity of item 1 is nan"),
    ],
)
def test_bad_input_is_an_error(changed, message):
    arguments = {"ranked": RANKED, "relevant": RELEVANT, "ks": (1, 3)} | changed
    with pytest.raises(ValueError, match=message):
        evaluate_rankings(**arguments)
