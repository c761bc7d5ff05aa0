# SPDX-License-Identifier: MPL-2.0
"""A rabbitmqctl that runs one command after another: starting it takes most of a second of CPU, and
the tests have hundreds of commands. It is the installed tool, started by its own script with its own
environment, but in a VM that kept_rabbitmqctl.erl keeps."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading

HERE = os.path.dirname(os.path.abspath(__file__))


def compile_into(directory):
    """Makes what runs in the tool's VM, for any series."""
    subprocess.run(["erlc", "-o", directory, os.path.join(HERE, "kept_rabbitmqctl.erl")], check=True)


class KeptRabbitmqctl:
    """For one broker; `directory` is what compile_into() was given."""

    def __init__(self, directory, broker):
        self._directory, self._broker = directory, broker
        self._for = self._process = self._socket = None
        self._lock = threading.Lock()

    def run(self, arguments, timeout):
        """As subprocess.run() of the tool does with captured output."""
        env = self._broker.environment()
        # It finds the commands of plugins once.
        wanted = env, self._broker.plugin_files()
        with self._lock:
            if self._process is None or wanted != self._for:
                self.end()
                self._for = wanted
                self._start(env)
            try:
                request = b"".join(argument.encode() + b"\0" for argument in arguments)
                self._socket.settimeout(timeout)
                self._socket.sendall(struct.pack(">I", len(request)) + request)
                length, = struct.unpack(">I", self._receive(4))
                code, n = struct.unpack(">II", self._receive(8))
                said = self._receive(length - 8)
            except BaseException as error:
                self.end()
                if isinstance(error, TimeoutError):
                    raise subprocess.TimeoutExpired(arguments, timeout) from None
                raise
        return subprocess.CompletedProcess(arguments, code, said[:n].decode(), said[n:].decode())

    def _start(self, env):
        with socket.create_server(("127.0.0.1", 0)) as server, \
                open(self._broker.path("log", "rabbitmqctl.log"), "ab") as log:
            flags = f"-pa {self._directory} -s kept_rabbitmqctl start {server.getsockname()[1]}"
            # The command has the script start the VM as for one that reads no input.
            self._process = subprocess.Popen(
                self._broker.tool_argv("rabbitmqctl", "status"), env={**env, "ERL_AFLAGS": flags},
                cwd=self._broker.root, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True)
            server.settimeout(300)
            self._socket, _ = server.accept()

    def _receive(self, n):
        got = b""
        while len(got) < n:
            more = self._socket.recv(n - len(got))
            if not more:
                log = self._broker.path("log", "rabbitmqctl.log")
                with open(log, encoding="utf-8", errors="replace") as f:
                    raise RuntimeError(f"rabbitmqctl ended\n{f.read()[-4000:]}")
            got += more
        return got

    def end(self):
        """The next run() starts it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
