"""Every text has one result, the same in any company and any order; measures equal those computed directly."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.compute import choose_dtype
from ulmfit.config import (
    ClassifierConfig,
    EncoderConfig,
    EncoderDropouts,
    HeadConfig,
    LanguageModelConfig,
    TokenizerConfig,
)
from ulmfit.errors import BundleError, ConfigError, DataError
from ulmfit.models.classifier import Classifier
from ulmfit.models.language_model import LanguageModel
from ulmfit.predict import CHUNK, Predictor, evaluate, evaluate_language_model
from ulmfit.text.batches import reverse_document
from ulmfit.text.tables import TableWriter
from ulmfit.text.tokenizer import train_tokenizer

WORDS = [f"w{letter}{other}" for letter in "abcdefgh" for other in "klmnop"]
TOKENIZER = train_tokenizer(
    [" ".join(WORDS), "The END."], config=TokenizerConfig(vocab_size=80, min_frequency=1), processes=1
)
NONE = EncoderDropouts(input=0, embedding=0, weight=0, hidden=0)
ENCODER = EncoderConfig(embedding_size=12, hidden_size=16, layers=2, dropouts=NONE)
LABELS = ("bad", "good", "so-so")
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3, "int8": 1e-6}


def random_texts(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, length)) for length in lengths]


LENGTHS = [5, 0, 40, 1, 7, 200, 6, 8, 40, 3, 1, 90, 14, 13, 15]
TEXTS = random_texts(LENGTHS)


def sharpen(model):
    """Larger random weights than a fresh model's, so that texts differ in what comes out."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def settle(model):
    """BatchNorm's statistics those of the texts below, as after training, which makes their differences large."""
    documents = [torch.tensor(TOKENIZER.encode(text)) for text in TEXTS]
    tokens = torch.nn.utils.rnn.pad_sequence(documents, padding_value=TOKENIZER.padding_id)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(tokens, torch.tensor([len(document) for document in documents]))
    return model.eval()


def make(directions=("forward",), window=7):
    torch.manual_seed(0)
    head = HeadConfig(classes=3, hidden_size=8, input_dropout=0, hidden_dropout=0)
    config = ClassifierConfig(vocab_size=len(TOKENIZER), encoder=ENCODER, head=head, window=window)
    models = {direction: settle(sharpen(Classifier(config))) for direction in directions}
    return ClassifierBundle(config=config, tokenizer=TOKENIZER, models=models, labels=LABELS)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(make(), device="cpu", precision="float32")


def made_for(precision):
    """A predictor; where the processor only imitates bfloat16, a lone row is summed in another order than several."""
    native = choose_dtype("auto", torch.device("cpu")) == torch.bfloat16
    if precision == "bfloat16" and not native:
        pytest.skip("needs a processor with AVX-512 or AMX for bfloat16")
    return Predictor(make(), device="cpu", precision=precision)


def alone(predictor, texts):
    return np.concatenate([predictor.probabilities([text]) for text in texts])


def close(found, wanted, precision="float32"):
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE[precision], rtol=0)


# --- one text, one result -------------------------------------------------------------------------------------------


def test_texts_differ_so_that_what_follows_means_something(predictor):
    rows = alone(predictor, TEXTS)
    assert rows.std(0).min() > 0.1
    assert len(set(rows.argmax(1))) > 1


def test_probabilities_are_those_of_the_model_read_plainly(predictor):
    model = make().models["forward"]
    for text, row in zip(TEXTS, predictor.probabilities(TEXTS), strict=True):
        ids = torch.tensor(TOKENIZER.encode(text))
        with torch.no_grad():
            outputs = model.encoder(ids.unsqueeze(1))[0][:, 0]
            pooled = torch.cat([outputs[-1], outputs.amax(0), outputs.mean(0)])
            wanted = model.head(pooled.unsqueeze(0)).softmax(1)[0]
        close(row, wanted)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_a_text_scores_the_same_alone_and_in_any_batch_beside_any_others(precision):
    predictor = made_for(precision)
    wanted = alone(predictor, TEXTS)
    close(predictor.probabilities(TEXTS), wanted, precision)
    close(predictor.probabilities(TEXTS * 9), np.tile(wanted, (9, 1)), precision)
    # Beside a text far longer, nearly all of a text's row is padding.
    (longer,) = random_texts([300], seed=3)
    for text, row in zip(TEXTS, wanted, strict=True):
        close(predictor.probabilities([longer, text])[1], row, precision)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_a_text_scores_the_same_with_any_number_of_threads(threads, precision):
    predictor = made_for(precision)
    with threads(1):
        wanted = alone(predictor, TEXTS[:5])
    with threads(2):  # few steps: where other work fills the cores, threads that wait for each other are slow
        close(predictor.probabilities(TEXTS[:5]), wanted, precision)
        close(predictor.probabilities(TEXTS[:1]), wanted[:1], precision)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(len(TEXTS))), kept=st.integers(1, len(TEXTS)))
def test_results_come_in_input_order_whatever_the_lengths(predictor, order, kept):
    chosen = order[:kept]
    whole = predictor.probabilities(TEXTS)
    close(predictor.probabilities([TEXTS[index] for index in chosen]), whole[chosen])


def test_results_come_in_input_order_over_many_batches(monkeypatch, predictor):
    monkeypatch.setattr("ulmfit.learning.reading.EVALUATION_TOKENS", {"cpu": 64})
    texts = random_texts(np.random.default_rng(1).integers(0, 30, 60), seed=2)
    close(predictor.probabilities(texts), alone(predictor, texts))


def test_a_stream_longer_than_a_chunk_keeps_its_order(monkeypatch, predictor):
    monkeypatch.setattr("ulmfit.predict.CHUNK", 4)
    wanted = alone(predictor, TEXTS)
    taken = []
    results = predictor.predict(taken.append(text) or text for text in TEXTS)
    first = next(results)
    assert len(taken) == 4  # it reads a chunk ahead, and no more
    for prediction, row in zip([first, *results], wanted, strict=True):
        assert list(prediction.probabilities) == list(LABELS)
        close(list(prediction.probabilities.values()), row)
        assert prediction.label == LABELS[row.argmax()]
        assert prediction.confidence == prediction.probabilities[prediction.label]
    assert CHUNK > 1000


def test_no_texts_give_no_results(predictor):
    assert predictor.probabilities([]).shape == (0, 3)
    assert list(predictor.predict(iter(()))) == []


@pytest.mark.parametrize("text", ["", " ", "\n\t  \u2003", "\x00", "😀👩‍👩‍👧", "ﷺ" * 50, "\ud800", "\ufeff", "!" * 300])
def test_any_string_has_a_result(predictor, text):
    (row,) = predictor.probabilities([text])
    assert np.isfinite(row).all() and row.sum() == pytest.approx(1, abs=1e-6)
    close(predictor.probabilities([TEXTS[2], text, TEXTS[5]])[1], row)


def test_empty_text_is_the_begin_token_alone(predictor):
    model = make().models["forward"]
    with torch.no_grad():
        wanted = model(torch.tensor([[TOKENIZER.begin_id]]), torch.tensor([1])).logits.softmax(1)
    close(predictor.probabilities(["", "  \n "]), wanted.expand(2, -1))


def test_a_text_of_two_million_characters_has_a_result():
    predictor = Predictor(make(window=70), device="cpu", precision="float32")
    text = " ".join([*WORDS, "x" * 20]) + " "
    text = (text + "y" * 1000 + " ") * (2_000_000 // (len(text) + 1001) + 1)
    assert len(text) > 2_000_000
    rows = predictor.probabilities([text, TEXTS[0]])
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
    close(rows[1:], alone(predictor, TEXTS[:1]))


def test_threads_share_a_predictor():
    predictor = Predictor(make(("forward", "backward")), device="cpu", precision="float32")
    requests = [random_texts(np.random.default_rng(seed).integers(0, 60, 5), seed) for seed in range(24)]
    serial = [predictor.probabilities(texts) for texts in requests]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(predictor.probabilities, requests), serial, strict=True):
            assert np.array_equal(found, wanted)


def test_both_directions_are_the_mean_of_the_two():
    bundle = make(("forward", "backward"))
    single = [
        Predictor(
            ClassifierBundle(config=bundle.config, tokenizer=TOKENIZER, models={direction: model}, labels=LABELS),
            device="cpu",
            precision="float32",
        ).probabilities(TEXTS)
        for direction, model in bundle.models.items()
    ]
    assert np.abs(single[0] - single[1]).max() > 0.05
    both = Predictor(bundle, device="cpu", precision="float32").probabilities(TEXTS)
    np.testing.assert_allclose(both, (single[0] + single[1]) / 2, atol=1e-6)


def test_a_backward_model_reads_the_text_from_its_end():
    bundle = make(("backward",))
    ids = reverse_document(np.array(TOKENIZER.encode(TEXTS[5])), begin_id=TOKENIZER.begin_id)
    tokens = torch.from_numpy(ids.copy()).unsqueeze(1)
    with torch.no_grad():
        wanted = bundle.models["backward"](tokens, torch.tensor([len(ids)])).logits.softmax(1)
    close(Predictor(bundle, device="cpu", precision="float32").probabilities([TEXTS[5]]), wanted)


def test_a_model_is_found_by_its_folder_and_a_missing_one_is_an_error(tmp_path, predictor):
    make().save(tmp_path / "model")
    loaded = Predictor.load(tmp_path / "model", device="cpu", precision="float32")
    assert np.array_equal(loaded.probabilities(TEXTS), predictor.probabilities(TEXTS))
    with pytest.raises(BundleError, match="no model 'nowhere'"):
        Predictor.load("nowhere")
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        Predictor.load(tmp_path / "model", device="tpu")


# --- memory ---------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time."""

    def __init__(self):
        super().__init__()
        self.live: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.live[StorageWeakRef(storage)] = storage.nbytes()
        self.live = {storage: size for storage, size in self.live.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def peak_bytes(predictor, words):
    (text,) = random_texts([words])
    with LiveBytes() as bytes_:
        predictor.probabilities([text])
    assert bytes_.peak > 0
    return bytes_.peak


def test_memory_does_not_grow_with_the_length_of_a_text_but_for_its_ids():
    predictor = Predictor(make(window=70), device="cpu", precision="float32")
    short, long = peak_bytes(predictor, 2_000), peak_bytes(predictor, 20_000)
    id_bytes = 8
    assert long - short <= id_bytes * (20_000 - 2_000)
    # Were the outputs of all windows kept, this is what they would take beside that.
    assert ENCODER.embedding_size * 4 * (20_000 - 2_000) > 2 * id_bytes * (20_000 - 2_000)


# --- tables ---------------------------------------------------------------------------------------------------------


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def predicted(predictor, path, **options):
    return pa.Table.from_batches(predictor.predict_tables(path, **options))


def test_a_table_comes_back_with_all_of_its_columns_and_the_results_beside_them(tmp_path, predictor):
    rows = [{"id": index, "body": text, "tags": [index, "t"]} for index, text in enumerate(TEXTS)]
    result = predicted(predictor, table(tmp_path / "in.jsonl", rows), text_column="body")
    probabilities = [f"probability_{name}" for name in LABELS]
    assert result.column_names == ["id", "body", "tags", "label", "confidence", *probabilities]
    assert result.column("id").to_pylist() == list(range(len(TEXTS)))
    assert result.column("body").to_pylist() == TEXTS
    wanted = predictor.probabilities(TEXTS)
    for name, column in zip(probabilities, wanted.T, strict=True):
        assert np.array_equal(result.column(name).to_numpy(), column)
    assert result.column("label").to_pylist() == [LABELS[index] for index in wanted.argmax(1)]
    assert np.array_equal(result.column("confidence").to_numpy(), wanted.max(1))


def test_nested_values_of_jsonl_are_written_back_as_they_were(tmp_path, predictor):
    rows = [{"text": text, "meta": {"place": [index, None]}} for index, text in enumerate(TEXTS)]
    with TableWriter(tmp_path / "out.jsonl") as writer:
        for batch in predictor.predict_tables(table(tmp_path / "in.jsonl", rows)):
            writer.write(batch)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{name: line[name] for name in ("text", "meta")} for line in lines] == rows


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_go_from_any_format_to_any_other(tmp_path, predictor, suffix):
    with TableWriter(tmp_path / f"in.{suffix}") as writer:
        writer.write(pa.record_batch({"text": TEXTS, "id": [str(index) for index in range(len(TEXTS))]}))
    assert predicted(predictor, tmp_path / f"in.{suffix}").column("label").to_pylist() == [
        prediction.label for prediction in predictor.predict(TEXTS)
    ]


def test_a_label_that_came_with_the_text_is_kept_beside_the_predicted_one(tmp_path, predictor):
    rows = [{"label": "good", "text": text} for text in TEXTS]
    result = predicted(predictor, table(tmp_path / "in.jsonl", rows))
    assert result.column_names[:3] == ["label_given", "text", "label"]
    assert set(result.column("label_given").to_pylist()) == {"good"}
    assert result.column("label").to_pylist() == [prediction.label for prediction in predictor.predict(TEXTS)]


@pytest.mark.parametrize("taken", ["confidence", "probability_good", "label_given"])
def test_a_column_where_results_would_go_is_an_error_that_names_it(tmp_path, predictor, taken):
    path = table(tmp_path / "in.jsonl", [{"text": "w", "label": "good", taken: "mine"}])
    with pytest.raises(DataError, match=f"already has a column '{taken}'") as caught:
        predicted(predictor, path)
    assert str(path) in str(caught.value)


def test_a_column_named_label_given_alone_is_kept(tmp_path, predictor):
    result = predicted(predictor, table(tmp_path / "in.jsonl", [{"text": "w", "label_given": "mine"}]))
    assert result.column_names[:3] == ["text", "label_given", "label"]


def test_texts_of_a_folder_are_predicted_by_file(tmp_path, predictor):
    for index, text in enumerate(TEXTS[:3]):
        (tmp_path / f"{index}.txt").write_text(text, encoding="utf-8")
    result = predicted(predictor, tmp_path)
    assert [name.rsplit("/")[-1] for name in result.column("file").to_pylist()] == ["0.txt", "1.txt", "2.txt"]
    close(result.column("confidence").to_numpy(), predictor.probabilities(TEXTS[:3]).max(1))


def test_a_missing_text_column_is_an_error(tmp_path, predictor):
    with pytest.raises(DataError, match="no column 'text'"):
        predicted(predictor, table(tmp_path / "in.jsonl", [{"body": "w"}]))


# --- measuring a classifier -----------------------------------------------------------------------------------------


def test_evaluate_equals_scikit_learn_on_the_same_predictions(tmp_path, monkeypatch, predictor):
    monkeypatch.setattr("ulmfit.predict.CHUNK", 4)
    labels = [LABELS[index % 3] for index in range(len(TEXTS))]
    rows = [{"text": text, "class": label} for text, label in zip(TEXTS, labels, strict=True)]
    measures = evaluate(predictor, table(tmp_path / "test.jsonl", rows), label_column="class")
    probabilities = predictor.probabilities(TEXTS).astype(float)
    probabilities /= probabilities.sum(1, keepdims=True)
    said = [LABELS[index] for index in probabilities.argmax(1)]
    report = sklearn.metrics.classification_report(labels, said, labels=LABELS, output_dict=True, zero_division=0)
    assert measures["count"] == len(TEXTS)
    assert measures["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, said))
    assert measures["error"] == pytest.approx(1 - measures["accuracy"])
    assert measures["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert measures["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities, labels=LABELS), abs=1e-5
    )
    assert measures["confusion"] == sklearn.metrics.confusion_matrix(labels, said, labels=LABELS).tolist()
    for name in LABELS:
        found, wanted = measures["classes"][name], report[name]
        assert found["f1"] == pytest.approx(wanted["f1-score"]) and found["count"] == wanted["support"]
        assert [found[key] for key in ("precision", "recall")] == pytest.approx([wanted["precision"], wanted["recall"]])


def test_a_label_not_seen_in_training_is_an_error_that_names_file_and_row(tmp_path, predictor):
    path = table(tmp_path / "test.jsonl", [{"text": "w", "label": name} for name in ("good", "bad", "awful")])
    with pytest.raises(DataError) as caught:
        evaluate(predictor, path)
    assert str(caught.value) == (
        f"{path}, row 3: the label 'awful' was not seen in training; the model knows bad, good, so-so"
    )


# --- measuring a language model -------------------------------------------------------------------------------------


def language_model_bundle(directions=("forward", "backward")):
    torch.manual_seed(0)
    config = LanguageModelConfig(vocab_size=len(TOKENIZER), encoder=ENCODER)
    models = {direction: sharpen(LanguageModel(config)) for direction in directions}
    for model in models.values():
        torch.nn.init.normal_(model.decoder_bias)
    return LanguageModelBundle(config=config, tokenizer=TOKENIZER, models=models)


def mean_nats(bundle, texts, direction):
    """Of each token after the first, given all before it: documents one after the other, read in one go."""
    documents = [np.array(TOKENIZER.encode(text)) for text in texts]
    if direction == "backward":
        documents = [reverse_document(ids, begin_id=TOKENIZER.begin_id) for ids in documents]
    ids = torch.from_numpy(np.concatenate(documents))
    model = bundle.models[direction]
    with torch.no_grad():
        outputs, _ = model.encoder(ids[:-1].unsqueeze(1))
        logits = functional.linear(outputs[:, 0], model.decoder_weight, model.decoder_bias)
        return float(functional.cross_entropy(logits, ids[1:]))


def test_perplexity_and_bits_equal_a_direct_computation(tmp_path):
    texts = [*random_texts([30, 1, 120, 60]), "", "unknownword Unseen"]  # fewer tokens than two streams need
    path = table(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    bundle = language_model_bundle()
    measures = evaluate_language_model(bundle, [path], device="cpu", precision="float32")
    ids = [id for text in texts for id in TOKENIZER.encode(text)]
    characters = sum(map(len, texts))
    assert measures["documents"] == len(texts)
    assert measures["tokens"] == len(ids)
    assert measures["characters"] == characters
    assert measures["unknown"] == pytest.approx(ids.count(TOKENIZER.unknown_id) / len(ids))
    assert list(measures["directions"]) == ["forward", "backward"]
    for direction, found in measures["directions"].items():
        nats = mean_nats(bundle, texts, direction)
        assert found["perplexity"] == pytest.approx(math.exp(nats), rel=1e-5)
        assert found["bits_per_character"] == pytest.approx(nats / math.log(2) * len(ids) / characters, rel=1e-5)


def test_a_language_model_in_bfloat16_measures_nearly_the_same(tmp_path):
    path = table(tmp_path / "texts.jsonl", [{"text": text} for text in random_texts([400, 300])])
    measured = [
        evaluate_language_model(language_model_bundle(), [path], device="cpu", precision=precision)["directions"]
        for precision in ("float32", "bfloat16")
    ]
    for direction in ("forward", "backward"):
        one, other = (measures[direction]["bits_per_character"] for measures in measured)
        assert one == pytest.approx(other, rel=0.01)


def test_texts_that_are_all_empty_are_an_error(tmp_path):
    path = table(tmp_path / "texts.jsonl", [{"text": ""}] * 3)
    with pytest.raises(DataError, match="every text is empty"):
        evaluate_language_model(language_model_bundle(), [path])


def test_a_first_prediction_waits_for_no_import_that_it_has_no_use_for(tmp_path):
    make().save(tmp_path / "model")
    program = (
        "import sys; from ulmfit.predict import Predictor; "
        f"print(*next(Predictor.load({str(tmp_path / 'model')!r}, device='cpu').predict(['wak'])).probabilities); "
        "print(*sorted({'torch._dynamo', 'sklearn', 'matplotlib', 'triton'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [" ".join(LABELS), ""]
