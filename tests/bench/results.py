# SPDX-License-Identifier: MPL-2.0
"""What was measured, kept: results/FIGURE.json holds each run, plots/ the drawings, and RESULTS.md
the tables. RESULTS.md also has words written by hand: only what stands between a figure's two
marker lines is replaced."""

import json
import os
import re
import textwrap

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(HERE, "RESULTS.md")
PREAMBLE = """# Results

How rabbitmq_delay_wheel compares, on one broker, with other ways to deliver later:
(Q) a plain durable quorum queue published to directly, which delays nothing; (B) a classic queue
with TTL and dead-lettering; (C) a quorum queue with the same. Each figure has its command and its
machine. Where there are several runs: the median (least to greatest). Rates swing on shared
machines; CPU a message is the steadier figure.

*Noise* is what the runs saw of others: `others`, the share of the machine's CPU that went neither
to the broker nor to the client; `steal`, what the hypervisor took; `calibration`, the time of a
fixed piece of work before each run.

"""


def noise_of(result):
    """One line over all runs of a figure that were watched."""
    seen = [run["noise"] for run in result["runs"] if run.get("noise")]
    if not seen:
        return None
    others = [n["others"] for n in seen if n["others"] is not None]
    calibration = [n["calibration_ms"] for n in seen]
    return (f"Noise: others {max(others, default=0):.0%} at most "
            f"({sum(o > 0.1 for o in others)} of {len(seen)} runs over 10 %), steal "
            f"{max(n['steal'] for n in seen):.0%} at most, calibration {min(calibration):.0f} to "
            f"{max(calibration):.0f} ms.")


def machine_of(result):
    m = result["machine"]
    return (f"{m['cores']} x {m['cpu']}, {m['ram_gb']:.0f} GB RAM, {m['file_system']}, "
            f"{m['system']}, Linux {m['kernel']}; RabbitMQ {m['rabbitmq']}, Ra {m['ra']}, "
            f"OTP {m['otp']} ({m['emulator']}, {m['schedulers']} schedulers).")


def save(name, result, directory):
    path = os.path.join(directory, "results", f"{name}.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # One line a run: small, and readable in a difference.
    runs = ",\n  ".join(json.dumps(run) for run in result["runs"])
    rest = {key: value for key, value in result.items() if key != "runs"}
    with open(path, "w", encoding="utf-8") as f:
        f.write(json.dumps(rest)[:-1] + ', "runs": [\n  ' + runs + "\n]}\n")


def load(name, directory):
    try:
        with open(os.path.join(directory, "results", f"{name}.json"), encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        return None


def _wrapped(text):
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def section(figure, result, plots):
    made = (f"`{result['command']}`, {result['date']}, {result['minutes']:.0f} minutes. "
            f"{machine_of(result)} {noise_of(result) or ''}")
    lines = [f"## {figure.TITLE}", "", _wrapped(figure.ABOUT.format(**result)), "",
             *figure.report(result), "", _wrapped(made)]
    for plot in plots:
        lines += ["", f"![{figure.TITLE}](plots/{plot}.svg)"]
    return "\n".join(lines)


def draw(figure, result, directory):
    folder = os.path.join(directory, "plots")
    os.makedirs(folder, exist_ok=True)
    return figure.plot(result, lambda name: os.path.join(folder, name))


def write(name, text, document=DOCUMENT):
    """Puts a figure's section into the document, where it was or at the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{text}\n{end}"
    try:
        with open(document, encoding="utf-8") as f:
            whole = f.read()
    except FileNotFoundError:
        whole = PREAMBLE
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(whole):
        whole = pattern.sub(lambda _: block, whole)
    else:
        whole = whole.rstrip("\n") + "\n\n" + block + "\n"
    with open(document, "w", encoding="utf-8") as f:
        f.write(whole)
