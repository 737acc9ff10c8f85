"""A saved model is the same model, wherever its folder goes; a damaged one is refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bundles import (
    BOTH,
    FACTS,
    KINDS,
    LABELS,
    MAKERS,
    TEXTS,
    TOKENIZER,
    bundle_with_bag,
    classifier_bundle,
    files,
    language_model_bundle,
    problem,
)
from ulmfit.bundle import ClassifierBundle, LanguageModelBundle, read_bundle_config
from ulmfit.card import model_card
from ulmfit.config import TokenizerConfig
from ulmfit.errors import BundleError, OutputError
from ulmfit.models.classifier import Classifier
from ulmfit.text.tokenizer import train_tokenizer


def batch():
    documents = [torch.tensor(TOKENIZER.encode(text)) for text in TEXTS]
    tokens = torch.nn.utils.rnn.pad_sequence(documents, padding_value=TOKENIZER.padding_id)
    return tokens, torch.tensor([len(document) for document in documents])


def outputs(model):
    """What the model says of three texts: logits of the classes, or of the token after them."""
    tokens, lengths = batch()
    with torch.inference_mode():
        return model(tokens, lengths).logits if isinstance(model, Classifier) else model.next_token_logits(tokens)[0]


def loss(model):
    tokens, lengths = batch()
    if isinstance(model, Classifier):
        result = model(tokens, lengths, with_language_model=True)
        labels = torch.arange(len(TEXTS))
        return torch.nn.functional.cross_entropy(result.logits, labels) + result.language_model_loss
    return model.loss(tokens[:-1], tokens[1:], None).total


# --- what comes back ------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("directions", [("forward",), ("backward",), BOTH], ids="+".join)
def test_a_bundle_in_float32_comes_back_bit_by_bit(tmp_path, kind, directions):
    bundle = MAKERS[kind](directions)
    bundle.save(tmp_path / "model")
    loaded = type(bundle).load(tmp_path / "model")
    assert loaded.directions == directions
    assert loaded.config == bundle.config
    assert loaded.tokenizer == bundle.tokenizer
    assert loaded.facts == FACTS
    for direction, model in bundle.models.items():
        state, read = model.state_dict(), loaded.models[direction].state_dict()
        assert list(read) == list(state)
        assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
        assert not loaded.models[direction].training
        assert torch.equal(outputs(loaded.models[direction]), outputs(model))


def test_a_folder_may_be_named_by_a_string(tmp_path):
    classifier_bundle().save(tmp_path / "model")
    assert ClassifierBundle.load(str(tmp_path / "model")).labels == LABELS


def test_the_labels_come_back_in_order(tmp_path):
    classifier_bundle().save(tmp_path)
    assert ClassifierBundle.load(tmp_path).labels == LABELS


@KINDS
@pytest.mark.parametrize("directions", [("forward",), BOTH], ids="+".join)
def test_a_bundle_in_int8_is_smaller_and_says_nearly_the_same(tmp_path, kind, directions):
    bundle = MAKERS[kind](directions)
    bundle.save(tmp_path / "float32")
    bundle.save(tmp_path / "int8", storage="int8")
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in tmp_path.iterdir()
    }
    assert sizes["int8"] < 0.6 * sizes["float32"]
    loaded = type(bundle).load(tmp_path / "int8")
    for direction, model in bundle.models.items():
        for name, tensor in loaded.models[direction].state_dict().items():
            original = model.state_dict()[name]
            assert tensor.dtype == original.dtype
            assert (tensor - original).abs().max() <= original.abs().max() / 127 / 2 * 1.0001
        torch.testing.assert_close(outputs(loaded.models[direction]), outputs(model), atol=0.02, rtol=0)


def test_an_int8_bundle_saved_again_is_the_same_model(tmp_path):
    classifier_bundle().save(tmp_path / "first", storage="int8")
    first = ClassifierBundle.load(tmp_path / "first")
    first.save(tmp_path / "second")
    second = ClassifierBundle.load(tmp_path / "second")
    assert torch.equal(outputs(first.models["forward"]), outputs(second.models["forward"]))


def test_the_same_bundle_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        classifier_bundle(BOTH).save(tmp_path / name, storage="int8")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_tied_weights_stay_tied(tmp_path):
    language_model_bundle().save(tmp_path)
    assert [name for name in load_file(tmp_path / "forward-00001-of-00001.safetensors") if "decoder" in name] == [
        "decoder_bias"
    ]
    model = LanguageModelBundle.load(tmp_path).models["forward"]
    before = model.decoder_weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss(model).backward()
    optimizer.step()
    assert model.decoder_weight is model.encoder.embedding.weight
    assert model.decoder_weight.data_ptr() == model.encoder.embedding.weight.data_ptr()
    # A token that was not read, yet could have been predicted, moves too: the decoder's gradient reaches the embedding.
    unread = sorted(set(range(len(TOKENIZER))) - set(batch()[0].flatten().tolist()))[0]
    assert not torch.equal(model.encoder.embedding.weight[unread], before[unread])


@KINDS
def test_a_loaded_model_learns_as_the_saved_one_does(tmp_path, kind):
    bundle = MAKERS[kind]()
    bundle.save(tmp_path)
    saved, loaded = bundle.models["forward"], type(bundle).load(tmp_path).models["forward"]
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    for model in (saved, loaded):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
        torch.manual_seed(1)
        loss(model).backward()
        optimizer.step()
        assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    for one, other in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, other)


# --- the folder -----------------------------------------------------------------------------------------------------


def test_a_folder_works_wherever_it_is_moved(tmp_path, monkeypatch):
    bundle = classifier_bundle(BOTH)
    bundle.save(tmp_path / "runs" / "mine")
    moved = tmp_path / "elsewhere" / "ein anderer Name"
    moved.parent.mkdir()
    (tmp_path / "runs" / "mine").rename(moved)
    monkeypatch.chdir(moved.parent)
    for folder in (moved, Path(moved.name)):
        assert torch.equal(
            outputs(ClassifierBundle.load(folder).models["backward"]), outputs(bundle.models["backward"])
        )


@KINDS
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_folder_holds_plain_files_without_code_or_paths(tmp_path, kind, storage):
    MAKERS[kind](BOTH).save(tmp_path / "model", storage=storage)
    found = files(tmp_path / "model")
    shards = [f"{direction}-00001-of-00001.safetensors" for direction in sorted(BOTH)]
    assert sorted(found) == sorted(["README.md", "config.json", "tokenizer.json", *shards])
    for name, content in found.items():
        assert str(tmp_path).encode() not in content
        assert str(Path.cwd()).encode() not in content
        assert not content.startswith((b"PK", b"\x80"))  # a zip of torch.save, a pickle
        if name.endswith(".json"):
            json.loads(content)


def test_the_card_is_that_of_the_config(tmp_path):
    classifier_bundle().save(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == model_card(read_bundle_config(tmp_path))


@pytest.mark.parametrize("failing", range(1, 6))
def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch, failing):
    calls = []
    rename = Path.rename

    def fail(path, target):
        calls.append(path.name)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="No space left") as caught:
        classifier_bundle(BOTH).save(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "model").iterdir()) == []
    problem(ClassifierBundle.load, tmp_path / "model")


def test_config_json_is_put_in_place_last(tmp_path, monkeypatch):
    """Killed between two renames, where nothing can be cleaned up, a folder is no model yet; it can be saved to."""
    complete = []
    rename = Path.rename

    def watch(path, target):
        complete.append((tmp_path / "config.json").exists())
        with pytest.raises(BundleError, match=r"no config\.json"):
            read_bundle_config(tmp_path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watch)
    classifier_bundle(BOTH).save(tmp_path)
    assert complete == [False] * 5
    (tmp_path / "config.json").unlink()
    classifier_bundle(BOTH).save(tmp_path)
    ClassifierBundle.load(tmp_path)


@pytest.mark.parametrize("largest", [0, 100, 1000, 4000])
def test_a_full_disk_leaves_nothing(full_disk, tmp_path, largest):
    bundle = classifier_bundle()
    with full_disk(largest), pytest.raises(OutputError, match="cannot save the model") as caught:
        bundle.save(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "model").iterdir()) == []


def test_a_file_in_the_folders_place_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(OutputError, match="cannot save the model"):
            language_model_bundle().save(folder)
    assert files(tmp_path) == {"file": b"mine"}


@KINDS
def test_a_folder_that_holds_a_model_is_refused_and_left_as_it_was(tmp_path, kind):
    language_model_bundle().save(tmp_path)
    before = files(tmp_path)
    with pytest.raises(OutputError, match="already holds a model"):
        MAKERS[kind](BOTH).save(tmp_path, storage="int8")
    assert files(tmp_path) == before


def test_what_an_interrupted_save_left_is_no_hindrance(tmp_path):
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "forward-00001-of-00009.safetensors").write_bytes(b"half")
    language_model_bundle().save(tmp_path)
    assert "forward-00001-of-00009.safetensors" not in files(tmp_path)
    assert not (tmp_path / ".writing").exists()


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    classifier_bundle().save(folder)
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of a classifier's folder and a way to change its config.json."""
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)

    def change(*path, to):
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        place = values
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return folder

    return change


OUTSIDE = ["../stolen.safetensors", "/tmp/stolen.safetensors", "sub/stolen.safetensors", "stolen.bin", "..", 3]


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (["format"], "other", "not the config of a model made by ulmfit"),
        (["version"], 2, "version 2, this program reads 1"),
        (["version"], None, "version None"),
        (["kind"], "translator", "of the wrong kind"),
        (["kind"], "language_model", "damaged or made by another version"),
        (["storage"], "int4", "of the wrong kind"),
        (["facts"], [], "of the wrong kind"),
        (["model"], [], "of the wrong kind"),
        (["model", "hiden_size"], 8, "unknown setting 'hiden_size'"),
        (["model", "encoder", "hiden_size"], 8, "did you mean 'hidden_size'?"),
        (["model", "encoder", "hidden_size"], -1, "'encoder.hidden_size' is -1"),
        (["model", "encoder", "hidden_size"], "12; import os", "'encoder.hidden_size'"),
        (["model", "encoder", "hidden_size"], 16, "the tensor encoder.lstms.0.weight_ih_l0 has the shape (48, 8)"),
        (["model", "encoder", "hidden_size"], 10**18, "classifier"),
        (["model", "encoder", "layers"], 3, "tensor"),
        (["model", "encoder", "layers"], 1, "tensor"),
        (["model", "encoder", "architecture"], "transformer", "no encoder architecture 'transformer'"),
        (["model", "head", "classes"], 2, "'labels' must name the 2 classes"),
        (["model", "head", "hidden_size"], 7, "the tensor head.layers.2.weight has the shape"),
        (["model", "vocab_size"], 41, "tokenizer.json has"),
        (["labels"], ["cat", "dog"], "'labels' must name the 3 classes"),
        (["labels"], ["cat", "dog", "dog"], "'labels' must name the 3 classes"),
        (["labels"], ["cat", "dog", 3], "'labels' must name the 3 classes"),
        (["labels"], [["cat"], ["dog"], ["bird"]], "'labels' must name the 3 classes"),
        (["labels"], "cdn", "'labels' must name the 3 classes"),
        (["labels"], None, "'labels' must name the 3 classes"),
        (["weights"], {}, "of the wrong kind"),
        (["weights"], {"sideways": []}, "of the wrong kind"),
        (["weights", "forward"], [], "lacks the tensor"),
        (["weights", "forward"], ["forward-00002-of-00002.safetensors"], "is missing"),
        *((["weights", "forward"], [name], "of the wrong kind") for name in OUTSIDE),
    ],
)
def test_a_damaged_config_is_told_in_one_line(damaged, path, to, said):
    # Were the reader to follow a name out of the folder, there would be sound weights.
    folder = damaged(*path, to=to)
    shard = folder / "forward-00001-of-00001.safetensors"
    shutil.copy(shard, folder.parent / "stolen.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(shard, folder / "sub" / "stolen.safetensors")
    message = problem(ClassifierBundle.load, folder).replace(str(folder), "classifier")
    assert said in message


JUNK = [None, True, -1, 0, 1.5, 10**30, float("nan"), "", "x", "\x00", [], [[]], ["a"], {}, {"a": {}}]


def places(values, path=()):
    """Every value's place in nested JSON."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_whatever_stands_in_the_config_it_loads_or_is_refused_in_one_line(saved, damaged, junk):
    original = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    for place in places(original):
        folder = damaged(*place, to=junk)
        try:
            read_bundle_config(folder)
            loaded = ClassifierBundle.load(folder)
        except BundleError as error:
            assert "\n" not in str(error) and str(folder) in str(error), place
        else:
            model_card(read_bundle_config(folder))
            assert outputs(loaded.models["forward"]).shape == (3, 3), place
        (folder / "config.json").write_text(json.dumps(original), encoding="utf-8")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"ulmfit-bundle"', "\ud800", "[" * 100_000])
def test_a_config_that_is_not_json_of_ours_is_told_in_one_line(damaged, text):
    folder = damaged("version", to=1)
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "config.json" in problem(ClassifierBundle.load, folder)


def test_a_folder_or_config_that_is_not_there_is_told_in_one_line(damaged):
    folder = damaged("version", to=1)
    assert "no such folder" in problem(ClassifierBundle.load, folder / "none")
    (folder / "config.json").unlink()
    assert "no config.json in it" in problem(ClassifierBundle.load, folder)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format":"ulmfit-tokenizer"}'])
def test_a_missing_or_damaged_tokenizer_is_told_in_one_line(damaged, content):
    folder = damaged("version", to=1)
    if content is None:
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tokenizer.json").write_bytes(content)
    assert "token" in problem(ClassifierBundle.load, folder)


def test_a_tokenizer_of_another_size_is_told_with_both(damaged):
    folder = damaged("version", to=1)
    other = train_tokenizer(TEXTS, config=TokenizerConfig(vocab_size=20, min_frequency=1), processes=1)
    (folder / "tokenizer.json").write_text(other.to_json(), encoding="utf-8")
    assert f"has {len(other)} tokens, config.json asks for {len(TOKENIZER)}" in problem(ClassifierBundle.load, folder)


def test_weights_of_another_layout_are_told_by_the_first_tensor_that_differs(damaged):
    folder = damaged("version", to=1)
    shard = folder / "forward-00001-of-00001.safetensors"
    stored = load_file(shard)
    save_file({name.replace("lstms.", "rnns."): tensor for name, tensor in stored.items()}, shard)
    assert "lacks the tensor encoder.lstms.0.bias_hh_l0" in problem(ClassifierBundle.load, folder)


def test_a_bundle_of_the_other_kind_is_refused(tmp_path):
    language_model_bundle().save(tmp_path / "lm")
    classifier_bundle().save(tmp_path / "classifier")
    assert "holds a language model, a classifier is needed" in problem(ClassifierBundle.load, tmp_path / "lm")
    assert "holds a classifier, a language model is needed" in problem(
        LanguageModelBundle.load, tmp_path / "classifier"
    )


# --- a bag of words beside the network ------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_bag_of_words_comes_back_bit_by_bit(tmp_path, storage):
    bundle = bundle_with_bag()
    bundle.save(tmp_path / "model", storage=storage)
    loaded = ClassifierBundle.load(tmp_path / "model").bag_of_words
    assert loaded.share == 0.5
    assert all(torch.equal(loaded.tensors()[name], tensor) for name, tensor in bundle.bag_of_words.tensors().items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: next(folder.glob("bag_of_words-*")).unlink(), "lacks the tensor"),
        (lambda folder: edit_config(folder, {"terms": 4, "share": 0.5, "network_share": 1.0}), "has the shape"),
        (lambda folder: (folder / "bag_of_words.json").write_text("{}", encoding="utf-8"), "bag_of_words.json"),
        (lambda folder: edit_config(folder, {"terms": -1, "share": 0.5, "network_share": 1.0}), "bag_of_words"),
        (lambda folder: edit_config(folder, {"terms": 3, "share": 1e9, "network_share": 1.0}), "bag_of_words"),
        (lambda folder: edit_config(folder, {"terms": 3, "share": 0.5}), "bag_of_words"),
        (lambda folder: edit_config(folder, [3]), "bag_of_words"),
        (lambda folder: edit_terms(folder, [9, 7, 100]), "do not rise"),
        (lambda folder: edit_terms(folder, [7, 9, 10**9]), "no word or pair"),
    ],
)
def test_a_damaged_bag_of_words_is_refused_in_one_line(tmp_path, change, told):
    bundle_with_bag().save(tmp_path)
    change(tmp_path)
    assert told in problem(ClassifierBundle.load, tmp_path)


def edit_config(folder, value):
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"bag_of_words": value}), encoding="utf-8")


def edit_terms(folder, keys):
    (path,) = folder.glob("bag_of_words-*")
    save_file(load_file(path) | {"keys": torch.tensor(keys)}, path)
