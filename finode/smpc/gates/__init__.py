"""The protocols, one gate each. A gate says what correlated randomness it needs, how parties run it, what it means in
the clear, and what it costs. Start with `truncate.py`: all nonlinear gates are built like it.

    base.py         what a gate is
    linear.py       mask a tensor, multiply it with secret weights: convolution, linear layer, per-channel scale
    truncate.py     one opening for truncation, comparison and selection; truncate, truncate + ReLU
    compare.py      signs of masked values; conjunctions of shared bits in one round
    pool.py         max-pool, with or without ReLU
    maximum.py      the largest of C values, its index, and its one-hot vector
    lookup.py       a univariate function from a table of its local expansions
    softmax.py      exp with its clamp, reciprocal, product
    statistics.py   products of one-hot votes, and votes kept for labels that come later
    local.py        sums, averages and reshapes, which cost nothing
"""
