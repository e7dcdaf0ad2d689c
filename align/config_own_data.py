"""`auto` beside data of the user's own: the demo's held-out rows and prompts do not go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.config_checks import NEEDED

if TYPE_CHECKING:
    from align.config import Config


def follow_own_data(config: Config) -> None:
    """Turn `auto` into null where it would mix the demo's data with the user's, in place.

    Held-out rows then are `data.validation_fraction` of the prompts, and PPO's prompts those of
    the preferences.
    """
    data, method = config.data, config.method
    if data.prompts == "auto" and data.preferences not in (None, "auto"):
        data.prompts = None
    name = NEEDED.get(method)
    if name is None:
        return
    trained_on = config.prompts_path if method == "ppo" else getattr(data, name)
    if trained_on == "auto":
        return
    if data.validation == "auto":
        data.validation = None
    if config.eval.prompts == "auto":
        config.eval.prompts = None


def data_read(config: Config) -> list[str]:
    """The keys of `data` that name files which `config.method` reads, without `validation`."""
    data, method = config.data, config.method
    names = {NEEDED.get(method)}
    if method == "ppo" and data.prompts is None:
        names.add("preferences")
    if method == "ppo" and config.ppo.ptx_coef > 0:
        names.add("sft")
    if method in NEEDED and config.policy.path is None and config.pretrain.tokenizer is None:
        names.add("text")  # a tokenizer is trained on it
    return sorted(name for name in names if name)
