"""Losses, one function per published variant.

policy.py      the surrogate of the policy gradient, per token
select.py      which tokens of a minibatch have such a gradient at all
off_policy.py  weights between the policy that sampled and the one that trains
kl.py          distance to the reference policy, per token
aggregate.py   what a token weighs in the mean, so that loss = sum(w * loss)
control.py     coefficients and a reference that follow the policy
head.py        log-probabilities of tokens without the logits of the batch
"""
