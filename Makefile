# make demo            carry a guest whose cold memory lies in swap, and show what became of it
# make demo JSON=FILE  the same, and write the result as JSON
# make demo QEMU=10.0  the same with the QEMU of Debian's backports instead of its own
# make bench           pageferry, QEMU's own migration and the machine's limits (QUICK=1: one short run)
# make bench-scale     what a guest's size costs, up to 256 GiB (QUICK=1: up to 16)
#                      both: JSON=FILE TABLES=FILE; bench: PICTURES=FOLDER ONLY=NAME,... RUNS=N
# make bench-docs      both, into docs/: what is there of an interrupted bench is kept
# make concept-pictures  the pictures of docs/concepts.md, from a migration (minutes)
# make test            everything that runs on this machine; skips say why
# make faults          every fault in every phase, on real guests (JOBS=2 at a time, ONLY=WORDS, JSON=FILE, TABLE=FILE)
# make fuzz            the parsers of what peers and files say, MINUTES=5 in all
# make soak            guests go back and forth while things break: MINUTES=5 SEED=N JSON=FILE QEMU=7.2
# make vm-test         what needs cgroup version 2 or systemd, in VMs (minutes; they emulate VMs within)
# make deb             a Debian package of what this checkout has, in build/deb
# make deb-test        install it in a VM with systemd, and try it in its sandbox (under TCG an hour)
# make libvirt-test    what docs/libvirt.md says, with a real libvirtd (two minutes; fetches Debian's)
# make lint            formatting, lint rules and types
# make reference       write docs/reference.md and the manual pages anew, from the code
# make native          rebuild the C extensions in place
# make kernel-check    every series of kernel-patches/ applies, and was tested as it is
# make kernel-test     build and boot kernels with and without the series (hours on a busy machine)
#      SERIES=v6.12    one series only; VARIANTS="unpatched patched" leaves out the debug kernel
#      RECORD=yes      keep the results in kernel-patches/results/
# make kernel-mutants  wrong variants of the 6.12 series, which its selftest must catch
# make clean           remove what was built and fetched
#
# On a Debian that lacks something, root installs it with apt; a prepared machine needs no apt run.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/ready
NATIVE_SOURCES := $(wildcard native/*.c native/*.h native/*.py)
JSON :=
QEMU :=
QUICK :=
TABLES :=
PICTURES :=
ONLY :=
RUNS :=
LOCK :=
TESTS := tests
BENCH_READY := $(VENV)/bench
BENCH := $(PYTHON) -m pageferry.testing.bench
BENCH_OPTIONS = $(if $(QUICK),--quick) $(if $(JSON),--json "$(JSON)") $(if $(TABLES),--tables "$(TABLES)") \
	$(if $(LOCK),--lock "$(LOCK)")
SERIES :=
VARIANTS :=
RECORD :=

.PHONY: demo bench bench-scale bench-docs concept-pictures test faults fuzz soak vm-test deb deb-test
.PHONY: libvirt-test lint reference native clean prepared vm-prepared
.PHONY: kernel-check kernel-test kernel-mutants kernel-prepared

demo: $(READY)
	$(PYTHON) -m pageferry.testing.lab.demo $(if $(JSON),--json "$(JSON)") $(if $(QEMU),--qemu "$(QEMU)")

bench: $(BENCH_READY)
	$(BENCH).main $(BENCH_OPTIONS) $(if $(PICTURES),--pictures "$(PICTURES)") \
		$(if $(ONLY),--only "$(ONLY)") $(if $(RUNS),--runs $(RUNS))

bench-scale: $(READY)
	$(BENCH).scale.main $(BENCH_OPTIONS)

bench-docs:
	$(MAKE) bench TABLES=docs/performance-figures.md PICTURES=docs/img
	$(MAKE) bench-scale TABLES=docs/scale-figures.md

concept-pictures: $(BENCH_READY)
	$(BENCH).concepts docs/img

test: $(READY)
	$(PYTHON) -m pytest --ignore=tests/vm --ignore=tests/libvirt $(TESTS)

vm-test: $(READY) vm-prepared
	$(PYTHON) -m pytest tests/vm

deb: $(READY)
	$(PYTHON) deploy/debian/build.py build/deb

deb-test: $(READY) vm-prepared
	$(PYTHON) -m pytest tests/vm/test_installed.py

TABLE :=
JOBS := 2

# Half an hour or so. The table is docs/faults.md, and is written when all has passed.
faults: $(READY)
	$(PYTHON) -m tests.faults.run --jobs $(JOBS) $(if $(ONLY),--only "$(ONLY)") \
		$(if $(JSON),--json "$(JSON)") $(if $(TABLE),--table "$(TABLE)")

libvirt-test: $(READY)
	$(PYTHON) -m pytest tests/libvirt

MINUTES := 5
FUZZED := control answers data first jsonstream journal config

# Findings are left in .cache/fuzz, what is new in its corpus too; a finding ends the run.
fuzz: $(READY)
	@for target in $(FUZZED); do \
		mkdir -p .cache/fuzz/$$target && \
		$(PYTHON) -W ignore -m tests.fuzz.run $$target -rss_limit_mb=1024 -timeout=10 \
			-max_total_time=$$(( $(MINUTES) * 60 / $(words $(FUZZED)) )) -print_final_stats=1 \
			-artifact_prefix=.cache/fuzz/$$target- \
			.cache/fuzz/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

SEED :=
FIRST :=

soak: $(READY)
	$(PYTHON) -m pageferry.testing.soak.main --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) \
		$(if $(FIRST),--first $(FIRST)) $(if $(JSON),--json "$(JSON)") $(if $(QEMU),--qemu "$(QEMU)")

lint: $(READY)
	$(PYTHON) -m ruff format --check agent tests native deploy docs/examples
	$(PYTHON) -m ruff check agent tests native deploy docs/examples
	$(PYTHON) -m mypy

reference: $(READY)
	$(PYTHON) -m pageferry.reference .

KERNELS := $(PYTHON) -m pageferry.testing.lab.kernels
KERNEL_OPTIONS = $(addprefix --series ,$(SERIES)) $(if $(RECORD),--record)

kernel-check: $(READY)
	$(KERNELS) check $(addprefix --series ,$(SERIES))

kernel-test: $(READY) kernel-prepared
	$(KERNELS) test $(KERNEL_OPTIONS) $(addprefix --variant ,$(VARIANTS))

kernel-mutants: $(READY) kernel-prepared
	$(KERNELS) mutants --series v6.12 $(if $(RECORD),--record)

native: prepared
	$(PYTHON) -m pip install --quiet --editable '.[test]'

# Installed anew when the sources of the extensions or the dependencies change.
$(READY): pyproject.toml setup.py $(NATIVE_SOURCES) | prepared
	$(PYTHON) -m pip install --quiet --editable '.[test]'
	touch $@

$(BENCH_READY): $(READY)
	$(PYTHON) -m pip install --quiet --editable '.[test,bench]'
	touch $@

prepared:
	@./.ci/prepare $(VENV)

vm-prepared:
	@./.ci/prepare-vm

kernel-prepared:
	@./.ci/prepare-kernels

clean:
	rm -rf $(VENV) .cache build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf agent/pageferry.egg-info agent/pageferry/kernel/_native.*.so agent/pageferry/net/_tls.*.so
	find agent tests native docs/examples -name __pycache__ -type d -prune -exec rm -rf {} +
