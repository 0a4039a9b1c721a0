"""V2 over gRPC, `inference.GRPCInferenceService`: another door to the same pool, limits and errors.

The only modules that know grpc and protobuf, imported where a port is asked for (`server.grpc_port`).
"""
