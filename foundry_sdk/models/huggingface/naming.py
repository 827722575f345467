"""Which parameter of a transformers model a tensor of a file is."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

_OLD_NAMES: Final = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))
_DERIVED: Final = re.compile(r"(rotary_emb\.inv_freq|position_ids)$")
"""Buffers that old files hold and that follow from the config."""


class Naming:
    """Names of files and of one model.

    Args:
        module: a transformers model.
        own: names of what it has, each tensor once.
        tied: other names of parameters, and which ones they stand for.
    """

    def __init__(
        self,
        module: Any,  # noqa: ANN401
        own: Iterable[str],
        tied: Mapping[str, str],
    ) -> None:
        self._module = module
        self._own = set(own)
        self._tied = tied
        self._prefix = f"{module.base_model_prefix}."
        self._renamings, self._converters = _transforms(module)

    def targets(self, names: Iterable[str]) -> dict[str, str]:
        """Return the model's name for each of ``names`` that has one; each of the model's once."""
        found: dict[str, str] = {}
        aliases: dict[str, str] = {}
        for name in names:
            known = self._known(name)
            if known in self._own:
                found[name] = known
            elif known is not None:
                aliases[name] = self._tied[known]
        taken = set(found.values())
        for name, target in aliases.items():
            if target not in taken:  # the files keep a tied tensor under another of its names
                found[name] = target
                taken.add(target)
        return found

    def is_ignored(self, name: str) -> bool:
        """Return whether a file may have ``name`` although the model has no such tensor."""
        patterns = getattr(self._module, "_keys_to_ignore_on_load_unexpected", None) or ()
        derived = {each for each, _ in self._module.named_buffers()}
        return (
            _DERIVED.search(name) is not None
            or any(re.search(pattern, name) for pattern in patterns)
            or any(form in derived or form in self._tied for form in (name, self._prefix + name))
            or self._known(name) is not None
        )

    def needs_conversion(self, names: Iterable[str]) -> bool:
        """Return whether transformers makes this model's tensors of several in the files."""
        return any(convert(name) for name in names for convert in self._converters)

    def _known(self, name: str) -> str | None:
        renamed = name
        for rename in self._renamings:
            renamed = rename(renamed)
        forms = [name, renamed]
        forms += [re.sub(pattern, new, form) for form in forms for pattern, new in _OLD_NAMES]
        for form in forms:
            for candidate in (form, self._prefix + form, form.removeprefix(self._prefix)):
                if candidate in self._own or candidate in self._tied:
                    return candidate
        return None


def _transforms(
    module: Any,  # noqa: ANN401
) -> tuple[list[Callable[[str], str]], list[Callable[[str], bool]]]:
    """Return what renames a file's tensor, and what tells one that is only a part of a parameter.

    Transformers 4 has regular expressions for it, transformers 5 objects.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        mapping = getattr(module, "_checkpoint_conversion_mapping", None) or {}
        return [_substitution(pattern, new) for pattern, new in mapping.items()], []
    renamings: list[Callable[[str], str]] = []
    converters: list[Callable[[str], bool]] = []
    for transform in get_model_conversion_mapping(module):
        if isinstance(transform, WeightRenaming):
            renamings.append(_renaming(transform))
        else:
            converters.append(_match(transform))
    return renamings, converters


def _substitution(pattern: str, new: str) -> Callable[[str], str]:
    return lambda name: re.sub(pattern, new, name)


def _renaming(transform: Any) -> Callable[[str], str]:  # noqa: ANN401
    return lambda name: str(transform.rename_source_key(name)[0])


def _match(transform: Any) -> Callable[[str], bool]:  # noqa: ANN401
    return lambda name: transform.rename_source_key(name)[1] is not None
