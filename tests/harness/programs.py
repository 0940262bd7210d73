"""The programs as processes: start with a configuration in a directory of their own, wait until they serve, stop and look at how they went.

Every way to stop asserts something: stop() that SIGTERM ends with status 0, all of them that neither a sanitizer nor a CHECK has spoken."""
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import time

from .metrics import Metrics
from .wire import PATIENCE_S

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODE = os.environ.get("MODE", "release")
BUILD = ROOT / "build" / MODE
# ThreadSanitizer leaves a program less address space than the default asks for; how much less differs from start to start.
SANITIZER_LIMITS = {"checkpoint_max_size": "16GiB"} if MODE == "tsan" else {}
POLL_S = 0.005

_ALARM = re.compile(r"Sanitizer|runtime error:|CHECK failed")


def wait_until(condition, what, patience_s=PATIENCE_S):
    """Poll until condition() is true, and return what it returned."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come to pass in {patience_s} s: {what}")
        time.sleep(POLL_S)


def environment(extra=None):
    """Ours, without anything that overrides options."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    found.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0")
    found.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    found.setdefault("TSAN_OPTIONS", "halt_on_error=0")
    found.update(extra or {})
    return found


def run(program, *arguments, env=None, patience_s=60):
    """A command that ends by itself: (status, stdout, stderr)."""
    done = subprocess.run([str(BUILD / program), *map(str, arguments)], capture_output=True, text=True, env=environment(env),
                          stdin=subprocess.DEVNULL, timeout=patience_s, check=False)
    assert not _ALARM.search(done.stderr), done.stderr
    return done.returncode, done.stdout, done.stderr


class Program:
    """A process with its directory. Subclasses know the configuration and when it serves."""

    name = None

    def __init__(self, directory, conf="", env=None):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.conf, self.env, self.process, self.http_port, self.starts = conf, env, None, 0, 0
        self.conf_path = self.directory / f"{self.name}.conf"

    def config_text(self):
        raise NotImplementedError

    def forget_ports(self):
        raise NotImplementedError

    def read_ports(self):
        """True once the program has said where it listens."""
        raise NotImplementedError

    def spawn(self):
        """Start without waiting."""
        self.conf_path.write_text(self.config_text())
        self.forget_ports()
        self.starts += 1
        self.stderr_path = self.directory / f"{self.name}.{self.starts}.stderr"
        with open(self.stderr_path, "wb") as out:
            self.process = subprocess.Popen([str(BUILD / self.name), "-c", str(self.conf_path)], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=out, env=environment(self.env))
        return self

    def start(self):
        self.spawn()
        wait_until(lambda: self.process.poll() is not None or self.read_ports(), f"{self.name} serves", 120)
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.stderr()}"
        return self

    def stderr(self):
        return self.stderr_path.read_text(errors="replace")

    def is_alive(self):
        return self.process is not None and self.process.poll() is None

    def check_clean(self):
        text = self.stderr()
        assert not _ALARM.search(text), f"{self.name} said:\n{text[-8000:]}"

    def wait_end(self, patience_s=60):
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end in {patience_s} s:\n{self.stderr()[-8000:]}") from None

    def last_words(self):
        """It ends by itself, with status 1: what it said."""
        status = self.wait_end()
        self.process = None
        self.check_clean()
        assert status == 1, f"{self.name} ended with {status}:\n{self.stderr()[-8000:]}"
        return self.stderr()

    def refusal(self):
        """What it says that does not start."""
        return self.spawn().last_words()

    def stop(self):
        """SIGTERM; the status must be 0."""
        if self.process is None:
            return
        process = self.process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        status = self.wait_end()
        self.process = None
        self.check_clean()
        assert status == 0, f"{self.name} ended with {status}:\n{self.stderr()[-8000:]}"

    def kill(self):
        """kill -9"""
        assert self.is_alive(), self.stderr()[-8000:]
        self.process.kill()
        self.process.wait()
        self.process = None
        self.check_clean()

    def restart(self):
        self.stop()
        return self.start()

    # -- HTTP --

    def get(self, path, patience_s=60):
        """(status, body) of GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=patience_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self):
        status, text = self.get("/metrics")
        assert status == 200, text
        return Metrics(text)

    def wait_metric(self, condition, what):
        """Until condition(metrics) is true; returns those metrics."""
        last = []

        def look():
            last[:] = [self.metrics()]
            return condition(last[0])

        wait_until(look, what)
        return last[0]

    def health(self):
        status, text = self.get("/healthz")
        return status, json.loads(text)

    def memory_bytes(self):
        """Resident anonymous memory."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", text).group(1)) * 1024


def stop_all(programs):
    """Stop each, whatever becomes of the others; then raise what the first has against it."""
    problems = []
    for program in programs:
        try:
            program.stop()
        except AssertionError as problem:
            problems.append(problem)
    if problems:
        raise problems[0]


class Broker(Program):
    """A broker on a port the kernel chooses. `conf` lines are added to, and may replace, the test's defaults."""

    name = "tidegate-broker"

    DEFAULTS = {
        "persistence_location": None,
        "http_listener": "127.0.0.1:0",
        "shards": None,
        "drain_timeout": "1s",
        "log_segment_size": "1MiB",
        "log_max_size": "64MiB",
        "log_free_disk_floor": "0",
        "connect_timeout": "20s",
        "log_level": "notice",
        **SANITIZER_LIMITS,
    }

    def __init__(self, directory, conf="", shards=1, listener="listener 0 127.0.0.1\nallow_anonymous true\n", env=None):
        super().__init__(directory, conf, env)
        self.shards, self.listener = shards, listener
        self.data = self.directory / "data"
        self.port, self.ports = 0, []

    def config_text(self):
        own = {line.split()[0] for line in self.conf.splitlines() if line.strip() and not line.startswith("#")}
        values = dict(self.DEFAULTS, persistence_location=f"{self.data}/", shards=str(self.shards))
        lines = [f"{key} {value}" for key, value in values.items() if key not in own]
        return "\n".join(lines) + "\n" + self.conf + "\n" + self.listener

    def forget_ports(self):
        if self.data.is_dir():
            (self.data / "listeners").unlink(missing_ok=True)

    def read_ports(self):
        """The file `listeners`: a line `tcp ADDRESS PORT`, `tls ADDRESS PORT` or `http ADDRESS PORT` a socket."""
        try:
            lines = (self.data / "listeners").read_text().splitlines()
        except FileNotFoundError:
            return False
        self.ports = []
        for line in lines:
            kind, _, port = line.split()[:3]
            if kind == "http":
                self.http_port = int(port)
            else:
                self.ports.append(int(port))
        self.port = self.ports[0]
        return True

    def check_books(self):
        """The two equations of its metrics, at a quiet point."""
        self.wait_metric(lambda metrics: metrics.book_difference() == (0, 0), "the broker's books balance")

    def stop(self):
        """Its books first: when a test is done with a broker, it is quiet."""
        try:
            if self.is_alive() and self.http_port:
                self.check_books()
        except OSError:
            assert not self.is_alive(), f"{self.name} serves no metrics"  # it was about to end by itself
        finally:
            super().stop()

    def homes(self, metrics=None):
        """Connections at home on each shard."""
        found = (metrics or self.metrics()).find("tidegate_loop_connections")
        return {int(dict(labels)["shard"]): int(value) for labels, value in found.items()}


class Sink(Program):
    """A sink in direct mode beside a broker."""

    name = "tidegate-sink"

    DEFAULTS = {"data_directory": None, "broker_log": None, "http_port": "0", "partitions": "8", "flush_interval": "300ms", "log_level": "notice"}

    def __init__(self, directory, broker_data, conf="", env=None):
        super().__init__(directory, conf, env)
        self.data, self.broker_data = self.directory / "sink-data", pathlib.Path(broker_data)

    def config_text(self):
        own = {line.split()[0] for line in self.conf.splitlines() if line.strip() and not line.startswith("#")}
        values = dict(self.DEFAULTS, data_directory=str(self.data), broker_log=str(self.broker_data / "log"))
        return "\n".join(f"{key} {value}" for key, value in values.items() if key not in own) + "\n" + self.conf + "\n"

    def forget_ports(self):
        if self.data.is_dir():
            (self.data / "http.port").unlink(missing_ok=True)

    def read_ports(self):
        try:
            text = (self.data / "http.port").read_text().strip()
        except FileNotFoundError:
            return False
        self.http_port = int(text or 0)
        return self.http_port > 0

    def command(self, verb, *arguments):
        """One of the sink's commands with this configuration: (status, stdout, stderr)."""
        return run("tidegate-sink", verb, "-c", self.conf_path, *arguments)
