# Tidegate: one Makefile, read from top to bottom.
#
# Targets (make help prints them):
#   all        both programs (default)
#   test       everything that can fail: unit, fuzz corpora, simulator, scenario, end-to-end
#   unit       cmocka unit tests
#   fuzz       replay the corpora through every fuzz target
#   sim        deterministic simulator; SEED=n runs one seed, SEEDS=n runs seeds 1..n
#   sim-mutants  proves the simulator: every seeded mistake must be found
#   scenario   real clients over real sockets
#   e2e        publish, kill -9, restart, query
#   crash      kill campaign: kill -9, loss of power, crash points (MODE=crash); ROUNDS=n is the long form, SEED=n repeats a run
#   crash-mutants  proves the campaign: every seeded mistake must be found
#   crash-compare  kill -9 of an offline queue: Debian's mosquitto beside tidegate
#   bench      measured figures, printed with machine, flags and commit
#   demo       replay real series through a running pair, query, plot
#   docs       write docs/configuration.md and docs/metrics.md, as the programs say; docs-check: are they up to date
#   layers     the directions of the includes
#   headers    each header compiles alone
#   tidy       clang-tidy, with the ratchet on function length
#   format     clang-format in place; format-check only looks
#   install    into $(DESTDIR)$(PREFIX)
#   clean
#
# Variables:
#   MODE=release|debug|asan|ubsan|tsan|cov|crash    objects go to build/$(MODE)
#   CC, CXX, WERROR=1, PREFIX, DESTDIR

MODE ?= release
B := build/$(MODE)
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
CXX := $(if $(filter default,$(origin CXX)),g++,$(CXX))
PREFIX ?= /usr/local

WARN := -Wall -Wextra -Wshadow -Wcast-qual -Wundef -Wvla -Wswitch-enum -Wconversion -Wno-sign-conversion
CWARN := -Wstrict-prototypes -Wmissing-prototypes
ifeq ($(WERROR),1)
WARN += -Werror
endif

MODEFLAGS_release := -O2 -g
MODEFLAGS_debug := -O0 -g3 -DTIDEGATE_DEBUG
MODEFLAGS_asan := -O1 -g -fsanitize=address -fno-omit-frame-pointer -DTIDEGATE_DEBUG
MODEFLAGS_ubsan := -O1 -g -fsanitize=undefined -fno-sanitize-recover=all -DTIDEGATE_DEBUG
MODEFLAGS_tsan := -O1 -g -fsanitize=thread -DTIDEGATE_DEBUG
MODEFLAGS_cov := -O0 -g --coverage
MODEFLAGS_crash := -O1 -g -DTIDEGATE_DEBUG -DTIDEGATE_CRASH_POINTS
MODEFLAGS := $(MODEFLAGS_$(MODE))
# Under sanitizers gcc guesses wrongly about what may be uninitialised; valgrind and the other modes look after that.
ifneq ($(filter $(MODE),asan ubsan tsan),)
WARN += -Wno-maybe-uninitialized
endif
ifeq ($(MODEFLAGS),)
$(error MODE=$(MODE) is not one of release debug asan ubsan tsan cov crash)
endif

COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
CPPFLAGS := -I. -D_GNU_SOURCE
# gcc for x86 clears and copies structs of some hundred bytes (a record, a packet) with `rep`, whose start takes longer than the stores do.
STRINGS := -mmemset-strategy=vector_loop:512:noalign,libcall:-1:noalign -mmemcpy-strategy=vector_loop:512:noalign,libcall:-1:noalign
OPTIMIZE_release := $(shell $(CC) $(STRINGS) -E -x c /dev/null >/dev/null 2>&1 && echo "$(STRINGS)")
CFLAGS := -std=gnu11 $(MODEFLAGS) $(OPTIMIZE_$(MODE)) $(WARN) $(CWARN) $(EXTRA_CFLAGS)
CXXFLAGS := -std=gnu++17 $(MODEFLAGS) $(WARN) $(EXTRA_CFLAGS)
LDFLAGS := $(MODEFLAGS)
COMMON_LIBS := -lmicrohttpd -llz4 -lck -lxxhash -lpthread -lm
BROKER_LIBS := -luv -llmdb -lmbedtls -lmbedx509 -lmbedcrypto
SINK_LIBS := -lsimdjson
# A sanitizer brings its own allocator; everything else runs on jemalloc.
MALLOC ?= jemalloc
ifeq ($(filter $(MODE),asan tsan),)
ifeq ($(MALLOC),jemalloc)
COMMON_LIBS += -ljemalloc
endif
endif

COMMON_SRC := $(wildcard common/*.c)
BROKER_SRC := $(wildcard broker/*/*.c)
SINK_SRC := $(filter-out sink/main.c,$(wildcard sink/*.c)) $(wildcard sink/*/*.c sink/*/*.cc)
obj = $(patsubst %,$(B)/%.o,$(1))

UNIT_SRC := $(wildcard tests/unit/*_test.c)
UNIT_BIN := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT_SRC))
FUZZ_SRC := $(wildcard fuzz/*_fuzz.c)
FUZZ_BIN := $(patsubst fuzz/%.c,$(B)/fuzz/%,$(FUZZ_SRC))
LIB_SRC := $(wildcard tests/lib/*.c)
SIM_SRC := $(wildcard tests/sim/*.c)
BENCH_SRC := $(wildcard tests/bench/*.c)
BENCH_BIN := $(patsubst tests/bench/%.c,$(B)/bench/%,$(BENCH_SRC))

ARCHIVES := $(B)/libbroker.a $(B)/libsink.a $(B)/libcommon.a
PROGRAMS := $(B)/tidegate-broker $(B)/tidegate-sink

all: $(PROGRAMS)

help:
	@sed -n '/^# Targets/,/^$$/s/^# \{0,1\}//p' Makefile

# The build depends on the flags: a change of them rebuilds.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(CXX) $(CPPFLAGS) $(CFLAGS) $(CXXFLAGS) $(COMMON_LIBS)' | cmp -s - $@ || \
	  echo '$(CC) $(CXX) $(CPPFLAGS) $(CFLAGS) $(CXXFLAGS) $(COMMON_LIBS)' > $@
FORCE:

$(B)/%.c.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(B)/%.cc.o: %.cc $(B)/flags
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ $<

$(B)/libcommon.a: $(call obj,$(COMMON_SRC))
$(B)/libbroker.a: $(call obj,$(BROKER_SRC))
$(B)/libsink.a: $(call obj,$(SINK_SRC))
$(B)/libtest.a: $(call obj,$(LIB_SRC))
$(B)/lib%.a:
	@rm -f $@
	ar rcs $@ $^

# The link order spells the direction: programs stand on their half, both halves on common.
$(B)/tidegate-broker: $(call obj,broker/main.c) $(B)/libbroker.a $(B)/libcommon.a
	$(CC) $(LDFLAGS) -o $@ $^ $(BROKER_LIBS) $(COMMON_LIBS)
$(B)/tidegate-sink: $(call obj,sink/main.c) $(B)/libsink.a $(B)/libcommon.a
	$(CXX) $(LDFLAGS) -o $@ $^ $(SINK_LIBS) $(COMMON_LIBS)

$(B)/unit/%: $(B)/tests/unit/%.c.o $(B)/libtest.a $(ARCHIVES)
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS) -o $@ $^ $(BROKER_LIBS) $(SINK_LIBS) $(COMMON_LIBS) -lcmocka
$(B)/fuzz/%: $(B)/fuzz/%.c.o $(call obj,fuzz/driver.c) $(B)/libtest.a $(ARCHIVES)
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS) -o $@ $^ $(BROKER_LIBS) $(SINK_LIBS) $(COMMON_LIBS)

$(B)/tidegate-sim: $(call obj,$(SIM_SRC)) $(B)/libtest.a $(ARCHIVES)
	$(CXX) $(LDFLAGS) -o $@ $^ $(BROKER_LIBS) $(SINK_LIBS) $(COMMON_LIBS)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.PHONY: all help test threads unit fuzz sim sim-mutants scenario e2e crash crash-mutants crash-compare bench demo docs docs-check layers headers tidy format format-check install clean FORCE $(B)/docs
.SECONDARY:

# All objects, no link: what every commit must pass at least.
land-check: $(call obj,$(COMMON_SRC) $(BROKER_SRC) $(SINK_SRC) $(LIB_SRC) $(UNIT_SRC) $(SIM_SRC) $(BENCH_SRC) $(FUZZ_SRC))

# --- checks -----------------------------------------------------------------------------------------------------------------------------

RESULTS := build/results
TALLY := sh tests/lib/tally run $(RESULTS)

# The directions: common <- broker, common <- sink; the pure rooms see no event loop, no sockets and no clock.
PURE := broker/mqtt broker/core broker/session broker/route/topic_tree broker/route/subscriber broker/route/subscriber_place broker/route/retained \
  broker/route/route_actor broker/telemetry/rule \
  broker/actor/ops broker/actor/op_backlog broker/actor/msg broker/actor/store_read \
  sink/codec sink/decode/payload sink/store/chunk sink/store/head sink/store/merge sink/query/engine common/record common/log_block
# From the ground up: what includes, and so calls, only what stands before it. The folders of broker/, and the files of broker/core.
ROOMS := mqtt actor telemetry guard route session durable core net ops
CORE := recipient ack_gate shard_stats shard_config publish_scratch publish_job shard_state shard_log request session_log client_state \
  waiting scan deliver owed delivery read_back subscribe fan_out inbound publish session_life client_life connect client gate_release \
  shard shard_restore
layers:
	@! grep -nE '#include "(broker|sink|tests|fuzz)/' $$(find common -name '*.[ch]') || { echo 'layers: common/ includes a program'; exit 1; }
	@! grep -nE '#include "(sink|tests|fuzz)/' $$(find broker -name '*.[ch]') || { echo 'layers: broker/ includes beyond itself and common/'; exit 1; }
	@! grep -nE '#include "(broker|tests|fuzz)/' $$(find sink -name '*.[ch]' -o -name '*.cc') || { echo 'layers: sink/ includes beyond itself and common/'; exit 1; }
	@! grep -nE '#include [<"](uv\.h|sys/socket\.h|sys/epoll\.h|unistd\.h|fcntl\.h|time\.h|pthread\.h|broker/net/|broker/actor/(bell|exchange))|clock_(mono|wall|thread_cpu)\(' \
	  $$(for room in $(PURE); do ls -d $$room $$room.[ch] 2>/dev/null; done | xargs -I{} find {} -name '*.[ch]') || \
	  { echo 'layers: a pure file reaches for the machine'; exit 1; }
	@awk -v under=broker/ -v order='$(ROOMS)' -f tests/lib/layers.awk $(wildcard broker/*/*.[ch])
	@awk -v under=broker/core/ -v order='$(CORE)' -f tests/lib/layers.awk $(wildcard broker/core/*.[ch])
	@echo 'layers: ok'

HEADERS := $(shell find common broker sink tests/lib -name '*.h' 2>/dev/null)
headers: $(patsubst %,$(B)/%.alone,$(HEADERS))
	@echo 'headers: $(words $(HEADERS)) compile alone'
$(B)/%.h.alone: %.h $(B)/flags
	@mkdir -p $(@D)
	@$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-unused-function -fsyntax-only -x c $< && touch $@

# Everything that can fail. A group whose build fails counts as one failure. Threads run under ThreadSanitizer: the unit tests that start any.
THREADED := ring set topic_tree admission cpu_pool exchange logger metrics http buf sink_loop
GROUPS := release:layers release:headers release:docs-check release:unit release:fuzz release:sim release:scenario release:e2e \
  crash:crash asan:unit asan:fuzz asan:sim asan:scenario asan:e2e ubsan:unit ubsan:fuzz ubsan:sim tsan:threads tsan:scenario
test:
	@rm -rf $(RESULTS); mkdir -p $(RESULTS)
	@for group in $(GROUPS); do \
	  mode=$${group%%:*}; goal=$${group##*:}; \
	  echo "== $$goal ($$mode)"; \
	  before=$$(cat $(RESULTS)/counts 2>/dev/null | wc -l); \
	  $(MAKE) -s --no-print-directory -j$$(nproc) MODE=$$mode $$goal && result='1 0' || result='0 1'; \
	  [ $$(cat $(RESULTS)/counts 2>/dev/null | wc -l) -gt $$before ] || echo "$$result $$group" >> $(RESULTS)/counts; \
	done
	@sh tests/lib/tally sum $(RESULTS)

threads: $(patsubst %,$(B)/unit/%_test,$(foreach test,$(THREADED),$(if $(wildcard tests/unit/$(test)_test.c),$(test))))
	@status=0; for test in $(sort $^); do $(TALLY) $(MODE)-unit-$$(basename $$test) $$test || status=1; done; exit $$status

unit: $(UNIT_BIN)
	@status=0; for test in $(UNIT_BIN); do $(TALLY) $(MODE)-unit-$$(basename $$test) $$test || status=1; done; exit $$status

fuzz: $(FUZZ_BIN)
	@status=0; for target in $(FUZZ_BIN); do name=$$(basename $$target _fuzz); \
	  $(TALLY) $(MODE)-fuzz-$$name $$target fuzz/corpus/$$name || status=1; done; exit $$status

$(B)/bench/%: $(B)/tests/bench/%.c.o $(ARCHIVES)
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS) -o $@ $^ $(BROKER_LIBS) $(SINK_LIBS) $(COMMON_LIBS)

SEEDS ?= 300
sim: $(B)/tidegate-sim
	$(if $(SEED),$< --seed $(SEED),@$(TALLY) $(MODE)-sim $< --seeds $(SEEDS))

PYTEST := /usr/bin/python3 -B -m pytest -p no:cacheprovider --no-header -rs
# Preloaded into the broker by tests of a disk that fails.
$(B)/failing_disk.so: tests/harness/failing_disk.c tests/lib/preload.h $(B)/flags
	$(CC) $(CPPFLAGS) -std=gnu11 -O2 -g -fPIC -shared $(WARN) -o $@ $< -ldl

scenario: $(PROGRAMS) $(B)/failing_disk.so
	@MODE=$(MODE) $(TALLY) $(MODE)-scenario $(PYTEST) tests/scenario
e2e: $(PROGRAMS) $(B)/bench/replay
	@MODE=$(MODE) $(TALLY) $(MODE)-e2e $(PYTEST) tests/e2e

# Preloaded into the broker by the kill campaign.
$(B)/disk_recorder.so: tests/crash/disk_recorder.c tests/lib/preload.h $(B)/flags
	$(CC) $(CPPFLAGS) -std=gnu11 -O2 -g -fPIC -shared $(WARN) -o $@ $< -ldl

# The short form, at most so many seconds; ROUNDS=n: n rounds and 20 kills at each crash point. Always built with crash points.
CRASH := /usr/bin/python3 -B tests/crash
CRASH_SEED := $(if $(SEED),--seed $(SEED))
crash:
ifneq ($(MODE),crash)
	@$(MAKE) --no-print-directory MODE=crash crash
else
crash: $(PROGRAMS) $(B)/disk_recorder.so
ifdef ROUNDS
	@MODE=crash $(CRASH)/long.py --rounds $(ROUNDS) --points 20 $(CRASH_SEED)
else
	@status=0; export MODE=crash; \
	  $(TALLY) crash $(CRASH)/campaign.py --rounds 60 --points 2 --seconds 60 $(CRASH_SEED) || status=1; \
	  $(TALLY) crash-steps $(CRASH)/steps.py --kills 8 --seconds 40 $(CRASH_SEED) || status=1; \
	  $(TALLY) crash-mutants-fit tests/crash/run-mutants --check || status=1; exit $$status
endif
endif

crash-mutants:
	@$(MAKE) -s MODE=crash all build/crash/disk_recorder.so
	@$(TALLY) crash-mutants tests/crash/run-mutants
crash-compare:
	@$(MAKE) -s MODE=release all
	@/usr/bin/python3 -B tests/crash/mosquitto.py

# Built in debug, whatever MODE says.
sim-mutants:
	@$(MAKE) -s MODE=debug build/debug/tidegate-sim
	@$(TALLY) sim-mutants tests/sim/run-mutants

SOURCES := $(COMMON_SRC) $(BROKER_SRC) $(SINK_SRC) broker/main.c sink/main.c
tidy:
	@printf '%s\n' $(SOURCES) | xargs -P 2 -I{} clang-tidy --quiet {} -- $(CPPFLAGS) -DTIDEGATE_DEBUG 2>/dev/null | grep -E 'warning:|error:' ; test $$? = 1
	@tests/lib/long-functions

# The references of options and metrics are written by the programs themselves, so they cannot say anything else than those do.
docs $(B)/docs: $(PROGRAMS)
	@mkdir -p $(B)/docs
	@{ $(B)/tidegate-broker --markdown && echo && $(B)/tidegate-sink reference; } > $(B)/docs/configuration.md
	@sh scripts/metrics $(B) > $(B)/docs/metrics.md
	$(if $(filter docs,$@),@cp $(B)/docs/configuration.md $(B)/docs/metrics.md docs/)
docs-check: $(B)/docs
	@for document in configuration.md metrics.md; do \
	  diff -u docs/$$document $(B)/docs/$$document || { echo "docs: docs/$$document is old: make docs"; exit 1; }; done
	@sh tests/lib/docs-check docs/metrics.md && echo 'docs: ok'

FORMATTED = $(shell git ls-files '*.c' '*.h' '*.cc')
format:
	clang-format -i $(FORMATTED)
format-check:
	@clang-format --dry-run -Werror $(FORMATTED) && echo 'format: ok'

install: all
	install -D -m 755 $(B)/tidegate-broker $(DESTDIR)$(PREFIX)/bin/tidegate-broker
	install -D -m 755 $(B)/tidegate-sink $(DESTDIR)$(PREFIX)/bin/tidegate-sink
	install -D -m 644 conf/broker.conf $(DESTDIR)$(PREFIX)/etc/tidegate/broker.conf
	install -D -m 644 conf/sink.conf $(DESTDIR)$(PREFIX)/etc/tidegate/sink.conf

clean:
	rm -rf build

bench: all $(BENCH_BIN)
	@scripts/bench

# DATA=DIR keeps the data there; CSV="a.csv b.csv.gz" replays others than tests/demo/.
demo: all $(B)/bench/replay
	@DATA='$(DATA)' CSV='$(CSV)' sh scripts/demo $(B)
