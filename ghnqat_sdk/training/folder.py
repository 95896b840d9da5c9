"""What the folder of a run holds; nothing slow is imported here."""

RUN_FILE = "run.json"
"""Its config."""

CHECKPOINT_FILE = "checkpoint.safetensors"
"""Its state, to resume from."""

LOG_FILE = "log.jsonl"
"""A line of figures for each validation."""

BEST_FOLDER = "best"
"""The averaged weights that validated best, as `load_pretrained` reads them."""

LAST_FOLDER = "last"
"""Those of the last checkpoint."""
