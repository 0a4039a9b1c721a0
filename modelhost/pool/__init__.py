"""The pool: slots, leases, admission, eviction. `Pool` is all that others need."""

from modelhost.pool.activations import Kept
from modelhost.pool.key import ModelKey
from modelhost.pool.lease import Lease
from modelhost.pool.pool import Pool
from modelhost.pool.runner import Runner
from modelhost.pool.snapshot import ModelInfo, PoolSnapshot
from modelhost.pool.statistics import Timing

__all__ = ["Kept", "Lease", "ModelInfo", "ModelKey", "Pool", "PoolSnapshot", "Runner", "Timing"]
