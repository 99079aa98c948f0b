"""One harness per promise; `make torture` prints promise, attempts, failures."""
