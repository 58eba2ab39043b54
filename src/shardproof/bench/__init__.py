"""Bench: one layer run by every implementation that is here, each checked against the judge, timed in turn.

`Subject` is the layer: random weights of a named shape, or a rank of a packed folder. `ways` prepares what can run it,
`measure` gives times and errors, `tune` our Hopper geometries at each number of tokens as a tuning table.
"""

from shardproof.bench.measure import Row, measure
from shardproof.bench.subject import SHAPES, Subject
from shardproof.bench.tune import tune
from shardproof.bench.ways import Way, ways

__all__ = ["SHAPES", "Row", "Subject", "Way", "measure", "tune", "ways"]
