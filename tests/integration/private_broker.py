#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""A RabbitMQ node of one's own, for the demo, the integration tests and the benchmark.

Everything that it has lies under one root directory, and it shares nothing with a broker that the
machine may run besides: its own epmd, cookie, node name, ports (all on 127.0.0.1), configuration
and plugins directory. Its process is the Erlang VM itself, not a shell around it, so that kill9()
hits what a crash would hit.

Longer than other files are, as it is one program, which the demo and people use by itself.

BROKER_SERIES in the environment picks RabbitMQ's series: 3.10, the default, is the machine's own;
another one is in the chroot that scripts/broker makes, where it sees the same paths under the root
directory and in the plugins directories.

    with PrivateBroker(root, enable=["rabbitmq_delay_wheel"]) as broker:
        broker.start()
        connect_to("127.0.0.1", broker.amqp_port)
        broker.kill9()
        broker.start()

From a shell, `private_broker.py --help`. A broker started there outlives the command; one started
by the class is ended when its `with` block or the interpreter ends.
"""

import argparse
import atexit
import contextlib
import glob
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid

import kept_rabbitmqctl
import loaded_modules
import stuck_node

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# The listeners of plugins that open one: a port is chosen for each plugin that is enabled.
PLUGIN_LISTENERS = {
    "rabbitmq_management": "management.tcp.port",
    "rabbitmq_prometheus": "prometheus.tcp.port",
    "rabbitmq_mqtt": "mqtt.listeners.tcp.default",
    "rabbitmq_stomp": "stomp.listeners.tcp.default",
    "rabbitmq_web_stomp": "web_stomp.tcp.port",
}

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class BrokerFailed(RuntimeError):
    """The broker did not do what it was told; the message ends with its logs' last lines."""


def default_series():
    return os.environ.get("BROKER_SERIES") or "3.10"


def dist_of(series):
    """The directory with the plugin's archive for RabbitMQ of that series."""
    return os.path.join(REPOSITORY, "dist", "3.10" if series == "3.10" else "3.13-4.x")


def chroot_of(series):
    """The directory in which RabbitMQ of that series lives with its own system; None: this one."""
    return None if series == "3.10" else os.path.join(REPOSITORY, "_brokers", series)


def stock_home(series):
    """Where the distribution's package put RabbitMQ, in its chroot if it has one."""
    chroot = chroot_of(series) or ""
    homes = sorted(glob.glob(f"{chroot}/usr/lib/rabbitmq/lib/rabbitmq_server-{series}.*"))
    if not homes:
        raise BrokerFailed(f"there is no RabbitMQ {series} (make broker-{series})")
    return homes[-1][len(chroot):]


_reservations = []


def free_port():
    """A port that nobody listens on, below those that the system gives to outgoing connections:
    nobody takes it while the broker is down between kill9() and start(). It is given once: until
    this process ends, no other call here or in another process has it."""
    while True:
        port = random.randrange(20000, 32000)
        reservation = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                reservation.bind(f"\0delay-wheel-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
        _reservations.append(reservation)
        return port


def _stat_of(pid):
    """The fields of /proc/PID/stat from the third on, or None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _birth(pid):
    """When a process began, so that its number given to another is not mistaken for it; None once
    it has ended. One whose first thread is gone still has its files and ports while others end."""
    stat = _stat_of(pid)
    if stat is None:
        return None
    if stat[0] in "ZX":
        with contextlib.suppress(FileNotFoundError):
            if len(os.listdir(f"/proc/{pid}/task")) > 1:
                return int(stat[19])
        return None
    return int(stat[19])


class _Process:
    """A process that this one or an earlier one started."""

    def __init__(self, pid, birth, child=None):
        self.pid, self.birth, self.child = pid, birth, child

    @classmethod
    def spawn(cls, argv, env, cwd, log):
        with open(log, "ab") as out:
            child = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out,
                                     stderr=subprocess.STDOUT, start_new_session=True)
        return cls(child.pid, _birth(child.pid), child)

    def alive(self):
        if self.child is not None:
            return self.child.poll() is None
        return self.birth is not None and _birth(self.pid) == self.birth

    def signal(self, number):
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds):
        """True once it has ended, False if it has not within so long."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def end(self, seconds=10):
        self.signal(signal.SIGTERM)
        if not self.wait(seconds):
            self.signal(signal.SIGKILL)
            self.wait(10)


class PrivateBroker:
    """One node. `plugin_dirs` are searched before the broker's own plugins directory; by default
    that is what `make dist` built. `conf` is a list of rabbitmq.conf lines, which override those
    written here. `env` goes to the broker and to its tools. `series` is RabbitMQ's."""

    # Where it answers clients.
    address = "127.0.0.1"
    # Whether it loads what one like it had loaded before it boots: loaded_modules.
    loads_together = False

    def __init__(self, root, plugin_dirs=None, enable=("rabbitmq_delay_wheel",), conf=(), env=None,
                 name=None, cookie=None, series=None):
        self.root = os.path.abspath(root)
        self.series = series or default_series()
        self.chroot = chroot_of(self.series)
        self.home = stock_home(self.series)
        self.nodename = f"{name or 'dw' + uuid.uuid4().hex[:10]}@localhost"
        self.cookie = cookie or uuid.uuid4().hex
        self.enable = list(enable)
        self.conf = list(conf)
        self.extra_env = dict(env or {})
        if plugin_dirs is None:
            plugin_dirs = [dist_of(self.series)]
        self.plugin_dirs = [os.path.abspath(d) for d in plugin_dirs]
        self.amqp_port, self.dist_port, self.epmd_port = free_port(), free_port(), free_port()
        self.plugin_ports = {}
        self._beam = None
        self._epmd = None
        self._kept = None
        # Whether a tool that wants the broker to run may come before that is so.
        self._booting = False

    @classmethod
    def attach(cls, root):
        """The broker that was set up in `root` before, running or not."""
        root = os.path.abspath(root)
        try:
            with open(os.path.join(root, "broker.json"), encoding="utf-8") as f:
                saved = json.load(f)
        except FileNotFoundError:
            raise BrokerFailed(f"there is no private broker in {root}") from None
        broker = cls.__new__(cls)
        broker.root = root
        beam, epmd = saved.pop("beam"), saved.pop("epmd")
        broker.__dict__.update(saved)
        broker._beam = _Process(*beam) if beam else None
        broker._epmd = _Process(*epmd) if epmd else None
        broker._kept, broker._booting = None, False
        return broker

    # ------------------------------------------------------------------ places

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    @property
    def data_dir(self):
        """The node's data directory: Mnesia, queues, and by default the delay stores."""
        return self.path("data", self.nodename)

    @property
    def log_file(self):
        return self.path("log", self.nodename + ".log")

    @property
    def pid(self):
        """Process id of the Erlang VM, or None if it does not run."""
        return self._beam.pid if self.running() else None

    @property
    def amqp_url(self):
        return f"amqp://guest:guest@127.0.0.1:{self.amqp_port}/%2F"

    @property
    def management_port(self):
        return self.plugin_ports["rabbitmq_management"]

    def environment(self):
        """What the broker and its command-line tools are run with."""
        # pytest's says which test runs: with it no two tests would have the same environment.
        env = {k: v for k, v in os.environ.items()
               if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET", "PYTEST_"))}
        env.update({
            "HOME": self.path("home"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PATH": os.path.join(self.home, "sbin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin"
                    ":/usr/bin:/sbin:/bin",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": self.path("log", "erl_crash.dump"),
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_CONF_ENV_FILE": self.path("etc", "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": self.path("etc", "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": self.path("etc", "conf.d", "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.path("etc", "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.path("etc", "enabled_plugins"),
            "RABBITMQ_PLUGINS_DIR": self.plugins_path(),
            "RABBITMQ_PLUGINS_EXPAND_DIR": self.path("expand"),
            "RABBITMQ_MNESIA_BASE": self.path("data"),
            "RABBITMQ_LOG_BASE": self.path("log"),
            "RABBITMQ_LOGS": self.log_file,
            "RABBITMQ_PID_FILE": self.path("broker.pid"),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            # By default eleven tools at once have a port, whosever broker they are for; others fail.
            "RABBITMQ_CTL_DIST_PORT_MIN": "35672",
            "RABBITMQ_CTL_DIST_PORT_MAX": "36671",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
                "-kernel inet_dist_use_interface {127,0,0,1}",
        })
        env.update(self.extra_env)
        return env

    def inside(self, *argv):
        """A command line, made to run where the broker does."""
        if self.chroot is None:
            return list(argv)
        return [os.path.join(REPOSITORY, "scripts", "in_broker"), self.chroot, self.root,
                *(d for d in self.plugin_dirs if not self._is_below(d)), "--", *argv]

    def _is_below(self, path):
        return path == self.root or path.startswith(self.root + "/")

    def plugins_path(self):
        return ":".join(self.plugin_dirs + [os.path.join(self.home, "plugins")])

    # ------------------------------------------------------------ configuration

    def configure(self):
        """Writes the node's files. start() does it each time, so that a change of `conf`,
        `enable` or `plugin_dirs` takes effect at the next start. Plugins enabled meanwhile with
        rabbitmq-plugins stay enabled."""
        for part in ("home", "etc", "etc/conf.d", "data", "log", "expand"):
            os.makedirs(self.path(part), mode=0o700, exist_ok=True)
        cookie = self.path("home", ".erlang.cookie")
        if not os.path.exists(cookie):
            with os.fdopen(os.open(cookie, os.O_WRONLY | os.O_CREAT, 0o400), "w") as f:
                f.write(self.cookie)
        with open(self.path("etc", "rabbitmq-env.conf"), "w", encoding="utf-8"):
            pass
        self._write_enabled()
        with open(self.path("etc", "rabbitmq.conf"), "w", encoding="utf-8") as f:
            f.write("\n".join(self._conf_lines()) + "\n")
        self._save()

    def _write_enabled(self):
        path = self.path("etc", "enabled_plugins")
        enabled = list(self.enable)
        written = self.path("etc", "enabled_by_us")
        if os.path.exists(path) and os.path.exists(written):
            with open(path, encoding="utf-8") as f, open(written, encoding="utf-8") as g:
                if f.read() != g.read():
                    return
        for name in (path, written):
            with open(name, "w", encoding="utf-8") as f:
                f.write("[" + ",".join(enabled) + "].\n")

    def _conf_lines(self):
        for plugin, key in PLUGIN_LISTENERS.items():
            if plugin in self.enable and plugin not in self.plugin_ports:
                self.plugin_ports[plugin] = free_port()
        ours = {
            "listeners.tcp.default": f"127.0.0.1:{self.amqp_port}",
            "log.file.level": "info",
            "log.console": "false",
            "disk_free_limit.absolute": "50MB",
        }
        for plugin, port in self.plugin_ports.items():
            ours[PLUGIN_LISTENERS[plugin]] = str(port)
        if "rabbitmq_management" in self.plugin_ports:
            ours["management.tcp.ip"] = "127.0.0.1"
        theirs = {line.split("=", 1)[0].strip() for line in self.conf}
        return [f"{k} = {v}" for k, v in ours.items() if k not in theirs] + self.conf

    def _save(self):
        saved = {k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "root"}
        saved["beam"] = [self._beam.pid, self._beam.birth] if self._beam else None
        saved["epmd"] = [self._epmd.pid, self._epmd.birth] if self._epmd else None
        new = self.path("broker.json.new")
        with open(new, "w", encoding="utf-8") as f:
            json.dump(saved, f, indent=1)
        os.replace(new, self.path("broker.json"))

    def plugin_files(self):
        """What the tools see of plugins: which are enabled, and the files that there are."""
        try:
            with open(self.path("etc", "enabled_plugins"), encoding="utf-8") as f:
                enabled = f.read()
        except FileNotFoundError:
            enabled = None
        files = [(entry.path, entry.stat().st_mtime_ns, entry.stat().st_ino)
                 for directory in self.plugin_dirs if os.path.isdir(directory)
                 for entry in os.scandir(directory)]
        return enabled, sorted(files)

    # ------------------------------------------------------------ start and stop

    def running(self):
        return self._beam is not None and self._beam.alive()

    def start(self, timeout=300, wait=True):
        """Starts it and, unless told otherwise, waits until AMQP answers. Seconds that took."""
        if self.running():
            raise BrokerFailed(f"{self.nodename} runs already")
        began = time.monotonic()
        self.configure()
        env = self.environment()
        if self._epmd is None or not self._epmd.alive():
            self._epmd = _Process.spawn(["epmd", "-port", str(self.epmd_port)], env, self.root,
                                        self.path("log", "epmd.log"))
            self._save()
            self._until(lambda: _connects(self.epmd_port), self._epmd, "epmd", timeout)
        # With `detached` set the script becomes the Erlang VM rather than waiting for it.
        modules = loaded_modules.environment(self) if self.loads_together else {}
        self._beam = _Process.spawn(self.tool_argv("rabbitmq-server"),
                                    {**env, **modules, "detached": "true"}, self.root,
                                    self.path("log", "startup.log"))
        _end_at_exit.append(self)
        self._save()
        self._booting = wait
        if wait:
            self.wait_until_amqp(timeout)
            if self.loads_together:
                loaded_modules.remember(self)
        return time.monotonic() - began

    def wait_until_amqp(self, timeout=300):
        """Waits until a client's protocol header is answered."""
        self._until(lambda: _speaks_amqp(self.address, self.amqp_port), self._beam, "the broker", timeout)

    def _wait_until_booted(self, timeout=300):
        """AMQP is answered a little before the broker says of itself that it runs, and until then
        rabbitmqctl refuses most commands."""
        if self._booting and self.running():
            self._until(lambda: subprocess.run(
                self.erl_call("-a", "rabbit is_running []"), env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=timeout, check=False).stdout.strip() == "true",
                self._beam, "the broker", timeout)
        self._booting = False

    def wait_until(self, condition, timeout=120, what="the condition"):
        """Waits until condition() is true; fails with the logs if it is not within `timeout`."""
        self._until(condition, None, what, timeout)

    def _until(self, condition, process, what, timeout):
        deadline = time.monotonic() + timeout
        while not condition():
            if process is not None and not process.alive():
                raise BrokerFailed(f"{what} ended while starting\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise BrokerFailed(f"{what}: not ready after {timeout} s\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self, timeout=300):
        """Stops it in an orderly way, and its epmd. Fails if it had to be killed."""
        if self._beam is not None:
            self._beam.signal(signal.SIGTERM)
        self._end_node(timeout)

    def kill9(self):
        """Ends the Erlang VM as a crash would. Its epmd stays, for the next start()."""
        if not self.running():
            raise BrokerFailed(f"{self.nodename} does not run")
        self._beam.signal(signal.SIGKILL)
        if not self._beam.wait(120):
            raise BrokerFailed(f"{self.nodename} outlives SIGKILL")

    def restart(self, timeout=300):
        """Stops it in an orderly way and starts it. Seconds from start() until AMQP answered."""
        self.stop()
        return self.start(timeout)

    def end(self, timeout=0):
        """Leaves nothing running: waits `timeout` seconds for the VM, then kills it."""
        self._end_kept()
        self._end_node(timeout)

    def _end_node(self, timeout):
        forced = self._beam is not None and not self._beam.wait(timeout)
        late = forced and timeout > 0
        if late:
            self._beam.signal(signal.SIGUSR1)
            self._beam.wait(60)
        if forced:
            self._beam.signal(signal.SIGKILL)
            self._beam.wait(120)
        if self._epmd is not None:
            self._epmd.end()
        if self in _end_at_exit:
            _end_at_exit.remove(self)
        if late:
            raise BrokerFailed(f"{self.nodename} had to be killed: it did not stop within {timeout} s\n"
                               f"{stuck_node.report(self.path('log', 'erl_crash.dump'))}\n{self.log_tail()}")

    def upgrade(self, series, plugin_dirs):
        """What the next start() runs on the same files: RabbitMQ of another series."""
        if self.running():
            raise BrokerFailed(f"{self.nodename} runs")
        self.series, self.chroot, self.home = series, chroot_of(series), stock_home(series)
        self.plugin_dirs = [os.path.abspath(d) for d in plugin_dirs]

    def detach(self):
        """Lets it outlive this interpreter."""
        if self in _end_at_exit:
            _end_at_exit.remove(self)

    def remove(self):
        """Ends it and deletes everything that it has."""
        self.end()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    # -------------------------------------------------------------------- tools

    def tool_argv(self, name, *arguments):
        """The command line of one of RabbitMQ's tools."""
        return self.inside(os.path.join(self.home, "sbin", name), *arguments)

    def erl_call(self, *arguments):
        """The command line of Erlang's erl_call, for this node."""
        return self.inside("erl_call", "-address", f"127.0.0.1:{self.dist_port}", "-c", self.cookie,
                           *arguments)

    def start_tool(self, name, *arguments):
        """Starts one against the node: its subprocess.Popen, in a process group of its own."""
        self._wait_until_booted()
        return subprocess.Popen(self.tool_argv(name, *arguments), env=self.environment(),
                                cwd=self.root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, start_new_session=True)

    def tool(self, name, *arguments, check=True, timeout=300):
        """Runs one of RabbitMQ's command-line tools against the node; its standard output, or
        with check=False the subprocess.CompletedProcess."""
        self._wait_until_booted()
        done = subprocess.run(self.tool_argv(name, *arguments), env=self.environment(),
                              cwd=self.root, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=timeout, check=False)
        return self._done(done, name, arguments, check)

    def _done(self, done, name, arguments, check):
        if not check:
            return done
        if done.returncode != 0:
            raise BrokerFailed(f"{name} {' '.join(arguments)}: exit {done.returncode}\n"
                               f"{done.stdout}{done.stderr}\n{self.log_tail()}")
        return done.stdout

    def keep_rabbitmqctl(self, directory):
        """From now on ctl() keeps the tool's VM as long as the plugins stay as they are.
        `directory`: kept_rabbitmqctl.compile_into()'s."""
        self._kept = kept_rabbitmqctl.KeptRabbitmqctl(directory, self)

    def _end_kept(self):
        if self._kept is not None:
            self._kept.end()

    def ctl(self, *arguments, check=True, timeout=300):
        if self._kept is None:
            return self.tool("rabbitmqctl", *arguments, check=check, timeout=timeout)
        self._wait_until_booted()
        return self._done(self._kept.run(arguments, timeout), "rabbitmqctl", arguments, check)

    def plugins(self, *arguments, **options):
        return self.tool("rabbitmq-plugins", *arguments, **options)

    def eval(self, expression, **options):
        """Evaluates an Erlang expression in the node; the printed result."""
        return self.ctl("eval", expression, **options).strip()

    def rows(self, *arguments, **options):
        """A rabbitmqctl list command's rows, as dicts."""
        return json.loads(self.ctl("--quiet", "--formatter", "json", *arguments, **options))

    # ------------------------------------------------------------- observations

    def log(self):
        """All that it has logged."""
        try:
            with open(self.log_file, encoding="utf-8", errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def log_tail(self, lines=40):
        tail = []
        for path in (self.log_file, self.path("log", "startup.log"), self.path("log", "epmd.log")):
            with contextlib.suppress(FileNotFoundError):
                with open(path, encoding="utf-8", errors="replace") as f:
                    last = f.read().splitlines()[-lines:]
                if last:
                    tail += [f"--- {path}", *last]
        return "\n".join(tail)

    def rss(self):
        """Resident memory of the VM in bytes."""
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as f:
            return int(re.search(r"VmRSS:\s+(\d+) kB", f.read()).group(1)) * 1024

    def cpu_seconds(self):
        """User and system time of the VM so far."""
        stat = _stat_of(self.pid)
        return (int(stat[11]) + int(stat[12])) / TICKS_PER_SECOND


def _connects(port):
    with contextlib.suppress(OSError):
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    return False


def _speaks_amqp(address, port):
    """True if a connection.start frame comes back."""
    with contextlib.suppress(OSError):
        with socket.create_connection((address, port), timeout=1) as client:
            client.settimeout(5)
            client.sendall(b"AMQP\x00\x00\x09\x01")
            return client.recv(1) == b"\x01"
    return False


_end_at_exit = []


@atexit.register
def _end_all():
    for broker in list(_end_at_exit):
        broker.end()


def _describe(broker):
    return {"running": broker.running(), "pid": broker.pid, "node": broker.nodename,
            "amqp_port": broker.amqp_port, "amqp_url": broker.amqp_url,
            "plugin_ports": broker.plugin_ports, "root": broker.root, "log": broker.log_file}


def main():
    parser = argparse.ArgumentParser(description="Runs a RabbitMQ node of one's own.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--root", required=True, help="directory that holds all it has")
        return sub

    start = command("start", "start it, made anew unless the root holds one; prints where it is")
    start.add_argument("--series", help="of RabbitMQ: 3.10 (default), 4.0, 4.3")
    start.add_argument("--plugin-dir", action="append", help="default: the archive for it in dist/ of this checkout")
    start.add_argument("--enable", action="append", help="a plugin; default: rabbitmq_delay_wheel")
    start.add_argument("--conf", action="append", default=[], help="a line of rabbitmq.conf")
    command("stop", "stop it in an orderly way")
    command("kill9", "end it as a crash would")
    command("restart", "stop and start it")
    command("status", "print where it is")
    command("remove", "end it and delete its root")
    command("env", "print shell exports with which RabbitMQ's tools reach it")
    command("ctl", "run rabbitmqctl against it: everything after --").add_argument(
        "arguments", nargs="*")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.command == "start" and not os.path.exists(
                os.path.join(options.root, "broker.json")):
            broker = PrivateBroker(options.root, plugin_dirs=options.plugin_dir, conf=options.conf,
                                   series=options.series, enable=options.enable or ["rabbitmq_delay_wheel"])
        else:
            broker = PrivateBroker.attach(options.root)
            if options.command == "start":
                broker.plugin_dirs = options.plugin_dir or broker.plugin_dirs
                broker.enable = options.enable or broker.enable
                broker.conf = options.conf or broker.conf
        if options.command in ("start", "restart"):
            getattr(broker, options.command)()
            broker.detach()
        elif options.command in ("stop", "kill9", "remove"):
            getattr(broker, options.command)()
        elif options.command == "env":
            for key, value in broker.environment().items():
                if os.environ.get(key) != value:
                    print(f"export {key}={shlex.quote(value)}")
            return 0
        elif options.command == "ctl":
            done = broker.ctl(*options.arguments, check=False)
            sys.stdout.write(done.stdout)
            sys.stderr.write(done.stderr)
            return done.returncode
        if options.command in ("start", "restart", "status"):
            print(json.dumps(_describe(broker), indent=1))
        return 0
    except BrokerFailed as failure:
        print(failure, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
