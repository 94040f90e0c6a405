"""Timing an artifact beside other engines: interleaved, through the public Python call of each."""

from qcc.bench.job import Job, Outcome, Row, run, run_without_amx
from qcc.bench.peers import PEERS
from qcc.bench.timing import Timing

__all__ = ["PEERS", "Job", "Outcome", "Row", "Timing", "run", "run_without_amx"]
