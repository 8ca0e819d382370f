"""What happens, told to systems that watch: OpenTelemetry (a collector) and Prometheus (a text)."""
