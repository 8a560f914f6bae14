"""Structured logs, W3C traces, metrics. Every line carries service, project and trace id."""
