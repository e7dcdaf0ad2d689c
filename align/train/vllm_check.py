"""Whether a vLLM server that somebody started can sample for training, and what it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from align.config_engine import max_lora_rank
from align.config_errors import Failed, UserError
from align.rollout.vllm_http import EngineDown, EngineRefused, VllmHttp

if TYPE_CHECKING:
    from align.config import Config

URL = "rollout.server.url"


class Found(NamedTuple):
    """model: its name on the server. positions: of its rows. float32: whether it computes so."""

    model: str
    positions: int | None
    float32: bool


def check_server(http: VllmHttp, config: Config) -> Found:
    """What a server serves; UserError, with the command that starts a right one, if it is no use.

    Samples of a server with other log-probs or defaults look right and train something else.
    """
    sync = config.rollout.sync
    fix = f"Start it with: {start_command(config)}"
    try:
        found = described(http)
    except EngineDown as error:
        raise UserError(URL, http.url, f"does not answer: {error}", fix) from error
    except EngineRefused as error:
        reason = f"has no development endpoints, by which weights are pushed ({error})"
        raise UserError(URL, http.url, reason, fix) from error
    except (Failed, LookupError, TypeError) as error:
        raise UserError(URL, http.url, f"is not a vLLM server: {error}", fix) from error
    model, lora = found.config["model_config"], found.config.get("lora_config")
    for name, needed in (("logprobs_mode", "processed_logprobs"), ("generation_config", "vllm")):
        if model.get(name) != needed:
            word = f"--{name.replace('_', '-')}"
            reason = f"has {word} {model.get(name)}: what it draws from would not be the policy"
            raise UserError(URL, http.url, reason, fix)
    if sync == "lora" and config.policy.lora is not None:
        most = (lora or {}).get("max_lora_rank", 0)
        if most < config.policy.lora.r:
            reason = f"takes adapters of rank {most}, and policy.lora.r is {config.policy.lora.r}"
            raise UserError(URL, http.url, reason if lora else "takes no adapters", fix)
    if sync == "nccl" and not found.config.get("weight_transfer_config"):
        raise UserError(URL, http.url, "was started without --weight-transfer-config", fix)
    return found.found


class _Described(NamedTuple):
    found: Found
    config: Any


def described(http: VllmHttp) -> _Described:
    """What /v1/models and /server_info say."""
    served = http.ask("GET", "/v1/models")["data"][0]
    config = http.ask("GET", "/server_info?config_format=json")["vllm_config"]
    float32 = str(config["model_config"].get("dtype")).endswith("float32")
    return _Described(Found(served["id"], served.get("max_model_len"), float32), config)


def server_words(config: Config) -> tuple[list[str], dict[str, str]]:
    """Words of vLLM's command line and variables that a way to push weights needs."""
    words: list[str] = []
    env: dict[str, str] = {}
    if config.policy.trust_remote_code:
        words.append("--trust-remote-code")
    if config.rollout.sync == "lora" and config.policy.lora is not None:
        words += ["--enable-lora", "--max-lora-rank", str(max_lora_rank(config.policy.lora.r))]
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if config.rollout.sync == "nccl":
        words += ["--weight-transfer-config", '{"backend": "nccl"}']
    return words, env


def start_command(config: Config) -> str:
    """A server for this configuration, as a shell would start it."""
    words, env = server_words(config)
    variables = " ".join(f"{k}={v}" for k, v in {"VLLM_SERVER_DEV_MODE": "1", **env}.items())
    more = " ".join(f"'{w}'" if " " in w else w for w in words)
    return (
        f"{variables} vllm serve {config.policy.path} --max-model-len {config.data.max_length} "
        f"--generation-config vllm --logprobs-mode processed_logprobs {more}"
    ).rstrip()
