"""What the scenario and end-to-end tests stand on: the programs as processes (programs.py), broker and sink together (pair.py), MQTT byte
by byte (wire.py), figures of /metrics (metrics.py)."""
