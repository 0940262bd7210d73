"""What the scenario and end-to-end tests stand on: the programs as processes (programs.py), MQTT byte by byte (wire.py), figures of
/metrics (metrics.py)."""
