# SPDX-License-Identifier: MPL-2.0
"""What examples/deploy has, as far as it can be tried without a container engine: the steps of the Dockerfile on a machine
that is laid out as RabbitMQ's official image is, Ansible's and Puppet's on a machine with Debian's RabbitMQ."""

import glob
import os
import re
import shutil

import pytest

from machine import Failed, Machine

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPLOY = os.path.join(TOP, "examples", "deploy")
SUITE = os.environ.get("DEBIAN_SUITE") or "trixie"
DEB, = glob.glob(os.path.join(TOP, "dist", "3.13-4.x", "*.deb"))
# As the image has it: the generic build in /opt, run by the user rabbitmq, whose data the root user shares.
LAID_OUT = """
mv /usr/lib/rabbitmq/lib/rabbitmq_server-* /opt/rabbitmq
rm -r /usr/lib/rabbitmq /usr/sbin/rabbitmq* /usr/bin/rabbitmq* /var/lib/rabbitmq/.erlang.cookie
mkdir -p /etc/rabbitmq/conf.d && rm -f /etc/rabbitmq/enabled_plugins
chown -R rabbitmq:rabbitmq /opt/rabbitmq /etc/rabbitmq /var/lib/rabbitmq
chmod 1777 /etc/rabbitmq /var/lib/rabbitmq
"""

pytestmark = pytest.mark.skipif(SUITE == "bookworm", reason="it is for RabbitMQ 4")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with Machine(SUITE, str(tmp_path_factory.mktemp("deploy"))) as made:
        made.apt("update")
        made.apt("install", "rabbitmq-server")
        yield made


def delays(machine):
    said = machine.beside("/usr/bin/python3", os.path.join(TOP, "examples", "python", "first.py"))
    assert re.fullmatch(r"hello, [0-9.]+ s later\n", said)
    assert "later" in machine.run("rabbitmqctl", "list_delayed_exchanges")


@pytest.fixture
def provisioned(machine):
    """A broker that runs, to be given the plugin, which is taken away afterwards."""
    if SUITE != "trixie":
        pytest.skip("tried on Debian 13")
    machine.start_broker()
    yield machine
    machine.run("rabbitmq-plugins", "disable", "rabbitmq_delay_wheel", check=False)
    machine.stop_broker()
    machine.run("apt-get", "-q", "-y", "purge", "rabbitmq-delay-wheel", check=False)


def test_ansible(provisioned):
    provisioned.apt("install", "ansible-core", "python3-apt")
    place = provisioned.path("/root/ansible")
    os.mkdir(place)
    shutil.copy(os.path.join(DEPLOY, "ansible.yaml"), place)
    shutil.copy(DEB, place)
    with open(os.path.join(place, "hosts"), "w", encoding="ascii") as f:
        f.write("[rabbitmq]\nlocalhost ansible_connection=local\n")
    for _ in range(2):
        said = provisioned.run("ansible-playbook", "-i", "/root/ansible/hosts", "/root/ansible/ansible.yaml")
        assert "failed=0" in said and "unreachable=0" in said
    delays(provisioned)


def test_puppet(provisioned):
    provisioned.apt("install", "puppet-agent")
    shutil.copy(DEB, provisioned.path("/var/tmp"))
    shutil.copy(os.path.join(DEPLOY, "puppet.pp"), provisioned.path("/root"))

    def apply():
        return provisioned.run("sh", "-c", "puppet apply --detailed-exitcodes /root/puppet.pp; echo exit $?")
    # 2: there were changes, 0: there were none.
    assert apply().endswith("exit 2\n")
    assert apply().endswith("exit 0\n")
    delays(provisioned)


# The last one: the machine is another one afterwards.
def test_the_images_steps(machine):
    if SUITE != "sid":
        pytest.skip("Debian 13's rabbitmq-plugins finds no plugins in another place")
    machine.run("sh", "-euc", LAID_OUT)
    machine.env.update(PATH=f"/opt/rabbitmq/sbin:{machine.env['PATH']}", HOME="/var/lib/rabbitmq")
    machine.server = "/opt/rabbitmq/sbin/rabbitmq-server"
    with open(os.path.join(DEPLOY, "docker", "Dockerfile"), encoding="utf-8") as f:
        for line in f:
            step, _, rest = line.strip().partition(" ")
            if step == "COPY":
                mode, source, target = re.fullmatch(r"--chmod=(\d+) (\S+) (\S+)/", rest).groups()
                copied = shutil.copy(os.path.join(TOP, "dist", source), machine.path(target))
                os.chmod(copied, int(mode, 8))
            elif step == "RUN":
                machine.run("sh", "-c", rest)
            elif step not in ("#", "FROM"):
                raise Failed(f"not known: {line}")
    # It would be the same in every container.
    assert not os.path.exists(machine.path("/var/lib/rabbitmq/.erlang.cookie"))
    machine.start_broker()
    delays(machine)
    machine.stop_broker()
