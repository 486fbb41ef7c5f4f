#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Intervals of scores from scipy and numpy, for tests/test_needle_tasks.cpp.

Usage: python3 make_interval_golden.py     (needs numpy and scipy; writes intervals.json here)
"""

import json
import os

import numpy as np
import scipy
from scipy.stats import binomtest

WILSON = [(0, 1), (1, 1), (0, 10), (1, 10), (5, 10), (10, 10), (49, 50), (50, 50), (3, 7),
          (123, 500), (999, 1000)]
MEANS = [[0.0, 1.0], [0.25, 0.5, 0.75, 1.0], [0.2, 0.2, 0.2], [1.0, 0.0, 0.0, 1.0, 1.0, 0.6]]


def wilson(hits, n):
    interval = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return {"hits": hits, "n": n, "low": interval.low, "high": interval.high}


def mean(values):
    return {"values": values, "stderr": float(np.std(values, ddof=1) / np.sqrt(len(values)))}


def main():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "intervals.json")
    data = {"made_by": f"scipy {scipy.__version__}, numpy {np.__version__}",
            "wilson": [wilson(*case) for case in WILSON],
            "means": [mean(values) for values in MEANS]}
    with open(path, "w", encoding="utf-8") as out:
        json.dump(data, out, indent=1)
        out.write("\n")


main()
