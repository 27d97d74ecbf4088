"""The workloads that no program of the system does. Each prints a line of JSON: seconds, and what was asked.

It is run as a process of its own, so that a program that hangs can be left behind.
"""

import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

MIB = 1 << 20


def each(directory):
    """All files of a directory at once, a dd each."""
    names = sorted(os.listdir(directory))
    start = time.monotonic()
    running = [subprocess.Popen(["dd", f"if={directory}/{name}", "of=/dev/null", "bs=1M", "status=none"])
               for name in names]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"dd ended with {codes}")
    return {"seconds": time.monotonic() - start, "asked": sum(os.stat(f"{directory}/{n}").st_size for n in names)}


def at_random(path, threads, reads, seconds):
    """4 KiB here and there, by threads that each wait for their own read."""
    threads, reads, seconds = int(threads), int(reads), float(seconds)
    size = 4096
    file = os.open(path, os.O_RDONLY)
    blocks = os.fstat(file).st_size // size
    chance = random.Random(1)
    offsets = [chance.randrange(blocks) * size for _ in range(reads)]
    done = [0] * threads
    start = time.monotonic()

    def read(thread):
        for offset in offsets[thread::threads]:
            if time.monotonic() - start > seconds:
                return
            if len(os.pread(file, size, offset)) != size:
                os._exit(1)
            done[thread] += 1

    running = [threading.Thread(target=read, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    took = time.monotonic() - start
    return {"seconds": took, "asked": sum(done) * size, "rate": sum(done) / took}


def skip(path):
    """Every other 4 MiB."""
    file, step = os.open(path, os.O_RDONLY), 4 * MIB
    size, asked = os.fstat(file).st_size, 0
    start = time.monotonic()
    for offset in range(0, size, 2 * step):
        at = offset
        while at < min(offset + step, size):
            at += len(os.pread(file, MIB, at))
        asked += at - offset
    return {"seconds": time.monotonic() - start, "asked": asked}


def scan_mapped(path):
    """All of a file through mmap, in order."""
    start = time.monotonic()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        size = len(mapped)
        for offset in range(0, size, MIB):
            mapped[offset:offset + MIB]
    return {"seconds": time.monotonic() - start, "asked": size}


def stat(directory, count, threads=1):
    """Names that are there and names that are not."""
    names = [f"{directory}/{kind}-{i:06}" for i in range(int(count)) for kind in ("name", "none")]
    found = lambda names: sum(map(os.path.lexists, names))
    start = time.monotonic()
    with ThreadPoolExecutor(int(threads)) as pool:
        known = sum(pool.map(found, [names[i::int(threads)] for i in range(int(threads))]))
    return {"seconds": time.monotonic() - start, "known": known, "absent": len(names) - known}


def copies(target, source, at_once):
    """The files of a directory into a new one, by many cp at once."""
    names = sorted(os.listdir(source))
    start = time.monotonic()
    os.mkdir(target)
    shares = [[f"{source}/{name}" for name in names[i::int(at_once)]] for i in range(int(at_once))]
    codes = [process.wait() for process in [subprocess.Popen(["cp", *share, target]) for share in shares if share]]
    if any(codes):
        sys.exit(f"cp ended with {codes}")
    return {"seconds": time.monotonic() - start}


def edit(path, original, offset):
    """One byte of a file, which becomes the complement of what it was."""
    offset = int(offset)
    with open(original, "rb") as file:
        byte = os.pread(file.fileno(), 1, offset)[0] ^ 0xff
    start = time.monotonic()
    file = os.open(path, os.O_WRONLY)
    os.pwrite(file, bytes([byte]), offset)
    os.fsync(file)
    os.close(file)
    return {"seconds": time.monotonic() - start}


WORKS = {"each": each, "random": at_random, "skip": skip, "mmap": scan_mapped, "stat": stat, "copies": copies, "edit": edit}

if __name__ == "__main__":
    print(json.dumps(WORKS[sys.argv[1]](*sys.argv[2:])))
