"""The model that a run was captured from, loaded again when an edit is to be tried, and the run's items for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ModelNotFoundError, VlascopeError

if TYPE_CHECKING:
    from ..items import Item
    from ..models import Model
    from ..runs import Run


class RunModel:
    """The model of a run: given, or loaded once when first asked for.

    Nothing is downloaded: a click on a page is no reason to fetch a checkpoint.

    Args:
        run: The run.
        given: Its model, already loaded; None loads it by the name that the run keeps.
    """

    def __init__(self, run: Run, given: Model | None = None) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._model: Model | None = None
        if given is not None:
            self._model = self._checked(given)

    @property
    def is_loaded(self) -> bool:
        """Whether the model is there."""
        return self._model is not None

    def get(self) -> Model:
        """Return the model.

        Raises:
            ModelNotFoundError: it is not on this machine, or cannot be loaded by its name.
            InputError: what is found there has other weights than the run's model.

        Cost: the first time that of loading it.
        """
        with self._lock:
            if self._model is None:
                self._model = self._checked(self._load())
            return self._model

    def _load(self) -> Model:
        from ..models import load

        known = self.run.config["model"]
        name, revision = str(known["name"]), known.get("revision")
        is_hub = revision not in ("embedded", "local", "memory", "unknown", None)
        if is_hub and not _is_cached(name, str(revision)):
            raise ModelNotFoundError(
                f"the model of this run, '{name}', is not on this machine, and the page downloads nothing. Get it once "
                f"with `vlascope sites {name}`, then try again."
            )
        try:
            return load(name, dtype=known.get("dtype", "auto"), revision=str(revision) if is_hub else None)
        except VlascopeError as error:
            raise ModelNotFoundError(
                f"the model of this run, '{name}', cannot be loaded by its name: {error} A model of your own can be "
                "handed over in Python: vlascope.app.explore(run, model=model), or serve(open_books([run], "
                "models=[model]))."
            ) from error

    def _checked(self, model: Model) -> Model:
        known = self.run.config["model"]
        if known.get("fingerprint") not in (None, model.fingerprint()):
            raise InputError(
                f"the model '{model.name}' has other weights ({model.fingerprint()}) than the one that this run was "
                f"captured from ({known['name']}, {known['fingerprint']}); capture it again, or load the right one."
            )
        return model


def _is_cached(name: str, revision: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def run_item(run: Run, index: int) -> Item:
    """Return an item of a run as the model saw it: the stored pixels, prompt and state.

    Raises:
        InputError: no such item.
        RunIncompleteError: an image is missing or damaged.
    """
    from ..items import Item

    if not 0 <= index < run.n_items:
        raise InputError("there is no such item in this run.")
    row = run.items[index]
    more: dict[str, Any] = {
        name: getattr(row, name)
        for name in (
            "prompt",
            "episode",
            "step",
            "time_secs",
            "state",
            "action",
            "pose",
            "intrinsics",
            "labels",
        )
    }
    images = tuple(run.image(index, camera) for camera in range(len(row.cameras)))
    return Item(item_id=row.item_id, images=images, cameras=row.cameras, **more)
