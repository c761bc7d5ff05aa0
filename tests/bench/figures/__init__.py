# SPDX-License-Identifier: MPL-2.0
"""One module a figure: run(session) measures, report(result) tells it in Markdown with the goals
met or missed, plot(result, path) draws it."""
