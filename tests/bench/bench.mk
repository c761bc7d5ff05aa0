# SPDX-License-Identifier: MPL-2.0
# Figures and endurance. `make bench` takes hours; `make bench-quick` runs each figure once, small,
# and records nothing. FIGURES="publish memory" picks some; BENCH_ARGS goes to bench.py as it is.

BENCH_DEPS := gcc librabbitmq-dev python3-matplotlib python3-pika rabbitmq-server nodejs npm chromium

BENCH_LOAD := _build/bench/load
BENCH_SOURCES := $(wildcard tests/bench/load*.c)
BENCH_CFLAGS := -std=c11 -D_GNU_SOURCE -O2 -g -pthread -Wall -Wextra -Wpedantic -Wconversion \
                -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror
FIGURES ?= all
BENCH_ARGS ?=
SOAK_MINUTES ?= 60

.PHONY: bench-load bench bench-quick bench-celery soak
bench-load: $(BENCH_LOAD)
$(BENCH_LOAD): $(BENCH_SOURCES) tests/bench/load.h
	@mkdir -p $(@D)
	$(CC) $(BENCH_CFLAGS) -o $@ $(BENCH_SOURCES) -lrabbitmq -lm

bench: dist-$(BROKER_SERIES) $(BENCH_LOAD)
	/usr/bin/python3 tests/bench/bench.py $(BENCH_ARGS) $(FIGURES)

bench-quick: dist-$(BROKER_SERIES) $(BENCH_LOAD)
	/usr/bin/python3 tests/bench/bench.py --quick $(BENCH_ARGS) $(FIGURES)

soak: dist-$(BROKER_SERIES) $(BENCH_LOAD)
	/usr/bin/python3 tests/bench/soak.py --minutes $(SOAK_MINUTES)

# A Celery task that waits: through the delayed exchange, and Celery's own way. CELERY_ARGS="--rounds 3".
bench-celery: dist-$(BROKER_SERIES)
	/usr/bin/python3 tests/bench/bench_celery.py $(CELERY_ARGS)

# Three nodes: a replicated delayed exchange beside a quorum queue. CLUSTER_ARGS="--figures publish,takeover --rounds 3".
.PHONY: bench-cluster
bench-cluster: dist-$(BROKER_SERIES) $(BENCH_LOAD)
	/usr/bin/python3 tests/bench/bench_cluster.py $(CLUSTER_ARGS)
