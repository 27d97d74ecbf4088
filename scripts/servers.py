"""Starts one S3 server, proves that it answers, and ends it. Called by scripts/servers, which says how."""

import argparse
import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
from botocore.config import Config

TOOLS = Path(os.environ["PAILFS_TOOLS"])
START_DEADLINE_S = 60
# Ports are found free and then given away, so another program may take one first.
ATTEMPTS = 3


class Failed(Exception):
    pass


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def end_with_parent():
    """The server gets SIGTERM when we die, even by SIGKILL: PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Server:
    region = "us-east-1"

    def __init__(self, directory):
        self.dir = directory
        self.access = "GK" + secrets.token_hex(12)
        self.secret = secrets.token_hex(32)
        self.env = {}

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self):
        return boto3.client(
            "s3", endpoint_url=self.url(), region_name=self.region,
            aws_access_key_id=self.access, aws_secret_access_key=self.secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1},
                          connect_timeout=2, read_timeout=5))

    def after_start(self):
        """What is left to do once it answers."""

    def leavings(self):
        """Files that it makes outside of its directory."""
        return []


class Garage(Server):
    region = "garage"

    def command(self):
        self.port, rpc = free_ports(2)
        self.config = self.dir / "garage.toml"
        self.config.write_text(f"""
metadata_dir = "{self.dir}/meta"
data_dir = "{self.dir}/data"
db_engine = "lmdb"
metadata_fsync = false
data_fsync = false
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{secrets.token_hex(32)}"
[s3_api]
s3_region = "{self.region}"
api_bind_addr = "127.0.0.1:{self.port}"
""")
        self.env = {"GARAGE_DEFAULT_ACCESS_KEY": self.access, "GARAGE_DEFAULT_SECRET_KEY": self.secret,
                    "GARAGE_DEFAULT_BUCKET": "default", "RUST_LOG": "garage=info"}
        self.binary = TOOLS / "garage/bin/garage"
        return [self.binary, "-c", self.config, "server", "--single-node", "--default-bucket"]

    def after_start(self):
        """Keys may not create buckets by default; tests want one each."""
        done = subprocess.run([self.binary, "-c", self.config, "key", "allow", "--create-bucket", self.access],
                              capture_output=True, text=True, timeout=20)
        if done.returncode != 0:
            raise Failed(f"garage key allow --create-bucket: {done.stderr.strip()}")


class Cluster(Server):
    """Three nodes of Garage, of which any one may be killed: it comes back by itself (cluster.py)."""

    region = "garage"

    def command(self):
        ports = free_ports(6)
        self.port = ports[0]
        return [sys.executable, Path(__file__).with_name("cluster.py"), TOOLS / "garage/bin/garage", self.dir, self.access,
                self.secret, self.region, secrets.token_hex(32), *ports]


class SeaweedFS(Server):
    def command(self):
        names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
                 "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"]
        self.ports = ports = dict(zip(names, free_ports(len(names))))
        self.port = ports["s3.port"]
        identities = self.dir / "s3.json"
        identities.write_text(json.dumps({"identities": [{
            "name": "tests", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
            "credentials": [{"accessKey": self.access, "secretKey": self.secret}]}]}))
        data = self.dir / "data"
        data.mkdir()
        self.env = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        return [TOOLS / "venv/bin/weed", "-logtostderr=true", "server", "-s3", "-filer", f"-dir={data}", "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1", f"-s3.config={identities}", "-master.telemetry=false",
                # A bucket takes volumes of its own; small ones, grown one at a time, keep the directory small.
                "-master.volumeSizeLimitMB=64", "-volume.max=0", "-volume.minFreeSpace=1",
                "-s3.port.iceberg=0", "-s3.port.lance=0",
                f"-filer.localSocket={self.dir}/filer.sock", f"-s3.localSocket={self.dir}/s3.sock",
                *(f"-{name}={port}" for name, port in ports.items())]

    def leavings(self):
        return [Path(f"/tmp/seaweedfs-{part}-grpc-{self.ports[f'{part}.port.grpc']}.sock")
                for part in ("master", "volume", "filer", "s3")]


class Moto(Server):
    def command(self):
        (self.port,) = free_ports(1)
        return [TOOLS / "venv/bin/moto_server", "-H", "127.0.0.1", "-p", str(self.port)]


SERVERS = {"garage": Garage, "cluster": Cluster, "seaweedfs": SeaweedFS, "moto": Moto}


def launch(name, directory):
    """A server that answers, and its process."""
    why = ""
    for _ in range(ATTEMPTS):
        run_dir = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
        server = SERVERS[name](run_dir)
        command = [str(word) for word in server.command()]
        log = run_dir / "log"
        try:
            with open(log, "wb") as out:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=run_dir,
                                           env={**os.environ, "TMPDIR": str(run_dir), **server.env}, preexec_fn=end_with_parent)
        except OSError as error:
            shutil.rmtree(run_dir)
            raise Failed(f"{error}; run scripts/servers install {name}")
        try:
            answer = wait_until_it_answers(server, process)
            if answer is None:
                server.after_start()
                return server, process
            why = f"{answer}\n{tail(log)}"
        except BaseException:
            end(server, process)
            raise
        end(server, process)
    raise Failed(f"{name} does not start: {why}")


def wait_until_it_answers(server, process):
    """None once it lists buckets and keeps an object; otherwise why not."""
    client, deadline = server.client(), time.monotonic() + START_DEADLINE_S
    last = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"it ended with {process.returncode}"
        try:
            prove(server, client)
            return None
        except Exception as error:  # every way of not being ready yet
            last = f"{type(error).__name__}: {error}"
        time.sleep(0.1)
    return f"no answer in {START_DEADLINE_S} s: {last}"


def prove(server, client):
    client.list_buckets()
    # Its key is known before it may do everything.
    if isinstance(server, Cluster) and not (server.dir / "nodes").exists():
        raise Failed("the nodes are not one cluster yet")
    if isinstance(server, SeaweedFS):
        # Its S3 face answers before a volume exists to write to.
        try:
            client.create_bucket(Bucket="probe")
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        client.put_object(Bucket="probe", Key="probe", Body=b"probe")
        client.delete_object(Bucket="probe", Key="probe")
        client.delete_bucket(Bucket="probe")


def tail(log):
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def end(server, process):
    """Its data is thrown away, so nothing is gained by asking politely."""
    process.kill()
    process.wait()
    shutil.rmtree(server.dir, ignore_errors=True)
    for left in server.leavings():
        left.unlink(missing_ok=True)


def start(name, directory):
    # SIGTERM unwinds like Ctrl-C, so that the server is ended and its directory removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server, process = launch(name, directory)
    try:
        print("ready", name, server.url(), server.access, server.secret, server.region, process.pid, server.dir,
              flush=True)
        while process.poll() is None:
            readable, _, _ = select.select([sys.stdin], [], [], 0.5)
            if readable and not os.read(sys.stdin.fileno(), 4096):
                return 0
        print(f"servers: {name} ended by itself with {process.returncode}\n{tail(server.dir / 'log')}", file=sys.stderr)
        return 1
    finally:
        end(server, process)


class Running:
    """`start` in a process of its own, as every other caller uses it; it ends when its stdin closes."""

    def __init__(self, name):
        self.name = name
        self.process = subprocess.Popen([sys.executable, __file__, "start", name], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def ready(self):
        """The words after `ready NAME`, or why it is not."""
        line = self.process.stdout.readline().split()
        return (line[2:6], None) if line[:1] == ["ready"] else (None, " ".join(line[1:]) or "it ended without a word")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def run(names, command):
    """The command with the servers up; what a server that cannot start means is the command's to judge."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    running, env = [Running(name) for name in names], dict(os.environ)
    try:
        for server in running:
            words, why = server.ready()
            env[f"TEST_S3_{server.name.upper()}"] = " ".join(words) if words else f"failed {why}"
            print(f"servers: {server.name}", f"answers at {words[0]}" if words else f"IS MISSING: {why}",
                  file=sys.stderr, flush=True)
        return subprocess.run(command, env=env).returncode
    finally:
        for server in running:
            server.end()


def shell(name):
    server = Running(name)
    try:
        words, why = server.ready()
        if not words:
            raise Failed(why)
        url, access, secret, region = words
        env = {**os.environ, "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": access,
               "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}
        print(f"{name} answers at {url}, region {region}; AWS_* are set here; exit ends it", file=sys.stderr)
        return subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=env).returncode
    finally:
        server.end()


def main():
    if sys.argv[1] == "run":
        words = sys.argv[2:]
        if "--" not in words or unknown(words[: words.index("--")]):
            sys.exit("usage: scripts/servers run NAME... -- COMMAND")
        at = words.index("--")
        return run(words[:at], words[at + 1:])
    parser = argparse.ArgumentParser(prog=f"scripts/servers {sys.argv[1]}")
    parser.add_argument("name", choices=SERVERS)
    if sys.argv[1] == "start":
        parser.add_argument("--dir", help="parent of the directory for its data", type=Path)
    args = parser.parse_args(sys.argv[2:])
    return start(args.name, args.dir) if sys.argv[1] == "start" else shell(args.name)


def unknown(names):
    return not names or set(names) - set(SERVERS)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as why:
        print("failed", " ".join(str(why).split()), flush=True)
        print(f"servers: {why}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
