"""What hypernetworks and their files are called, apart from the code that loads them: reading it
imports nothing."""

from __future__ import annotations

import re

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKSUM_FILE = f"{WEIGHTS_FILE}.sha256"
CARD_FILE = "README.md"
DEFAULT = "default"
"""The name of the weights that ship with the package."""
HUB = "hub"
"""The name of the newest published weights: those of `HUB_REPO`."""
HUB_REPO = "ghnqat-sdk/all-bits"
"""Where releases publish weights; nothing but `HUB` leads there."""

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*", re.ASCII)
"""A Hub repo: owner/name."""
