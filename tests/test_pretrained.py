"""A name leads to a folder: one's own first, then a shipped model, then the hub; what is shipped is good."""

import json
import socket

import huggingface_hub
import pyarrow.parquet
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ulmfit.bundle import LanguageModelBundle
from ulmfit.config import EncoderConfig, LanguageModelConfig, TokenizerConfig
from ulmfit.errors import BundleError
from ulmfit.models.language_model import LanguageModel
from ulmfit.predict import evaluate_language_model
from ulmfit.pretrained import SHIPPED, find_bundle, shipped_names
from ulmfit.text.tokenizer import train_tokenizer

MEGABYTES = 90
"""of 10^6 bytes: the most that the weights of shipped models may take, so that the wheel stays under 100"""


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """A test that reached for the network would fail; each runs in an empty folder of its own."""

    def refuse(*arguments):
        raise AssertionError(f"a connection to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: what it is asked for is noted, what it answers is set."""

    class Hub:
        def __init__(self):
            self.answer = AssertionError("not to be asked")
            self.asked = []

        def fetch(self, hub_id, **options):
            self.asked.append((hub_id, options))
            if isinstance(self.answer, Exception):
                raise self.answer
            return str(self.answer)

    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.fetch)
    return stand_in


def problem(name):
    with pytest.raises(BundleError) as caught:
        find_bundle(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the order of places --------------------------------------------------------------------------------------------


def test_a_shipped_name_leads_to_the_package(hub):
    assert "en" in shipped_names()
    assert find_bundle("en") == SHIPPED / "en"


def test_a_folder_goes_before_a_shipped_name(hub, tmp_path):
    (tmp_path / "en").mkdir()
    assert find_bundle("en").resolve() == tmp_path / "en"
    assert find_bundle(SHIPPED / "en") == SHIPPED / "en"


def test_a_folder_goes_before_the_hub(hub, tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert find_bundle("owner/name").resolve() == tmp_path / "owner" / "name"
    assert hub.asked == []


@pytest.mark.parametrize(
    "name", ["english", "../en/x/y", "a/b/c", "-a/b", "https://hub/owner/name", "own er/name", "\x00", "a/b\n"]
)
def test_an_unknown_name_is_answered_with_the_shipped_ones(hub, name):
    message = problem(name)
    assert repr(name) in message
    assert f"the shipped models ({', '.join(shipped_names())})" in message
    assert hub.asked == []


def test_a_name_longer_than_any_file_name_is_unknown(hub):
    for name in ("x" * 5000, "owner/" + "x" * 5000):
        hub.answer = HFValidationError("too long")
        assert repr(name) in problem(name)


def test_a_file_is_no_model(hub, tmp_path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_text("mine", encoding="utf-8")
    assert "no model 'owner/name'" in problem("owner/name")


# --- the hub --------------------------------------------------------------------------------------------------------


def save_tiny(folder):
    tokenizer = train_tokenizer(["a b c d"], config=TokenizerConfig(vocab_size=16, min_frequency=1), processes=1)
    config = LanguageModelConfig(vocab_size=len(tokenizer), encoder=EncoderConfig(embedding_size=8, hidden_size=12))
    torch.manual_seed(0)
    model = LanguageModel(config)
    LanguageModelBundle(config=config, tokenizer=tokenizer, models={"forward": model}).save(folder)
    return model


def test_a_hub_id_is_fetched_without_anything_that_could_be_code(hub, tmp_path):
    model = save_tiny(tmp_path / "snapshot")
    hub.answer = tmp_path / "snapshot"
    loaded = LanguageModelBundle.load(find_bundle("owner/my-model_1.0"))
    assert torch.equal(loaded.models["forward"].decoder_weight, model.decoder_weight)
    ((hub_id, options),) = hub.asked
    assert hub_id == "owner/my-model_1.0"
    assert sorted(options["allow_patterns"]) == ["*.safetensors", "README.md", "config.json", "tokenizer.json"]


def test_a_hub_model_of_another_kind_is_refused_in_one_line(hub, tmp_path):
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    hub.answer = tmp_path / "snapshot"
    with pytest.raises(BundleError, match="not the config of a model made by ulmfit"):
        LanguageModelBundle.load(find_bundle("owner/bert"))


class ClientError(Exception):
    """As the HTTP client of the hub library may raise: not an OSError."""


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("Cannot find the requested files.\n\nMore about it\nin lines"),
        OfflineModeIsEnabled("Offline mode is enabled."),
        HFValidationError("Repo id must be so and so."),
        ConnectionError("refused"),
        ClientError("\nThe server went away"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_fetched_is_told_in_one_line_with_the_reason(hub, error):
    hub.answer = error
    message = problem("owner/name")
    assert "no folder 'owner/name' here, and it cannot be fetched from the hub" in message
    reason = str(error).strip().splitlines()[0] if str(error) else "TimeoutError"
    assert f"({reason})" in message


# --- what is shipped ------------------------------------------------------------------------------------------------


def test_the_shipped_models_are_small():
    sizes = [path.stat().st_size for path in SHIPPED.glob("*/*.safetensors")]
    assert sum(sizes) <= MEGABYTES * 10**6
    assert max(sizes) < 100 * 2**20 / 2  # a repository's host refuses larger files


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_holds_plain_files_alone_and_has_a_card(name):
    kinds = {path.suffix for path in (SHIPPED / name).iterdir()}
    assert kinds == {".json", ".safetensors", ".md"}
    card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    assert all(f"## {heading}" in card for heading in ("Data", "Training", "Results", "Hardware", "Command"))


def test_the_shipped_english_model_knows_english(data, tmp_path):
    bundle = LanguageModelBundle.load(find_bundle("en"))
    valid = data / "wiki-en" / "valid.parquet"
    if not valid.is_file():
        pytest.skip(f"no {valid} to measure on")
    articles = pyarrow.parquet.read_table(valid, columns=["text"]).column("text")[:6].to_pylist()
    sample = tmp_path / "sample.jsonl"
    sample.write_text("".join(json.dumps({"text": article[:1500]}) + "\n" for article in articles), encoding="utf-8")
    measures = evaluate_language_model(bundle, [sample])
    assert measures["documents"] == 6 and measures["characters"] == 9000
    assert measures["unknown"] < 0.05
    for measured in measures["directions"].values():
        assert measured["perplexity"] < 100  # of 60,000 words; the card says 31
        assert measured["bits_per_character"] < 2
