"""Plain values to YAML 1.2 that reads back as the same values."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter


class _Representer(SafeRepresenter):
    """Writes characters that YAML takes for line breaks, or does not print, as escapes."""

    def represent_str(self, data: str) -> Any:  # noqa: ANN401 - ruamel's node
        special = not data.isprintable() and data.strip("\n") != ""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if special else None)


_Representer.add_representer(str, _Representer.represent_str)


def dump(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    yaml.allow_unicode = True
    out = StringIO()
    yaml.dump(dict(values), out)
    return out.getvalue()
