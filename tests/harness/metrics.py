"""Figures of /metrics as a mapping, and the equations that must hold among them."""
import re

_LINE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Metrics:
    def __init__(self, text):
        self.text = text
        self.series = {}
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            name, labels, value = _LINE.match(line).groups()
            self.series[name, frozenset(_LABEL.findall(labels or ""))] = float(value)

    def find(self, name, **labels):
        """All series of that name that have these labels, as {labels: value}."""
        wanted = set(labels.items())
        return {dict_labels: value for (found, dict_labels), value in self.series.items() if found == name and wanted <= dict_labels}

    def get(self, name, **labels):
        """Their sum; KeyError when there is none."""
        found = self.find(name, **labels)
        if not found:
            raise KeyError(f"{name}{labels or ''}")
        return sum(found.values())

    def names(self):
        return {name for name, _ in self.series}

    def queues(self):
        """{queue: set of the triplet's parts that it has}"""
        found = {}
        for name, labels in self.series:
            if name.startswith("tidegate_queue_"):
                found.setdefault(dict(labels)["queue"], set()).add(name[len("tidegate_queue_"):])
        return found

    def book_difference(self):
        """Broker: what the two equations miss (copies, telemetry); (0, 0) at every quiet point."""
        get = self.get
        restored = sum(self.find("tidegate_restored_copies_total").values())  # since the start: from the checkpoint
        copies = get("tidegate_routed_copies_total") + restored - (
            get("tidegate_sent_copies_total") + get("tidegate_acked_copies_total") + get("tidegate_inflight_messages") +
            get("tidegate_queue_messages", queue="session_queue") + get("tidegate_held_copies") +
            get("tidegate_posted_copies_total") - get("tidegate_received_copies_total") + get("tidegate_dropped_copies_total"))
        telemetry = get("tidegate_telemetry_matched_total") - (
            get("tidegate_telemetry_logged_total") + get("tidegate_telemetry_refused_total") + get("tidegate_telemetry_logging"))
        return copies, telemetry
