# SPDX-License-Identifier: GPL-2.0-or-later
# kjump: build, install, package, test.  `make help` lists the targets, from the comments beside
# them; `make` alone builds.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

export KJUMP_CACHE ?= $(HOME)/.cache/kjump
PYTHON ?= $(KJUMP_CACHE)/venv/bin/python
BIN = $(dir $(PYTHON))
RUN = PYTHONPATH=daemon:. PYTHONDONTWRITEBYTECODE=1 $(PYTHON)

VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' daemon/kjump/__init__.py)
NATIVE := daemon/kjump/native
BUILT := $(NATIVE)/built

# Where things go.
PYTHONDIR ?= /usr/lib/python3/dist-packages
BINDIR ?= /usr/bin
LIBEXECDIR ?= /usr/libexec/kjump
UNITDIR ?= /usr/lib/systemd/system
DATADIR ?= /usr/share
DOCDIR ?= $(DATADIR)/doc/kjump
ZSHDIR ?= $(DATADIR)/zsh/vendor-completions
KERNELHOOKDIR ?= /etc/kernel
# What makes the boot initrds here, and what tells of new kernels.
INITRDS ?= initramfs-tools dracut mkinitcpio
KERNELHOOKS ?= postinst.d kernel-install

.PHONY: all help build install install-docs map deb rpm setup lint format check coverage test test-all test-python \
	test-guests bench demo kernel kernel-debug clean
all: build

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# -- native parts ---------------------------------------------------------------------------
#
# *.S is position-independent machine code, linked at 0: NAME.bin is what gets copied into
# memory, NAME.elf stays for the tests that disassemble it.  *.c is one shared library, for
# the loops over pages that Python would be too slow for.

CC ?= gcc
LD := ld
OBJCOPY := objcopy
NATIVE_LIBS := -lzstd -llz4 -lz
NATIVE_CFLAGS := -O2 -Wall -Wextra -Werror -ffile-prefix-map=$(CURDIR)=.

STUBS := $(patsubst $(NATIVE)/%.S,$(BUILT)/%.bin,$(wildcard $(NATIVE)/*.S))
LIBRARY := $(if $(wildcard $(NATIVE)/*.c),$(BUILT)/libkjump.so)

# What asks on systemd's behalf is a program of its own, with the exit codes of kjump/errors.py.
REQUEST := daemon/request/built/kjump-hibernate

build: $(STUBS) $(LIBRARY) $(REQUEST) ## the native parts, in daemon/kjump/native/built/ and daemon/request/built/ (the default)

$(BUILT) $(dir $(REQUEST)):
	@mkdir -p $@

$(BUILT)/%.o: $(NATIVE)/%.S | $(BUILT)
	@$(CC) -c -nostdlib -o $@ $<

$(BUILT)/%.elf: $(BUILT)/%.o
	@$(LD) --no-warn-rwx-segments -Ttext=0 -e 0 --build-id=none -o $@ $<

$(BUILT)/%.bin: $(BUILT)/%.elf
	@$(OBJCOPY) -O binary $< $@

$(BUILT)/libkjump.so: $(wildcard $(NATIVE)/*.c $(NATIVE)/*.h) | $(BUILT)
	@$(CC) $(NATIVE_CFLAGS) -fPIC $(CFLAGS) -shared $(LDFLAGS) -o $@ $(filter %.c,$^) $(NATIVE_LIBS)

$(dir $(REQUEST))errors.h: daemon/kjump/errors.py | $(dir $(REQUEST))
	@PYTHONPATH=daemon PYTHONDONTWRITEBYTECODE=1 python3 -c 'from kjump.errors import table; \
		rows = ["\t{\"%s\", %d},\n" % (name, cls.exit_code) for name, cls in sorted(table().items())]; \
		print("static const struct {\n\tconst char *name;\n\tint status;\n} ERRORS[] = {\n" + "".join(rows) + "};")' >$@

$(REQUEST): daemon/request/kjump-hibernate.c $(dir $(REQUEST))errors.h
	@$(CC) $(NATIVE_CFLAGS) -I$(@D) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $< -lsystemd

# -- manual pages and completions ------------------------------------------------------------
#
# Made from docs/ by lowdown, and from kjumpctl's parser by shtab.  COMPLETIONS= on the command line
# leaves the completions out, for a system without shtab.

MANUALS := $(patsubst docs/%.md,build/man/%,$(wildcard docs/*.[1-8].md))
COMPLETIONS := build/completions/kjumpctl build/completions/_kjumpctl
COMMAND_LINE := packaging/make-completions $(wildcard daemon/kjump/*.py daemon/kjump/cli/*.py daemon/kjump/cli/commands/*.py)

build/man build/completions:
	@mkdir -p $@

build/man/%: docs/%.md packaging/man-page packaging/debian/changelog daemon/kjump/__init__.py | build/man
	@packaging/man-page $< >$@

build/completions/kjumpctl: $(COMMAND_LINE) | build/completions
	@packaging/make-completions bash >$@

build/completions/_kjumpctl: $(COMMAND_LINE) | build/completions
	@packaging/make-completions zsh >$@

# -- installing -----------------------------------------------------------------------------

D = $(DESTDIR)

# $(call into,DIR,MODE,FILES): install FILES, where there are any, into DIR.
into = $(if $(strip $(3)),install -d $(D)$(1) && install -m $(2) $(3) $(D)$(1)/)

install: build install-docs $(COMPLETIONS) ## everything into $(DESTDIR); the deb and the rpm use it
	@find daemon/kjump -type d ! -name __pycache__ ! -name built -printf '%P\n' | while read -r folder; do \
		install -d "$(D)$(PYTHONDIR)/kjump/$$folder"; \
		find "daemon/kjump/$$folder" -maxdepth 1 -name '*.py' \
			-exec install -m 644 -t "$(D)$(PYTHONDIR)/kjump/$$folder" {} +; \
	done
	@$(call into,$(PYTHONDIR)/kjump/native/built,644,$(STUBS) $(LIBRARY))
	@$(call into,$(BINDIR),755,packaging/launchers/kjumpctl)
	@$(call into,$(LIBEXECDIR),755,$(filter-out %/kjumpctl,$(wildcard packaging/launchers/*)) $(REQUEST))
	@$(call into,$(UNITDIR),644,$(wildcard units/*.service units/*.socket units/*.target units/*.timer units/*.path))
	@if test -d units/dropins; then cd units/dropins && find . -type f -printf '%P\n' | while read -r f; do \
		install -D -m 644 "$$f" "$(D)$(DATADIR)/kjump/dropins/$$f"; done; fi
	@$(call into,/usr/lib/udev/rules.d,644,$(wildcard units/*.rules units/udev/*.rules))
	@$(call into,$(DATADIR)/dbus-1/system-services,644,$(wildcard units/dbus/*.service config/dbus/*.service config/system-services/*.service))
	@$(call into,$(DATADIR)/dbus-1/system.d,644,$(wildcard config/*.conf-dbus config/dbus/*.conf config/org.kjump1.conf))
	@$(call into,$(DATADIR)/dbus-1/interfaces,644,$(wildcard config/*.xml config/dbus/*.xml))
	@$(call into,$(DATADIR)/polkit-1/actions,644,$(wildcard config/*.policy config/polkit/*.policy))
	@$(call into,/usr/lib/tmpfiles.d,644,$(wildcard config/tmpfiles/*.conf config/tmpfiles.d/*.conf))
	@$(call into,/etc/kjump,644,$(wildcard config/kjump.conf))
	@install -d $(D)/etc/kjump/kjump.conf.d
	@$(call into,$(DATADIR)/bash-completion/completions,644,$(filter %/kjumpctl,$(COMPLETIONS)))
	@$(call into,$(ZSHDIR),644,$(filter %/_kjumpctl,$(COMPLETIONS)))
	@install -d $(D)/usr/lib/dracut/modules.d
# The helper's initrd is made by dracut everywhere.
	@cp -r --no-preserve=ownership,timestamps packaging/dracut/95kjump-helper $(if $(filter dracut,$(INITRDS)),packaging/dracut/96kjump-resume) $(D)/usr/lib/dracut/modules.d/
ifneq ($(filter initramfs-tools,$(INITRDS)),)
	@$(call into,$(DATADIR)/initramfs-tools/hooks,755,packaging/initramfs-tools/hooks/kjump)
	@$(foreach place,init-top init-premount local-premount,$(call into,$(DATADIR)/initramfs-tools/scripts/$(place),755,packaging/initramfs-tools/scripts/$(place)/kjump) &&) true
endif
ifneq ($(filter mkinitcpio,$(INITRDS)),)
	@$(call into,/usr/lib/initcpio/install,644,packaging/mkinitcpio/install/kjump)
	@$(call into,/usr/lib/initcpio/hooks,644,packaging/mkinitcpio/hooks/kjump)
endif
ifneq ($(filter postinst.d,$(KERNELHOOKS)),)
	@install -D -m 755 packaging/kernel-hooks/postinst.d $(D)$(KERNELHOOKDIR)/postinst.d/zz-kjump
	@install -D -m 755 packaging/kernel-hooks/postrm.d $(D)$(KERNELHOOKDIR)/postrm.d/zz-kjump
endif
ifneq ($(filter kernel-install,$(KERNELHOOKS)),)
	@install -D -m 755 packaging/kernel-hooks/kernel-install $(D)/usr/lib/kernel/install.d/95-kjump.install
endif

# The documentation has the layout of the source tree, so that links from page to page work there too.
install-docs: $(MANUALS) ## manual pages and documentation only
	@for page in $(MANUALS); do \
		install -D -m 644 "$$page" "$(D)$(DATADIR)/man/man$${page##*.}/$${page##*/}"; \
	done
	@$(call into,$(DOCDIR),644,README.md NEWS CONTRIBUTING.md SECURITY.md)
	@$(call into,$(DOCDIR)/docs,644,$(wildcard docs/*.md docs/*.svg docs/*.png))

map: ## docs/map.md, from the first lines of the sources
	@packaging/map >docs/map.md

# -- packages -------------------------------------------------------------------------------

deb: ## build/deb/kjump.deb, and the source package beside it
	@packaging/build-deb

rpm: ## build/rpm/kjump.rpm, and the source package beside it
	@packaging/build-rpm

# -- tests ----------------------------------------------------------------------------------

setup: ## install what the tests need, with apt and pip
	@packaging/setup

# The linters find files that end in .py by themselves, the others have to be named.
SOURCES = daemon $(wildcard tests packaging/launchers/*) packaging/map packaging/make-completions

# All of them run, whatever the first finds.
lint: setup ## ruff, mypy, import-linter, shellcheck
	@mkdir -p build; echo "lint: ruff, mypy, import-linter, shellcheck"; status=0; \
	$(BIN)ruff check --quiet $(SOURCES) || status=1; \
	$(BIN)ruff format --quiet --check $(SOURCES) || { echo "lint: run make format"; status=1; }; \
	$(BIN)mypy --no-error-summary --explicit-package-bases daemon/kjump $(wildcard tests) || status=1; \
	for script in packaging/map packaging/make-completions; do \
		$(BIN)mypy --no-error-summary "$$script" || status=1; \
	done; \
	PYTHONPATH=daemon $(BIN)lint-imports >build/lint-imports.log 2>&1 || { cat build/lint-imports.log; status=1; }; \
	if command -v shellcheck >/dev/null; then packaging/shell-files | xargs shellcheck --severity=warning || status=1; fi; \
	exit $$status

format: setup ## sort imports and format the code, with ruff
	@$(BIN)ruff check --quiet --select I --fix $(SOURCES)
	@$(BIN)ruff format --quiet $(SOURCES)

# In as many processes as there are processors: each test may run beside any other; packages are
# built under a lock.
PARALLEL = -n auto
UNIT = $(PARALLEL) tests/unit
COVERAGE = --cov --cov-report=

check: setup build ## linters and unit tests, in less than a minute; run it before each commit
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	echo "check: tests/unit, with few examples for each property"; \
	$(RUN) -m pytest -q --hypothesis-profile=fast $(UNIT) || status=1; \
	exit $$status

coverage: setup build ## which lines the unit tests reach: a table, and build/coverage/index.html
	@$(RUN) -m pytest -q $(COVERAGE) --cov-report=term:skip-covered --cov-report=html $(UNIT)

test-python: setup build ## unit tests with their coverage, package tests, private-bus tests
	@status=0; \
	echo "test: tests/unit"; \
	$(RUN) -m pytest -q $(COVERAGE) --cov-report=term:skip-covered $(UNIT) || status=1; \
	echo "test: tests/packages and tests/bus"; \
	$(RUN) -m pytest -q $(PARALLEL) $(wildcard tests/packages) $(wildcard tests/bus) || status=1; \
	exit $$status

test-guests: setup build ## the guest tests of make test
	@$(RUN) -m tests.vm.run

# Lint failures do not stop the tests; the exit status covers both.
test: setup build ## linters, unit tests, private-bus tests, package tests, then guest tests in QEMU
	@echo "make test: linters, unit, bus and package tests (5 min), then guests in QEMU (30-45 min on 2 cores"
	@echo "without KVM; the first run also makes a kernel and guest images). Caches: $(KJUMP_CACHE)"
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(MAKE) --no-print-directory test-python || status=1; \
	if test -e tests/vm/run.py; then $(MAKE) --no-print-directory test-guests || status=1; fi; \
	exit $$status

test-all: setup build ## make test, with every guest shape
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-python
	@$(RUN) -m tests.vm.run --all

# What was measured before is not measured again: build/bench keeps it.
bench: setup build ## times beside the kernel's own hibernation; BENCH="--quick" for options
	@$(RUN) -m tests.bench $(BENCH)

demo: setup build ## one whole cycle in a guest, as a user would see it
	@echo "make demo: about 5 minutes with warm caches; the first run builds a guest image (5 min) and,"
	@echo "where none is cached, a kernel (25 min on 2 cores). Caches: $(KJUMP_CACHE)"
	@$(RUN) -m tests.vm.demo

kernel: ## a Debian kernel package with CONFIG_KEXEC_JUMP
	@packaging/kernel/build

kernel-debug: ## a small kernel with debug information, for the tests with crash and drgn
	@packaging/kernel/build --debug

clean: ## remove everything that was built, except the caches in $(KJUMP_CACHE)
	@rm -rf build dist $(BUILT) $(dir $(REQUEST)) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
