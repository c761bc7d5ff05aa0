# SPDX-License-Identifier: MPL-2.0
"""The figures of bench_cluster.py, a file each: run(cluster, options) measures, lines(result) says what came of it,
draw(path, result), where there is one, draws it."""
