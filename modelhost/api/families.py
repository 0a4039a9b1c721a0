"""Every family of `GET /metrics`, and what it means; `docs/metrics-and-alerts.md` has the same table.

Names that begin with `nv_` are Triton's and with `modelmesh_` ModelMesh's, where the host has what they mean: with
their units, their labels and, for Triton's counters, without the `_total` that others end in.
"""

from __future__ import annotations

from typing import Final

from modelhost.api.exposition import Family

_families: list[Family] = []


def _gauge(name: str, text: str, *labels: str) -> Family:
    return _family(Family(name, "gauge", text, labels))


def _counter(name: str, text: str, *labels: str) -> Family:
    return _family(Family(name, "counter", text, labels))


def _histogram(name: str, text: str, *labels: str) -> Family:
    return _family(Family(name, "histogram", text, labels))


def _family(family: Family) -> Family:
    _families.append(family)
    return family


# --- the host --------------------------------------------------------------------------------------------

INFO: Final = _gauge("modelhost_info", "1, with the version that runs.", "version")
READY: Final = _gauge("modelhost_ready", "1 while work should be sent here, as /v2/health/ready says.")
CONDITION: Final = _gauge("modelhost_condition", "1 for what is not as it should be while the host serves on.", "name")
REQUEST_SECONDS: Final = _histogram(
    "modelhost_request_seconds", "Inference requests from arrival to answer, by outcome.", "outcome"
)
ACCESS_REFUSED: Final = _counter(
    "modelhost_access_refused_total", "Requests and calls without a key that is for them, by code.", "code"
)
WAITING: Final = _gauge("modelhost_waiting", "Requests that wait for a model.")
RUNS_IN_FLIGHT: Final = _gauge("modelhost_runs_in_flight", "Runs in progress or waiting for a thread.")
REFUSALS: Final = _counter("modelhost_refusals_total", "Requests refused before a run, by code.", "code")

# --- alerts ----------------------------------------------------------------------------------------------

ALERTS: Final = _counter("modelhost_alerts_total", "What there was to tell, by kind.", "kind")
ALERTS_SENT: Final = _counter("modelhost_alerts_sent_total", "Alerts that the webhook has taken.")
ALERTS_RETRIED: Final = _counter("modelhost_alerts_retried_total", "Further tries to post one.")
ALERTS_DROPPED: Final = _counter("modelhost_alerts_dropped_total", "Alerts that were not posted, by reason.", "reason")
ALERTS_WAITING: Final = _gauge("modelhost_alerts_waiting", "Alerts that wait to be posted.")

TRACED: Final = _counter("modelhost_traced_requests_total", "Requests that were made spans of, or were not sampled.")
TRACES_DROPPED: Final = _counter(
    "modelhost_traced_requests_dropped_total", "Requests that were not, as tracing.max_waiting others waited."
)

HANDED_OVER: Final = _counter(
    "modelhost_handed_over_total", "Requests that another process of the host ran, as the model fits only once."
)

# --- memory ----------------------------------------------------------------------------------------------

MEMORY_LIMIT: Final = _gauge("modelhost_memory_limit_bytes", "Memory limit in force.")
MEMORY_USAGE: Final = _gauge("modelhost_memory_usage_bytes", "Memory that the kernel cannot take back.")
MEMORY_BASELINE: Final = _gauge("modelhost_memory_baseline_bytes", "Usage with no model loaded.")
MEMORY_WARNING: Final = _gauge("modelhost_memory_warning_bytes", "Idle models leave from here on.")
MEMORY_CRITICAL: Final = _gauge("modelhost_memory_critical_bytes", "Loads are refused from here on.")
FIXED_WARNING: Final = _gauge("modelhost_memory_fixed_warning_bytes", "Warning, if thresholds were fixed.")
FIXED_CRITICAL: Final = _gauge("modelhost_memory_fixed_critical_bytes", "Critical, if thresholds were fixed.")
MEMORY_LOADING: Final = _gauge("modelhost_memory_loading_bytes", "Reserved by loads in progress.")
MEMORY_RESIDENT: Final = _gauge("modelhost_memory_resident_bytes", "Measured for loaded models.")
MEMORY_LEAVING: Final = _gauge("modelhost_memory_leaving_bytes", "On the way back.")
MEMORY_LEVEL: Final = _gauge("modelhost_memory_level", "0 normal, 1 warning, 2 critical.")
MEMORY_GROWTH: Final = _gauge(
    "modelhost_memory_growth_bytes_per_second", "Growth beyond doubt of what no model holds; 0 where there is none."
)
SECONDS_TO_CRITICAL: Final = _gauge(
    "modelhost_memory_seconds_to_critical",
    "Until that growth reaches critical, with all models gone that can leave; +Inf where it does not.",
)
SHORTFALL: Final = _counter("modelhost_memory_shortfall_bytes_total", "Bytes that did not come back after unloads.")
MEMORY_EVENTS: Final = _counter("modelhost_memory_events_total", "Memory events by kind.", "kind")
ACTIVATION_CLAIMED: Final = _gauge(
    "modelhost_activation_claimed_bytes", "Memory that runs in progress and their outputs may hold."
)
ACTIVATION_WAITING: Final = _gauge("modelhost_activation_waiting", "Runs that wait for memory.")
ACTIVATION_REFUSALS: Final = _counter(
    "modelhost_activation_refusals_total", "Runs refused because they would not fit alone."
)
ACTIVATION_MISSES: Final = _counter(
    "modelhost_activation_misses_total", "Runs that were let through and that the arena refused."
)
CPU_MEMORY_TOTAL: Final = _gauge("nv_cpu_memory_total_bytes", "Memory limit in force, as Triton says it.")
CPU_MEMORY_USED: Final = _gauge("nv_cpu_memory_used_bytes", "Memory in use, as Triton says it.")

# --- the page cache ---------------------------------------------------------------------------------------

CACHE_WEIGHTS: Final = _gauge("modelhost_page_cache_weights_bytes", "File pages that are loaded models' weights.")
CACHE_CACHED: Final = _gauge("modelhost_page_cache_cached_bytes", "What of them is in the page cache.")
CACHE_THRASHING: Final = _gauge("modelhost_page_cache_thrashing", "1 while it no longer holds what is used.")
CACHE_REFAULTED: Final = _counter("modelhost_page_cache_refaulted_bytes_total", "File pages dropped and read again.")
PSI_SOME: Final = _gauge("modelhost_memory_psi_some_avg10", "Percent of 10 s in which something waited for memory.")
PSI_FULL: Final = _gauge("modelhost_memory_psi_full_avg10", "Percent of 10 s in which everything waited for memory.")
MAJOR_FAULTS: Final = _counter("modelhost_major_faults_total", "Page faults of the group that waited for the disk.")
PROCESS_MAJOR_FAULTS: Final = _counter(
    "modelhost_process_major_faults_total", "Page faults of the host's own that did."
)

# --- models, together --------------------------------------------------------------------------------------

MODELS: Final = _gauge("modelhost_models", "Models in the pool by state.", "state")
MODELS_KNOWN: Final = _gauge("modelhost_models_known", "Models that can be served.")
MODELS_NOT_SHOWN: Final = _gauge(
    "modelhost_models_not_shown",
    "Versions that are loaded or were asked for and have no samples of their own: metrics.max_models.",
)
COLD_STARTS: Final = _counter("modelhost_cold_starts_total", "Requests that waited for a load, and got their model.")
LOADS: Final = _counter("modelhost_loads_total", "Models loaded.")
LOAD_SECONDS: Final = _counter("modelhost_load_seconds_total", "Time spent loading.")
LOAD_FAILURES: Final = _counter("modelhost_load_failures_total", "Loads that failed.")
OVERSHOOT: Final = _counter("modelhost_load_overshoot_bytes_total", "Bytes that loads held beyond their prediction.")
UNDERSHOOT: Final = _counter(
    "modelhost_load_undershoot_bytes_total", "Bytes that loads were predicted to hold and did not."
)
PREDICTED_LOADS: Final = _counter(
    "modelhost_predicted_loads_total", "Models loaded before anybody asked, as they were likely to be wanted."
)
PREDICTED_HITS: Final = _counter("modelhost_predicted_hits_total", "Those that were used then.")
PREDICTED_WASTED: Final = _counter("modelhost_predicted_wasted_total", "Those that were not.")
EVICTIONS: Final = _counter("modelhost_evictions_total", "Models that left to make room.")
UNLOADS: Final = _counter("modelhost_unloads_total", "Models unloaded on request.")
EXPIRIES: Final = _counter(
    "modelhost_expiries_total", "Models that left because nobody had used them for pool.idle_ttl."
)
SWAPS: Final = _counter("modelhost_swaps_total", "Changed files and new versions that have taken over.")
SWAP_FAILURES: Final = _counter(
    "modelhost_swap_failures_total", "Those that could not be opened or run, and are not served."
)
PREPARATIONS: Final = _counter("modelhost_preparations_total", "Models that a child process opened first.")
PREPARATION_FAILURES: Final = _counter(
    "modelhost_preparation_failures_total", "Models that no child process could open."
)
PREPARATION_SECONDS: Final = _counter("modelhost_preparation_seconds_total", "Time that child processes took.")
WORKERS: Final = _gauge("modelhost_workers", "Loaded models that live in a worker process of their own.")
WORKERS_BYTES: Final = _gauge("modelhost_workers_bytes", "What those processes held when they had loaded.")
WORKER_CRASHES: Final = _counter(
    "modelhost_worker_crashes_total", "Worker processes of models that ended by themselves."
)
AGE_AT_EVICTION: Final = _histogram(
    "modelmesh_age_at_eviction_milliseconds", "Time since their last use after which models left to make room."
)
CACHE_MISS: Final = _histogram(
    "modelmesh_cache_miss_milliseconds", "Time that requests waited for a load, which then served them."
)
LOADMODEL: Final = _histogram("modelmesh_loadmodel_milliseconds", "Time that loads took.")
LOADMODEL_FAILURE: Final = _counter("modelmesh_loadmodel_failure", "Loads that failed.")
MESH_LOADED: Final = _gauge("modelmesh_models_loaded_total", "Models that are loaded.")
MESH_FAILING: Final = _gauge("modelmesh_models_with_failure_total", "Versions whose last load has failed.")
MESH_MANAGED: Final = _gauge("modelmesh_models_managed_total", "Models that can be served.")
MESH_INSTANCE_MODELS: Final = _gauge("modelmesh_instance_models_total", "Versions that are loaded.")
MESH_LRU_AGE: Final = _gauge(
    "modelmesh_instance_lru_age_seconds", "Since the last use of the idle model that was used the longest ago."
)
MESH_CAPACITY: Final = _gauge("modelmesh_instance_capacity_bytes", "What there is for models: critical less baseline.")
MESH_USED: Final = _gauge("modelmesh_instance_used_bytes", "What loaded models hold.")
MESH_USED_BPS: Final = _gauge("modelmesh_instance_used_bps", "That as a share, in hundredths of a percent.")

# --- each model ---------------------------------------------------------------------------------------------

_MODEL: Final = ("model", "version")

MODEL_COMMITTED: Final = _gauge("modelhost_model_committed_bytes", "Memory held by each loaded model.", *_MODEL)
MODEL_WEIGHTS: Final = _gauge("modelhost_model_weights_bytes", "File pages of each model's weights.", *_MODEL)
MODEL_CACHED: Final = _gauge("modelhost_model_cached_bytes", "What of them is in the page cache.", *_MODEL)
MODEL_LOADS: Final = _counter("modelhost_model_loads_total", "Times that it was loaded.", *_MODEL)
MODEL_LOAD_SECONDS: Final = _counter("modelhost_model_load_seconds_total", "Time that its loads took.", *_MODEL)
MODEL_EVICTIONS: Final = _counter("modelhost_model_evictions_total", "Times that it left to make room.", *_MODEL)
MODEL_COLD_STARTS: Final = _counter(
    "modelhost_model_cold_starts_total", "Its requests that waited for a load, and got it.", *_MODEL
)
MODEL_LAST_USED: Final = _gauge(
    "modelhost_model_last_used_timestamp_seconds", "Unix time of its last use; 0 before the first.", *_MODEL
)
NV_SUCCESS: Final = _counter("nv_inference_request_success", "Requests that were answered.", *_MODEL)
NV_FAILURE: Final = _counter(
    "nv_inference_request_failure", "Requests that were not, by reason in Triton's words.", *_MODEL, "reason"
)
NV_COUNT: Final = _counter("nv_inference_count", "Rows that were answered.", *_MODEL)
NV_EXEC_COUNT: Final = _counter("nv_inference_exec_count", "Runs; several requests may share one.", *_MODEL)
NV_REQUEST_US: Final = _counter(
    "nv_inference_request_duration_us", "Microseconds of answered requests from arrival to answer.", *_MODEL
)
NV_QUEUE_US: Final = _counter(
    "nv_inference_queue_duration_us", "Microseconds that they waited for model, memory and thread.", *_MODEL
)
NV_INPUT_US: Final = _counter("nv_inference_compute_input_duration_us", "Microseconds of their decoding.", *_MODEL)
NV_INFER_US: Final = _counter("nv_inference_compute_infer_duration_us", "Microseconds of their runs.", *_MODEL)
NV_OUTPUT_US: Final = _counter("nv_inference_compute_output_duration_us", "Microseconds of their encoding.", *_MODEL)
NV_PENDING: Final = _gauge(
    "nv_inference_pending_request_count", "Requests that wait for its load or for a thread.", *_MODEL
)
NV_LOAD_SECS: Final = _gauge("nv_model_load_duration_secs", "What the load took of a model that is loaded.", *_MODEL)

# --- the process ---------------------------------------------------------------------------------------------

PROCESS_CPU: Final = _counter("process_cpu_seconds_total", "Time of the host's process on processors.")
PROCESS_START: Final = _gauge("process_start_time_seconds", "Unix time at which the host's process began.")
PROCESS_OPEN_FDS: Final = _gauge("process_open_fds", "Open file descriptors.")
PROCESS_MAX_FDS: Final = _gauge("process_max_fds", "Open file descriptors that there may be.")

FAMILIES: Final = tuple(_families)
"""All of them."""
