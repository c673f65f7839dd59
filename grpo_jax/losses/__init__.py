"""Losses, one function per published variant.

policy.py      the surrogate of the policy gradient, per token
kl.py          distance to the reference policy, per token
aggregate.py   what a token weighs in the mean, so that loss = sum(w * loss)
off_policy.py  weights between the policy that sampled and the one that trains
entropy.py     the coefficient of the entropy bonus, held or following a target
head.py        log-probabilities of tokens without the logits of the batch
"""
