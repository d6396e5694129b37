"""Tests the training of dual semantic IDs. Two models, called towers, make these IDs: one for items, one for users.
The training has three phases: aligning the vectors of users and items, rebuilding the inputs of the towers, and
quantising, in which the codes of the IDs are learned."""

from copy import deepcopy

import pytest
import torch

from tests.semantic_ids.dual.test_dual_ids import inputs_of, towers_of
from trl_rec import prepare
from trl_rec.semantic_ids.dual.training import DualTraining


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return inputs_of(prepare("toy", tmp_path_factory.mktemp("toy") / "toy", toy_users=60, toy_items=50))


def weights(module) -> dict[str, torch.Tensor]:
    return deepcopy(module.state_dict())


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_alignment_loss_keeps_its_weight_while_codes_are_learned(inputs):
    training, batch = towers_of(inputs), torch.arange(0, inputs.pairs.shape[1], 20)  # pairs of many users
    training.alpha = 0.0
    codes, aligned = training._quantisation(batch)["loss"], training._alignment(batch)["loss"]
    assert aligned > 1
    training.alpha = 0.3
    assert training._quantisation(batch)["loss"].item() == pytest.approx((codes + 0.3 * aligned).item(), rel=1e-5)
    training.align = False
    assert training._quantisation(batch)["loss"].item() == pytest.approx(codes.item(), rel=1e-5)


@pytest.mark.parametrize("align", [True, False])
def test_aligned_vectors_do_not_change_while_encoder_and_decoder_learn(inputs, align):
    """With `align`, the first phase has already trained the layers that compute the aligned vectors (`tower.fuse`), so
    the second phase leaves them unchanged. Without `align`, there is no first phase, so the second phase trains these
    layers too."""
    training = towers_of(inputs)
    training.align = align
    tower = training.item_tower
    fuse, encode = weights(tower.fuse), weights(tower.encode)
    training._train("rebuilding", training._autoencoding, lambda measured: -measured["loss"])
    assert same(fuse, tower.fuse.state_dict()) == align and not same(encode, tower.encode.state_dict())


def test_a_phase_ends_with_the_weights_of_its_best_epoch(inputs):
    training, weights_after = towers_of(inputs), {}
    training.max_epochs, training.patience = 4, 4

    def score(measured):
        epoch = training.curve[-1]["epoch"]
        weights_after[epoch] = weights(training._towers())
        return (1.0, 3.0, 2.0, 0.0)[epoch - 1]

    training._train("aligning", training._alignment, score)
    assert same(weights_after[2], training._towers().state_dict()) and not same(weights_after[2], weights_after[4])


def test_a_phase_ends_when_its_score_stops_improving(inputs):
    training = towers_of(inputs)
    training.max_epochs, training.patience = 9, 2
    training._train("aligning", training._alignment, lambda measured: 1.0)
    assert [entry["epoch"] for entry in training.curve] == [1, 2, 3]


def test_unused_codes_are_revived_only_while_codes_are_learned(inputs, monkeypatch):
    """To revive an unused code, its centroid is moved to a place where it will be used. Only the third phase does
    this, after an epoch."""
    revived = []
    monkeypatch.setattr(DualTraining, "_revive", lambda self: revived.append(self.curve[-1]["stage"]))
    training = towers_of(inputs)
    training.max_epochs = 2
    training.run()
    assert revived and set(revived) == {"quantising"}


def test_a_share_of_the_items_is_shown_without_behaviour(inputs):
    """`without_behaviour` is the share of items whose behaviour vector (computed from interactions) is replaced with
    zeros during training."""
    training, known = towers_of(inputs), inputs.known.nonzero().squeeze(1).repeat(40)
    assert torch.equal(training._item_inputs(known), inputs.items(known))
    training.without_behaviour = 0.3
    shown, text = training._item_inputs(known), inputs.item_text.shape[1]
    assert (shown[:, text:] == 0).all(1).float().mean() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(shown[:, :text], inputs.item_text[known])


def test_chance_counts_every_other_item_once(inputs):
    """Each held-out item is ranked against items that are drawn at random. `chance` is the accuracy of a random
    ranking. It counts an item once even if the item was drawn repeatedly, and ignores items that the user chose."""
    training = towers_of(inputs)
    users, items, chosen = training._evaluation_set
    shares = []
    for row, left_out in zip(items.tolist(), chosen.tolist(), strict=True):
        rivals = {item for item, is_chosen in zip(row[1:], left_out[1:], strict=True) if not is_chosen}
        shares.append(1 / (1 + len(rivals)))
    assert training.held_out().chance == pytest.approx(sum(shares) / len(users), rel=1e-5)
