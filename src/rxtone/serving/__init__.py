"""The only place that serves, exports and pushes."""
