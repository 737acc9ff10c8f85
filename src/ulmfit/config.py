"""Every setting of every stage: frozen pydantic models that check themselves."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveFloat, Tag, ValidationError

from ulmfit.errors import ConfigError

Direction = Literal["forward", "backward"]
Directions = Literal["forward", "backward", "both"]
Precision = Literal["auto", "float32", "bfloat16"]
TrainingPrecision = Literal["auto", "float32", "bfloat16", "int8"]
PredictionPrecision = Literal["auto", "float32", "bfloat16", "int8"]
PresetName = Literal["quick", "paper"]
Storage = Literal["float32", "int8"]
Schedule = Literal["slanted_triangular", "one_cycle", "cosine", "constant"]


class Config(BaseModel):
    """Base of all settings: frozen, checked when made, an unknown key answered with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Build from plain JSON values; every problem becomes one line of a `ConfigError`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = error.errors()
            # A list whose items do not fit is called too short as well; that is not worth saying.
            blamed = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
            told = [problem for problem in problems if problem["loc"] not in blamed]
            raise ConfigError("; ".join(_explain(cls, problem) for problem in told)) from None

    def override(self, settings: dict[str, Any]) -> Self:
        """A copy with dotted keys replaced, e.g. `{"training.window": 80}`; checked like a new one."""
        values = self.model_dump()
        for dotted, value in settings.items():
            *parents, name = dotted.split(".")
            place = values
            for parent in parents:
                child = place.get(parent)
                if not isinstance(child, dict):
                    raise ConfigError(f"setting {dotted!r}: no group {parent!r} here; there are {', '.join(place)}")
                place = child
            place[name] = value
        return type(self).parse(values)


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One line for one pydantic problem: the setting, what is wrong, the nearest known name."""
    location = [str(part) for part in problem["loc"] if part not in _BRANCHES]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        return f"unknown setting {name!r}; {hint}"
    return f"setting {name!r} is {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the nested model that `path` leads to."""
    for part in path:
        if part in model.model_fields:
            # A list index or the name of a union's branch leads nowhere by itself: the field before it says what it is.
            model = next(_models_in(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation such as `tuple[Phase, ...]` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


# --- text -----------------------------------------------------------------------------------------------------------


class TokenizerConfig(Config):
    """How text becomes ids."""

    kind: Literal["word", "unigram", "bpe"] = Field("word", description="words, or subwords by the tokenizers library")
    vocab_size: int = Field(60_000, ge=16, le=2**20, description="most tokens kept, special tokens included")
    min_frequency: int = Field(2, ge=1, description="a token seen less often in training becomes xxunk")


# --- models ---------------------------------------------------------------------------------------------------------


class EncoderDropouts(Config):
    """The AWD-LSTM's drop rates; the defaults are those of the authors' scripts for language models."""

    input: float = Field(0.25, ge=0, lt=1, description="locked dropout on the embedded tokens")
    embedding: float = Field(0.02, ge=0, lt=1, description="whole rows of the embedding")
    weight: float = Field(0.2, ge=0, lt=1, description="single hidden-to-hidden weights")
    hidden: float = Field(0.15, ge=0, lt=1, description="locked dropout between recurrent layers")

    def scaled(self, multiplier: float) -> Self:
        """Every rate multiplied; a rate of 1 or more is a ConfigError."""
        return self.parse({name: rate * multiplier for name, rate in self.model_dump().items()})


class EncoderConfig(Config):
    """The AWD-LSTM: sizes as in the paper but 1152 for 1150, the same to the model and far faster on a GPU."""

    architecture: str = Field("awd_lstm", description="name in the encoder registry")
    embedding_size: int = Field(400, ge=1, le=2**16)
    hidden_size: int = Field(1152, ge=1, le=2**16)
    layers: int = Field(3, ge=1, le=64)
    dropouts: EncoderDropouts = EncoderDropouts()


class LanguageModelConfig(Config):
    """An encoder and the decoder tied to its embedding."""

    vocab_size: int = Field(60_000, ge=2, le=2**20)
    encoder: EncoderConfig = EncoderConfig()
    output_dropout: float = Field(0.1, ge=0, lt=1, description="locked dropout before the decoder")


class HeadConfig(Config):
    """The classifier's two BatchNorm-dropout-linear blocks."""

    classes: int = Field(2, ge=2, le=2**20)
    hidden_size: int = Field(50, ge=1, le=2**16)
    input_dropout: float = Field(0.4, ge=0, lt=1, description="before the first linear layer")
    hidden_dropout: float = Field(0.1, ge=0, lt=1, description="before the second linear layer")


class ClassifierConfig(Config):
    """An encoder, concat pooling and a head; documents are read in windows that carry state (BPT3C)."""

    vocab_size: int = Field(60_000, ge=2, le=2**20)
    encoder: EncoderConfig = EncoderConfig()
    head: HeadConfig = HeadConfig()
    window: int = Field(70, ge=1, le=2**20, description="tokens per window")
    horizon: int = Field(1400, ge=1, le=2**40, description="last tokens of a document through which gradients flow")


# --- training -------------------------------------------------------------------------------------------------------


class OptimizerConfig(Config):
    """Adam; AdamW, whose weight decay is apart from the gradient; or Muon for recurrent weights, AdamW for the rest."""

    name: Literal["adam", "adamw", "muon"] = "adamw"
    beta1: float = Field(0.7, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    epsilon: float = Field(1e-7, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    adam_rate: float = Field(1.0, gt=0, description="muon: rate of what AdamW moves there, as a multiple of the rest's")
    gradient_clip: float | None = Field(0.25, gt=0, description="largest norm of the whole gradient")


class Phase(Config):
    """Some epochs in which some layer groups learn, along one cycle of the learning rate."""

    groups: tuple[int, ...] | None = Field(
        None, description="indices of the groups that learn, -1 the last; all if null"
    )
    epochs: int = Field(1, ge=1)
    rate: float = Field(description="peak learning rate of the last group", gt=0)
    discriminative: float = Field(2.6, ge=1, description="each lower group's rate is this much smaller")
    schedule: Schedule = "slanted_triangular"
    rise: float = Field(0.1, gt=0, lt=1, description="share of the phase in which the rate rises")


class UnfreezingPlan(Config):
    """A named way through the layer groups, in place of phases written out."""

    plan: Literal["gradual", "full", "last", "chain_thaw"]
    rate: float = Field(description="peak learning rate of the last group", gt=0)
    epochs: int = Field(1, ge=1, description="of the last phase; those before it have one each")
    lower_rate: float | None = Field(None, gt=0, description="chain_thaw: rate of all but the head; rate / 10 if null")
    discriminative: float = Field(2.6, ge=1, description="each lower group's rate is this much smaller")
    schedule: Schedule = "slanted_triangular"


_BRANCHES = ("{plan}", "{phases}")
"""how pydantic names the two forms below in an error; no settings of ours"""

NonEmptyPhases = Annotated[tuple[Phase, ...], Field(min_length=1)]
PlanOrPhases = Annotated[
    Annotated[UnfreezingPlan, Tag("{plan}")] | Annotated[NonEmptyPhases, Tag("{phases}")],
    Discriminator(lambda value: "{phases}" if isinstance(value, (list, tuple)) else "{plan}"),
]


class LanguageModelTraining(Config):
    """How a language model learns: streams of text in windows that carry state."""

    batch_size: int = Field(64, ge=1, description="parallel streams of text")
    least_steps: int = Field(2, ge=2, description="of an epoch; text too short for them gets fewer streams, down to 16")
    window: int = Field(70, ge=2, description="tokens per window")
    window_jitter: float = Field(5.0, ge=0, description="standard deviation of the window's length, in tokens")
    activation_regularisation: float = Field(2.0, ge=0, description="AR alpha, on dropped outputs")
    temporal_regularisation: float = Field(1.0, ge=0, description="TAR beta, on raw outputs")
    valid_share: float = Field(0.1, ge=0, lt=1, description="share of documents held out to measure perplexity")
    optimizer: OptimizerConfig = OptimizerConfig()
    phases: NonEmptyPhases = (Phase(rate=4e-3),)
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better perplexity")


# --- stages ---------------------------------------------------------------------------------------------------------


class RunConfig(Config):
    """What every stage shares."""

    direction: Directions = "forward"
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    precision: TrainingPrecision = Field(
        "auto", description="what products are computed in; weights are kept in float32"
    )
    checkpoint_minutes: float = Field(2.0, gt=0, description="time between checkpoints")
    storage: Storage = Field("float32", description="stored weights; int8 rows carry a scale")

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions to train, in order."""
        return ("forward", "backward") if self.direction == "both" else (self.direction,)


class PretrainSettings(Config):
    """Stage 1: a language model on a large general corpus."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    encoder: EncoderConfig = EncoderConfig()
    output_dropout: float = Field(0.1, ge=0, lt=1, description="locked dropout before the decoder")
    training: LanguageModelTraining = LanguageModelTraining()


class TuneSettings(Config):
    """Stage 2: that language model on the target domain's text. Sizes come from the base."""

    vocab_size: int = Field(
        60_000, ge=16, le=2**20, description="most words of the domain kept; subwords keep the base's"
    )
    min_frequency: int = Field(2, ge=1, description="a word seen less often in the domain becomes xxunk")
    base_words: bool = Field(
        False, description="keep the base's words after the domain's own, as many as vocab_size has room for"
    )
    dropouts: EncoderDropouts = EncoderDropouts()
    output_dropout: float = Field(0.1, ge=0, lt=1, description="locked dropout before the decoder")
    dropout_multiplier: float = Field(1.0, ge=0, description="on all of the above")
    start: Literal["pretrained", "random"] = Field(
        "pretrained", description="the base's weights, or random ones of its sizes: what pretraining is worth"
    )
    learn: bool = Field(True, description="false: the start over the domain's vocabulary, untrained")
    training: LanguageModelTraining = LanguageModelTraining()


class ClassifySettings(Config):
    """Stage 3: a classifier on the tuned encoder. The drop rates' defaults are those of the authors' scripts."""

    dropouts: EncoderDropouts = EncoderDropouts(input=0.4, embedding=0.05, weight=0.5, hidden=0.3)
    head_hidden_size: int = Field(50, ge=1, le=2**16)
    head_dropouts: tuple[float, float] = Field((0.4, 0.1), description="before the head's first and second layer")
    dropout_multiplier: float = Field(1.0, ge=0, description="on all of the above")
    window: int = Field(70, ge=1, le=2**20, description="tokens per window")
    horizon: int = Field(1400, ge=1, le=2**40, description="last tokens of a document through which gradients flow")
    batch_size: int = Field(64, ge=2, description="documents")
    optimizer: OptimizerConfig = OptimizerConfig()
    phases: PlanOrPhases = Field(
        UnfreezingPlan(plan="gradual", rate=1e-2), description="phases one by one, or the name of a plan"
    )
    valid_share: float = Field(0.1, ge=0, lt=1, description="share of the labelled documents held out")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better error")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = Field(
        "none", description="weight of each class in the loss; balanced: inverse to its count"
    )
    language_model_weight: float = Field(0.0, ge=0, description="multi-task: weight of the language model's loss")
    language_model_decay: float = Field(1.0, gt=0, le=1, description="multi-task: factor on that weight each epoch")
    self_training: float = Field(
        0.0, ge=0, le=1, description="share of the unlabelled texts, the surest, that teach a second classifier"
    )
    self_training_documents: int = Field(2_000, ge=1, description="most unlabelled texts that it is a share of")
    self_training_phases: tuple[Phase, ...] | None = Field(
        None,
        min_length=1,
        description="of the second classifier, where its texts are so many that these are no fewer steps than the "
        "first one's; else, and if none: the first one's phases, in about twice as many steps",
    )
    self_training_batch_size: int | None = Field(
        None, ge=2, description="documents, for the second classifier; none: as many as the first has"
    )
    bag_of_words: float = Field(
        0.0,
        ge=0,
        le=100,
        description="what a linear model of words and pairs counts beside the network, as a power; 0: none is made",
    )


class PretrainConfig(Config):
    """All of `pretrain`."""

    run: RunConfig = RunConfig()
    pretrain: PretrainSettings = PretrainSettings()


class TuneConfig(Config):
    """All of `tune`."""

    run: RunConfig = RunConfig()
    tune: TuneSettings = TuneSettings()


class ClassifyConfig(Config):
    """All of the classifier's stage alone."""

    run: RunConfig = RunConfig()
    classify: ClassifySettings = ClassifySettings()


class TrainConfig(Config):
    """All of `train`: tuning, then the classifier."""

    run: RunConfig = RunConfig()
    tune: TuneSettings = TuneSettings()
    classify: ClassifySettings = ClassifySettings()
