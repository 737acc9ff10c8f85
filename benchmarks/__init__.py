"""Speed and memory against peers: the same work, side by side, in one run. `python -m benchmarks --help`.

It reads from the top down like the package: `works.py` says what is measured and what is hoped for, `measure.py` how,
`sides.py` starts the programs that do the work (`ours.py` and one for each peer, all of which speak through
`gate.py`), and `results.py` keeps the numbers and draws the table.
"""
