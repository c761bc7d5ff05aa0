#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""The figures of rabbitmq_delay_wheel, side by side with other ways to deliver later.

    bench.py all                     every figure (hours)
    bench.py publish memory          some of them
    bench.py --quick all             each once and small, to see that it works; records nothing
    bench.py --peers Q,B,C publish   without the plugin
    bench.py report                  write RESULTS.md and the plots again from results/

Each figure's table is printed, and recorded in RESULTS.md with its plots.
"""

import argparse
import datetime
import os
import shutil
import signal
import sys
import tempfile
import time

import loadgen
import peers
import results
from figures import (boot, burst, cancel, changes, crash, doctor, lateness, memory, operators, overdue, pages,
                     publish, redrive, series, takeover)
from node import BrokerFailed
from session import Session

FIGURES = {"publish": publish, "memory": memory, "lateness": lateness, "burst": burst,
           "overdue": overdue, "boot": boot, "crash": crash, "series": series,
           "doctor": doctor, "cancel": cancel, "operators": operators, "changes": changes, "redrive": redrive,
           "pages": pages, "import": takeover}


def command_of(options):
    words = ["bench.py"]
    if options.quick:
        words.append("--quick")
    if options.count is not None:
        words += ["--count", ",".join(map(str, options.count))]
    if options.rounds is not None:
        words += ["--rounds", str(options.rounds)]
    if options.peers != list(peers.PEERS):
        words += ["--peers", ",".join(options.peers)]
    if options.target != "quorum":
        words += ["--target", options.target]
    return " ".join(words)


def measure(name, session, options):
    figure = FIGURES[name]
    began = time.monotonic()
    result = figure.run(session)
    result.update({"command": f"{command_of(options)} {name}", "machine": session.machine,
                   "date": datetime.date.today().isoformat(),
                   "minutes": (time.monotonic() - began) / 60})
    print("\n".join([f"\n{figure.TITLE}", *figure.report(result),
                     results.noise_of(result) or ""]), flush=True)
    if options.quick:
        print("Small numbers: whether a goal is met says nothing.", flush=True)
    results.save(name, result, options.out)
    plots = results.draw(figure, result, options.out)
    results.write(name, results.section(figure, result, plots),
                  os.path.join(options.out, "RESULTS.md"))


def report(options):
    for name, figure in FIGURES.items():
        if result := results.load(name, options.out):
            plots = results.draw(figure, result, options.out)
            results.write(name, results.section(figure, result, plots),
                          os.path.join(options.out, "RESULTS.md"))


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", default=["all"],
                        help=f"{', '.join(FIGURES)}, all (default) or report")
    parser.add_argument("--quick", action="store_true", help="small, once, nothing recorded")
    parser.add_argument("--rounds", type=int, help="of each measurement, instead of the usual")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(peers.PEERS),
                        help=f"of {','.join(peers.PEERS)}; default: all")
    parser.add_argument("--target", choices=["quorum", "classic"], default="quorum",
                        help="kind of queue that delayed messages are delivered to")
    parser.add_argument("--count", type=lambda text: [int(n) for n in text.split(",")], metavar="N,N",
                        help="how many messages are pending, instead of the usual, where a figure can do it "
                             "(changes)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--root", help="directory for the brokers' files; default: a temporary one")
    parser.add_argument("--out", help="directory for RESULTS.md, results/ and plots/; default: "
                                      "tests/bench, or with --quick a temporary one")
    options = parser.parse_args()
    names = list(FIGURES) if options.figures == ["all"] else options.figures
    for name in names:
        if name not in FIGURES and names != ["report"]:
            parser.error(f"there is no figure {name}")
    for peer in options.peers:
        if peer not in peers.PEERS:
            parser.error(f"there is no peer {peer}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("at least one round")
    options.figures = names
    return options


def main():
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = tempfile.mkdtemp(prefix="delay-wheel-bench-", dir=options.root)
    if options.out is None:
        options.out = os.path.join(root, "out") if options.quick else results.HERE
    os.makedirs(options.out, exist_ok=True)
    try:
        if options.figures == ["report"]:
            report(options)
            return 0
        loadgen.build()
        session = Session(root, options.peers, rounds=options.rounds,
                          scale=10 if options.quick else 1, target=options.target,
                          seed=options.seed, counts=options.count)
        for name in options.figures:
            measure(name, session, options)
        return 0
    except (BrokerFailed, loadgen.LoadFailed) as failure:
        print(failure, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
