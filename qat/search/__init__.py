"""Bits under a budget: what fewer bits of each tensor cost, what they save, and the best choice for all layers together."""

from qat.search.allocate import Allocation, allocate
from qat.search.budget import Budget, LatencyTable
from qat.search.measure_latency import measure_latency
from qat.search.solve import Choice, Link, Option, solve

__all__ = ["Allocation", "Budget", "Choice", "LatencyTable", "Link", "Option", "allocate", "measure_latency", "solve"]
