"""What can go wrong for a user's reasons. Each message names the thing, what was found, and the way out."""


class UlmfitError(Exception):
    """Base of all errors a user can mend; shells print its one line. Anything else raised is a bug."""


class ConfigError(UlmfitError):
    """A setting is unknown, out of range, or does not fit another one."""


class DataError(UlmfitError):
    """A file of text is missing, unreadable, empty, or lacks what was asked of it."""


class TokenizerError(UlmfitError):
    """A saved tokenizer is damaged, of another version, or cannot be trained on this text."""


class BundleError(UlmfitError):
    """A saved model is missing, incomplete, damaged, or of another layout than expected."""


class CheckpointError(UlmfitError):
    """A run cannot be resumed: its checkpoints are damaged or belong to other settings or data."""


class TrainingError(UlmfitError):
    """Training cannot go on: the loss is not finite, or the data do not suffice for the plan."""


class ProcessError(UlmfitError):
    """Another process of a run over several has failed or is gone, and with it the run."""


class OutputError(UlmfitError):
    """A result cannot be written: the folder is in use, not writable, or the disk is full."""
