"""Every error that opdlm raises on purpose.

    OpdlmError                                     exit code 2 unless said otherwise
    ├── UsageError                (ValueError)     a setting or an input is wrong
    │   ├── ConfigError
    │   ├── PromptsError
    │   ├── ContextLengthError
    │   ├── ModelNotFoundError    (FileNotFoundError)
    │   ├── UnsupportedModelError (NotImplementedError)
    │   ├── MaskTokenError
    │   ├── CheckpointError
    │   ├── RecordError
    │   ├── OutputExistsError     (FileExistsError)
    │   ├── RunInUseError         (BlockingIOError)
    │   ├── MissingExtraError     (ImportError)
    │   └── UnconfinedCodeError
    ├── StorageError              (OSError)        the machine ran out of room
    ├── HubError                  (OSError)        the hub refused, or cannot be reached
    ├── RolloutServerError        (ConnectionError) the server that writes rollouts is away, slow or wrong
    ├── IdentityCheckError        (RuntimeError)   the adapted model is not the original
    ├── NonFiniteLossError        (ArithmeticError) exit code 1
    ├── NonFiniteWeightsError     (ArithmeticError) exit code 1
    └── RankFailedError           (RuntimeError)   exit code 1; of several processes, another one failed

Each is also the standard error in brackets, so that code which knows nothing of opdlm can catch it. Raise them with one
argument, a message of one line that ends with the fix (they keep it through pickle):
`raise PromptsError("prompts.jsonl has no column 'prompt'; name one with --prompts-column")`.
"""


class OpdlmError(Exception):
    """The root: catch it to catch all. The command line prints its message as one line and ends with `exit_code`.

    `common`: every process of a run meets it alike; the first one prints it.
    """

    exit_code = 2
    common = False


class UsageError(OpdlmError, ValueError):
    """A setting or an input is wrong; change it and run again."""


class ConfigError(UsageError):
    """A setting is unknown or its value is out of range; the message gives the nearest name or the range."""


class PromptsError(UsageError):
    """The prompts are missing, empty, or lack the column; the message names the columns found."""


class ContextLengthError(UsageError):
    """A prompt and its answer do not fit into the model's context; shorten either, the message gives the limit."""


class ModelNotFoundError(UsageError, FileNotFoundError):
    """No local folder and no hub model has this name; check the spelling, or download the model first."""


class UnsupportedModelError(UsageError, NotImplementedError):
    """No mask adapts this architecture (linear attention, encoder-decoder); choose a decoder with softmax attention."""


class MaskTokenError(UsageError):
    """The vocabulary has no mask token and no room for one; name an unused token, or let the embedding grow."""


class CheckpointError(UsageError):
    """A checkpoint is truncated or of another architecture; use an older one, or the model that it was made from."""


class RecordError(UsageError):
    """A file that a run wrote down is damaged, or of a version that this one cannot read; the message says which."""


class OutputExistsError(UsageError, FileExistsError):
    """The output folder is not empty; choose another, or continue the run in it with --resume."""


class RunInUseError(UsageError, BlockingIOError):
    """Another process is writing this run; the message says which. Wait for its end, or stop it."""


class MissingExtraError(UsageError, ImportError):
    """An optional package is not installed; the message gives the extra, such as `pip install 'opdlm[lora]'`."""


class UnconfinedCodeError(UsageError):
    """A model's programs would run with the user's own rights; confine them, or allow it: the message says how."""


class StorageError(OpdlmError, OSError):
    """A file could not be written, as when the disk is full; free some space, nothing half-written was left."""


class HubError(OpdlmError, OSError):
    """The model hub refused or cannot be reached; nothing is lost, the message says what to do and to repeat."""


class RolloutServerError(OpdlmError, ConnectionError):
    """The rollout server is away, is slow, or answers what it should not; a checkpoint is left, to go on from later."""


class IdentityCheckError(OpdlmError, RuntimeError):
    """With a causal mask the adapted model differs from the original; do not train it, report the difference."""


class NonFiniteLossError(OpdlmError, ArithmeticError):
    """The loss is not finite and the optimiser step was not taken; resume from the checkpoint in the message."""

    exit_code = 1
    common = True


class NonFiniteWeightsError(OpdlmError, ArithmeticError):
    """An update left weights that are not finite, which are not saved; resume from the checkpoint in the message."""

    exit_code = 1
    common = True


class RankFailedError(OpdlmError, RuntimeError):
    """Another process of the run failed or is gone; its own message says why, and the newest checkpoint resumes."""

    exit_code = 1
    common = True
