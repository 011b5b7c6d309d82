"""A run's figures for trackers, and spans and metrics for OpenTelemetry. Off unless asked for.

Totals over all clients leave by them, never a text. A single client's figures leave only if they are asked for and the privacy
mode shows them to the coordinator.
"""
