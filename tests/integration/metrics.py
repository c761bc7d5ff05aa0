# SPDX-License-Identifier: MPL-2.0
"""The broker's Prometheus endpoint, read strictly: every family has a help and a type and is there
once, every sample once."""

import re
import urllib.request

from management import WITHIN

SAMPLE = re.compile(r'(\w+)(?:\{(.*)\})? (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"(?:,|$)')
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("", "_count", "_sum")}


class Metrics:
    """What one scrape has: values by name and labels, and the type of each family."""

    def __init__(self, broker, path="metrics"):
        port = broker.plugin_ports["rabbitmq_prometheus"]
        with urllib.request.urlopen(f"http://{broker.address}:{port}/{path}", timeout=WITHIN) as answer:
            self.text = answer.read().decode()
        self.types, self.helps, self.values = {}, set(), {}
        for line in self.text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert name not in self.types, f"two families {name}"
                self.types[name] = kind
            elif line.startswith("# HELP "):
                self.helps.add(line.split(" ")[2])
            elif line:
                self._sample(line)

    def _sample(self, line):
        match = SAMPLE.fullmatch(line)
        assert match, f"not a sample: {line!r}"
        name, labels, value = match.groups()
        labels = frozenset(LABEL.findall(labels or ""))
        if "_delayed_" in name:
            family = name if name in self.types else self._family(name)
            assert family in self.types and family in self.helps, f"{name} has no family"
            assert (name, labels) not in self.values, f"two samples: {line}"
        self.values[name, labels] = float(value)

    def _family(self, name):
        for kind, suffixes in SUFFIXES.items():
            for suffix in suffixes:
                family = name[:len(name) - len(suffix)]
                if name.endswith(suffix) and self.types.get(family) == kind:
                    return family
        return None

    def get(self, name, **labels):
        """A sample's value, None if it is not there."""
        return self.values.get((name, frozenset(labels.items())))

    def delayed(self):
        """The names of our samples, without the prefix."""
        return {name.partition("_delayed_")[2] for name, _ in self.values if "_delayed_" in name}

    def of(self, exchange, vhost="/", prefix="rabbitmq_delayed_"):
        """An exchange's samples by name, but histograms' buckets."""
        labels = frozenset({"exchange": exchange, "vhost": vhost}.items())
        return {name[len(prefix):]: value for (name, found), value in self.values.items()
                if found == labels and name.startswith(prefix)}

    def buckets(self, name, **labels):
        """A histogram's (bound, cumulative count), by bound."""
        wanted = frozenset(labels.items())
        return sorted((float(dict(found)["le"]), value)
                      for (sample, found), value in self.values.items()
                      if sample == f"{name}_bucket"
                      and frozenset((k, v) for k, v in found if k != "le") == wanted)
