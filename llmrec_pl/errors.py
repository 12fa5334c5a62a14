"""The errors a user can meet; each message says what is wrong, where, and what to do."""


class LLMRecError(Exception):
    """Base of all errors that a user can cause and mend; the command line prints no traceback."""


class DatasetError(LLMRecError, ValueError):
    """A raw file, a canonical data set folder or a feature matrix is missing or wrong."""


class AugmentationError(LLMRecError, ValueError):
    """An exported augmentation does not fit the data set, or is damaged."""


class CheckpointMismatchError(LLMRecError, RuntimeError):
    """A checkpoint was made with other data, or with a batch plan that cannot be resumed."""


class ConfigError(LLMRecError, ValueError):
    """A combination of settings that cannot work."""


class WorkerError(LLMRecError, RuntimeError):
    """A process that trained a run for another one was killed."""
