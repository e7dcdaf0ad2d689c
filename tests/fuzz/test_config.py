"""Any configuration is a Config or a UserError."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import yaml
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import TEXTS, VALUES, hold, said, sizes

from align import config_schema as schema
from align.config import METHODS, Config, load_config
from align.config_errors import UserError
from align.config_parse import names_of

SMOKE = (Path(__file__).resolve().parents[2] / "recipes/configs/smoke.yaml").read_text("utf-8")
KEYS = {name: names_of(section) for name, section in schema.SECTIONS.items()}
DOTTED = [f"{section}.{key}" for section, keys in KEYS.items() for key in keys]
DOTTED += ["rewards.0.path", "rewards.0.kind", "rewards.1.weight", "policy.lora.r", "rewards",
           "per_method.dpo.dpo.beta", "per_method.sft", "tools.generate.model"]  # fmt: skip


def test_the_keys_are_the_schemas():
    assert {f.name for f in dataclasses.fields(schema.Ppo)} <= set(KEYS["ppo"])


SECTION = st.sampled_from(sorted(KEYS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        VALUES | st.dictionaries(st.sampled_from(KEYS[name]) | TEXTS, VALUES, max_size=4),
    )
)
OTHER = st.tuples(st.sampled_from(["rewards", "tools", "per_method"]) | TEXTS, VALUES)
FILES = (
    st.lists(SECTION | OTHER, max_size=4).map(lambda pairs: yaml.safe_dump(dict(pairs)))
    | st.tuples(st.integers(0, len(SMOKE)), TEXTS, st.integers(0, 40)).map(
        lambda cut: SMOKE[: cut[0]] + cut[1] + SMOKE[cut[0] + cut[2] :]
    )
    | TEXTS
)
WORDS = st.tuples(st.sampled_from(DOTTED) | TEXTS, VALUES.map(yaml.safe_dump) | TEXTS)


@sizes(100, 12_000)
def test_any_configuration_is_one_or_is_refused(examples, tmp_path, monkeypatch, fault):
    fault("any configuration file or override", "a valid configuration or a refusal")
    monkeypatch.chdir(tmp_path)
    file, again = tmp_path / "fuzz.yaml", tmp_path / "again.yaml"

    def check(method, text, overrides):
        file.write_text(text, "utf-8", errors="replace")
        words = [w for key, value in overrides for w in (f"--{key}={value}",)]
        try:
            config = load_config(method, ["--config", str(file), *words])
        except UserError as error:
            said(error)
            return
        assert isinstance(config, Config)
        # What is written for a later reader is the same configuration.
        again.write_text(config.to_yaml(), "utf-8")
        assert load_config(method, ["--config", str(again)]).to_yaml() == config.to_yaml()

    hold(examples, check, st.sampled_from(METHODS), FILES, st.lists(WORDS, max_size=3))
