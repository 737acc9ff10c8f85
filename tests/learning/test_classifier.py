"""The classifier's loss against its parts, each worked out by itself, and its documents in their own order."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from ulmfit.config import ClassifierConfig, ClassifySettings, EncoderConfig, EncoderDropouts, TokenizerConfig
from ulmfit.learning.classifier import FrozenEncoder, LabelledBatch, _classification_loss, class_weights
from ulmfit.learning.reading import Lanes, classify_documents, pool_documents
from ulmfit.models.classifier import Classifier, encode_documents
from ulmfit.text.corpus import Corpus
from ulmfit.text.tokenizer import train_tokenizer

NO_DROPOUTS = EncoderDropouts(input=0, embedding=0, weight=0, hidden=0)
VOCABULARY, CLASSES = 30, 3


@pytest.fixture(scope="module")
def model():
    encoder = EncoderConfig(embedding_size=6, hidden_size=8, layers=2, dropouts=NO_DROPOUTS)
    config = ClassifierConfig(vocab_size=VOCABULARY, encoder=encoder, window=4, horizon=100)
    config = config.override({"head.classes": CLASSES, "head.input_dropout": 0, "head.hidden_dropout": 0})
    torch.manual_seed(1)
    return Classifier(config)


@pytest.fixture(scope="module")
def batch():
    """(tokens, lengths, labels): five documents, the longest first."""
    torch.manual_seed(2)
    lengths = torch.tensor([9, 9, 6, 3, 1])
    tokens = torch.randint(3, VOCABULARY, (9, 5))
    tokens[torch.arange(9).unsqueeze(1) >= lengths] = 1
    return tokens, lengths, torch.tensor([0, 1, 2, 1, 1])


def loss_of(model, batch, *, epoch=0, weights=None, **settings):
    weights = torch.ones(CLASSES) if weights is None else weights
    documents = np.arange(len(batch[1]))
    frozen = FrozenEncoder(model, documents, lambda: pytest.fail("nothing is frozen"))
    loss = _classification_loss(model, ClassifySettings(**settings), weights, torch.float32, frozen)
    return loss(LabelledBatch(epoch, documents, *batch), None)


def language_model_loss(model, batch):
    """Every real next token of every document, one document at a time, by the plain formula."""
    tokens, lengths, _ = batch
    weights = model.encoder.prepare(torch.float32)
    losses = []
    for row, length in enumerate(lengths.tolist()):
        if length > 1:
            outputs, _ = model.encoder(tokens[: length - 1, row : row + 1], None, weights)
            logits = outputs[:, 0] @ model.encoder.embedding.weight.T + model.decoder_bias
            losses.append(functional.cross_entropy(logits, tokens[1:length, row], reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_the_multi_task_loss_is_classification_plus_a_decaying_share_of_the_language_model_s(model, batch, epoch):
    plain = loss_of(model, batch, epoch=epoch)
    both = loss_of(model, batch, epoch=epoch, language_model_weight=0.4, language_model_decay=0.5)
    expected = plain.total + 0.4 * 0.5**epoch * language_model_loss(model, batch)
    torch.testing.assert_close(both.total, expected)
    torch.testing.assert_close(both.logged, plain.total.detach())


def test_each_loss_of_multi_task_learning_moves_the_shared_encoder(model, batch):
    """Gradients of the sum are the sum of the parts', and neither part is zero in any weight of the encoder."""

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.encoder.named_parameters()}

    label_part = gradients(loss_of(model, batch).total)
    text_part = gradients(language_model_loss(model, batch))
    both = gradients(loss_of(model, batch, language_model_weight=0.4).total)
    for name in both:
        assert label_part[name].abs().sum() > 0, name
        assert text_part[name].abs().sum() > 0, name
        torch.testing.assert_close(both[name], label_part[name] + 0.4 * text_part[name], atol=1e-6, rtol=1e-4)


def test_class_weights_and_smoothing_are_those_of_cross_entropy(model, batch):
    weights = torch.tensor([1.0, 0.5, 3.0])
    tokens, lengths, labels = batch
    pooled = encode_documents(model.encoder, tokens, lengths, window=4, horizon=100).pooled
    expected = functional.cross_entropy(model.head(pooled), labels, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(loss_of(model, batch, weights=weights, label_smoothing=0.1).total, expected)


def test_balanced_weights_are_those_of_scikit_learn_on_the_documents_learnt_from():
    labels = [0, 0, 0, 0, 1, 1, 2, 2]
    corpus = Corpus.from_documents([[2]] * 8, vocab_size=3, labels=labels, label_names=["a", "b", "c"])
    learn = np.array([0, 1, 2, 4, 6, 7])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels)[learn])
    found = class_weights(ClassifySettings(class_weights="balanced"), corpus, learn)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    named = class_weights(ClassifySettings(class_weights={"c": 5.0}), corpus, learn)
    assert named.tolist() == [1.0, 1.0, 5.0]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_documents_are_classified_in_their_own_order_as_each_alone(model, direction):
    tokenizer = train_tokenizer(["a b c d e f g h"] * 2, config=TokenizerConfig(vocab_size=VOCABULARY))
    generator = np.random.default_rng(3)
    documents = [[2, *generator.integers(3, 15, size=size)] for size in (3, 0, 9, 1, 9, 5)]
    corpus = Corpus.from_documents(documents, vocab_size=VOCABULARY)
    model.eval()
    wanted = np.array([4, 1, 2, 5])
    found = classify_documents(model, corpus, wanted, direction=direction, tokenizer=tokenizer, dtype=torch.float32)
    for row, index in enumerate(wanted):
        ids = documents[index]
        ids = ids if direction == "forward" else [ids[0], *reversed(ids[1:])]
        alone = model(torch.tensor(ids).unsqueeze(1), torch.tensor([len(ids)])).logits[0]
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-4)
    model.train()


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("count", [1, 3])
def test_in_int8_each_thread_reads_documents_of_its_own_and_each_as_alone(
    monkeypatch, threads, model, direction, count
):
    lanes = Lanes(most=3, shortest=2, window_tokens=4)
    small = {"BY_ROWS": lanes, "OTHERWISE": lanes, "INT8_THREAD_DOCUMENTS": 2, "INT8_CHUNK": 9}
    for name, value in small.items():
        monkeypatch.setattr(f"ulmfit.learning.reading.{name}", value)
    tokenizer = train_tokenizer(["a b c d e f g h"] * 2, config=TokenizerConfig(vocab_size=VOCABULARY))
    generator = np.random.default_rng(3)
    documents = [[2, *generator.integers(3, 15, size=size)] for size in generator.integers(0, 12, 20)]
    corpus = Corpus.from_documents(documents, vocab_size=VOCABULARY)
    wanted = generator.permutation(20)[:17]
    how = {"direction": direction, "tokenizer": tokenizer, "dtype": torch.int8}
    model.eval()
    with threads(count):
        found = classify_documents(model, corpus, wanted, **how)
        assert torch.get_num_threads() == count
    for row, index in zip(found, wanted, strict=True):
        torch.testing.assert_close(row, classify_documents(model, corpus, np.array([index]), **how)[0])
    model.train()


# --- an encoder that neither learns nor drops anything ---------------------------------------------------------------


def frozen_encoder(model, batch):
    """Its documents are those of the batch, under numbers of their own; and how often they have been read."""
    tokens, lengths, _ = batch
    reads = []

    def read():
        reads.append(1)
        with torch.no_grad():
            return encode_documents(model.encoder, tokens, lengths, window=4, horizon=100).pooled

    return FrozenEncoder(model, np.array([3, 5, 8, 9, 20]), read), reads


def test_a_frozen_encoder_reads_each_document_once_and_the_head_learns_as_if_it_read_them_again(model, batch):
    frozen, reads = frozen_encoder(model, batch)
    tokens, lengths, labels = batch
    order = torch.tensor([4, 0, 2])
    numbers = np.array([20, 3, 8])
    part = LabelledBatch(0, numbers, tokens[:, order], lengths[order], labels[order])
    loss = _classification_loss(model, ClassifySettings(), torch.ones(CLASSES), torch.float32, frozen)

    def gradients():
        found = loss(part, None)
        return found.total.detach(), torch.autograd.grad(found.total, list(model.head.parameters()))

    plainly = gradients()
    assert not reads
    model.encoder.requires_grad_(False)
    for _ in range(3):
        torch.testing.assert_close(gradients(), plainly, rtol=5e-5, atol=1e-5)
    assert len(reads) == 1
    model.encoder.requires_grad_(True)
    torch.testing.assert_close(gradients(), plainly, rtol=5e-5, atol=1e-5)
    model.encoder.requires_grad_(False)
    torch.testing.assert_close(gradients(), plainly, rtol=5e-5, atol=1e-5)
    assert len(reads) == 2  # what it made of them may have changed
    model.encoder.requires_grad_(True)


def test_an_encoder_that_drops_units_is_read_anew_though_frozen(batch):
    config = ClassifierConfig(vocab_size=VOCABULARY, encoder=EncoderConfig(embedding_size=6, hidden_size=8))
    model = Classifier(config)
    frozen, reads = frozen_encoder(model, batch)
    model.encoder.requires_grad_(False)
    assert frozen.rows(np.array([3])) is None
    assert not reads


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_pooled_documents_are_what_the_head_is_given(model, dtype):
    tokenizer = train_tokenizer(["a b c d e f g h"] * 2, config=TokenizerConfig(vocab_size=VOCABULARY))
    generator = np.random.default_rng(3)
    corpus = Corpus.from_documents(
        [[2, *generator.integers(3, 15, size=size)] for size in (3, 0, 9, 1, 9, 5)], vocab_size=VOCABULARY
    )
    how = {"direction": "forward", "tokenizer": tokenizer, "dtype": dtype}
    wanted = np.array([4, 1, 2, 5])
    model.eval()
    pooled = pool_documents(model, corpus, wanted, **how)
    torch.testing.assert_close(model.head(pooled), classify_documents(model, corpus, wanted, **how))
    model.train()
