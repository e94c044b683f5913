"""The float networks: that which all begin with, and the same trained on."""

import harness


def make(work, method):
    """Returns one of them."""
    return work.network(work.start if method == "start" else work.trained)


def write(model, path, method, work):
    """Writes the float file."""
    harness.convert(model, path)


PEER = harness.Peer(("tensorflow", "keras"), make, write, trains=False)

if __name__ == "__main__":
    harness.start(PEER)
