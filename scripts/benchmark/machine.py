"""Processes, mounts and the kernel: starting them, measuring them, and leaving nothing behind.

Everything that is started is a context manager, and every child gets SIGTERM when this process dies, however it dies.
"""

import ctypes
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from programs import RELEASE, ROOT

TICKS = os.sysconf("SC_CLK_TCK")
READY_S = 60
END_S = 60


class Failed(Exception):
    """Something does not work; the text says what."""


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def start(argv, **more):
    """A child in a session of its own, so that Ctrl-C reaches us alone and we end it in order."""
    return subprocess.Popen([str(word) for word in argv], start_new_session=True, preexec_fn=end_with_parent, **more)


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.02)


# ---- Servers and proxies ----

@contextmanager
def listening(argv, ready, **more):
    """A server that says where it listens, and ends with its standard input."""
    process = start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)
    try:
        line = process.stdout.readline()
        if not line.startswith(ready):
            raise Failed(f"{' '.join(map(str, argv))} said {line.strip()!r}")
        yield line[len(ready):].split()
    finally:
        process.stdin.close()
        end(process)


def end(process, seconds=END_S):
    """Waits for a process that was told to end, and kills it where it does not."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def server(name, room):
    """An S3 server with its data below `room`: URL, access key, secret, region."""
    if name == "demo":
        argv, ready = [RELEASE / "pailfs", "demo", "--until-stdin-closes"], "ready "
    else:
        argv, ready = [ROOT / "scripts/servers", "start", name, "--dir", room], f"ready {name} "
    with listening(argv, ready) as words:
        yield words[:4]


class Proxy:
    """A proxy's counts; its address is `url`."""

    def __init__(self, url, admin):
        self.url, self.admin = url, admin

    def _ask(self, method, path):
        request = urllib.request.Request(self.admin + path, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def counts(self):
        return self._ask("GET", "/")

    def reset(self):
        return self._ask("POST", "/reset")

    def settle(self, seconds=10):
        """Waits until nothing is under way: what a mount does by itself is not the row's."""
        last, quiet_since, deadline = None, time.monotonic(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            counts = self.counts()
            now = (counts["in_flight"], counts["bytes_down"], sum(counts["requests"].values()))
            if now != last or counts["in_flight"]:
                last, quiet_since = now, time.monotonic()
            if time.monotonic() - quiet_since > 0.15:
                return
            time.sleep(0.03)


@contextmanager
def proxy(upstream_url, delay_s, bytes_per_second):
    argv = [RELEASE / "examples/proxy", "--upstream", upstream_url.removeprefix("http://"), "--until-stdin-closes",
            "--delay", f"{delay_s}s", "--rate", str(bytes_per_second)]
    with listening(argv, "ready ") as (url, admin):
        yield Proxy(url, admin)


# ---- Mounts ----

def mounts_below(directory):
    """Mount points at a directory and below."""
    with open("/proc/self/mountinfo") as mounts:
        points = [Path(line.split()[4]) for line in mounts]
    return [point for point in points if point.is_relative_to(directory)]


def is_mounted(directory):
    return directory in mounts_below(directory)


@contextmanager
def mounted(program, place, row):
    """The program's process, with its mount live."""
    place.mountpoint.mkdir(exist_ok=True)
    log = place.home / f"{program.name}.log"
    home = {"HOME": str(place.home), "XDG_RUNTIME_DIR": str(place.home), "PATH": os.environ["PATH"]}
    with open(log, "ab") as out:
        process = start(program.argv(place, row), env={**home, **program.env(place)}, stdin=subprocess.DEVNULL,
                        stdout=out, stderr=out)
    try:
        wait_for(lambda: process.poll() is not None or is_mounted(place.mountpoint), READY_S, f"{program.name} mount")
        if process.poll() is not None:
            raise Failed(f"{program.name} ended with {process.returncode}: {tail(log)}")
        run(["stat", str(place.mountpoint)], READY_S)
        yield process
    finally:
        unmount(place.mountpoint, process)


def unmount(directory, process):
    """Politely for as long as that may take, then not."""
    deadline = time.monotonic() + END_S
    while is_mounted(directory) and time.monotonic() < deadline:
        if not let_go(directory):
            time.sleep(0.2)
    let_go(directory, "-z")
    end(process, max(1, deadline - time.monotonic()))
    # A daemon that died leaves a dead mount.
    let_go(directory, "-z")


def let_go(directory, *how):
    """Whether it is unmounted."""
    return not is_mounted(directory) or \
        subprocess.run(["fusermount3", "-u", *how, str(directory)], capture_output=True).returncode == 0


@contextmanager
def temporary_directory(parent):
    """A directory of this run's, and what earlier runs that were killed have left there goes."""
    for left in parent.glob("bench-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            remove(left)
    directory = Path(tempfile.mkdtemp(prefix=f"bench-{os.getpid()}-", dir=parent))
    try:
        yield directory
    finally:
        remove(directory)


def remove(directory):
    """Nothing is removed through a mount that is still there."""
    for mount in mounts_below(directory):
        let_go(mount, "-z")
    if not mounts_below(directory):
        shutil.rmtree(directory, ignore_errors=True)


def tail(log):
    return " / ".join(log.read_text(errors="replace").splitlines()[-4:])


# ---- Running and measuring ----

class TookTooLong(Exception):
    pass


def run(argv, seconds, cwd=None):
    """Runs a command to its end: its output and how long it took."""
    began = time.monotonic()
    process = start(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
                    env={**os.environ, "LC_ALL": "C"})
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TookTooLong() from None
    finally:
        if process.poll() is None:
            # It may be inside the mount, where it cannot be killed before the daemon has gone: do not wait.
            os.killpg(process.pid, signal.SIGKILL)
    took = time.monotonic() - began
    if process.returncode != 0:
        raise Failed(f"{' '.join(argv)} ended with {process.returncode}: {err.strip()[-300:]}")
    return out, took


def busy_seconds():
    """What all processors of the machine have worked since it began, whoever for."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, iowait = ticks[3], ticks[4]
    return (sum(ticks) - idle - iowait) / TICKS


def cpu_seconds(pid):
    """Processor time of a process: utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def forget_peak(pid):
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        pass


def peak_rss(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def drop_caches():
    """Empties the kernel's caches, except for the tools that the rows use. False where that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    touch_memory(4 << 30)
    for tool in ("dd", "cp", "find", "ls", "mv", "rm", "sha256sum", "fusermount3", "stat"):
        subprocess.run([tool, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run([sys.executable, ROOT / "scripts/benchmark/work.py"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return True


def touch_memory(length):
    """Takes free memory and gives it back. A virtual machine's host takes what lies free for a while, and whoever touches it first
    afterwards waits for the host: that is no property of a program, and none should be the one that happens to pay for it."""
    mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def room_for_server(bytes_needed):
    """Where a server keeps its data: in memory, so that dropping the kernel's caches does not slow it; else on disk."""
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free > 1.25 * bytes_needed and available_memory() > 2 * bytes_needed:
        return shm
    return None


def available_memory():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def described():
    """The machine in a line."""
    cpus = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return f"{len(os.sched_getaffinity(0))} x {cpus[0] if cpus else os.uname().machine}, {memory:.0f} GiB, " \
           f"Linux {os.uname().release}"
