"""Who a rank is, what it tells the others, and how a model and its gradients are spread over all of them.

`setting.enter_launch` is where a rank begins; it meets the others through `ranks.Ranks`. Imports `launch`, which knows
what the launcher was asked for, and wings below it.
"""
