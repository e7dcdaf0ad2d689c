"""What the logged names mean, in one line each; docs/metrics.md says more.

A name that starts with `eval_` is the same quantity on held-out data.
"""

from __future__ import annotations

GROUPS: dict[str, dict[str, str]] = {
    "Reward": {
        "score/mean": "reward of sampled completions, in the reward model's units",
        "score/std": "spread of that reward over the samples",
        "reward/shaped": "score minus the KL penalty, summed over a completion",
    },
    "Distance to the reference": {
        "kl/sum": "KL(policy ‖ reference) summed over a completion, nats",
        "kl/token": "the same divided by the number of tokens",
        "kl_coef": "weight of the KL penalty; moves when kl_target is set",
        "sampler_gap": "difference of the sampler's and the trainer's log-probs, nats; near 0",
        "staleness": "updates between the weights that sampled and those that are optimised",
        "importance/mean": "mean weight of the tokens that other weights sampled; near 1",
        "importance/max": "largest such weight before the cap",
        "importance/clipped": "share of tokens whose weight was cut to the cap",
    },
    "Preferences": {
        "rewards/chosen": "beta × log-ratio to the reference of the chosen completion",
        "rewards/rejected": "the same for the rejected completion",
        "rewards/margins": "chosen minus rejected",
        "rewards/accuracies": "share of pairs with a positive margin",
        "logps/chosen": "log-probability of the chosen completion, nats",
        "logps/rejected": "log-probability of the rejected completion, nats",
        "log_odds": "ORPO's log odds ratio",
    },
    "Completions": {
        "length/mean": "tokens of a completion, end token included",
        "eos_rate": "share of completions that ended by themselves",
        "entropy": "entropy of the next-token distribution, nats per token",
    },
    "Loss and optimiser": {
        "loss": "training objective, nats (per token for SFT and pretraining, per pair for DPO)",
        "loss/sft": "negative log-likelihood of the chosen completion, nats per token",
        "loss/odds": "odds-ratio term of ORPO, nats",
        "loss/z": "pull of the softmax' normaliser towards 1, part of the loss",
        "perplexity": "exp of the loss per token",
        "accuracy": "share of held-out pairs in which the chosen completion scores higher",
        "learning_rate": "step size of the schedule",
        "grad_norm": "gradient norm before clipping",
        "grad_norm_critic": "the same for the critic",
    },
    "Policy update": {
        "approx_kl": "KL between the policies before and after the updates on one rollout",
        "clip_frac": "share of tokens whose ratio was clipped",
        "clip_frac_low": "clipped from below",
        "clip_frac_high": "clipped from above",
        "ratio/max": "largest probability ratio",
    },
    "Critic": {
        "value_loss": "squared error of the critic, in reward units squared",
        "value_clip_frac": "share of values that were clipped",
        "explained_variance": "1 − Var(return − value)/Var(return); 1 is perfect, below 0 is harm",
    },
    "Tokenizer": {
        "fertility": "tokens a character; a name after / is a language",
        "chars_per_token": "characters a token",
        "bytes_per_token": "bytes of UTF-8 a token",
        "byte_fallback_share": "share of tokens that are part of a character",
        "unknown_rate": "share of tokens that stand for an unknown character",
        "vocabulary_coverage": "share of the vocabulary that the measured text uses",
        "base_fertility": "fertility of the tokenizer that was extended, on the same text",
    },
    "Speed": {
        "time/sync": "seconds of pushing weights to the server that samples, and of checking it",
        "engine_restarts": "times that the server that samples was started again",
        "time/rollout": "seconds of sampling per update",
        "time/score": "seconds of scoring per update",
        "time/optimise": "seconds of optimisation per update",
        "tokens_per_s": "tokens processed per second",
        "mfu": "operations that the model needs, as a share of the devices' peak",
    },
}
OTHER = "Other"
_WHERE = {name: (g, text) for g, names in GROUPS.items() for name, text in names.items()}
# Kept in metrics.jsonl, of no use as a curve.
NOT_CURVES = frozenset({"step", "epoch", "total_flos", "num_input_tokens_seen"})


def base_name(key: str) -> str:
    """Name without the `eval_` mark."""
    return key.removeprefix("eval_")


def group_of(key: str) -> str:
    """Section of a report in which a metric is drawn."""
    name = base_name(key)
    if name in _WHERE:
        return _WHERE[name][0]
    if name.startswith(("time/", "runtime")) or name.endswith(("per_second", "runtime")):
        return "Speed"
    if name.startswith("loss"):
        return "Loss and optimiser"
    if name.startswith(("score/", "reward/")):
        return "Reward"
    return "Preferences" if name.startswith(("rewards/", "logps/")) else OTHER


def meaning(key: str) -> str:
    """One line about a metric, or an empty string."""
    return _WHERE.get(base_name(key), ("", ""))[1]
