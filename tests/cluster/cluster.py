# SPDX-License-Identifier: MPL-2.0
"""A cluster of RabbitMQ nodes, each on a host of its own (namespaces.Network), and what can befall them.

    with Cluster(root, series="4.0", metadata="khepri") as cluster:
        cluster.kill9(0)
        cluster.start(0)
        cluster.cut(1, [0, 2])
        cluster.heal()

A node is a private_broker.PrivateBroker with a long name by address. Clients on this machine reach all
nodes, whatever is cut off between them. Each fault and its undoing is noted in `record`, if there is one.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid

import pika

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))

from namespaces import Network  # noqa: E402
from node import evaluate, sync_metadata  # noqa: E402
from private_broker import BrokerFailed, PrivateBroker, _Process, default_series  # noqa: E402

PLUGIN = "rabbitmq_delay_wheel"
AMQP, DISTRIBUTION, EPMD = 5672, 25672, 4369
# How long, in s, is waited for what is to come: far longer than any machine takes.
WITHIN = 300
ASK_AGAIN_SECONDS = 0.2


class Node(PrivateBroker):
    """Its ports are those that RabbitMQ has by default: nobody else is on its host."""

    def __init__(self, root, network, host, cookie, **options):
        super().__init__(root, cookie=cookie, **options)
        self.host, self.address = host, network.addresses[host]
        self.nodename = f"rabbit@{self.address}"
        self.amqp_port, self.dist_port, self.epmd_port = AMQP, DISTRIBUTION, EPMD
        self._network = network
        self.paused = False

    def connected(self):
        """A client's connection, which outlives a node that stands still."""
        return pika.BlockingConnection(pika.ConnectionParameters(
            self.address, heartbeat=0, blocked_connection_timeout=WITHIN))

    def environment(self):
        env = super().environment()
        del env["ERL_EPMD_ADDRESS"]
        env.update({"RABBITMQ_USE_LONGNAME": "true", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ""})
        env.update(self.extra_env)
        return env

    def inside(self, *argv):
        return self._network.inside(self.host, *super().inside(*argv))

    def _conf_lines(self):
        return [f"listeners.tcp.default = {AMQP}" if line.startswith("listeners.tcp.default ") else line
                for line in super()._conf_lines()] + ["loopback_users = none"]

    def start(self, timeout=WITHIN, wait=True):
        self.paused = False
        if self._epmd is None or not self._epmd.alive():
            self.configure()
            self._epmd = _Process.spawn(self._network.inside(self.host, "epmd", "-port", str(EPMD)),
                                        self.environment(), self.root, self.path("log", "epmd.log"))
        self._until(lambda: subprocess.run(
            self._network.inside(self.host, "epmd", "-port", str(EPMD), "-names"), check=False,
            capture_output=True).returncode == 0, self._epmd, "epmd", timeout)
        # The port mapper answers on the node's host, not where PrivateBroker would ask it.
        began = time.monotonic()
        super().start(timeout, wait=False)
        self._booting = wait
        if wait:
            self.wait_until_amqp(timeout)
        return time.monotonic() - began

    def wipe(self):
        """Deletes all that it has stored. It must not run."""
        shutil.rmtree(self.path("data"), ignore_errors=True)

    def ask(self, expression):
        """evaluate()'s answer without quotes; None of a node that cannot answer now."""
        if not self.running() or self.paused:
            return None
        try:
            return evaluate(self, expression.replace("\n", " ")).strip("'")
        except (AssertionError, subprocess.TimeoutExpired):
            return None


class Cluster:
    """`metadata` is mnesia or khepri; None is what the series begins with. `conf` are lines of
    rabbitmq.conf, which each node has."""

    def __init__(self, root, nodes=3, series=None, metadata=None, conf=(), enable=(PLUGIN,)):
        self.series = series or default_series()
        self.metadata = metadata or ("khepri" if self.series == "4.3" else "mnesia")
        self.record = None
        self.network = Network(nodes)
        cookie = uuid.uuid4().hex
        self.nodes = [Node(os.path.join(root, f"node{n}"), self.network, n, cookie, series=self.series,
                           conf=list(conf), enable=enable) for n in range(nodes)]

    def __enter__(self):
        try:
            self.form()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def start_all(self):
        """The nodes, at the same time."""
        self.network.up()
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node._booting = True
            node.wait_until_amqp()

    def form(self):
        """Starts the nodes and joins the others to the first."""
        self.start_all()
        for n in range(1, len(self.nodes)):
            self._join(n, 0, "reset")
        if self.metadata == "khepri" and self.series != "4.3":
            self.nodes[0].ctl("enable_feature_flag", "--experimental", "khepri_db")
        self.await_whole()

    def end(self):
        for node in self.nodes:
            node.paused = False
            node.end()
        self.network.down()

    # ---------------------------------------------------------------------- faults

    def _note(self, what, name):
        if self.record is not None:
            self.record.add(what, name=name)

    def others(self, n):
        return [other for other in range(len(self.nodes)) if other != n]

    def kill9(self, n):
        # Mnesia alone would forget what was declared just before; that is not what is looked at here.
        sync_metadata(self.nodes[n])
        self._note("fault", f"kill {n}")
        self.nodes[n].kill9()

    def stop(self, n):
        self._note("fault", f"stop {n}")
        self.nodes[n].stop()
        self._note("struck", f"stop {n}")

    def start(self, n):
        self.nodes[n].start()
        self._note("healed", f"start {n}")

    def pause(self, n):
        self._note("fault", f"pause {n}")
        os.kill(self.nodes[n].pid, signal.SIGSTOP)
        self.nodes[n].paused = True

    def resume(self, n):
        self._note("healed", f"resume {n}")
        os.kill(self.nodes[n].pid, signal.SIGCONT)
        self.nodes[n].paused = False

    def stop_app(self, n):
        self._note("fault", f"stop_app {n}")
        self.nodes[n].ctl("stop_app")
        self._note("struck", f"stop_app {n}")

    def start_app(self, n):
        self.nodes[n].ctl("start_app")
        self._note("healed", f"start_app {n}")

    def cut(self, n, others=None):
        """Cuts a node off from others, by default from all, both ways."""
        self._note("fault", f"cut {n}")
        self.network.cut(n, self.others(n) if others is None else others)
        self._note("struck", f"cut {n}")

    def cut_one_way(self, n, others=None):
        """What the node sends to them does not arrive; what they send to it does."""
        self._note("fault", f"cut {n} one way")
        self.network.cut_one_way(n, self.others(n) if others is None else others)
        self._note("struck", f"cut {n} one way")

    def heal(self):
        self.network.heal()
        self._note("healed", "heal")

    def forget(self, n, by):
        """Takes a node out of the cluster, which must not run, or its application not."""
        self._note("fault", f"forget {n}")
        self.nodes[by].ctl("forget_cluster_node", self.nodes[n].nodename)

    def wipe_and_join(self, n, by):
        """A node whose application does not run, and which was forgotten, comes back with nothing."""
        node = self.nodes[n]
        if node.running():
            node.stop()
        node.wipe()
        node.start()
        self._join(n, by, "reset")
        self._note("healed", f"join {n}")

    def reset_and_join(self, n, by):
        """A node that runs leaves the cluster by itself, with nothing, and joins again."""
        self._note("fault", f"reset {n}")
        self._join(n, by, "reset")
        self._note("struck", f"reset {n}")
        self._note("healed", f"join {n}")

    def _join(self, n, to, *before):
        node = self.nodes[n]
        for command in (["stop_app"], *([command] for command in before),
                        ["join_cluster", self.nodes[to].nodename], ["start_app"]):
            node.ctl(*command)

    # ---------------------------------------------------------------- what there is

    def eventually(self, condition, what, within=WITHIN):
        """Waits until condition() is true, and answers what it says."""
        deadline = time.monotonic() + within
        while not (answer := condition()):
            if time.monotonic() > deadline:
                logs = "\n".join(node.log_tail() for node in self.nodes)
                raise BrokerFailed(f"{what}: not within {within} s\n{logs}")
            time.sleep(ASK_AGAIN_SECONDS)
        return answer

    def sees(self, n, others):
        """Whether a node is connected to each of them."""
        names = ",".join(f"'{self.nodes[other].nodename}'" for other in others)
        return self.nodes[n].ask(f"[{names}] -- nodes().") == "[]"

    def sees_none(self, n, others):
        names = ",".join(f"'{self.nodes[other].nodename}'" for other in others)
        return self.nodes[n].ask(f"[N || N <- [{names}], lists:member(N, nodes())].") == "[]"

    def await_down(self, n, others=None):
        """Until the others know that a node is gone."""
        for other in self.others(n) if others is None else others:
            self.eventually(lambda other=other: self.sees_none(other, [n]), f"node {other} misses {n}")

    def await_whole(self):
        """Until each node runs and is connected to all others."""
        for n, node in enumerate(self.nodes):
            self.eventually(lambda node=node: node.ask("rabbit:is_running().") == "true",
                            f"node {n} runs")
            self.eventually(lambda n=n: self.sees(n, self.others(n)), f"node {n} sees the others")

    # -------------------------------------------------------------------------- Ra

    def server_of(self, queue):
        """The name of a quorum queue's Ra servers, as an Erlang term."""
        return evaluate(self.nodes[0], f"""begin
            {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
            element(1, amqqueue:get_pid(Q)) end.""".replace("\n", " "))

    def leader(self, server, asked=None):
        """The node whose member leads, as the members on the nodes `asked` know it (by default all that
        can answer): one that all of these agree upon, else None."""
        said = set()
        for n in range(len(self.nodes)) if asked is None else asked:
            answer = self.nodes[n].ask(f"""case catch ra:members({{{server}, node()}}, 2000) of
                {{ok, _, {{_, Leader}}}} -> Leader; _ -> none end.""")
            if answer is not None:
                said.add(answer)
        names = {node.nodename: n for n, node in enumerate(self.nodes)}
        return names.get(said.pop()) if len(said) == 1 else None

    def await_leader(self, server, asked=None, other_than=None):
        found = self.eventually(
            lambda: [n for n in [self.leader(server, asked)] if n is not None and n != other_than],
            f"a leader of {server} other than {other_than}")
        return found[0]

    def applied(self, n, server):
        """The index that a node's own member has applied; None if it does not answer."""
        query = "fun erlang:is_tuple/1" if self.series == "3.10" else "{erlang, is_tuple, []}"
        answer = self.nodes[n].ask(f"""case catch ra:local_query({{{server}, node()}}, {query}, 2000) of
            {{ok, {{{{Index, _}}, _}}, _}} -> Index; _ -> none end.""")
        return None if answer in (None, "none") else int(answer)

    def snapshot_index(self, n, resource):
        """That of the last snapshot of a node's member of an exchange; -1 if there is none."""
        answer = self.nodes[n].ask(f"""case catch ets:lookup_element(ra_log_snapshot_state,
            rabbit_delay_registry:member_uid({resource}), 2) of
            Index when is_integer(Index) -> Index; _ -> -1 end.""")
        return -1 if answer is None else int(answer)

    def members(self, n, exchange):
        """How many members of an exchange a node has files of."""
        answer = self.nodes[n].ask(f"""length([X || {{X, _, _}} <- rabbit_delay_raft:members(),
            X =:= rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)]).""")
        return None if answer is None else int(answer)

    def await_caught_up(self, server):
        """Until each member has applied what the one furthest ahead had when this was asked."""
        members = range(len(self.nodes))
        furthest = max(self.eventually(lambda n=n: self.applied(n, server), f"{server} on {n}")
                       for n in members)
        for n in members:
            self.eventually(lambda n=n: (self.applied(n, server) or 0) >= furthest,
                            f"{server} on {n} has applied {furthest}")
