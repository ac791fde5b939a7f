"""Learning: rollouts, and the losses that are computed from them."""
