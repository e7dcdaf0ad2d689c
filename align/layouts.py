"""The start-up self-check: does this model compute what `PolicyModule` thinks it computes?

Two things are measured, never guessed. The head applied to chosen positions must give the log-probs
of the model's own forward (a soft cap or a scale that nobody knows of would show). And candidates
that share a row must get the log-probs that they get alone. And before the first step the policy
must be its reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.distributed import zero3
from align.groups import TokenGroup, collate
from align.launch_env import under_fsdp
from align.policy_module import PolicyModule, base_model

if TYPE_CHECKING:
    from align.config import Config
    from align.policy import Policy

# float32 noise of another summation order is about 1e-5; a leak between candidates 1e-2 and more.
_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-6}
_COARSE = 0.15  # bfloat16 and quantised weights
_TF32 = 0.05  # an accelerator may multiply float32 with ten bits of mantissa


def probe(vocabulary: int) -> TokenGroup:
    """A group whose candidates have different lengths and tokens."""
    drawn = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(vocabulary, (n,), generator=drawn).tolist()

    return TokenGroup(tokens(5), [tokens(3), tokens(6), tokens(4)])


def check_layout(policy: Policy) -> str | None:
    """Correct `policy.layout` where the model cannot take groups; return what was found, or None.

    Raises RuntimeError for a model whose logits are not head(hidden) as `PolicyModule` computes
    them, and where rows must be shared but cannot. Under ZeRO-3 nothing can be run before training
    starts: the check is left to the user (docs/layouts.md).
    """
    module, config = policy.module, policy.config
    if zero3() or not _runs(module, config):
        return None
    packs = config.packs
    group = probe(min(module.config.get_text_config().vocab_size, 1000))
    was_training = module.training
    module.eval()
    with torch.no_grad():
        plain = _measure(policy, group, "plain")
        if not module.scorer:
            _compare_with_model(policy, group, plain)
        shares = policy.layout == "grouped" or packs
        found = _sharing_fails(policy, group, plain) if shares else None
    module.train(was_training)
    if found is None:
        return None
    if packs:
        key = "sft.packing" if config.method == "sft" else "pretrain.document_mask"
        raise RuntimeError(f"{key}=true cannot be used: {found}. Use false.")
    if config.policy.layout == "grouped":
        raise RuntimeError(f"policy.layout=grouped cannot be used: {found}. Use plain.")
    policy.layout = "plain"
    return found + ": plain rows are used"


def _runs(module: PolicyModule, config: Config) -> bool:
    """Put the model where it will be trained; False where its kernel does not run there yet.

    Flash attention knows no CPU, and a large model takes minutes on one. FSDP shards before it
    moves: there the model stays where it is.
    """
    args = config.train.args
    sharded = args.get("fsdp") or under_fsdp()
    if torch.accelerator.is_available() and not (sharded or args.get("use_cpu")):
        device = torch.accelerator.current_accelerator()
        if device is not None and module.device.type != device.type:
            module.to(device)
    kernel = module.config._attn_implementation
    return module.device.type != "cpu" or kernel in ("sdpa", "eager")


def _sharing_fails(policy: Policy, group: TokenGroup, plain: Tensor) -> str | None:
    """What goes wrong when the candidates share a row, or None."""
    try:
        gap = _gap(plain, _measure(policy, group, "grouped"))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model that unpacks the mask's shape raises whatever it likes
        reason = str(error).strip().split("\n")[0]
        return f"the model takes no 4-D mask ({type(error).__name__}: {reason})"
    if gap <= tolerance(policy.module):
        return None
    return f"candidates that share a row differ by {gap:.2g} from those alone"


def tolerance(module: Any) -> float:
    """Largest difference that rounding explains, nats."""
    # Norms and embeddings of a k-bit model are float32: its parameters do not tell.
    if getattr(base_model(module.lm), "is_quantized", False):
        return _COARSE
    dtype = next(p.dtype for p in module.lm.parameters() if p.is_floating_point())
    if dtype == torch.float32 and module.device.type != "cpu":
        return _TF32
    return _TOLERANCE.get(dtype, _COARSE)


def check_reference(policy: Policy, logps: Tensor, ref_logps: Tensor) -> None:
    """Before the first step policy and reference are the same model: RuntimeError if not.

    logps, ref_logps: of the same tokens, or sums of them.
    """
    gap = float((logps.detach() - ref_logps).abs().max()) if logps.numel() else 0.0
    if gap <= tolerance(policy.module):
        return
    lora = policy.config.policy.lora
    if policy.reference == "adapter_off" and lora is not None and lora.path:
        cause = (
            f"policy.lora.path={lora.path!r} changes the policy, and adapter_off compares with "
            "the model without it. Give that folder as policy.path, or use reference: frozen"
        )
    elif policy.reference == "cached":
        cause = "the cache belongs to other weights: delete it"
    else:
        cause = "the reference was not loaded from policy.path, or a dropout is still on"
    raise RuntimeError(
        f"KL(policy, reference) is not 0 before the first step: log-probs differ by {gap:.2g} "
        f"nats. {cause}."
    )


def _measure(policy: Policy, group: TokenGroup, layout: str) -> Tensor:
    module = policy.module
    batch = collate([group], policy.pad_id, layout).to(module.device)
    if module.scorer:
        return module(batch, want=("scores",))["scores"].flatten()
    return module(batch, want=("logps",))["logps"]


def _compare_with_model(policy: Policy, group: TokenGroup, found: Tensor) -> None:
    """Hold the first candidate's log-probs to the model's own logits."""
    model = base_model(policy.module.lm)
    ids = torch.tensor([group.prompt_ids + group.completions[0]], device=policy.module.device)
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    start = len(group.prompt_ids)
    own = logits.log_softmax(-1)[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
    gap = _gap(own, found[: len(own)])
    if not gap <= tolerance(policy.module):
        raise RuntimeError(
            f"{type(model).__name__} computes logits in a way that align does not know (log-probs "
            f"differ by {gap:.2g} nats). Please report the model."
        )


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
