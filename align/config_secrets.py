"""What has no place in a configuration: secrets, which a run would write down, and odd texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from align.config_errors import NO_VALUE, UserError, is_secret

_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_WHERE = {"hub_token": "Set HF_TOKEN in the environment"}
_FIX = "Set it in the environment (HF_TOKEN, WANDB_API_KEY, ALIGN_REWARD_TOKEN …)"


def check_secrets(tree: Any, prefix: str = "") -> None:
    """Raise UserError, without the value, for what looks like a secret anywhere in `tree`."""
    written = "would be written into config.yaml and manifest.json"
    for field, name, value in _leaves(tree, prefix):
        if is_secret(name) and value not in (None, "", False):
            raise UserError(field, NO_VALUE, f"is a secret and {written}", _WHERE.get(name, _FIX))
        if isinstance(value, str):
            for part in _secrets_in_urls(value):
                raise UserError(field, NO_VALUE, f"holds a {part}, which {written}", _FIX)


def check_texts(tree: Any, prefix: str = "") -> None:
    """Raise UserError for a text that no file name can hold: a zero byte, half a character."""
    for field, _, value in _leaves(tree, prefix):
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            reason = "holds a zero byte or is not valid Unicode"
            raise UserError(field.replace("\0", ""), NO_VALUE, reason, "Remove it")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _secrets_in_urls(text: str) -> Iterator[str]:
    """What the URLs in a text hold that should not be seen."""
    for url in _URL.findall(text):
        try:
            parts = urlsplit(url)
        except ValueError:  # said by whoever reads it as a URL
            continue
        if "@" in parts.netloc:
            yield "name or password"
        for name, value in parse_qsl(parts.query):
            if value and is_secret(name):
                yield f"secret ({name}=…)"


def _leaves(value: Any, field: str, name: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted field, its own name, value) of everything that is no mapping or list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{field}.{key}" if field else str(key), str(key))
            yield f"{field}.{key}" if field else "key", "", key
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{field}.{i}", name)
    else:
        yield field, name, value
