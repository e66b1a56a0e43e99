"""A mount and a local directory side by side: whatever is done to both, they answer the same.

`steps` says what a program is made of; `drafting` draws one with hypothesis, from a seed; `choosing` fills in what there is to work
on; `side` does a step to one tree; `comparing` says what two trees and a bucket must agree on; `running` has the real mount and
what befalls it; `reducing` cuts a program that ends in a difference.

As a program, ``python -m tests.e2e.differential --operations 100000 --seed N``.
"""
