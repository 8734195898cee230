"""The gRPC server: services, the layer around every call, settings, and the composition root in `server`."""
