"""HOW FAST IT IS: what Frontrow does in a second and what that costs, beside others on the same machine.

`python -m bench.hot_sale` and its neighbours each answer one question with one table; `make bench` runs them all.
`docs/performance.md` shows the tables and says how they are measured.
"""
