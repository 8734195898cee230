"""What operators see of the server: logs and metrics. It watches calls and never changes them."""
