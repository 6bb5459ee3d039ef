.PHONY: check test

# Everything: ruff, pyright and pytest.
check:
	tests/run.sh

# The tests of one file: make test ARGS=tests/unit/test_launcher.py
test:
	tests/run.sh $(ARGS)
