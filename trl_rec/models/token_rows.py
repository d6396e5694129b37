"""Moves the embeddings of item tokens, and makes embeddings for new tokens, when the items of a catalogue change.

The token `<item_17>` belongs to row 17 of a catalogue. If a later catalogue has a different item in this row, the
embeddings must move with the items. If they did not, an item would start with the embedding that the model has learned
for a different item. Semantic-ID tokens keep their meaning, so only new ones need embeddings.

- The token of a known item (an item of the old catalogue) gets the embedding that the item had.
- The token of a new item gets the mean of the vectors of its groups, such as its genres. The vector of a group is the
  mean embedding of the known items in the group. Groups without known items are left out. If no group remains, the
  token gets the mean embedding of all known items.
- A new semantic-ID token, of an item or a user, gets the mean embedding of the known tokens of its level, or a random
  embedding if there are none. The level of `<b_7>` consists of all tokens of the form `<b_...>`.

These rules apply to the input embeddings, to the output embeddings if they are not tied, and to the bias of the output
layer if it has one.

Legend: T known tokens, N new tokens, G groups, V tokens in the vocabulary, W width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.compat import held_weights, keep_differentiable
from trl_rec.items.changes import CatalogChange
from trl_rec.models.tokens import add_item_tokens, module_name, new_token_modules
from trl_rec.ragged import Ragged, append


ROWS_AT_ONCE = 65536  # number of embeddings that are converted to float32 together


@dataclass(frozen=True, eq=False)
class RowStarts:
    """Where the embeddings of tokens come from.

    Args:
        targets (`np.ndarray` of shape `(T,)`): Tokens that get the embedding of another token or keep their own
            embedding.
        sources (`np.ndarray` of shape `(T,)`): `targets[t]` gets the embedding of `sources[t]`. The two are equal if a
            token keeps its own embedding.
        new (`np.ndarray` of shape `(N,)`): Tokens that get the mean of the vectors of their groups. A semantic-ID
            token has one group, which is its level.
        groups (`Ragged`): Row `n` contains the indices of the groups of `new[n]`. Each row has at least one group.
        members (`Ragged`): Row `g` contains the tokens whose embeddings are averaged to get the vector of group `g`.
            Row `g` may be empty only if `g` does not occur in `groups`.
    """

    targets: np.ndarray
    sources: np.ndarray
    new: np.ndarray
    groups: Ragged
    members: Ragged


def follow_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, change: CatalogChange
) -> tuple[PreTrainedModel, list[int]]:
    """Adds the tokens that the changed catalogue needs, and sets embeddings by the rules at the top of the file.

    If the model has an adapter, the adapter is rebuilt, so that it trains and saves the embeddings of all tokens of
    the catalogue. Saving an adapter does not save the base model, so embeddings that are changed only in the base
    model would be lost.

    Args:
        model (`PreTrainedModel`): The model that was trained with the catalogue `change.old`.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model. The tokens are added in place.
        change (`CatalogChange`): The change of the catalogue.

    Returns:
        The model, and the ids of the catalogue's tokens.
    """
    known = tokenizer.get_vocab()
    if not changes_embeddings(tokenizer, change):
        return model, [known[token] for token in change.catalog.new_tokens]

    _check_not_sharded(model)
    adapter = None
    if isinstance(model, PeftModel):
        model, adapter = _take_off(model)
    token_ids = add_item_tokens(model, tokenizer, change.catalog)
    start_rows(model, row_starts(change, tokenizer.get_vocab(), known))
    if adapter is not None:
        model = adapter.put_on(model, token_ids)
    return model, token_ids


def changes_embeddings(tokenizer: PreTrainedTokenizerBase, change: CatalogChange) -> bool:
    """Returns whether embeddings have to be added or moved for a changed catalogue.

    They are added if the tokenizer lacks tokens of the catalogue. They are moved if each item is one token, and items
    have other row numbers than in the old catalogue.
    """
    has_new_tokens = not set(change.catalog.new_tokens) <= set(tokenizer.get_vocab())
    return has_new_tokens or (change.catalog.surface == "item_token" and not change.keeps_indices)


def row_starts(change: CatalogChange, vocabulary: dict[str, int], known: dict[str, int]) -> RowStarts:
    """Returns where the embeddings of the catalogue's tokens come from.

    Args:
        change: The change of the catalogue.
        vocabulary: The tokenizer's vocabulary, with all tokens of the changed catalogue.
        known: The vocabulary that the model was trained with.
    """
    starts = _level_starts(change.catalog.new_tokens, vocabulary, known)
    if change.catalog.surface != "item_token":
        return starts
    starts_of_users = _level_starts(change.catalog.new_tokens[len(change.catalog) :], vocabulary, known)
    return _merged(_item_starts(change, vocabulary), starts_of_users)


def _item_starts(change: CatalogChange, vocabulary: dict[str, int]) -> RowStarts:
    """Returns where the embeddings of item tokens come from."""
    # 1. Known items keep their embeddings.
    tokens = np.array([vocabulary[token] for token in change.catalog.item_tokens], np.int64)
    old_tokens = np.array([vocabulary[token] for token in change.old.item_tokens], np.int64)
    kept = np.flatnonzero(change.sources >= 0)
    new = np.flatnonzero(change.sources < 0)
    if len(new) and not len(kept):
        raise ValueError(
            "the new catalogue has none of the items that the model was trained on, so no embedding can be kept; "
            "check that the new dataset uses the same item ids as the dataset of the model, or train from scratch"
        )

    # 2. Collect the known items of each group. An additional group contains all known items.
    names, groups = change.catalog.groups()
    of_kept = groups.take(kept)
    members = Ragged.from_lengths(
        change.sources[kept][of_kept.row_ids][np.argsort(of_kept.values, kind="stable")],
        np.bincount(of_kept.values, minlength=len(names)),
    )
    members = append(members, Ragged.from_lengths(change.sources[kept], np.array([len(kept)])))
    members = Ragged(old_tokens[members.values], members.offsets)

    # 3. A new item uses only its groups that have known items. Without such groups, it uses the group of all known
    #    items.
    of_new = groups.take(new)
    useful = members.lengths[of_new.values] > 0
    counts = np.bincount(of_new.row_ids[useful], minlength=len(new))
    rows = np.concatenate([of_new.row_ids[useful], np.flatnonzero(counts == 0)])
    values = np.concatenate([of_new.values[useful], np.full(int((counts == 0).sum()), len(names))])
    order = np.argsort(rows, kind="stable")
    of_new = Ragged.from_lengths(values[order], np.maximum(counts, 1))
    return RowStarts(tokens[kept], old_tokens[change.sources[kept]], tokens[new], of_new, members)


def _level_starts(tokens: list[str], vocabulary: dict[str, int], known: dict[str, int]) -> RowStarts:
    """Returns where the embeddings of new semantic-ID tokens come from. If no token of a level is known, the new
    tokens of this level keep their random embeddings."""
    levels: dict[str, list[int]] = {}
    for token in tokens:
        if token in known:
            levels.setdefault(_level(token), []).append(known[token])
    numbers = {level: number for number, level in enumerate(levels)}
    new = [token for token in tokens if token not in known and _level(token) in levels]
    return RowStarts(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.array([vocabulary[token] for token in new], np.int64),
        Ragged.from_lengths(
            np.array([numbers[_level(token)] for token in new], np.int64), np.ones(len(new), np.int64)
        ),
        Ragged.from_lists(list(levels.values())),
    )


def _level(token: str) -> str:
    """Returns the part of a token that names its level, such as `<a` of `<a_12>`."""
    return token.rpartition("_")[0]


def _merged(first: RowStarts, second: RowStarts) -> RowStarts:
    """Returns one [`RowStarts`] with the tokens of both."""
    shifted = Ragged(second.groups.values + len(first.members), second.groups.offsets)
    return RowStarts(
        np.concatenate([first.targets, second.targets]),
        np.concatenate([first.sources, second.sources]),
        np.concatenate([first.new, second.new]),
        append(first.groups, shifted),
        append(first.members, second.members),
    )


@torch.no_grad()
def start_rows(model: PreTrainedModel, starts: RowStarts) -> None:
    """Overwrites the embeddings of the tokens in `starts`, in place. The model must have no adapter."""
    modules: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = [module.weight for module in modules] + [getattr(module, "bias", None) for module in modules]
    for table in {id(one): one for one in tables if one is not None}.values():  # tied modules share one weight
        _write(table, starts)


def _write(table: nn.Parameter, starts: RowStarts) -> None:
    """Writes the rows of one table, `(V, W)` or `(V,)`. All rows are read before the first row is written."""
    copied = table[_index(starts.sources, table)]
    means = _mean_rows(table, starts.members)  # (G, W)
    new = _mean_rows(means, starts.groups)  # (N, W)
    table[_index(starts.targets, table)] = copied
    table[_index(starts.new, table)] = new.to(table.dtype)


def _mean_rows(table: Tensor, rows: Ragged) -> Tensor:
    """Averages rows of the table, in float32. Row `i` of the result is the mean of the rows with the indices
    `rows[i]`."""
    sums = torch.zeros(len(rows), *table.shape[1:], device=table.device)
    owners = _index(rows.row_ids, table)
    places = _index(rows.values, table)
    for start in range(0, len(places), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        sums.index_add_(0, owners[part], table[places[part]].float())
    lengths = torch.from_numpy(rows.lengths).to(table.device).view(-1, *[1] * (table.ndim - 1))
    return sums / lengths


def _index(values: np.ndarray, table: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(table.device)


def _check_not_sharded(model: PreTrainedModel) -> None:
    """Raises ValueError under ZeRO-3, where no process has all embeddings."""
    weight: Any = model.get_input_embeddings().weight
    if isinstance(weight, nn.Parameter) and held_weights(weight) is not weight:
        raise ValueError(
            "the items have changed since the model was trained, and its embeddings cannot be changed under ZeRO-3, "
            "which divides the embeddings among processes; train with ZeRO-2"
        )


@dataclass(frozen=True, eq=False)
class _Adapter:
    """An adapter that was taken off its base model.

    Args:
        name: The name of the adapter in the PEFT model.
        config: The configuration of the adapter.
        weights: The weights of the adapter, without those of embeddings.
    """

    name: str
    config: Any
    weights: dict[str, Tensor]

    def put_on(self, model: PreTrainedModel, token_ids: list[int]) -> Any:
        """Returns the model with the adapter, which now also trains the embeddings of the tokens in `token_ids`."""
        self.config.inference_mode = False
        if not _embedding_names(model).intersection(self.config.modules_to_save or ()):
            trained = self.config.trainable_token_indices or []
            trained = [one for ids in trained.values() for one in ids] if isinstance(trained, dict) else trained
            self.config.trainable_token_indices = new_token_modules(model, sorted({*trained, *token_ids}))
        wrapped: Any = get_peft_model(model, self.config, adapter_name=self.name)
        own = get_peft_model_state_dict(wrapped, adapter_name=self.name, save_embedding_layers=False)
        set_peft_model_state_dict(wrapped, {**own, **self.weights}, adapter_name=self.name)
        return keep_differentiable(wrapped.eval())


def _take_off(model: PeftModel) -> tuple[PreTrainedModel, _Adapter]:
    """Removes the adapter. The base model keeps the embeddings that were trained with the adapter."""
    name = str(model.active_adapter)
    config: Any = model.peft_config[name]
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if any("lora_embedding_" in key for key in weights):
        raise ValueError(
            "the items have changed since the model was trained, but its embeddings have LoRA weights, which cannot "
            "be moved item by item; merge the adapter into the model first (merge_and_unload), and start from the "
            "result"
        )

    # Write the embeddings, as the adapter has trained them, into the base model.
    modules: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    trained = [module.weight.detach().clone() for module in modules]
    base: Any = model.unload()
    tables = [base.get_input_embeddings().weight, base.get_output_embeddings().weight]
    with torch.no_grad():
        tables[0].copy_(trained[0])
        if tables[1] is not tables[0]:
            tables[1].copy_(trained[1])

    names = _embedding_names(base)
    others = {key: weight for key, weight in weights.items() if names.isdisjoint(key.split("."))}
    return base, _Adapter(name, config, others)


def _embedding_names(model: PreTrainedModel) -> set[str]:
    """Returns the names of the input and output embeddings, such as `embed_tokens` and `lm_head`."""
    return {module_name(model, one) for one in (model.get_input_embeddings(), model.get_output_embeddings())}
