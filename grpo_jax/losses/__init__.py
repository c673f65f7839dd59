"""Losses, one function per published variant.

policy.py     the surrogate of the policy gradient, per token
select.py     which tokens of a minibatch have such a gradient at all
kl.py         distance to the reference policy, per token
aggregate.py  what a token weighs in the mean, so that loss = sum(w * loss)
head.py       log-probabilities of tokens without the logits of the batch
"""
