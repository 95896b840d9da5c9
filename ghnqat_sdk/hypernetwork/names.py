"""What hypernetworks and their files are called, apart from the code that loads them: reading it imports nothing."""

from __future__ import annotations

import re

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DEFAULT = "default"
"""The name of the weights that ship with the package."""

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*", re.ASCII)
"""A Hub repo: owner/name."""
