# SPDX-License-Identifier: MPL-2.0
"""Java's clients and Spring: what the samples print is what happened."""

import json
import os
import re
import subprocess

import pytest

import header_values
import locked
import lost
from conftest import EXAMPLES, REPOSITORY
from management import WITHIN
from private_broker import default_series

PROGRAMS = os.path.join(REPOSITORY, "tests", "clients", "jvm")
SAMPLES = os.path.join(EXAMPLES, "jvm")
SPRING = os.path.join(REPOSITORY, "examples", "spring")
BOOTS = ["3.5", "4.1"]

# It says what is wrong by its exit code and on standard error.
JAVA = ["java", "-XX:TieredStopAtLevel=1"]

REFUSED = (r"PRECONDITION_FAILED - cannot delay a message published to exchange '[\w.]+' in vhost '/': "
           r'header x-delay is the string "5m", not a number of milliseconds')
PARKED = r"is parked: attempts_used_up, 4 times rejected"


@pytest.fixture(scope="module")
def jars(deps):
    """The class path of what tests/clients/jvm locks."""
    return os.path.join(deps("jvm"), "jars", "*")


def application(deps, boot, name, port):
    """The command line of one of the applications."""
    target = os.path.join(deps(f"spring-{boot}"), "target")
    return [*JAVA, "-cp", os.pathsep.join([os.path.join(target, "classes"),
                                           os.path.join(target, "jars", "*")]),
            name, f"--spring.rabbitmq.port={port}", "--logging.level.root=off"]


@pytest.fixture
def spring(deps, broker, executed):
    """spring(boot, class): the lines that the application writes."""
    def run(boot, name):
        return executed(*application(deps, boot, name, broker.amqp_port)).splitlines()

    return run


def boot_version(boot):
    with open(os.path.join(SPRING, "pom.xml"), encoding="utf-8") as f:
        return re.search(rf"<boot>{boot}</boot>\s*<boot\.version>(.*?)</boot\.version>",
                         f.read()).group(1)


def assert_said(lines, *patterns):
    """The lines are of these patterns, in this order; what their numbers were."""
    assert len(lines) == len(patterns), lines
    found = [re.fullmatch(pattern, line) for pattern, line in zip(patterns, lines)]
    assert all(found), list(zip(patterns, lines))
    return [float(number) for match in found for number in match.groups()]


def sample(executed, jars, broker, name):
    return executed(*JAVA, "-cp", jars, os.path.join(SAMPLES, name), broker.amqp_url).splitlines()


# ------------------------------------------------------------------------------- plain clients

def test_amqp_client(broker, executed, jars, checked):
    seconds, = assert_said(
        sample(executed, jars, broker, "Delays.java"),
        r"job 1 after ([\d.]+) s, x-delay is -1000", "returned: at once",
        "job 3, and job 2 is cancelled", "refused: 406 " + REFUSED)
    assert seconds >= 1.0
    checked("amqp-client", locked.version("jvm", "com.rabbitmq:amqp-client"),
            "delay", "mandatory", "wrong delay", "cancel")


def test_retries_with_amqp_client(broker, executed, jars, checked):
    lines = executed(*JAVA, "-cp", jars, os.path.join(REPOSITORY, "examples", "java", "Retry.java"),
                     broker.amqp_url).splitlines()
    assert lines[-1] == "order 2 is parked: attempts_used_up, 4 times rejected"
    checked("amqp-client", locked.version("jvm", "com.rabbitmq:amqp-client"), "retry")


@pytest.mark.skipif(default_series() == "3.10", reason="amqp-client for AMQP 1.0 needs RabbitMQ 4")
def test_amqp_client_for_amqp_1_0(broker, executed, jars, checked):
    seconds, = assert_said(
        sample(executed, jars, broker, "Amqp10.java"),
        "ACCEPTED", r"job 1, x-delay is -1000, after ([\d.]+) s", "job 3, x-delay is -1500",
        "at once: RELEASED", "later: ACCEPTED", *(f"order 1, attempt {n}" for n in (1, 2, 3, 4)),
        "order 1 is parked: attempts_used_up",
        r"REJECTED: cannot delay a message .*: annotation x-delay is the string \"5m\", "
        r"not a number of milliseconds \[condition = amqp:precondition-failed\]")
    assert seconds >= 1.0
    checked("amqp-client (AMQP 1.0)", locked.version("jvm", "com.rabbitmq.client:amqp-client"),
            "delay", "mandatory", "wrong delay", "cancel", "retry")


TOO_LONG = (r".*PRECONDITION_FAILED - cannot delay a message published to exchange 'x-delayed-jms-message' .*: "
            r"header x-delay is the 64-bit integer \d+, more than the maximum delay .*")


def test_jms(broker, executed, jars, checked):
    seconds, = assert_said(
        sample(executed, jars, broker, "Jms.java"), r"job 1 after ([\d.]+) s",
        "job 3, and job 2 is cancelled", "refused: " + TOO_LONG)
    assert seconds >= 1.0
    checked("RabbitMQ JMS", locked.version("jvm", "com.rabbitmq.jms:rabbitmq-jms"),
            "delay", "wrong delay", "cancel")


def test_a_wrong_delay_with_jms_and_no_transaction(broker, executed, jars, checked):
    """The exception listener hears of nothing."""
    told = executed(*JAVA, "-cp", jars, os.path.join(PROGRAMS, "WrongDelayJms.java"), broker.amqp_url)
    assert_said(told.splitlines(), "AlreadyClosedException: " + TOO_LONG)
    checked("RabbitMQ JMS", locked.version("jvm", "com.rabbitmq.jms:rabbitmq-jms"), "wrong delay")


def test_header_values(broker, client, executed, jars, checked, tmp_path):
    chosen = header_values.cases("bsIlfdDTtSxFAV")
    exchange, queue = client.delayed_and_queue()
    told = executed(*JAVA, "-cp", jars, os.path.join(PROGRAMS, "HeaderValues.java"), broker.amqp_url,
                    exchange, header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told))
    checked("amqp-client", locked.version("jvm", "com.rabbitmq:amqp-client"), "header values")


@pytest.mark.skipif(default_series() == "3.10", reason="amqp-client for AMQP 1.0 needs RabbitMQ 4")
def test_header_values_of_amqp_1_0(broker, client, executed, jars, checked, tmp_path):
    """The broker makes a string of the binary that it converts for AMQP 0-9-1."""
    chosen = [case for case in header_values.cases("bBsuIilfdTtSAFx")
              if case.letter != "S" or isinstance(case.value, str)]
    exchange, queue = client.delayed_and_queue()
    told = executed(*JAVA, "-cp", jars, os.path.join(PROGRAMS, "HeaderValuesAmqp10.java"),
                    broker.amqp_url, exchange, header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told), {"x": "S"}, uncopied="Bui")
    checked("amqp-client (AMQP 1.0)", locked.version("jvm", "com.rabbitmq.client:amqp-client"),
            "header values")


def test_a_broker_that_is_lost(brokers, jars, checked):
    """Automatic recovery is the default, and no confirm comes after it."""
    told = lost.told(brokers, "jvm", *JAVA, "-cp", jars, os.path.join(PROGRAMS, "Lost.java"))
    assert told.startswith("connection error")
    checked("amqp-client", locked.version("jvm", "com.rabbitmq:amqp-client"), "broker lost")


@pytest.mark.skipif(default_series() == "3.10", reason="amqp-client for AMQP 1.0 needs RabbitMQ 4")
def test_a_broker_that_is_lost_with_amqp_1_0(brokers, jars, checked):
    told = lost.told(brokers, "jvm-amqp10", *JAVA, "-cp", jars,
                     os.path.join(PROGRAMS, "LostAmqp10.java"))
    assert re.match("REJECTED: .*ClientConnectionRemotelyClosedException", told), told
    checked("amqp-client (AMQP 1.0)", locked.version("jvm", "com.rabbitmq.client:amqp-client"),
            "broker lost")


def test_a_broker_that_is_lost_with_jms(brokers, jars, checked):
    """The confirm listener hears of nothing."""
    told = lost.told(brokers, "jvm-jms", *JAVA, "-cp", jars, os.path.join(PROGRAMS, "LostJms.java"))
    assert re.fullmatch("exception listener: .*\n.*Exception", told), told
    checked("RabbitMQ JMS", locked.version("jvm", "com.rabbitmq.jms:rabbitmq-jms"), "broker lost")


# -------------------------------------------------------------------------------------- Spring

@pytest.mark.parametrize("boot", BOOTS)
def test_delayed_messages_with_spring(spring, checked, boot):
    seconds, = assert_said(
        spring(boot, "delayed.DelayedApplication"),
        "confirmed", r"job 1, delayed by 1000 ms, came after ([\d.]+) s",
        "confirmed", "reminded of lunch",
        "returned: NO_ROUTE", "confirmed",
        "refused", "406 " + REFUSED, "job 6, delayed by 1000 ms")
    assert seconds >= 1.0
    checked(f"Spring Boot {boot[0]}", boot_version(boot), "delay", "mandatory", "wrong delay", "cancel")


@pytest.mark.parametrize("boot", BOOTS)
def test_retries_with_spring(spring, checked, boot):
    """What cannot be converted is retried and parked like what the listener throws."""
    lines = spring(boot, "retry.RetryApplication")
    assert [line for line in lines if line.startswith("order 1")] == [
        "order 1, attempt 1: no answer", "order 1, attempt 2: no answer", "order 1, attempt 3: done"]
    assert_said([line for line in lines if line.startswith("order 2")],
                *[f"order 2, attempt {n}: no answer" for n in (1, 2, 3, 4)])
    assert_said(sorted(line for line in lines if "parked" in line),
                "not JSON " + PARKED, r'\{"name":"order 2"\} ' + PARKED,
                r'\{"name":"payment"\} ' + PARKED)
    checked(f"Spring Boot {boot[0]}", boot_version(boot), "retry")


@pytest.mark.parametrize("boot", BOOTS)
def test_retries_with_spring_cloud_stream(spring, checked, boot):
    """The first is delayed by 1 s, then retried by the schedule alone, and not by that second again."""
    *_, seconds = assert_said(
        spring(boot, "stream.StreamApplication"),
        *["job 1: no answer"] * 4, r'\{"name":"job 1"\} ' + PARKED, r"after ([\d.]+) s",
        "not JSON " + PARKED)
    assert seconds >= 1.7
    checked(f"Spring Boot {boot[0]}", boot_version(boot), "Cloud Stream")


@pytest.mark.parametrize("boot", BOOTS)
def test_what_spring_republishes_is_not_delayed_again(spring, checked, boot):
    lines = spring(boot, "republish.RepublishApplication")
    assert set(lines[:-1]) == {"job 1: no answer"}
    assert lines[-1] == "job 1 has failed: no answer; it was delayed again by: null"
    checked(f"Spring Boot {boot[0]}", boot_version(boot), "republish")


@pytest.mark.parametrize("boot", BOOTS)
def test_a_spring_application_survives_the_broker(brokers, deps, checked, boot):
    """It is killed while the application publishes and messages are pending."""
    own = brokers(f"spring-{boot}")
    with subprocess.Popen(application(deps, boot, "survive.SurvivingApplication", own.amqp_port),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as program:
        try:
            assert program.stdout.readline() == "100 are confirmed\n"
            own.kill9()
            own.start()
            said = program.stdout.read().splitlines()
            assert program.wait(WITHIN) == 0
        finally:
            program.kill()
    assert said == [*(f"{n} are confirmed" for n in range(200, 1001, 100)), "1000 arrived"]
    checked(f"Spring Boot {boot[0]}", boot_version(boot), "broker lost")


@pytest.mark.skipif(default_series() == "3.10", reason="Spring's AMQP 1.0 needs RabbitMQ 4")
def test_spring_with_amqp_1_0(spring, management, checked):
    """An application property delays it. The application deletes nothing: it would begin a session after
    another."""
    seconds, = assert_said(
        spring("4.1", "amqp10.Amqp10Application"), r"job 1 after ([\d.]+) s",
        "refused: The message was rejected")
    assert seconds >= 1.0
    for path in ("queues/%2F/example.spring.amqp10.jobs", "exchanges/%2F/example.spring.amqp10"):
        assert management.request("DELETE", path)[0] == 204
    checked("Spring AMQP 1.0", boot_version("4.1"), "delay", "wrong delay")


@pytest.mark.skipif(default_series() == "3.10", reason="Spring's AMQP 1.0 needs RabbitMQ 4")
def test_header_values_of_spring_with_amqp_1_0(broker, client, deps, executed, checked, tmp_path):
    """Application properties. Its user is told that a message was rejected, not why."""
    chosen = [case for case in header_values.cases("bsIlfdtSx")
              if case.letter != "S" or isinstance(case.value, str)]
    exchange, queue = client.delayed_and_queue()
    told = executed(*JAVA, "-cp", os.path.join(deps("spring-4.1"), "target", "jars", "*"),
                    os.path.join(PROGRAMS, "HeaderValuesSpring.java"), str(broker.amqp_port), exchange,
                    header_values.written(tmp_path / "cases", chosen))
    header_values.check(client, queue, chosen, json.loads(told.splitlines()[-1]), {"x": "S"}, "rejected")
    checked("Spring AMQP 1.0", boot_version("4.1"), "header values")


@pytest.mark.skipif(default_series() == "3.10", reason="Spring's AMQP 1.0 needs RabbitMQ 4")
def test_a_broker_that_is_lost_with_spring_and_amqp_1_0(brokers, deps, checked):
    """It is told as a rejection is."""
    told = lost.told(brokers, "spring-amqp10", *JAVA, "-cp",
                     os.path.join(deps("spring-4.1"), "target", "jars", "*"),
                     os.path.join(PROGRAMS, "LostSpringAmqp10.java"))
    assert told == "AmqpNackReceivedException: The message was rejected"
    checked("Spring AMQP 1.0", boot_version("4.1"), "broker lost")


def test_spring_amqp_2(broker, executed, jars, checked):
    """It drops a delay that does not come as a 32-bit integer, and all come as 64-bit ones; a converter
    of properties reads it."""
    assert sample(executed, jars, broker, "Spring2.java") == [
        "job 1, receivedDelay is null, x-delay is null",
        "job 2, receivedDelay is null, x-delay is -1000"]
    checked("Spring AMQP 2", locked.version("jvm", "org.springframework.amqp:spring-rabbit"),
            "delay", "received delay read by a converter")
