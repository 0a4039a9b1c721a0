"""The values on the wire as JSON Schema, with examples for the shipped model `wine`.

Imported when `/openapi.json` is asked for, and written as plain values: models in Python for them
would be held by every host, and nothing is validated by them.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

_DATATYPES: Final = [
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BYTES"),
]
_MEASUREMENTS: Final = [14.2, 1.71, 2.43, 15.6, 127.0, 2.8, 3.06, 0.28, 2.29, 5.64, 1.04, 3.92, 1065.0]


def ref(name: str) -> Schema:
    """Returns a reference to one of SCHEMAS."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(required: Schema, optional: Schema | None = None, **more: Any) -> Schema:
    """Returns an object with these members; others may be there."""
    schema: Schema = {"type": "object", "properties": required | (optional or {}), **more}
    return schema | ({"required": list(required)} if required else {})


def opt(schema: Schema) -> Schema:
    """Returns a member that may be null, which is the same as leaving it out."""
    return {**schema, "type": [schema["type"], "null"]}


def array(items: Schema, **more: Any) -> Schema:
    """Returns a list of `items`."""
    return {"type": "array", "items": items, **more}


def _const(value: object) -> Schema:
    return {"const": value}


_STRING: Final[Schema] = {"type": "string"}
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_NUMBER: Final[Schema] = {"type": "number"}
#: What a client's 64 bits with a sign have.
_MOST: Final = (1 << 63) - 1
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_SIZE: Final = opt(_COUNT)
_ANYTHING: Final[Schema] = {"type": "object"}
_SHAPE: Final = array({"type": "integer", "minimum": -1}, description="-1 for a size that is open")
_OPEN: Final = opt(_ANYTHING) | {"description": "Names that are not known here are ignored."}

EXAMPLE_INFER: Final = {
    "inputs": [{"name": "measurements", "datatype": "FP32", "shape": [1, 13], "data": _MEASUREMENTS}],
    "outputs": [{"name": "label"}],
}
EXAMPLE_PREDICT: Final = {"instances": [_MEASUREMENTS]}

_TENSOR: Final = obj({"name": _STRING, "datatype": {"type": "string", "enum": _DATATYPES}, "shape": _SHAPE})
_RECOVERY: Final = obj({"victims": array(_STRING), "before_bytes": _COUNT, "after_bytes": _COUNT})
_TOOK: Final = obj({"count": _COUNT, "ns": _COUNT})
_POLICY: Final = obj(
    {
        "name": _STRING,
        **dict.fromkeys(("warning_bytes", "critical_bytes", "activation_room_bytes", "changes"), _COUNT),
        "fixed": obj({"warning_bytes": _COUNT, "critical_bytes": _COUNT}),
        "warning_between": array(_COUNT),
        "learnt": obj(
            dict.fromkeys(("runs", "largest_run_bytes", "claimed_bytes", "load_extra_bytes", "overshoot_bytes"), _COUNT)
        ),
        "last": opt(obj({"at": _NUMBER, "rule": _STRING, "reason": _STRING})),
    }
)

_MODEL: Final = obj(
    {
        "name": _STRING,
        "version": _STRING,
        "state": _STRING,
        "committed_bytes": _COUNT,
        "leases": _COUNT,
        "pinned": _BOOLEAN,
        "last_used": opt(_NUMBER),
        "waiting": _COUNT,
    }
)

_V2: Final[dict[str, Schema]] = {
    "Error": obj(
        {"error": {"type": "string", "description": "What was expected and what came."}, "code": _STRING},
        description="The figures behind the sentence are members of their own.",
    ),
    "Server": obj({"name": _STRING, "version": _STRING, "extensions": array(_STRING)}),
    "Alive": obj({"status": _const("alive")}),
    "Live": obj({"live": _const(True)}),
    "Ready": obj({"ready": _BOOLEAN}, {"name": _STRING, "conditions": array(_STRING)}),
    "ModelMetadata": obj(
        {
            "name": _STRING,
            "versions": array(_STRING),
            "platform": _STRING,
            "inputs": array(_TENSOR),
            "outputs": array(_TENSOR),
        }
    ),
    "ModelConfig": obj(
        {
            "name": _STRING,
            "platform": _STRING,
            "max_batch_size": _COUNT,
            "input": array(obj({"name": _STRING, "data_type": _STRING, "dims": _SHAPE})),
            "output": array(obj({"name": _STRING, "data_type": _STRING, "dims": _SHAPE})),
        },
        {"dynamic_batching": obj({"max_queue_delay_microseconds": _COUNT})},
    ),
    "Values": array(
        {"anyOf": [_NUMBER, _BOOLEAN, _STRING, ref("Values")]},
        description="The elements in row-major order, flat or nested like the shape.",
    ),
    "InferRequest": obj(
        {
            "inputs": array(
                obj(
                    {
                        "name": _STRING,
                        "datatype": {"type": "string", "enum": _DATATYPES},
                        "shape": array({"type": "integer", "minimum": 0}, maxItems=32),
                    },
                    {
                        "data": {"anyOf": [ref("Values"), {"type": "null"}]},
                        "parameters": opt(obj({}, {"binary_data_size": opt(_COUNT)})),
                    },
                )
            )
        },
        {
            "id": opt(_STRING) | {"description": "Comes back with the answer."},
            "parameters": opt(
                obj(
                    {},
                    {
                        "timeout": opt(_COUNT) | {"description": "Microseconds; 0 is no limit of the request's own."},
                        "binary_data_output": opt(_BOOLEAN),
                    },
                )
            ),
            "outputs": opt(array(obj({"name": _STRING}, {"parameters": opt(obj({}, {"binary_data": opt(_BOOLEAN)}))}))),
        },
        description="Each input has `data`, or `binary_data_size` bytes behind the JSON part.",
        examples=[EXAMPLE_INFER],
    ),
    "InferResponse": obj(
        {
            "model_name": _STRING,
            "model_version": _STRING,
            "outputs": array(
                obj(
                    {"name": _STRING, "datatype": _STRING, "shape": array(_COUNT)},
                    {"data": array({}), "parameters": obj({"binary_data_size": _COUNT})},
                )
            ),
        },
        {"id": _STRING},
    ),
    "IndexRequest": obj(
        {},
        {
            "ready": _BOOLEAN | {"description": "Only what is loaded."},
            "limit": opt({"type": "integer", "minimum": 1, "maximum": _MOST, "description": "Most models; else all."}),
            "after": opt(_STRING | {"description": "Only names after this one: the last of the page before."}),
        },
    ),
    "Index": array(
        obj(
            {
                "name": _STRING,
                "version": _STRING,
                "state": {"enum": ["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]},
                "reason": _STRING,
            }
        )
    ),
    "LoadRequest": obj(
        {},
        {"parameters": _OPEN | {"propertyNames": {"not": {"pattern": "^(config$|file:)"}}}},
        description="Models come from the repository's directory: `config` and `file:` are refused.",
    ),
    "UnloadRequest": obj(
        {},
        {"parameters": _OPEN | {"properties": {"unload_dependents": opt(_BOOLEAN)}}},
        description="No model has dependents, so that `unload_dependents` changes nothing.",
    ),
    "Loaded": _MODEL | {"required": [*_MODEL["required"], "load"]},
    "Unloaded": obj({"name": _STRING, "unload": _const(True), "recovered": array(_RECOVERY)}),
    "Statistics": obj(
        {
            "model_stats": array(
                obj(
                    {
                        "name": _STRING,
                        "version": _STRING,
                        "last_inference": _COUNT | {"description": "Unix time in milliseconds."},
                        "inference_count": _COUNT | {"description": "Rows."},
                        "execution_count": _COUNT | {"description": "Runs."},
                        "inference_stats": obj(
                            dict.fromkeys(
                                (
                                    *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"),
                                    *("cache_hit", "cache_miss"),
                                ),
                                _TOOK,
                            )
                        ),
                        "response_stats": _ANYTHING,
                        "batch_stats": array(
                            obj(
                                {"batch_size": _COUNT}
                                | dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _TOOK)
                            )
                        ),
                        "memory_usage": array(obj({"type": _STRING, "id": _COUNT, "byte_size": _COUNT})),
                    }
                )
            )
        }
    ),
    "LogSettings": obj(
        {},
        {
            "log_file": _const(""),
            "log_info": _BOOLEAN,
            "log_warning": _BOOLEAN,
            "log_error": _BOOLEAN,
            "log_verbose_level": _COUNT,
            "log_format": _const("default"),
        },
        additionalProperties=False,
    ),
}

_V1: Final[dict[str, Schema]] = {
    "Names": obj({"models": array(_STRING)}),
    "PredictRequest": {
        "description": "`instances`: a value for each row, or an object of inputs by name. `inputs`: each input whole.",
        "type": "object",
        "oneOf": [
            obj({"instances": array({}, minItems=1)}, {"inputs": {"type": "null"}}),
            obj({"inputs": {"not": {"type": "null"}}}, {"instances": {"type": "null"}}),
        ],
        "examples": [EXAMPLE_PREDICT],
    },
    "PredictResponse": {"anyOf": [obj({"predictions": array({})}), obj({"outputs": {}})]},
    "ModelStatus": obj(
        {
            "name": _STRING,
            "ready": _BOOLEAN,
            "model_version_status": array(
                obj(
                    {
                        "version": _STRING,
                        "state": {"enum": ["LOADING", "AVAILABLE", "UNLOADING", "END"]},
                        "status": obj({"error_code": _STRING, "error_message": _STRING}),
                    }
                )
            ),
        }
    ),
    "V1Metadata": obj(
        {
            "model_spec": obj({"name": _STRING, "signature_name": _STRING, "version": _STRING}),
            "metadata": obj({"signature_def": _ANYTHING}),
        }
    ),
}

_EVENT: Final = obj({"id": _COUNT, "at": _NUMBER, "kind": _STRING, "level": _STRING, "usage_bytes": _COUNT})
_LEVEL: Final[Schema] = {"enum": ["normal", "warning", "critical"]}
_RATES: Final[dict[str, Schema]] = {
    "requests_per_s": _NUMBER,
    **dict.fromkeys(("p50_ms", "p99_ms"), opt(_NUMBER) | {"description": "Of the last 10 to 20 s."}),
}
_COUNTED: Final = dict.fromkeys(("requests", "failures", "loads", "evictions", "cold_starts"), _COUNT)
_BAR: Final = dict.fromkeys(("host_bytes", "models_bytes", "loading_bytes", "activations_bytes"), _COUNT)

_MONITOR: Final[dict[str, Schema]] = {
    "Monitor": obj(
        {
            "at": _NUMBER | {"description": "Unix time in seconds."},
            "host": obj(
                {"version": _STRING, "ready": _BOOLEAN, "draining": _BOOLEAN, "uptime_s": _NUMBER, "pid": _COUNT}
            ),
            "memory": ref("MemoryFigures"),
            "bar": obj(_BAR | {"weights_cached_bytes": _SIZE}, description="All but the last add up to usage."),
            "totals": obj(
                _COUNTED
                | _RATES
                | {"failures_per_s": _NUMBER}
                | dict.fromkeys(("refusals", "in_flight", "waiting"), _COUNT)
            ),
            "models": array(
                obj(
                    _MODEL["properties"]
                    | dict.fromkeys(("weights_bytes", "cached_bytes"), _SIZE)
                    | _COUNTED
                    | _RATES
                    | dict.fromkeys(("load_seconds", "run_seconds"), _NUMBER)
                ),
                maxItems=200,
            ),
            "models_known": _COUNT,
            "events": array(_EVENT, maxItems=50),
            "policy": opt(_POLICY),
        }
    ),
    "History": obj(
        {
            "every_s": _NUMBER,
            "at": array(_NUMBER),
            **dict.fromkeys(("usage_bytes", "models_bytes"), array(_COUNT)),
            "cached_bytes": array(_SIZE),
            "level": array(_LEVEL),
            **dict.fromkeys(("requests", "failures", "loads", "evictions", "refusals"), array(_COUNT)),
            "p99_ms": array(opt(_NUMBER)),
        },
        description="Columns of one length, oldest first; counts are those within a sample.",
    ),
    "ModelPage": obj(
        {
            "total": _COUNT,
            "models": array(
                obj({"name": _STRING, "versions": array(_STRING), "state": _STRING, "pinned": _BOOLEAN}), maxItems=200
            ),
        }
    ),
    "PinRequest": obj({"pinned": _BOOLEAN}),
    "Pinned": obj({"name": _STRING, "pinned": _BOOLEAN}),
}

_OPERATORS: Final[dict[str, Schema]] = {
    "MemoryFigures": obj(
        {
            **dict.fromkeys(("limit_bytes", "usage_bytes", "available_bytes", "reserved_bytes"), _COUNT),
            **dict.fromkeys(("warning_bytes", "critical_bytes", "min_free_bytes"), _COUNT),
            "baseline_bytes": _SIZE,
            "limit_source": _STRING,
            "level": _LEVEL,
            "policy": opt(_POLICY),
            "activations": obj({"ceiling_bytes": _COUNT, "claimed_bytes": _COUNT, "waiting": _COUNT}),
            "page_cache": obj({"weights_bytes": _COUNT, "cached_bytes": _SIZE, "is_thrashing": _BOOLEAN}),
            "forecast": obj(
                {"growth": opt(obj({"bytes_per_s": _NUMBER})), "place": opt(_STRING)}
                | dict.fromkeys(("to_warning_s", "to_critical_s"), opt(obj({"expected": _NUMBER})))
            ),
            "conditions": array(obj({"name": _STRING, "text": _STRING, "since": _NUMBER})),
        }
    ),
    "Memory": {
        "allOf": [ref("MemoryFigures"), obj({"models": array(_MODEL), "events": array(_EVENT)})],
    },
    "Cleanup": obj({"recovered": opt(_RECOVERY), "memory": ref("Memory")}),
}

#: Every schema by its name.
SCHEMAS: Final[dict[str, Schema]] = _V2 | _V1 | _OPERATORS | _MONITOR
