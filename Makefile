# SPDX-License-Identifier: MPL-2.0
#
# make demo     see it work          make check   run every test
# make dist     build the plugin     make bench   measure it against other ways
# make build    compile              make deps    install what all of these need (Debian, root)
# make release  what people get   make deb     Debian packages
#
# 3.10 is this machine's RabbitMQ (Debian 12); 4.0 and 4.3 are in chroots (Debian 13 and sid) that
# make broker-4.0 and make broker-4.3 prepare. make dist-4.0, check-4.0, demo and so on make them.
# Both take the archive 3.13-4.x, which is compiled in 4.0's.

SERIES := 3.10 4.0 4.3
ARCHIVES := 3.10 3.13-4.x
export BROKER_SERIES ?= 3.10
export DELAY_ARCHIVE := $(if $(filter 3.10,$(BROKER_SERIES)),3.10,3.13-4.x)
BROKER_ROOT := $(if $(filter-out 3.10,$(BROKER_SERIES)),$(CURDIR)/_brokers/$(BROKER_SERIES))
BROKER_HOME = $(lastword $(sort $(wildcard \
    $(BROKER_ROOT)/usr/lib/rabbitmq/lib/rabbitmq_server-$(BROKER_SERIES).*)))
PYTHON ?= /usr/bin/python3
REBAR3 ?= rebar3
CLANG_FORMAT ?= clang-format-14
CC := gcc

APP := rabbitmq_delay_wheel
VERSION := $(shell sed -n 's/.*{vsn, "\(.*\)"}.*/\1/p' erl_src/$(APP).app.src)

# The native library, one for each processor and C library. Those that this machine has no compiler or no
# headers for (make deps-release) are not built, and an archive without them says in its name what it has.
LIBRARIES := x86_64-gnu x86_64-musl aarch64-gnu aarch64-musl
SYSROOT ?= _build/sysroot
MACHINE := $(shell $(CC) -dumpmachine)
first_of = $(firstword $(subst -, ,$(1)))
last_of = $(lastword $(subst -, ,$(1)))
HOST := $(call first_of,$(MACHINE))-$(call last_of,$(MACHINE))
compiler = $(if $(filter $(call first_of,$(HOST)),$(call first_of,$(1))),$(CC),$(call first_of,$(1))-linux-gnu-gcc)
buildable = $(if $(filter $(HOST),$(1)),$(1),$(if $(filter %-gnu,$(HOST)),$(and \
    $(wildcard $(SYSROOT)/complete),$(shell command -v $(call compiler,$(1))),$(1))))
BUILT := $(strip $(foreach library,$(LIBRARIES),$(call buildable,$(library))))
library_file = priv/$(1)/rabbit_delay_store.so
NIF := $(call library_file,$(HOST))
empty :=
EZ_NAME := $(APP)-$(VERSION)$(if $(filter-out $(BUILT),$(LIBRARIES)),+$(subst $(empty) ,+,$(BUILT)))
EZ := dist/$(DELAY_ARCHIVE)/$(EZ_NAME).ez

BEAMS := _build$(if $(BROKER_ROOT),/$(DELAY_ARCHIVE))
EBIN := $(BEAMS)/default/lib/$(APP)/ebin
CLI_LIBS := $(BEAMS)/cli
export ERL_LIBS = $(BROKER_HOME)/plugins:$(CURDIR)/$(CLI_LIBS)
export REBAR_BASE_DIR := $(CURDIR)/$(BEAMS)
export REBAR_OFFLINE := 1
export REBAR_GLOBAL_CONFIG_DIR := $(CURDIR)/_build/global
export LC_ALL := C.UTF-8

# V=1 shows the commands.
say = $(if $(V),,@echo "  $(1) $@" &&)

.PHONY: soak-api soak-cluster release check-release deb check-install check-arm64 deps deps-build deps-release deps-demo deps-bench deps-clients check-clients build nif libraries archive erl $(ARCHIVES:%=erl-%) demo demo-stop bench-core screenshots format clean \
        dist $(SERIES:%=dist-%) dist-3.13-4.x $(SERIES:%=broker-%) \
        check check-c check-erl check-integration check-static check-model check-simulation check-cluster $(SERIES:%=check-%) \
        suites-c suites-erl suites-integration suites-cluster suites-brokers prepared-integration prepared-cluster \
        suites-static suites-model suites-simulation model model-trace \
        simulation-trace soak-simulation c-tests soak-faults
.DELETE_ON_ERROR:

build: deps-build
	@$(MAKE) --no-print-directory nif erl

# What is missing is installed before anything looks for it; hence the second make in `build`.
deps:
	@scripts/deps check
deps-build:
	@scripts/deps build
# And what compiles the library for other machines, which make dist leaves out where it is missing.
deps-release:
	@scripts/deps release
	@scripts/sysroot
deps-demo:
	@scripts/deps demo
deps-bench:
	@scripts/deps demo $(BENCH_DEPS)
# Clients that Debian alone has, and what installs the others.
CLIENT_DEPS := maven cargo python3-dev libssl-dev php-cli php-amqplib php-amqp php-symfony-amqp-messenger \
    ruby-bunny librabbitmq-dev
deps-clients:
	@scripts/deps check $(CLIENT_DEPS)

# ---------------------------------------------------------------------------- C
C_CORE := $(filter-out c_src/dw_nif%.c,$(sort $(wildcard c_src/*.c)))
C_ALL := $(wildcard c_src/*.c c_src/*.h include/*.h tests/c/*.c tests/c/*.h tests/bench/*.c \
                    tests/integration/*.c tests/simulation/*.h)
# Programs of one module's tests each; what has no main is support for them.
C_TESTS := $(basename $(notdir $(wildcard tests/c/test_*.c)))
C_TESTS_THREADED := $(filter %_threads,$(C_TESTS))
C_SUPPORT := $(filter-out tests/c/test_% tests/c/filter.c,$(wildcard tests/c/*.c))

C_STANDARD := -std=c11 -D_GNU_SOURCE -Iinclude -Ic_src
C_WARNINGS := -Wall -Wextra -Wpedantic -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
              -Wpointer-arith -Wvla
CORE_WARNINGS := $(C_WARNINGS) -Wconversion
C_HARDENED := -fstack-protector-strong -fstack-clash-protection
C_HARDENED_x86_64 := -fcf-protection
C_HARDENED_aarch64 := -mbranch-protection=standard -mno-outline-atomics
C_NIF_FLAGS = $(C_STANDARD) -O2 -g -fPIC -fvisibility=hidden $(C_HARDENED) \
               -ffile-prefix-map=$(CURDIR)=. -ffile-prefix-map=$(SYSROOT)=sysroot \
               -I$(or $(ERL_INCLUDE),/usr/lib/erlang/usr/include)
LIBCK := $(firstword $(wildcard /usr/lib/*/libck.a /usr/lib/libck.a))

# What compiles and links for a processor and a C library. musl has neither fortified functions nor
# versions of symbols.
includes_of = $(if $(filter $(HOST),$(1)),,-isystem $(SYSROOT)/$(call first_of,$(1))/usr/include)
flags_gnu =
musl_of = $(SYSROOT)/$(call first_of,$(1))/$(2)/$(call first_of,$(1))-linux-musl
flags_musl = -D_UINTPTR_T_DEFINED -nostdinc -isystem $(call musl_of,$(1),usr/include) \
             -isystem $(shell $(call compiler,$(1)) -print-file-name=include)
flags_of = $(call flags_$(call last_of,$(1)),$(1)) $(includes_of) $(C_HARDENED_$(call first_of,$(1)))
nif_flags_gnu := -include c_src/dw_glibc_floor.h -D_FORTIFY_SOURCE=2
nif_flags_musl :=
nif_link_gnu = -lpthread
nif_link_musl = -nostdlib -L$(call musl_of,$(1),lib) -lc -lgcc

nif: $(NIF)
libraries: $(foreach library,$(BUILT),$(call library_file,$(library)))

define library
_build/c/nif/$(1)/%.o: c_src/%.c Makefile
	@mkdir -p $$(@D)
	$$(call say,CC) $$(call compiler,$(1)) $$(C_NIF_FLAGS) $$(call flags_of,$(1)) $$(nif_flags_$$(call last_of,$(1))) \
	    $$(CORE_WARNINGS) -MMD -MP -c -o $$@ $$<

$$(call library_file,$(1)): $(patsubst c_src/%.c,_build/c/nif/$(1)/%.o,$(sort $(wildcard c_src/*.c)))
	@mkdir -p $$(@D)
	$$(call say,LD) $$(call compiler,$(1)) -shared \
	    -Wl,-z,relro,-z,now,-z,noexecstack,-z,nodelete,--as-needed -o $$@ $$^ \
	    $$(call nif_link_$$(call last_of,$(1)),$(1))
	@md5sum $$@ | cut -d " " -f 1 >$$(@:.so=.md5)
endef
$(foreach l,$(BUILT),$(eval $(call library,$(l))))

# The core and its tests in three flavours. With DW_TESTS, broken invariants (c_src/dw_invariant.h) can be
# had on purpose, and others end the program; with DW_TESTS_ABORT they all do.
c_flags_asan := -DDW_TESTS -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
                -fno-sanitize-recover=all
c_flags_tsan := -DDW_TESTS -O1 -g -fsanitize=thread
c_flags_plain := -DDW_TESTS_ABORT -O2 -g
FLAVOURS := asan tsan plain
end_of_ours := -lcmocka $(LIBCK) -lpthread -lm

# And one for each library that is not this machine's, as programs that need nothing of it: natively where
# only the C library is another, and else under qemu.
OTHERS := $(filter-out $(HOST),$(BUILT))
# Emulated they take up to a hundred times as long.
C_TESTS_QEMU := test_crc32c test_errno test_manifest test_origin test_partition test_store_fixture \
                test_store_digest test_store_keyed test_store_model
tests_on = $(if $(call run_on,$(1)),$(C_TESTS_QEMU),$(C_TESTS))
run_on = $(if $(filter $(call first_of,$(HOST)),$(call first_of,$(1))),,qemu-$(call first_of,$(1)))
start_gnu = -static
end_gnu = -lpthread -lm
start_musl = -static -nostdlib $(addprefix $(call musl_of,$(1),usr/lib)/,crt1.o crti.o)
end_musl = -L$(call musl_of,$(1),usr/lib) -lc -lgcc -lgcc_eh -lc $(call musl_of,$(1),usr/lib)/crtn.o

define other
cc_$(1) := $(call compiler,$(1))
c_flags_$(1) = $$(c_flags_plain) -I$$(SYSROOT)/cmocka/include $$(call flags_of,$(1))
cmocka_$(1) := _build/c/$(1)/tests/cmocka.o
start_$(1) = $$(call start_$(call last_of,$(1)),$(1))
end_$(1) = $$(call end_$(call last_of,$(1)),$(1))

_build/c/$(1)/tests/cmocka.o: $$(SYSROOT)/cmocka/src/cmocka.c Makefile
	@mkdir -p $$(@D)
	$$(call say,CC) $$(cc_$(1)) -std=gnu99 -DHAVE_SIGNAL_H -DHAVE_STRINGS_H -DHAVE_CLOCK_GETTIME \
	    -DHAVE_STRUCT_TIMESPEC $$(c_flags_$(1)) -c -o $$@ $$<
endef
$(foreach l,$(OTHERS),$(eval $(call other,$(l))))

define flavour
_build/c/$(1)/core/%.o: c_src/%.c Makefile
	@mkdir -p $$(@D)
	$$(call say,CC) $$(or $$(cc_$(1)),$$(CC)) $$(C_STANDARD) $$(c_flags_$(1)) $$(CORE_WARNINGS) -MMD -MP -c -o $$@ $$<

_build/c/$(1)/tests/%.o: tests/c/%.c Makefile
	@mkdir -p $$(@D)
	$$(call say,CC) $$(or $$(cc_$(1)),$$(CC)) $$(C_STANDARD) -Itests/c $$(c_flags_$(1)) $$(C_WARNINGS) -MMD -MP -c -o $$@ $$<

_build/c/$(1)/libdw.a: $$(patsubst c_src/%.c,_build/c/$(1)/core/%.o,$$(C_CORE)) \
                       $$(patsubst tests/c/%.c,_build/c/$(1)/tests/%.o,$$(C_SUPPORT))
	@rm -f $$@
	$$(call say,AR) ar rcs $$@ $$^

_build/c/$(1)/test_%: _build/c/$(1)/tests/test_%.o _build/c/$(1)/tests/filter.o $$(cmocka_$(1)) _build/c/$(1)/libdw.a
	$$(call say,LD) $$(or $$(cc_$(1)),$$(CC)) $$(c_flags_$(1)) -o $$@ $$(start_$(1)) $$^ $$(or $$(end_$(1)),$$(end_of_ours))
endef
$(foreach f,$(FLAVOURS) $(OTHERS),$(eval $(call flavour,$(f))))
.SECONDARY:

# What the core alone takes, without a broker.
C_BENCHES := $(patsubst tests/bench/%.c,_build/c/plain/%,$(wildcard tests/bench/bench_*.c))

_build/c/plain/bench_%: tests/bench/bench_%.c _build/c/plain/libdw.a
	$(call say,LD) $(CC) $(C_STANDARD) $(c_flags_plain) $(C_WARNINGS) -MMD -MP -o $@ $< \
	    _build/c/plain/libdw.a $(LIBCK) -lpthread -lm

bench-core: deps-build $(C_BENCHES)
	_build/c/plain/bench_wheel
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	    echo _build/c/plain/bench_store && _build/c/plain/bench_store "$$dir/store"

C_TEST_PROGRAMS := $(C_TESTS:%=_build/c/asan/%) $(C_TESTS:%=_build/c/plain/%) \
                   $(C_TESTS_THREADED:%=_build/c/tsan/%)
c-tests: $(C_TEST_PROGRAMS) $(C_BENCHES)

-include $(wildcard _build/c/*/*.d _build/c/*/*/*.d)

# ------------------------------------------------------------------------ Erlang
erl: erl-$(DELAY_ARCHIVE)
erl-3.10: $(CLI_LIBS)/rabbitmqctl/ebin
	$(REBAR3) compile
# Erlang 29, which RabbitMQ 4.3 may run on, does not load what Erlang 25 compiles, but all from 26 on load
# what 27 compiles for 26: Debian 13's, which RabbitMQ 4.0's chroot has.
erl-3.13-4.x: broker-4.0
	@$(MAKE) --no-print-directory $(EBIN)/$(APP).app

ERL_SOURCES := $(shell find erl_src include scripts/compile rebar.config rebar.config.script -not -name '.*')
ifneq ($(BROKER_ROOT),)
$(EBIN)/$(APP).app: $(ERL_SOURCES)
	@rm -rf $(@D)
	scripts/in_broker _brokers/4.0 $(CURDIR) -- env -C $(CURDIR) LANG=C.UTF-8 DELAY_ARCHIVE=$(DELAY_ARCHIVE) \
	    sh -c 'ERL_LIBS=$$(echo /usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins) exec escript scripts/compile $(APP) $(@D)'
endif

$(CLI_LIBS)/rabbitmqctl/ebin: $(BROKER_HOME)/escript/rabbitmqctl scripts/cli_modules
	@rm -rf $@ && mkdir -p $@
	escript scripts/cli_modules $(BROKER_HOME)/escript/rabbitmqctl $@

# -------------------------------------------------------------------------- dist
# Two archives. What cannot be built does not keep the other from it.
dist:
	@failed=; for archive in $(ARCHIVES); do \
	    $(MAKE) --no-print-directory dist-$$archive || failed="$$failed $$archive"; \
	done; [ -z "$$failed" ] || { echo "not built: RabbitMQ$$failed" >&2; exit 1; }

dist-4.0 dist-4.3: dist-%: broker-% dist-3.13-4.x
dist-3.10: broker-3.10
dist-3.13-4.x: broker-4.0
dist-3.10 dist-3.13-4.x: dist-%:
	@$(MAKE) --no-print-directory BROKER_SERIES=$(series_of_$*) build
	@$(MAKE) --no-print-directory BROKER_SERIES=$(series_of_$*) archive
# The broker that it is compiled with.
series_of_3.10 := 3.10
series_of_3.13-4.x := 4.0

archive: libraries
	@$(MAKE) --no-print-directory $(EZ)

broker-3.10: deps-build
broker-4.0 broker-4.3: broker-%:
	@scripts/broker $*

.PHONY: $(EZ)
$(EZ):
	@rm -rf $(@D) && mkdir -p $(@D)
	escript scripts/ez $(APP) $(BEAMS) $@ $(BUILT)

# What is given to people, of the commit that is checked out: docs/internals/releases.md.
release: deps-build
	@SYSROOT="$(abspath $(SYSROOT))" $(PYTHON) scripts/release "$(VERSION)" $(filter-out $(BUILT),$(LIBRARIES))

check-release: deps-build
	@tests/static/release_twice

# A Debian package of each archive, in dist/.
deb: dist
	scripts/deb dist "$(VERSION)" "$$(git show --no-patch --format=%ct HEAD)"

# From what a release has to a delayed message, an upgrade with messages pending, and removed again, on machines that are
# made anew each time: chroots of Debian 12, 13 and sid. And lintian. SUITES=trixie takes one of them.
SUITES := bookworm trixie sid
check-install: deps
	@scripts/deps check lintian mmdebstrap debian-archive-keyring
	@$(MAKE) --no-print-directory deb
	@rm -rf $(RESULTS)/install-*
	@$(RUN) install-lintian -- lintian --allow-root --display-info --fail-on error,warning,info dist/*/*.deb
	@for suite in $(SUITES); do \
	    $(RUN) install-$$suite --junit "$(RESULTS)/install-$$suite/*.xml" -- env DEBIAN_SUITE=$$suite \
	        $(PYTHON) -m pytest -q -rs -p no:cacheprovider --junitxml=$(RESULTS)/install-$$suite/install.xml \
	        tests/install/test_deb.py tests/install/test_deploy.py; \
	done
	@$(SUM) install-

# A broker on arm64, under qemu.
check-arm64: deps
	@scripts/deps check qemu-user-static mmdebstrap debian-archive-keyring
	@$(MAKE) --no-print-directory dist-3.13-4.x
	@rm -rf $(RESULTS)/arm64*
	@$(RUN) arm64 --junit "$(RESULTS)/arm64/*.xml" -- $(PYTHON) -m pytest -q -rs -p no:cacheprovider \
	    --junitxml=$(RESULTS)/arm64/arm64.xml tests/install/arm64
	@$(SUM) arm64

# -------------------------------------------------------------------------- demo
demo: deps-demo dist-3.10
	@$(PYTHON) demo/demo.py

demo-stop:
	@$(PYTHON) demo/demo.py --stop

-include tests/bench/bench.mk
bench bench-quick bench-cluster soak: | deps-bench
$(BENCH_LOAD): | deps-bench

# ------------------------------------------------------------------------- tests
# A suite that fails does not keep the others from running: what failed stands in the sum.
RUN := $(PYTHON) tests/tally run
NEED := $(PYTHON) tests/tally need
AGAIN := CHECK_ENDS= $(PYTHON) tests/tally again
FAIL := $(PYTHON) tests/tally fail
SUM := $(PYTHON) tests/tally sum
RESULTS := _build/results

# Brokers wait more than they work: what needs none runs beside them, on the time that they leave (BESIDE), and must
# not change what they are made of.
BESIDE := nice -n 19
ends_after = $(if $(MINUTES),$1=$$((began + $(MINUTES) * 60 * $2 / 3)))
# With MINUTES=70 no test begins after so long, and what did not is named as skipped. Those of one broker end at
# two thirds, for clusters to have their time.
check: deps
	@rm -rf $(RESULTS)
	@$(NEED) libraries-of-other-machines -- scripts/sysroot || true
	@began=$$(date +%s); { $(MAKE) --no-print-directory dist-3.10 && { \
	    $(call ends_after,CHECK_ENDS,3) $(BESIDE) $(MAKE) --no-print-directory -j2 -Otarget suites-c suites-erl \
	        suites-static suites-model suites-simulation & beside=$$!; \
	    $(call ends_after,INTEGRATION_ENDS,2) $(call ends_after,CHECK_ENDS,3) \
	        $(MAKE) --no-print-directory SHORT=1 suites-brokers; brokers=$$?; \
	    wait $$beside && [ $$brokers = 0 ]; }; } || $(FAIL) check "stopped, see above"
	@$(SUM)

# Most of a broker's tests' time is waiting: three suites share the machine, of which those of one broker run two
# files at a time each, and a cluster's begins when one of them has ended. Where a series cannot be had (not root,
# no mounts allowed, Debian sid has another one by now, ...) the sum says that it was skipped, and why.
suites-brokers: prepared-integration prepared-cluster
	@$(SUITES_OF_SERIES) -j3 $(INTEGRATION_SUITES) $(CLUSTER_SUITES)
	@$(integration_again)
	@$(cluster_again)

suites-integration: prepared-integration
	@$(SUITES_OF_SERIES) -j3 $(INTEGRATION_SUITES)
	@$(integration_again)

# What is the same on every series (tests/integration/once.py) runs on one of them here.
SUITES_OF_SERIES = CHECKED_SERIES="$$(cat $(RESULTS)/series)" $(MAKE) --no-print-directory
INTEGRATION_SUITES = $$(printf 'suite-integration-%s ' $$(cat $(RESULTS)/series))
CLUSTER_SUITES = $$(cat $(RESULTS)/clusters)

# With SECOND_LOOK=1 up to five tests of a series that failed among all the others run once more alone, and are named in
# the sum as unsteady if they pass then.
integration_again = $(if $(SECOND_LOOK),$(foreach series,$(SERIES),\
    $(AGAIN) integration-$(series) --junit "$(RESULTS)/pytest-$(series)-again/*.xml" -- \
        $(call pytest_integration,$(series),pytest-$(series)-again);))

# Erlang that 4.3 runs on comes with 4.0.
prepared-integration:
	@$(PYTHON) tests/integration/programs.py || $(FAIL) integration-programs "npm packages, see above"
	@checked=3.10; for series in 4.0 4.3; do \
	    $(NEED) integration-$$series -- sh -c "scripts/broker 4.0 && scripts/broker $$series" || continue; \
	    if $(MAKE) --no-print-directory dist-$$series suite-series-$$series; then \
	        checked="$$checked $$series"; \
	    else \
	        $(FAIL) integration-$$series "it cannot be built, see above"; \
	    fi; \
	done; \
	mkdir -p $(RESULTS) && echo $$checked >$(RESULTS)/series

check-static check-c check-erl check-integration check-model check-simulation: check-%: deps
	@rm -f $(RESULTS)/$*-*.json
	@$(if $(filter c model,$*),,$(MAKE) --no-print-directory dist-3.10)
	@$(MAKE) --no-print-directory suites-$*
	@$(SUM) $*-

# All that depends on the series of the broker.
$(SERIES:%=check-%): check-%: deps broker-%
	@rm -f $(RESULTS)/*-$*.json
	@$(MAKE) --no-print-directory dist-$*
	@$(MAKE) --no-print-directory $(if $(filter 3.10,$*),,suite-series-$*) suite-integration-$*
	@$(SUM) series-$* calls-$* dist-$* rebuild-$* integration-$*

# Client libraries, from the registries of their languages: SERIES=4.0 and CLIENTS=tests/clients/test_X.py
# run a part. What passed goes into the table in docs/clients/README.md.
CLIENTS := tests/clients
check-clients: deps deps-clients
	@rm -rf $(RESULTS)/clients-*
	@for series in $(SERIES); do \
	    [ $$series = 3.10 ] || \
	        $(NEED) clients-$$series -- sh -c "scripts/broker 4.0 && scripts/broker $$series" || continue; \
	    $(MAKE) --no-print-directory dist-$$series suite-clients-$$series || \
	        $(FAIL) clients-$$series "it cannot be built, see above"; \
	done
	@tests/clients/table
	@$(SUM) clients-

suite-clients-%:
	@$(RUN) clients-$* --junit "$(RESULTS)/pytest-clients-$*/*.xml" -- env BROKER_SERIES=$* \
	    PYTHONPATH=tests/integration $(PYTHON) -m pytest -q -p no:cacheprovider \
	    --junitxml=$(RESULTS)/pytest-clients-$*/clients.xml $(CLIENTS)

-include tests/cluster/cluster.mk

# Every place and every errno of tests/c/fault_sweep.c, of which make check draws some, and ten times as many
# power cuts and broken invariants.
soak-faults: _build/c/plain/test_store_faults _build/c/plain/test_store_damage _build/c/asan/test_store_crash \
             _build/c/asan/test_store_broken
	@for t in $^; do DW_TEST_ROUNDS=10 $$t || exit; done

suites-c:
	@$(RUN) c-compile -- $(MAKE) --no-print-directory -k c-tests
	@for t in $(C_TESTS); do \
	    CMOCKA_MESSAGE_OUTPUT=xml CMOCKA_XML_FILE=$(RESULTS)/c-$$t/%g.xml \
	        $(RUN) c-asan-$$t --junit "$(RESULTS)/c-$$t/*.xml" -- _build/c/asan/$$t || exit; \
	    $(RUN) c-valgrind-$$t -- tests/c/under_valgrind _build/c/plain/$$t || exit; \
	done
	@for t in $(C_TESTS_THREADED); do \
	    $(RUN) c-tsan-$$t -- _build/c/tsan/$$t || exit; \
	done
	@$(MAKE) --no-print-directory $(OTHERS:%=suite-c-%)

$(LIBRARIES:%=suite-c-%): suite-c-%:
	@$(RUN) c-compile-$* -- $(MAKE) --no-print-directory -k $(foreach t,$(call tests_on,$*),_build/c/$*/$(t))
	@for t in $(call tests_on,$*); do \
	    $(RUN) c-$*-$$t -- env DW_TEST_SMALL=1 $(call run_on,$*) _build/c/$*/$$t || exit; \
	done

# The library for tests/erl/sanitized.
SANITIZED := _build/sanitized/$(APP)

suites-erl: $(SANITIZED)/$(NIF)
	@mkdir -p $(RESULTS)/eunit $(RESULTS)/sanitized
	@$(RUN) erl-eunit --junit "$(RESULTS)/eunit/*.xml" -- $(REBAR3) eunit
	@$(RUN) erl-sanitized --junit "$(RESULTS)/sanitized/*.xml" -- \
	    tests/erl/sanitized $(SANITIZED) $(RESULTS)/sanitized

$(SANITIZED)/$(NIF): $(wildcard c_src/*.c c_src/*.h include/*.h) Makefile
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(C_NIF_FLAGS) $(call flags_of,$(HOST)) $(c_flags_asan) -UDW_TESTS $(CORE_WARNINGS) -shared \
	    -Wl,-z,nodelete -o $@ $(wildcard c_src/*.c) $(LIBCK) -lpthread

# For tests/integration/native.py, each of its own sources: other suites may be compiling meanwhile.
BROKEN_CALLS := insert settle_due_by take
_build/c/broken_store/rabbit_delay_store.so: tests/integration/broken_store.c \
                                             $(wildcard c_src/*.[ch] include/*.h) Makefile
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(C_NIF_FLAGS) $(call flags_of,$(HOST)) $(nif_flags_$(call last_of,$(HOST))) -DDW_TESTS \
	    $(CORE_WARNINGS) -shared -Wl,-z,nodelete $(BROKEN_CALLS:%=-Wl,--wrap=dw_store_%) -o $@ $< \
	    $(filter-out c_src/dw_invariant.c,$(wildcard c_src/*.c)) -lpthread

_build/c/spread_store/spread_store: tests/integration/spread_store.c $(wildcard c_src/*.[ch] include/*.h) Makefile
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(C_STANDARD) $(c_flags_plain) $(CORE_WARNINGS) -o $@ $< $(C_CORE) $(LIBCK) -lpthread

# The protocol of the replicated exchange, checked by exhaustive search: tests/model/README.md. CASE=release/B4
# shows how those cases break whose names begin so.
MODEL := _build/model
GO := GOCACHE=$(CURDIR)/_build/go-cache GOFLAGS=-buildvcs=false GOPROXY=off GOTOOLCHAIN=local GOWORK=off go

$(MODEL): $(wildcard tests/model/*.go) tests/model/go.mod
	@mkdir -p $(@D)
	$(call say,GO) env -C tests/model $(GO) build -o $(CURDIR)/$@ .

model: $(MODEL)
	@$(MODEL)
model-trace: $(MODEL)
	@$(MODEL) "$(CASE)"

# The machines, delay queues and dispatchers of a cluster under a scheduler of the test's own, which draws what
# happens from a seed: tests/simulation/README.md.
SEEDS := 2000
FIRST := 1
SIMULATED := _build/simulated/$(APP)
SIMULATE := env ERL_LIBS=$(BROKER_HOME)/plugins tests/simulation/run $(EBIN) $(SIMULATED)
suites-simulation: $(SIMULATED)/$(NIF)
	@rm -rf $(RESULTS)/simulation
	@$(RUN) simulation-seeds --junit "$(RESULTS)/simulation/seeds-*.xml" -- \
	    $(SIMULATE) seeds $(FIRST) $(SEEDS) $(RESULTS)/simulation
	@$(RUN) simulation-broken --junit "$(RESULTS)/simulation/broken-*.xml" -- \
	    $(SIMULATE) broken 800 $(RESULTS)/simulation
soak-simulation: SEEDS := 10000
soak-simulation: deps dist-3.10 $(SIMULATED)/$(NIF)
	@$(SIMULATE) seeds $(FIRST) $(SEEDS) $(RESULTS)/simulation
simulation-trace: $(SIMULATED)/$(NIF)
	@$(SIMULATE) seed $(SEED) $(WAY)

# The library that is given to people, but for the two files that say which thread a call is done by.
NOT_DIRTY := dw_nif dw_nif_writer
$(SIMULATED)/$(NIF): tests/simulation/not_dirty.h $(NIF)
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(C_NIF_FLAGS) $(call flags_of,$(HOST)) $(CORE_WARNINGS) -shared -Wl,-z,nodelete -o $@ \
	    -include $< $(NOT_DIRTY:%=c_src/%.c) \
	    $(filter-out $(NOT_DIRTY:%=_build/c/nif/$(HOST)/%.o),$(patsubst c_src/%.c,_build/c/nif/$(HOST)/%.o,$(wildcard c_src/*.c))) \
	    -lpthread

suites-model:
	@$(RUN) model-itself -- env -C tests/model $(GO) test -count=1 .
	@$(RUN) model-cases --junit "$(RESULTS)/model/*.xml" -- \
	    sh -c '$(MAKE) --no-print-directory $(MODEL) && exec $(MODEL) -junit $(RESULTS)/model/cases.xml'

# One suite, or one test of it: TEST=test_heap CASE=many, TEST=rabbit_delay_key_tests,
# TEST=rabbit_delay_key_tests:hash_test (or a generator, ..._test_).
.PHONY: test-c test-erl
test-c:
	@$(MAKE) --no-print-directory _build/c/asan/$(TEST)
	CASE='$(CASE)' _build/c/asan/$(TEST)

test-erl: nif
	@$(REBAR3) as test compile
	@tests/erl/one $(BEAMS)/test/lib/$(APP) $(TEST)

# TESTS=tests/integration/test_X.py... runs some of them.
TESTS := tests/integration
suite-integration-%:
	@$(if $(INTEGRATION_ENDS),CHECK_ENDS=$(INTEGRATION_ENDS)) \
	    $(RUN) integration-$* --junit "$(RESULTS)/pytest-$*/*.xml" -- \
	    $(call pytest_integration,$*,pytest-$*) -p workers -n 2 $(TESTS)

# Of the series $1, with a JUnit file in the directory $2 of the results.
pytest_integration = env BROKER_SERIES=$1 PYTHONPATH=tests/integration $(PYTHON) -m pytest -q \
    -p no:cacheprovider --junitxml=$(RESULTS)/$2/integration.xml

suite-series-%:
	@$(RUN) series-$* -- tests/static/series $* _brokers/$*
	@$(RUN) calls-$* -- tests/static/broker_calls _build/3.13-4.x/default/lib/$(APP)/ebin
	@$(RUN) dist-$* -- $(PYTHON) tests/static/dist.py dist/3.13-4.x/$(EZ_NAME).ez
	$(if $(filter 4.0,$*),@$(RUN) rebuild-$* -- tests/static/rebuild dist/3.13-4.x/$(EZ_NAME).ez)

suites-static:
	@$(RUN) static-tally --junit "$(RESULTS)/tally/*.xml" -- $(PYTHON) -m pytest -q \
	    -p no:cacheprovider --junitxml=$(RESULTS)/tally/tally.xml tests/static/test_tally.py \
	    tests/static/test_links.py tests/static/test_sizes.py tests/static/test_once.py \
	    tests/static/test_locks.py tests/static/test_broker_calls.py \
	    tests/static/test_client_pages.py tests/static/test_client_locks.py \
	    tests/static/test_release.py tests/static/test_deb.py tests/static/test_deploy.py \
	    tests/static/test_checker.py
	@$(RUN) static-links -- tests/static/links
	@$(RUN) static-sizes -- tests/static/sizes
	@$(RUN) static-locks -- tests/static/locks $(wildcard c_src/*.c c_src/*.h)
	@$(RUN) static-format -- $(CLANG_FORMAT) --dry-run -Werror $(C_ALL)
	@$(RUN) static-licence -- tests/static/licence
	@$(RUN) static-dist -- $(PYTHON) tests/static/dist.py $(EZ)
	@$(RUN) static-rebuild -- tests/static/rebuild $(EZ)
	@$(RUN) static-xref -- $(REBAR3) xref
	@$(RUN) static-arrows -- tests/static/arrows $(EBIN)
	@$(RUN) static-dialyzer -- $(REBAR3) dialyzer

# What the HTTP API says, tried out at length, and who may do what of it. API_SEED=N draws other requests of our own.
soak-api: deps dist-$(BROKER_SERIES)
	SCHEMATHESIS_EXAMPLES=300 SCHEMATHESIS_SECONDS=1800 API_ROUNDS=40 \
	    $(PYTHON) -m pytest -q -p no:cacheprovider tests/integration/test_openapi.py tests/integration/test_requests.py

# Reference screenshots of the management pages, in tests/ui/screenshots.
screenshots: deps dist-3.10 dist-4.0
	@for series in 3.10 4.0; do BROKER_SERIES=$$series $(PYTHON) tests/ui/screenshots.py || exit; done

format:
	$(CLANG_FORMAT) -i $(C_ALL)

clean:
	rm -rf _build dist $(LIBRARIES:%=priv/%)
