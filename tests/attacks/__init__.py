"""Attacks: broken inputs of every kind, made from a seed, and what segdrop makes of them.

`catalogue.attacks` lists them, one file for each reason: `images`, `data`, `weights`, `stored`, `options`, `names`.
`bench` has the finished runs and sweeps that they break, `verdict` says what is a failure, `pool` runs them in
processes that may hang or grow. `python -m tests.attacks --seed 7 --count 1500 --out attacks.csv` runs them all.
"""
