# SPDX-License-Identifier: MPL-2.0
"""Client libraries of other languages: each program declares, publishes and consumes as its users
do, checks what it gets, and says ok."""

import pytest

from programs import run

JAVA_CLASSES = ["/usr/share/java/amqp-client.jar", "/usr/share/java/slf4j-api.jar",
                "/usr/share/java/slf4j-nop.jar"]


@pytest.mark.parametrize("program", ["amqplib_client.js", "rascal_client.js",
                                     "rabbitmq_client.js"])
def test_a_javascript_client_works(broker, node_modules, program):
    run("node", program, broker.amqp_url)


def test_the_java_client_works(broker):
    run("java", "-cp", ":".join(JAVA_CLASSES), "JavaClient.java", broker.amqp_url)
