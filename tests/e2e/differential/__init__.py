"""A mount and a local directory side by side: whatever is done to both, they answer the same.

`steps` generates what is done, from a seed; `side` does it to one tree; `comparing` says what two trees and a bucket must agree
on; `running` has the real mount, what befalls it, and the reduction of a program that ends in a difference.

As a program, ``python -m tests.e2e.differential --operations 100000 --seed N``.
"""
