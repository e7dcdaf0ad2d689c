"""Rules between the keys of the reward section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.config_errors import UserError

if TYPE_CHECKING:
    from align.config import Config


def check_reward(config: Config) -> None:
    """Raise UserError for attributes that make no score, or what has no effect beside them."""
    reward = config.reward
    names, weights = reward.attributes, reward.attribute_weights
    if not names:
        for name, value in (("attribute_weights", weights), ("pair_coef", reward.pair_coef)):
            if value:
                reason = "has no effect without reward.attributes"
                fix = "Use null" if name == "attribute_weights" else "Use 0"
                raise UserError(f"reward.{name}", value, reason, fix)
        return
    if len(set(names)) != len(names) or not all(names):
        reason = "names an attribute twice, or none"
        raise UserError("reward.attributes", names, reason, "Name each once")
    if reward.heads % len(names):
        reason = f"is no multiple of the {len(names)} reward.attributes, which have a head each"
        raise UserError("reward.heads", reward.heads, reason, f"Use {len(names)}")
    if weights is not None and len(weights) != len(names):
        reason = f"does not say one weight for each of reward.attributes {names}"
        raise UserError("reward.attribute_weights", weights, reason, f"Give {len(names)} numbers")
    if weights is not None and not any(weights):
        reason = "makes every score 0"
        raise UserError("reward.attribute_weights", weights, reason, "Use null for the mean")
    # Shared configurations set center_coef; the ratings hold the level without it.
    for name in () if reward.pair_coef else ("margin", "length_coef"):
        value = getattr(reward, name)
        if value:
            reason = "has no effect where only ratings are learned, with reward.pair_coef=0"
            fix = f"Use {'false' if isinstance(value, bool) else 0}, or a pair_coef"
            raise UserError(f"reward.{name}", value, reason, fix)
