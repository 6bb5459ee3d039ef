.PHONY: check fast mutants test

# Everything: ruff, pyright, the order of imports, and all tests.
check:
	tests/run.sh

# The same checks, and the unit tests of what changed since the last commit: before every one.
fast:
	tests/run.sh $(shell python3 tests/helpers/changed.py) -n auto --dist loadscope --no-loadscope-reorder

# Some tests: make test ARGS="tests/unit/launch/test_launcher.py -k script"
test:
	tests/run.sh $(ARGS)

# Which small changes of a wing does no unit test notice? make mutants WING=step MINUTES=9, or SAMPLE=250
mutants:
	tests/mutants.sh $(WING) --minutes $(or $(MINUTES),60) $(if $(SAMPLE),--sample $(SAMPLE))
