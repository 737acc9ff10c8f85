"""Dropout against what its definition says of masks, scale and gradient."""

import pytest
import torch

from ulmfit.models.dropout import embed, keep_mask, locked_dropout, weight_dropout

RATE = 0.25


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_keep_mask_holds_zero_or_the_inverse_keep_rate():
    mask = keep_mask(torch.ones(1), (200, 200), RATE)
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / (1 - RATE)).item()}
    assert (mask == 0).float().mean().item() == pytest.approx(RATE, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keep_mask_has_the_dtype_of_what_it_masks(dtype):
    assert keep_mask(torch.ones(1, dtype=dtype), (3, 2), 0.5).dtype == dtype


def test_locked_dropout_uses_one_mask_for_all_time_steps():
    inputs = torch.randn(7, 5, 40)
    dropped = locked_dropout(inputs, RATE, training=True)
    mask = dropped / inputs
    torch.testing.assert_close(mask, mask[:1].expand_as(mask))
    assert len(mask[0].unique(dim=0)) == 5, "each row of the batch draws its own mask"


def test_locked_dropout_keeps_the_expectation():
    inputs = torch.ones(1, 400, 400)
    assert locked_dropout(inputs, RATE, training=True).mean().item() == pytest.approx(1.0, abs=0.01)


def test_locked_dropout_drops_the_gradient_of_what_it_drops():
    inputs = torch.randn(4, 3, 20, requires_grad=True)
    dropped = locked_dropout(inputs, RATE, training=True)
    dropped.sum().backward()
    torch.testing.assert_close(inputs.grad, (dropped != 0) / (1 - RATE))


def test_embed_without_dropout_is_a_lookup():
    weight, tokens = torch.randn(30, 8), torch.randint(0, 30, (6, 4))
    for rate, training in ((0.0, True), (0.9, False)):
        assert torch.equal(embed(tokens, weight, rate, training=training), weight[tokens])


def test_embedding_dropout_drops_a_token_whole_and_at_each_of_its_places():
    weight, tokens = torch.randn(30, 8), torch.randint(0, 30, (60, 10))
    embedded = embed(tokens, weight, 0.4, training=True)
    dropped = {token for token in range(30) if (embedded[tokens == token] == 0).all()}
    assert 0 < len(dropped) < 30
    kept = torch.tensor([token not in dropped for token in range(30)])
    torch.testing.assert_close(embedded, (weight * kept.unsqueeze(1) / 0.6)[tokens])


def test_embedding_dropout_keeps_the_expectation():
    tokens = torch.arange(100_000)
    embedded = embed(tokens, torch.ones(100_000, 1), RATE, training=True)
    assert embedded.mean().item() == pytest.approx(1.0, abs=0.01)


def test_a_dropped_token_gets_no_gradient():
    weight, tokens = torch.randn(30, 8, requires_grad=True), torch.arange(30)
    embedded = embed(tokens, weight, 0.5, training=True)
    embedded.sum().backward()
    torch.testing.assert_close(weight.grad, (embedded != 0) / 0.5)


def test_weight_dropout_drops_single_entries_and_their_gradient():
    weight = torch.randn(100, 60, requires_grad=True)
    dropped = weight_dropout(weight, RATE, training=True)
    kept = dropped != 0
    torch.testing.assert_close(dropped, weight * kept / (1 - RATE))
    assert kept.float().mean().item() == pytest.approx(1 - RATE, abs=0.02)
    dropped.sum().backward()
    torch.testing.assert_close(weight.grad, kept / (1 - RATE))


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_no_rate_or_no_training_hands_back_the_same_tensor(rate, training):
    tensor = torch.randn(3, 4, 5)
    assert locked_dropout(tensor, rate, training=training) is tensor
    assert weight_dropout(tensor, rate, training=training) is tensor


def test_equal_seeds_give_equal_masks():
    def draw():
        torch.manual_seed(3)
        return keep_mask(torch.ones(1), (5, 5), 0.5)

    assert torch.equal(draw(), draw())


def test_locked_dropout_draws_one_mask_for_each_window():
    torch.manual_seed(0)
    dropped = locked_dropout(torch.ones(10, 3, 50), 0.4, training=True, window=4)
    for start in (0, 4, 8):
        window = dropped[start : start + 4]
        assert torch.equal(window, window[:1].expand_as(window))
    assert not torch.equal(dropped[3], dropped[4])
    assert not torch.equal(dropped[7], dropped[8])
    torch.testing.assert_close(dropped.mean(), torch.tensor(1.0), atol=0.1, rtol=0)


def test_embedding_rows_are_dropped_anew_in_each_window():
    torch.manual_seed(0)
    table = torch.rand(30, 4) + 1
    tokens = torch.arange(30).repeat(10, 1)
    embedded = embed(tokens, table, 0.5, training=True, window=4)
    kept = (embedded != 0).all(2)
    for start in (0, 4, 8):
        assert torch.equal(kept[start : start + 4], kept[start : start + 1].expand_as(kept[start : start + 4]))
    assert not torch.equal(kept[3], kept[4])
    torch.testing.assert_close(embedded[kept], (2 * table).expand(10, 30, 4)[kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_weight_dropout_meets_its_rate_and_draws_from_the_seed_alone(rate, dtype):
    weight = torch.ones(1001, 999, dtype=dtype)
    torch.manual_seed(1)
    dropped = weight_dropout(weight, rate, training=True)
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.002)
    assert dropped.dtype == dtype and set(dropped.unique().tolist()) == {
        0,
        torch.tensor(1 / (1 - rate)).to(dtype).item(),
    }
    torch.manual_seed(1)
    assert torch.equal(weight_dropout(weight, rate, training=True), dropped)


def test_weight_dropout_takes_neighbours_one_by_one():
    dropped = weight_dropout(torch.ones(1000, 1000), 0.5, training=True).view(-1, 4) == 0
    together = dropped.float().t().corrcoef() - torch.eye(4)
    assert together.abs().max() < 0.01
