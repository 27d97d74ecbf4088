"""Runs three nodes of Garage as one cluster, and starts a node again a while after it has ended. Called by servers.py.

    cluster.py GARAGE DIR ACCESS SECRET REGION RPC-SECRET PORT...    six ports: of S3 and of RPC, for each node

Each object and each entry of a listing is on all three, two of which have to agree, so one may be gone. DIR/nodes has a line
for each node, `URL PID`, and changes when one was started again.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# How long a node that has ended stays away.
AWAY_S = 3
DEADLINE_S = 40


def end_with_parent():
    """A node gets SIGKILL when we die: PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Node:
    def __init__(self, garage, directory, number, region, secret, port, rpc):
        self.garage, self.dir, self.port = garage, directory / f"node{number}", port
        self.dir.mkdir()
        self.config = self.dir / "garage.toml"
        self.text = f"""
metadata_dir = "{self.dir}/meta"
data_dir = "{self.dir}/data"
db_engine = "lmdb"
metadata_fsync = false
data_fsync = false
replication_factor = 3
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{secret}"
[s3_api]
s3_region = "{region}"
api_bind_addr = "127.0.0.1:{port}"
"""
        self.know([])
        self.start()

    def know(self, peers):
        """Who it connects to as soon as it starts the next time, and not a while after."""
        self.config.write_text(f"bootstrap_peers = {json.dumps(peers)}\n{self.text}")
        self.config.chmod(0o600)

    def start(self):
        with open(self.dir / "log", "ab") as out:
            self.process = subprocess.Popen([self.garage, "-c", self.config, "server"], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=out, preexec_fn=end_with_parent, env={**os.environ, "RUST_LOG": "garage=info"})
        self.ended = None

    def ask(self, *words):
        """What a command says, as soon as the node answers."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            said = subprocess.run([self.garage, "-c", self.config, *words], capture_output=True, text=True, timeout=DEADLINE_S)
            if said.returncode == 0:
                return said.stdout
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit(f"garage {' '.join(words)}: {said.stderr.strip()}")
            time.sleep(0.1)


def main():
    garage, directory, access, secret, region, rpc_secret, *ports = sys.argv[1:]
    directory = Path(directory)
    nodes = [Node(garage, directory, number, region, rpc_secret, *ports[2 * number:2 * number + 2]) for number in range(3)]
    first = nodes[0]
    names = [node.ask("node", "id", "-q").strip() for node in nodes]
    for node, name in zip(nodes, names):
        if node is not first:
            first.ask("node", "connect", name)
        first.ask("layout", "assign", "-z", node.dir.name, "-c", "1G", name.split("@")[0])
        node.know([other for other in names if other != name])
    first.ask("layout", "apply", "--version", "1")
    first.ask("key", "import", "--yes", "-n", "tests", access, secret)
    first.ask("key", "allow", "--create-bucket", access)
    tell(directory, nodes)
    while True:
        for node in nodes:
            if node.process.poll() is None:
                continue
            node.ended = node.ended or time.monotonic()
            if time.monotonic() - node.ended > AWAY_S:
                node.start()
                tell(directory, nodes)
        time.sleep(0.1)


def tell(directory, nodes):
    text = "".join(f"http://127.0.0.1:{node.port} {node.process.pid}\n" for node in nodes)
    (directory / "nodes.new").write_text(text)
    (directory / "nodes.new").rename(directory / "nodes")


if __name__ == "__main__":
    main()
