"""The benchmark: this ledger and its peers, measured in one run on one machine, as ratios.

`python -m tools.bench` runs all of it. Each peer is a file of its own, with the line that installs
it; one that is not installed is skipped with a word. Times of two runs or of two machines are not
comparable; what may be kept is how the subjects of one run compare.
"""
