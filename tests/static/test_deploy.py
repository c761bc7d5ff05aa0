# SPDX-License-Identifier: MPL-2.0
"""What examples/deploy has for other machines agrees with itself, with docs/install.md and with what a release is: names
of files and their folders, versions, folders in containers, hosts. tests/install and tests/cluster try it."""

import glob
import os
import re

import pytest
import yaml

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPLOY = os.path.join(TOP, "examples", "deploy")
PLUGIN = "rabbitmq_delay_wheel"
FILES = sorted(os.path.relpath(path, TOP) for path in glob.glob(os.path.join(DEPLOY, "**"), recursive=True)
               if os.path.isfile(path))
DOCUMENTS = ["docs/install.md", "docs/operating.md"]


def text_of(name):
    with open(os.path.join(TOP, name), encoding="utf-8") as f:
        return f.read()


def code_of(name):
    """Without comments at its top."""
    return re.sub(r"\A(?:#.*\n)+", "", text_of(name))


def parsed(name):
    return yaml.safe_load(text_of(os.path.join("examples", "deploy", name)))


@pytest.fixture(scope="module")
def released():
    """Names of files that a release has, with their folders."""
    version = re.search(r'\{vsn, "(.*)"\}', text_of(f"erl_src/{PLUGIN}.app.src")).group(1)
    return {f"3.10/{PLUGIN}-{version}.ez", f"3.13-4.x/{PLUGIN}-{version}.ez",
            f"3.10/rabbitmq-delay-wheel-3.10_{version}_all.deb", f"3.13-4.x/rabbitmq-delay-wheel_{version}_all.deb"}


@pytest.mark.parametrize("name", FILES + DOCUMENTS)
def test_files_that_are_named_are_a_releases(released, name):
    # `rabbitmq_delay_wheel-0.1.0+x86_64-gnu.ez` is no release's.
    for folder, file in re.findall(r"(?:\b(3\.10|3\.13-4\.x)/)?\b(rabbitmq[_-]delay[_-]wheel[-_][\w.-]*\.(?:ez|deb))",
                                   text_of(name)):
        names = {f"{folder}/{file}"} if folder else {f"{one}/{file}" for one in ("3.10", "3.13-4.x")}
        assert names & released, (folder, file)


@pytest.mark.parametrize("name", FILES)
def test_it_is_led_to_by_the_document(name):
    assert f"../{name}" in text_of("docs/install.md")


@pytest.mark.parametrize("name", ["docker/Dockerfile", "ansible.yaml", "puppet.pp"])
def test_the_document_shows_what_is_in_the_file(name):
    shown = "".join(f"    {line}\n" if line else "\n" for line in code_of(f"examples/deploy/{name}").splitlines())
    assert shown in text_of("docs/install.md")


def test_alpines_image_is_made_alike():
    one, other = (code_of(f"examples/deploy/docker/Dockerfile{suffix}") for suffix in ("", ".alpine"))
    base, = re.findall(r"^FROM (rabbitmq:[\d.]+-management)$", one, re.M)
    assert other == one.replace(base, base + "-alpine")


def series_of_images():
    return {name: re.findall(r"(?:rabbitmq|rabbitmq-delay-wheel):([\d.]+)", text_of(name)) for name in FILES}


def test_images_are_of_one_series_that_is_served():
    named = {series for some in series_of_images().values() for series in some}
    assert len(named) == 1
    assert f'"{named.pop()}"' in text_of(f"erl_src/{PLUGIN}.app.src.script")


# ---------------------------------------------------------------------------------------------- compose


def test_the_nodes_of_the_cluster_are_those_that_its_configuration_names():
    services = parsed("docker/compose.yaml")["services"]
    conf = text_of("examples/deploy/docker/rabbitmq.conf")
    nodes = re.findall(r"^cluster_formation\.classic_config\.nodes\.\d+ = rabbit@(\S+)$", conf, re.M)
    assert nodes == list(services) == [service["hostname"] for service in services.values()] and len(nodes) == 3


def test_each_node_has_the_image_data_and_ports_of_its_own():
    composed = parsed("docker/compose.yaml")
    ports, images = [], set()
    for name, service in composed["services"].items():
        assert f"{name}:/var/lib/rabbitmq" in service["volumes"] and name in composed["volumes"]
        assert "./rabbitmq.conf:/etc/rabbitmq/conf.d/20-cluster.conf:ro" in service["volumes"]
        ports += [port.split(":")[0] for port in service["ports"]]
        images.add((service["image"], service["build"]))
        assert "RABBITMQ_ERLANG_COOKIE" in service["environment"]
    assert len(set(ports)) == len(ports) and len(images) == 1
    (image, build), = images
    assert build == "." and f"-t {image} " in text_of("examples/deploy/docker/Dockerfile")


# --------------------------------------------------------------------------------------- Kubernetes, Bitnami


@pytest.mark.parametrize("name", ["kubernetes/image.yaml", "kubernetes/init-container.yaml"])
def test_the_operator_enables_the_plugin(name):
    cluster = parsed(name)
    assert (cluster["apiVersion"], cluster["kind"]) == ("rabbitmq.com/v1beta1", "RabbitmqCluster")
    assert cluster["spec"]["rabbitmq"]["additionalPlugins"] == [PLUGIN]
    assert cluster["spec"]["persistence"]["storage"]


def test_what_the_init_container_fetches_is_where_the_broker_looks():
    spec = parsed("kubernetes/init-container.yaml")["spec"]
    pod = spec["override"]["statefulSet"]["spec"]["template"]["spec"]
    volume, = (one["name"] for one in pod["volumes"])
    first, = pod["initContainers"]
    broker, = pod["containers"]
    assert broker["name"] == "rabbitmq"
    (into,), (seen,) = ([mount["mountPath"] for mount in one["volumeMounts"] if mount["name"] == volume]
                        for one in (first, broker))
    assert f"cd {into}\n" in first["args"][0]
    folders = spec["rabbitmq"]["envConfig"].strip().removeprefix("RABBITMQ_PLUGINS_DIR=").split(":")
    assert folders == ["/opt/rabbitmq/plugins", seen]


def test_bitnamis_chart_enables_what_it_fetches():
    values = parsed("bitnami/values.yaml")
    assert values["extraPlugins"] == PLUGIN and values["persistence"]["enabled"]
    assert values["communityPlugins"].startswith("https://") and f"/{PLUGIN}-" in values["communityPlugins"]
