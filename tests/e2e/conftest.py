"""Fixtures of the end-to-end tests: pairs of broker and sink, small file systems, the replay client."""
import pathlib
import subprocess

import pytest

from harness import programs
from harness.pair import Pair, read_csv


@pytest.fixture
def tmpfs():
    """tmpfs(directory, size): a small file system of its own there, or a skip that says why not."""
    mounted = []

    def make(directory, size):
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
        mounted.append(directory)

    yield make
    for directory in mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture
def new_pair(tmp_path, tmpfs):  # pylint: disable=unused-argument # file systems go after the programs on them
    made = []

    def make(broker_conf="", sink_conf="", **options):
        start = options.pop("start", True)
        pair = Pair(options.pop("directory", tmp_path / f"pair{len(made)}"), broker_conf, sink_conf, **options)
        made.append(pair)
        return pair.start() if start else pair

    yield make
    programs.stop_all(made)


@pytest.fixture
def start_replay():
    """start_replay(pair, files, *options): the replay client, running. Remembers its rows as the pair's expected ones."""
    made = []

    def make(pair, files, *options):
        for path in files:
            for device, rows in read_csv(path).items():
                pair.expected.setdefault(device, {}).update(rows)
        process = subprocess.Popen([str(programs.BUILD / "bench" / "replay"), "--port", str(pair.broker.port), "--quiet", *options, *map(str, files)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        made.append(process)
        return process

    yield make
    for process in made:
        if process.poll() is None:
            process.kill()
        process.communicate()
