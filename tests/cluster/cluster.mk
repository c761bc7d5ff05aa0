# SPDX-License-Identifier: MPL-2.0
# Three nodes in namespaces, killed, paused and cut off from each other. SERIES=4.0 runs one series (4.0 on
# Mnesia and on Khepri), SECONDS=60 has each fault last so much longer, SHORT=1 runs what make check does: one
# fault of each kind, an upgrade and a restoration. Where namespaces are not allowed the sum says so.
CLUSTERS := $(foreach series,$(SERIES),$(if $(filter 4.0,$(series)),4.0-mnesia 4.0-khepri,$(series)))
SHORT_3.10 := tests/cluster/test_short.py
SHORT_4.0-mnesia := tests/cluster/test_short.py
SHORT_4.0-khepri := tests/cluster/test_short.py tests/cluster/test_versions.py \
    -k "the_leader or drained or to_a_later_version"
SHORT_4.3 := tests/cluster/test_short.py tests/cluster/test_recoveries.py \
    -k "the_leader or drained or (restored_from_files and killed)"
check-cluster: deps
	@rm -f $(RESULTS)/cluster-*.json
	@$(MAKE) --no-print-directory suites-cluster
	@$(SUM) cluster-

# Two at a time in short: most of it is waiting, too.
suites-cluster: prepared-cluster
	@[ ! -s $(RESULTS)/clusters ] || $(MAKE) --no-print-directory $(if $(SHORT),-j2) $(CLUSTER_SUITES)
	@$(cluster_again)

cluster_again = $(if $(SECOND_LOOK),$(foreach cluster,$(CLUSTERS),\
    $(AGAIN) cluster-$(cluster) --junit "$(RESULTS)/pytest-cluster-$(cluster)-again/*.xml" -- \
        $(call pytest_cluster,$(cluster),pytest-cluster-$(cluster)-again);))

prepared-cluster:
	@mkdir -p $(RESULTS); rm -f $(RESULTS)/clusters; for series in $(SERIES); do \
	    $(NEED) cluster-$$series -- $(PYTHON) tests/cluster/namespaces.py --allowed || continue; \
	    [ $$series = 3.10 ] || \
	        $(NEED) cluster-$$series -- sh -c "scripts/broker 4.0 && scripts/broker $$series" || continue; \
	    if $(MAKE) --no-print-directory dist-$$series; then \
	        printf 'suite-cluster-%s\n' $(CLUSTERS) | grep -F -- "-$$series" >>$(RESULTS)/clusters; \
	    else \
	        $(FAIL) cluster-$$series "it cannot be built, see above"; \
	    fi; \
	done; touch $(RESULTS)/clusters

suite-cluster-%:
	@$(RUN) cluster-$* --junit "$(RESULTS)/pytest-cluster-$*/*.xml" -- \
	    $(call pytest_cluster,$*,pytest-cluster-$*) $(if $(SHORT),$(SHORT_$*),tests/cluster)

# Of the cluster $1, with a JUnit file in the directory $2 of the results.
pytest_cluster = env BROKER_SERIES=$(firstword $(subst -, ,$1)) CLUSTER_METADATA=$(word 2,$(subst -, ,$1)) \
    CLUSTER_SECONDS=$(SECONDS) PYTHONPATH=tests/integration $(PYTHON) -m pytest -q -rP --show-capture=stdout \
    -p no:cacheprovider --junitxml=$(RESULTS)/$2/cluster.xml

# Three nodes and one random fault after the other: CLUSTER_SOAK_ARGS="--minutes 30 --seed 1".
soak-cluster: deps dist-$(BROKER_SERIES)
	BROKER_SERIES=$(BROKER_SERIES) $(PYTHON) tests/cluster/soak.py $(CLUSTER_SOAK_ARGS)
