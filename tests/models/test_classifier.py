"""Windowed encoding, pooling and head against one document at a time, read plainly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ulmfit.config import ClassifierConfig, EncoderConfig, EncoderDropouts, HeadConfig, LanguageModelConfig
from ulmfit.models import classifier
from ulmfit.models.classifier import Classifier, ConcatPool, Head, encode_documents
from ulmfit.models.language_model import LanguageModel

VOCABULARY, PADDING, SIZE = 60, 1, 8
LENGTHS = (5, 17, 1, 12, 17, 8)  # unsorted, one a single token, two equal
ALL = 1000  # a horizon beyond any document here


def encoder_config(**rates):
    none = {"input": 0.0, "embedding": 0.0, "weight": 0.0, "hidden": 0.0}
    return EncoderConfig(embedding_size=SIZE, hidden_size=12, layers=2, dropouts=EncoderDropouts(**{**none, **rates}))


def make(*, window=4, horizon=ALL, **rates):
    torch.manual_seed(0)
    model = Classifier(
        ClassifierConfig(
            vocab_size=VOCABULARY,
            encoder=encoder_config(**rates),
            head=HeadConfig(classes=3, hidden_size=10, input_dropout=0.0, hidden_dropout=0.0),
            window=window,
            horizon=horizon,
        )
    )
    with torch.no_grad():
        model.decoder_bias.uniform_(-1, 1)
    return model


def documents(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded(texts, padding=PADDING, extra=0):
    """(time, batch) and lengths."""
    tokens = nn.utils.rnn.pad_sequence(texts, padding_value=padding)
    return functional.pad(tokens, (0, 0, 0, extra), value=padding), torch.tensor([len(text) for text in texts])


def read_plainly(encoder, text, *, window, horizon):
    """One document's outputs (time, size), with a flag (time,) for those in windows with gradient.

    A window has gradient when it holds one of the last `horizon` tokens; earlier ones are run without.
    """
    outputs, learns, state = [], [], None
    for start in range(0, len(text), window):
        piece = text[start : start + window].unsqueeze(1)
        with torch.set_grad_enabled(start + window > len(text) - horizon):
            output, state = encoder(piece, state)
        outputs.append(output[:, 0])
        learns.append(torch.full((len(piece),), start + window > len(text) - horizon))
    return torch.cat(outputs), torch.cat(learns)


def pool_plainly(outputs):
    return torch.cat([outputs[-1], outputs.amax(0), outputs.mean(0)])


def reference(encoder, texts, *, window, horizon):
    return torch.stack([pool_plainly(read_plainly(encoder, text, window=window, horizon=horizon)[0]) for text in texts])


def gradients(encoder, pooled):
    """Of a sum that weighs every feature of every document differently."""
    weights = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
    return torch.autograd.grad((pooled * weights).sum(), list(encoder.parameters()))


def encode(encoder, texts, *, window, horizon, **rest):
    return encode_documents(encoder, *padded(texts), window=window, horizon=horizon, **rest)


# --- pooling --------------------------------------------------------------------------------------------------------


def test_concat_pool_equals_its_formula_on_each_document():
    lengths = torch.tensor([9, 6, 6, 2, 1])
    outputs = torch.randn(9, 5, SIZE, generator=torch.Generator().manual_seed(0)) - 3  # negative: 0 is no maximum
    pool = ConcatPool(lengths, size=SIZE)
    for start in range(0, 9, 4):
        rows = int((lengths > start).sum())
        pool.add(outputs[start : start + 4, :rows], lengths[:rows] - start)
    expected = torch.stack([pool_plainly(outputs[:length, row]) for row, length in enumerate(lengths.tolist())])
    torch.testing.assert_close(pool.result(), expected)


def test_concat_pool_gives_single_precision_from_half():
    pool = ConcatPool(torch.tensor([2]), size=SIZE)
    pool.add(torch.ones(2, 1, SIZE, dtype=torch.bfloat16), torch.tensor([2]))
    assert pool.result().dtype == torch.float32


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [4, 12, 1000])
@pytest.mark.parametrize("horizon", [10, 1000])
def test_windows_read_together_equal_windows_one_by_one_forward_and_backward(monkeypatch, together, horizon):
    encoder, texts = make().encoder, documents()
    results = []
    for steps in (1, together):
        monkeypatch.setattr(classifier, "BLOCK_STEPS", {"cpu": steps})
        monkeypatch.setattr(classifier, "BLOCK_TOKENS", {"cpu": 6 * steps})
        pooled = encode(encoder, texts, window=4, horizon=horizon).pooled
        results.append([pooled, *torch.autograd.grad(pooled.cos().sum(), list(encoder.parameters()))])
    for one_by_one, at_once in zip(*results, strict=True):
        torch.testing.assert_close(at_once, one_by_one)


@pytest.mark.parametrize("window", [1, 4, 5, 17, 50])
def test_windows_equal_the_whole_at_once_forward_and_backward(window):
    encoder, texts = make().encoder, documents()
    whole = torch.stack([pool_plainly(encoder(text.unsqueeze(1))[0][:, 0]) for text in texts])
    pooled = encode(encoder, texts, window=window, horizon=ALL).pooled
    torch.testing.assert_close(pooled, whole)
    torch.testing.assert_close(gradients(encoder, pooled), gradients(encoder, whole))


@pytest.mark.parametrize("window", [1, 4, 5])
@pytest.mark.parametrize("horizon", [1, 3, 4, 5, 8, 12, 16, 17])
def test_gradients_stop_before_each_documents_own_horizon(window, horizon):
    encoder, texts = make().encoder, documents()
    pooled = encode(encoder, texts, window=window, horizon=horizon).pooled
    expected = reference(encoder, texts, window=window, horizon=horizon)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(gradients(encoder, pooled), gradients(encoder, expected))


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=5),
    window=st.integers(1, 7),
    horizon=st.integers(1, 15),
    seed=st.integers(0, 99),
)
def test_any_batch_equals_its_documents_one_by_one(lengths, window, horizon, seed):
    encoder, texts = make().encoder, documents(lengths, seed)
    pooled = encode(encoder, texts, window=window, horizon=horizon).pooled
    expected = reference(encoder, texts, window=window, horizon=horizon)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(gradients(encoder, pooled), gradients(encoder, expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("horizon", [3, 4, 6, 9])
def test_a_token_before_the_horizons_window_gets_exactly_no_gradient(horizon):
    window, lengths = 4, (13, 20, 7)
    encoder = make().encoder
    numbers = iter(range(2, VOCABULARY))  # every token once, so that its embedding's gradient shows its place
    texts = [torch.tensor([next(numbers) for _ in range(length)]) for length in lengths]
    pooled = encode(encoder, texts, window=window, horizon=horizon).pooled
    reached = gradients(encoder, pooled)[0].abs().sum(1) > 0
    for text in texts:
        first = max(0, len(text) - horizon) // window * window
        assert reached[text].tolist() == [place >= first for place in range(len(text))]


@pytest.mark.parametrize("horizon", [3, 8, ALL])
def test_the_embedding_s_sparse_gradient_is_the_dense_one_and_holds_the_rows_read_alone(horizon):
    encoder, texts = make(embedding=0.3).encoder.train(), documents()
    found = []
    for sparse in (False, True):
        encoder.embedding.sparse = sparse
        torch.manual_seed(4)
        found.append(gradients(encoder, encode(encoder, texts, window=4, horizon=horizon).pooled))
    assert found[1][0].is_sparse
    read = set(torch.cat(texts).tolist()) | {PADDING}
    assert set(found[1][0].coalesce().indices()[0].tolist()) <= read
    torch.testing.assert_close((found[1][0].to_dense(), *found[1][1:]), found[0])


def test_no_gradient_is_kept_where_none_is_wanted():
    encoder, texts = make().encoder, documents()
    with_gradient = encode(encoder, texts, window=4, horizon=8).pooled
    with torch.no_grad():
        without = encode(encoder, texts, window=4, horizon=8).pooled
    assert not without.requires_grad
    torch.testing.assert_close(without, with_gradient.detach())


def test_a_frozen_encoder_is_read_without_gradient():
    encoder, texts = make().encoder, documents()
    encoder.requires_grad_(False)
    assert not encode(encoder, texts, window=4, horizon=8).pooled.requires_grad


def test_a_text_gives_the_same_features_alone_and_in_any_order():
    encoder, texts = make().encoder, documents()
    together = encode(encoder, texts, window=4, horizon=ALL).pooled
    alone = torch.cat([encode(encoder, [text], window=4, horizon=ALL).pooled for text in texts])
    torch.testing.assert_close(together, alone)
    order = [3, 0, 5, 2, 4, 1]
    mixed = encode(encoder, [texts[index] for index in order], window=4, horizon=ALL).pooled
    torch.testing.assert_close(mixed, together[order])


@pytest.mark.parametrize("extra", [0, 1, 9])
def test_padding_has_no_effect_forward_or_backward(extra):
    encoder, texts = make().encoder, documents()
    results = []
    for padding, rows in ((PADDING, 0), (7, extra)):
        tokens, lengths = padded(texts, padding, rows)
        encoded = encode_documents(encoder, tokens, lengths, window=4, horizon=6, decoder_bias=torch.zeros(VOCABULARY))
        loss = encoded.pooled.cos().sum() + encoded.language_model_loss
        ours = torch.autograd.grad(loss, list(encoder.parameters()))
        results.append((encoded.pooled, encoded.language_model_loss, encoded.predicted_tokens, ours))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_half_precision_stays_near_single():
    encoder, texts = make().encoder, documents()
    half = encode(encoder, texts, window=4, horizon=8, dtype=torch.bfloat16).pooled
    single = encode(encoder, texts, window=4, horizon=8).pooled
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=0.05, atol=0.01)


def test_all_windows_of_a_batch_share_one_weight_dropout_mask():
    encoder, texts = make(weight=0.5).encoder.train(), documents()

    def read(window):
        torch.manual_seed(3)
        return encode(encoder, texts, window=window, horizon=ALL).pooled

    torch.testing.assert_close(read(4), read(50))
    assert not torch.allclose(read(4), encode(encoder, texts, window=4, horizon=ALL).pooled)


# --- multi-task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "horizon"), [(4, ALL), (4, 6), (4, 1), (5, 8), (1, 3), (50, 4)])
def test_the_auxiliary_loss_is_the_cross_entropy_of_next_tokens_in_windows_with_gradient(window, horizon):
    model, texts = make(), documents()
    encoded = encode(model.encoder, texts, window=window, horizon=horizon, decoder_bias=model.decoder_bias)
    total, count = torch.zeros(()), 0
    for text in texts:
        outputs, learns = read_plainly(model.encoder, text, window=window, horizon=horizon)
        logits = functional.linear(outputs[:-1], model.encoder.embedding.weight, model.decoder_bias)
        targets = text[1:].where(learns[:-1], -100)
        total = total + functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
        count += int(learns[:-1].sum())
    assert encoded.predicted_tokens == count
    torch.testing.assert_close(encoded.language_model_loss, total)
    if total.requires_grad:
        leaves = [*model.encoder.parameters(), model.decoder_bias]
        torch.testing.assert_close(
            torch.autograd.grad(encoded.language_model_loss, leaves), torch.autograd.grad(total, leaves)
        )


def test_the_classifier_gives_the_auxiliary_loss_per_token():
    model, texts = make(), documents()
    encoded = encode(model.encoder, texts, window=4, horizon=ALL, decoder_bias=model.decoder_bias)
    result = model.eval()(*padded(texts), with_language_model=True)
    expected = encoded.language_model_loss / (sum(LENGTHS) - len(LENGTHS))
    torch.testing.assert_close(result.language_model_loss, expected)
    assert model(*padded(texts)).language_model_loss == 0


def moved(model, loss):
    """Names of the parameters that a loss has a gradient for other than zero."""
    model.zero_grad()
    loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}


def test_both_losses_of_multi_task_learning_move_the_whole_shared_encoder():
    model, texts = make(horizon=8).train(), documents()
    shared = {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
    by_language_model = moved(model, model(*padded(texts), with_language_model=True).language_model_loss)
    assert by_language_model == {*shared, "decoder_bias"}
    logits = model(*padded(texts), with_language_model=True).logits
    by_class = moved(model, functional.cross_entropy(logits, torch.arange(len(texts)) % 3))
    assert by_class >= {*shared, "head.layers.6.weight", "head.layers.6.bias"}
    assert "decoder_bias" not in by_class


def test_texts_of_one_token_predict_nothing_and_still_train():
    model = make().train()
    result = model(*padded(documents((1, 1, 1))), with_language_model=True)
    assert result.language_model_loss == 0
    (functional.cross_entropy(result.logits, torch.tensor([0, 1, 2])) + result.language_model_loss).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


# --- head and whole -------------------------------------------------------------------------------------------------


def test_the_head_equals_its_formula():
    torch.manual_seed(0)
    config = HeadConfig(classes=3, hidden_size=10, input_dropout=0.4, hidden_dropout=0.1)
    head, pooled = Head(24, config), torch.randn(16, 24) * 3 + 1
    for _ in range(3):
        head.train()(pooled)  # moves BatchNorm's averages off their start
    norm, _, first, _, after, _, second = head.layers

    def normed(layer, values):
        return (values - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias

    hidden = functional.relu(normed(norm, pooled) @ first.weight.T + first.bias)
    expected = normed(after, hidden) @ second.weight.T + second.bias
    torch.testing.assert_close(head.eval()(pooled), expected)
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.4, 0.1]


def test_logits_are_the_head_on_the_pooled_documents_in_the_order_they_came():
    model, texts = make(window=4).eval(), documents()
    expected = model.head(reference(model.encoder, texts, window=4, horizon=ALL))
    torch.testing.assert_close(model(*padded(texts)).logits, expected)


def test_shares_of_a_batch_are_classified_together():
    """The head sees all pooled rows, and so BatchNorm's statistics in training are those of the whole batch."""
    model, texts = make(window=4), documents()
    model.encoder.eval()
    for layer in model.head.layers:
        if isinstance(layer, nn.Dropout):
            layer.eval()
    rest = encode(model.encoder, texts[1:], window=4, horizon=ALL).pooled
    whole = model(*padded(texts)).logits
    torch.testing.assert_close(model(*padded(texts[:1]), gather=lambda own: torch.cat([own, rest])).logits, whole)
    none = torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    every = encode(model.encoder, texts, window=4, horizon=ALL).pooled
    torch.testing.assert_close(model(*none, gather=lambda own: torch.cat([own, every])).logits, whole)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_share_without_documents_gives_the_embedding_a_gradient_of_the_kind_that_others_have(sparse):
    model, texts = make(window=4), documents()
    model.encoder.embedding.sparse = sparse
    every = encode(model.encoder, texts, window=4, horizon=ALL).pooled.detach()
    none = torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    model(*none, gather=lambda own: torch.cat([own, every])).logits.sum().backward()
    gradient = model.encoder.embedding.weight.grad
    assert gradient.is_sparse == sparse
    assert not gradient.to_dense().any()
    assert model.head.layers[2].weight.grad is not None


def test_layer_groups_hold_every_parameter_once_from_the_embedding_to_the_head():
    model = make()
    groups = model.layer_groups()
    assert [group.name for group in groups] == ["embedding", "lstm_0", "lstm_1", "head"]
    held = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_a_language_models_weights_arrive_and_the_head_stays():
    torch.manual_seed(1)
    tuned = LanguageModel(LanguageModelConfig(vocab_size=VOCABULARY, encoder=encoder_config()))
    with torch.no_grad():
        tuned.decoder_bias.uniform_(-1, 1)
    model = make()
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    model.load_language_model(tuned.state_dict())
    text = documents()[1].unsqueeze(1)
    assert torch.equal(model.encoder(text)[0], tuned.encoder(text)[0])
    assert torch.equal(model.decoder_bias, tuned.decoder_bias)
    assert all(torch.equal(tensor, model.head.state_dict()[name]) for name, tensor in head.items())
    encoded = encode(model.encoder, [text[:, 0]], window=4, horizon=ALL, decoder_bias=model.decoder_bias)
    expected = tuned.eval().loss(text[:-1], text[1:], None).cross_entropy
    torch.testing.assert_close(encoded.language_model_loss.detach(), expected)
