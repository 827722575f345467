"""``preprocessing_fn`` and ``hf_name`` → the component that they name.

So that no loader has to know what is installed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from foundry_sdk.data.contract import PreprocessorSpec
from foundry_sdk.data.preprocess import is_import_path
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.specs.places import Path
from foundry_sdk.specs.run import FINETUNING


def name_preprocessors(
    values: Mapping[str, Any], catalog: Catalog
) -> tuple[dict[str, Any], dict[Path, Path]]:
    """Return the values of a document with ``preprocessor`` filled in where it is implied.

    Returns:
        The values, and for each path that was filled in the one that implied it.
    """
    filled = dict(values)
    origins: dict[Path, Path] = {}
    for path, loader in _loaders(values):
        place: Path = (*path, "dataset")
        dataset = _named(loader["dataset"], place, catalog, origins)
        parts = dataset.get("datasets")
        if isinstance(parts, dict):
            named = {
                name: _named(part, (*place, "datasets", name), catalog, origins)
                if isinstance(part, dict)
                else part
                for name, part in parts.items()
            }
            dataset = {**dataset, "datasets": named}
        _replace(filled, path, {**loader, "dataset": dataset})
    return filled, origins


def _named(
    dataset: Mapping[str, Any], place: Path, catalog: Catalog, origins: dict[Path, Path]
) -> dict[str, Any]:
    """Return one source's fields with its preprocessor, and note what implied it."""
    implied = _implied(dataset, catalog)
    if implied is None:
        return dict(dataset)
    key, kind = implied
    origins[*place, "preprocessor", "name"] = (*place, key)
    origins[*place, "preprocessor"] = (*place, key)
    return {**dataset, "preprocessor": {"name": kind}}


def _implied(dataset: Mapping[str, Any], catalog: Catalog) -> tuple[str, str] | None:
    """Return the key that names a preprocessor, and the name."""
    if dataset.get("preprocessor") is not None:
        return None
    chosen, name = dataset.get("preprocessing_fn"), dataset.get("hf_name")
    if isinstance(chosen, str):
        return None if is_import_path(chosen) else ("preprocessing_fn", chosen)
    if chosen is None and isinstance(name, str) and name in catalog.kinds(PreprocessorSpec):
        return "hf_name", name
    return None


def _loaders(values: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the finetuning loaders that have a dataset, with their paths."""
    evaluation = values.get("eval_loader")
    candidates: list[tuple[Path, Any]] = [
        (("train_loader",), values.get("train_loader")),
        (("eval_loader",), evaluation),
    ]
    if isinstance(evaluation, list):
        candidates += [(("eval_loader", n), loader) for n, loader in enumerate(evaluation)]
    for path, loader in candidates:
        if not isinstance(loader, dict) or loader.get("name") != FINETUNING:
            continue
        if isinstance(loader.get("dataset"), dict):
            yield path, loader


def _replace(values: dict[str, Any], path: Path, loader: Mapping[str, Any]) -> None:
    if len(path) == 1:
        values[str(path[0])] = loader
        return
    entries = list(values[str(path[0])])
    entries[int(path[1])] = loader
    values[str(path[0])] = entries
