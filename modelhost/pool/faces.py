"""What models say of themselves before they are loaded, remembered while their files stay the same."""

from __future__ import annotations

from cachetools import LRUCache

from modelhost.conditions import Conditions
from modelhost.config import ModelOptions
from modelhost.errors import ModelBroken, ModelNotFound
from modelhost.pool.catalog import Catalog
from modelhost.pool.descriptors import no_descriptor
from modelhost.pool.key import ModelKey
from modelhost.repository import ModelFile
from modelhost.runtime.base import Inspection, LoadError, NoDescriptor, Runtime

#: Faces of models that are not loaded; some kilobytes each.
_KEPT = 256


class Faces:
    """Inspections by model. Event-loop thread; files are read on the catalog's disk thread."""

    def __init__(self, catalog: Catalog, runtime: Runtime, conditions: Conditions) -> None:
        self._catalog, self._runtime, self._conditions = catalog, runtime, conditions
        self._known: LRUCache[ModelKey, tuple[ModelOptions, Inspection]] = LRUCache(_KEPT)

    async def inspect(self, file: ModelFile) -> Inspection:
        """Reads the face of a model, or remembers it. Raises ModelNotFound, ModelBroken and Overloaded."""
        key, options = ModelKey.of(file), self._catalog.options(file)
        known = self._known.get(key)

        def look() -> Inspection:
            if known is not None and known[0] == options:
                inspection = known[1]
                if self._runtime.fingerprint(file.path) == inspection.fingerprint:
                    return inspection
            if not self._runtime.fingerprint(file.path):
                raise FileNotFoundError(file.path.name)
            return self._runtime.inspect(file.path, options)

        try:
            inspection = await self._catalog.on_disk(look)
        except FileNotFoundError:
            await self._catalog.scan()
            raise ModelNotFound(f"model '{file.name}' version {file.version} was removed from the disk") from None
        except NoDescriptor:
            raise no_descriptor(key, self._conditions) from None
        except LoadError as error:
            raise ModelBroken(file.name, file.version, str(error)) from None
        self._known[key] = (options, inspection)
        return inspection

    def remembered(self, file: ModelFile) -> Inspection | None:
        """Returns what is remembered of a model, whatever its files are now; None where nothing is."""
        known = self._known.get(ModelKey.of(file))
        return known[1] if known is not None and known[0] == self._catalog.options(file) else None

    def forget(self, key: ModelKey) -> None:
        """Forgets what is remembered: more is known of the model now."""
        self._known.pop(key, None)
