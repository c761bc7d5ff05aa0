# SPDX-License-Identifier: MPL-2.0
"""What a broker has loaded once it runs, for later brokers of that series and with those plugins to load
at one go before they boot, as Erlang's boot scripts do. One by one each of some 900 modules costs a
copy of all exports, and all together nearly half of what a start uses of the processor.

A test's brokers do (PrivateBroker.loads_together); those of a measurement or of the demo start as any other.
It changes when the broker's own modules are loaded, and nothing of this plugin's: those are not among them."""

import contextlib
import hashlib
import os
import subprocess

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# The registry of feature flags is made anew by each broker.
_LOADED = """
    [M || {M, File} <- code:all_loaded(), is_list(File), filename:extension(File) =:= ".beam",
          M =/= rabbit_ff_registry, string:find(File, "delay_wheel") =:= nomatch,
          string:find(File, "ROOT") =:= nomatch].
"""


def _file(broker):
    plugins = hashlib.sha256(" ".join(sorted(broker.enable)).encode()).hexdigest()[:12]
    return os.path.join(REPOSITORY, "_build", "loaded_modules", f"{broker.series}-{plugins}")


def environment(broker):
    """The environment by which Erlang loads them; nothing if they are not known yet."""
    with contextlib.suppress(FileNotFoundError):
        with open(_file(broker), encoding="ascii") as f:
            modules = f.read()
        # The file of the repository is not seen where the broker runs.
        path = broker.path("etc", "loaded_modules")
        with open(path, "w", encoding="ascii") as f:
            f.write(modules + ".\n")
        return {"ERL_AFLAGS":
                f"""-eval '{{ok,[Modules]}}=file:consult("{path}"),code:ensure_modules_loaded(Modules).'"""}
    return {}


def remember(broker):
    """What a running broker has; nothing if it does not say."""
    path = _file(broker)
    if os.path.exists(path):
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        said = subprocess.run(broker.erl_call("-e"), input=_LOADED.replace("ROOT", broker.root), check=False,
                              capture_output=True, text=True, timeout=60, env=broker.environment()).stdout
        if said.startswith("{ok, ["):
            _keep(said[len("{ok, "):].rstrip()[:-1], path)


def _keep(modules, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.{os.getpid()}", "w", encoding="ascii") as f:
        f.write(modules)
    os.replace(f.name, path)
