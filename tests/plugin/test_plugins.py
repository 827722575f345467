"""What the plugin kernel promises."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.contract import PreprocessorSpec, PromptResponse
from foundry_sdk.data.preprocess import preprocessor
from foundry_sdk.errors import PluginError, SpecError, UnknownComponentError
from foundry_sdk.events import RunStarted
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.plugin.report import plugin_report
from foundry_sdk.plugin.source import PluginSource


@preprocessor("acme/recipes")
def recipes(row: Mapping[str, Any]) -> PromptResponse:
    """Cooking questions; ``steps`` is a list of sentences."""
    return {"prompt": f"How do I cook {row['dish']}?", "response": row["steps"]}


@attrs.frozen(kw_only=True)
class BellSpec(CallbackSpec):
    """Rings at the end."""

    kind = "bell"

    def build(self, run: RunStarted) -> object:
        return run


class UndecoratedSpec(CallbackSpec):
    kind = "undecorated"

    def build(self, run: RunStarted) -> object:
        return run


@attrs.frozen(kw_only=True)
class AbstractSpec(CallbackSpec):
    kind = "abstract"


@attrs.frozen(kw_only=True)
class UntaggedSpec(CallbackSpec):
    def build(self, run: RunStarted) -> object:
        return run


Offer = Callable[[], Iterable[object]]


def source(name: str, offer: Offer = lambda: [recipes], version: str = "1.0") -> PluginSource:
    def foundry_components() -> Iterable[object]:
        return offer()

    plugin = SimpleNamespace(foundry_components=hookimpl(foundry_components))
    return PluginSource(
        distribution=f"dist-{name}", name=name, version=version, load=lambda: plugin
    )


def broken(name: str) -> PluginSource:
    def load() -> object:
        try:
            raise ModuleNotFoundError("No module named 'fastkernel'")
        except ModuleNotFoundError as error:
            raise RuntimeError("cannot start") from error

    return PluginSource(distribution=f"dist-{name}", name=name, version="0.3", load=load)


def catalog_of(*sources: PluginSource, allow: list[str] | None = None) -> Catalog:
    return PluginHost.load(sources, allow=allow, builtins=False).catalog()


def test_a_plugins_component_is_found_with_its_distribution_and_version() -> None:
    catalog = catalog_of(source("acme", version="2.1"))
    component = catalog.find(PreprocessorSpec, "acme/recipes")
    built = component().build()
    expected = {"prompt": "How do I cook rice?", "response": "Boil it."}
    assert built({"dish": "rice", "steps": "Boil it."}) == expected
    entry = catalog.entries["preprocessor", "acme/recipes"]
    assert (entry.source.distribution, entry.source.version) == ("dist-acme", "2.1")
    assert entry.help == "Cooking questions; ``steps`` is a list of sentences."


def test_built_ins_come_through_the_same_hook_first() -> None:
    host = PluginHost.load([source("acme")])
    assert [offer.distribution for offer, _ in host.offers] == ["foundry-sdk", "dist-acme"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_the_catalog_does_not_depend_on_the_order_of_the_sources(
    order: tuple[int, ...],
) -> None:
    def offering(kind: str) -> Offer:
        return lambda: [preprocessor(kind)(lambda row: {"prompt": "", "response": str(row)})]

    sources = [source(name, offering(name)) for name in ("zeta", "acme", "mid")]
    catalog = catalog_of(*(sources[i] for i in order))
    assert [kind for _, kind in catalog.entries] == ["acme", "mid", "zeta"]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_duplicate_names_both_distributions_whatever_the_order(names: str) -> None:
    sources = [source(name) for name in names]
    with pytest.raises(PluginError, match=r"offered by both 'a' \(dist-a 1.0\) and 'b' \(dist-b"):
        catalog_of(*sources)
    assert catalog_of(*sources, allow=["a"]).kinds(PreprocessorSpec) == ["acme/recipes"]


def test_a_broken_plugin_hurts_only_the_spec_that_needs_it() -> None:
    catalog = catalog_of(broken("bad"), source("acme"))
    assert catalog.kinds(PreprocessorSpec) == ["acme/recipes"]
    [failure] = catalog.failures
    assert failure.reason == "RuntimeError: cannot start"
    assert failure.cause == "ModuleNotFoundError: No module named 'fastkernel'"
    with pytest.raises(UnknownComponentError, match=r"'bad' \(dist-bad 0.3\) failed: ModuleNot"):
        catalog.find(CallbackSpec, "bell")


def test_strict_makes_a_broken_plugin_fatal() -> None:
    with pytest.raises(PluginError, match=r"'bad' \(dist-bad 0.3\): RuntimeError: cannot start"):
        PluginHost.load([broken("bad")], strict=True, builtins=False)


def test_a_plugin_that_exits_while_it_is_imported_is_a_failure() -> None:
    exiting = PluginSource(distribution="d", name="exiting", load=lambda: sys.exit(3))
    assert len(PluginHost.load([exiting], builtins=False).failures) == 1


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        (lambda: [int], "<class 'int'> is not a ComponentSpec class"),
        (lambda: [AbstractSpec], "AbstractSpec does not implement build"),
        (lambda: [UntaggedSpec], "UntaggedSpec has no kind"),
        (lambda: [UndecoratedSpec], "UndecoratedSpec needs the decorator @attrs.frozen"),
        (lambda: 7, "'int' object is not iterable"),
    ],
)
def test_a_plugin_that_offers_something_else_is_a_failure(offer: Offer, reason: str) -> None:
    [failure] = PluginHost.load([source("odd", offer)], builtins=False).failures
    assert reason in failure.reason


def test_a_plugin_without_the_hook_is_a_failure() -> None:
    empty = PluginSource(distribution="d", name="empty", load=lambda: SimpleNamespace(x=1))
    [failure] = PluginHost.load([empty], builtins=False).failures
    assert "no function foundry_components marked with @hookimpl" in failure.reason


def test_an_unknown_kind_is_met_with_the_nearest_and_all_known_ones() -> None:
    catalog = catalog_of(source("acme", lambda: [recipes, BellSpec]))
    with pytest.raises(UnknownComponentError) as caught:
        catalog.find(PreprocessorSpec, "acme/recipe")
    assert str(caught.value) == (
        "no preprocessor is named 'acme/recipe'; did you mean 'acme/recipes'?; known: acme/recipes"
    )


def test_a_kind_of_another_family_is_said_to_be_one() -> None:
    catalog = catalog_of(source("acme", lambda: [BellSpec]))
    with pytest.raises(UnknownComponentError, match="'bell' is a callback; known: none"):
        catalog.find(LoggerSpec, "bell")


def test_what_the_allow_list_leaves_out_comes_with_the_value_that_lets_it_in() -> None:
    catalog = catalog_of(source("acme"), source("zeta", lambda: [BellSpec]), allow=["acme"])
    with pytest.raises(UnknownComponentError, match=r"'zeta' \(dist-zeta 1.0\); to load, set FOUN"):
        catalog.find(CallbackSpec, "bell")
    with pytest.raises(UnknownComponentError, match=r"FOUNDRY_PLUGINS=acme,zeta$"):
        catalog.find(CallbackSpec, "bell")


def test_the_allow_list_must_name_installed_plugins() -> None:
    with pytest.raises(PluginError, match="no installed plugin is named 'acne'; installed: acme"):
        catalog_of(source("acme"), allow=["acne"])


def test_a_component_of_a_family_it_does_not_derive_from_is_refused() -> None:
    @attrs.frozen(kw_only=True)
    class FakeLogger(ComponentSpec):
        family = "logger"
        kind = "fake"

    catalog = catalog_of(source("acme", lambda: [FakeLogger]))
    with pytest.raises(PluginError, match="no subclass of LoggerSpec"):
        catalog.find(LoggerSpec, "fake")


def test_the_report_lists_components_failures_and_what_was_left_out() -> None:
    sources = [source("acme", lambda: [recipes, BellSpec]), broken("bad"), source("zeta")]
    catalog = catalog_of(*sources, allow=["acme", "bad"])
    lines = plugin_report(catalog).splitlines()
    assert lines[0].split() == ["FAMILY", "KIND", "DISTRIBUTION", "VERSION", "HELP"]
    assert lines[1].split(maxsplit=4) == [
        "callback",
        "bell",
        "dist-acme",
        "1.0",
        "Rings at the end.",
    ]
    assert "  'bad' (dist-bad 0.3): RuntimeError: cannot start" in lines
    assert "    first cause: ModuleNotFoundError: No module named 'fastkernel'" in lines
    assert lines[-1] == "  'zeta' (dist-zeta 1.0)"
    assert "Traceback" not in plugin_report(catalog)
    assert "Traceback (most recent call last)" in plugin_report(catalog, details=True)
    only = plugin_report(catalog, family="preprocessor")
    assert "acme/recipes" in only
    assert "bell" not in only
    with pytest.raises(SpecError, match="known: callback, preprocessor"):
        plugin_report(catalog, family="preprocesor")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put two packages with entry points on the path: one works, one fails on import."""
    modules = {
        "acme": "from foundry_sdk.hookspecs import hookimpl\n"
        "from foundry_sdk.data.preprocess import preprocessor\n"
        "@preprocessor('acme/tales')\n"
        "def tales(row):\n    'Short tales.'\n    return {'prompt': '', 'response': row['t']}\n"
        "@hookimpl\ndef foundry_components():\n    return [tales]\n",
        "halfway": "import a_library_that_is_not_installed\n",
    }
    for name, text in modules.items():
        info = tmp_path / f"{name}_plugin-1.4.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.4\n"
        (info / "METADATA").write_text(head)
        (info / "entry_points.txt").write_text(f"[foundry_sdk]\n{name} = {name}_plugin\n")
        (tmp_path / f"{name}_plugin.py").write_text(text)
        # Not one of the same name that another test left behind.
        monkeypatch.delitem(sys.modules, f"{name}_plugin", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("installed")
def test_an_installed_package_is_found_through_its_entry_point() -> None:
    host = PluginHost.from_environment({"FOUNDRY_PLUGINS": "acme, halfway"})
    assert [offer.distribution for offer, _ in host.offers] == ["foundry-sdk", "acme-plugin"]
    assert [f.source.version for f in host.failures] == ["1.4"]
    assert "acme/tales" in host.catalog().kinds(PreprocessorSpec)
    only_ours = PluginHost.from_environment({"FOUNDRY_PLUGINS": ""})
    assert [offer.distribution for offer, _ in only_ours.offers] == ["foundry-sdk"]
    with pytest.raises(PluginError, match="a_library_that_is_not_installed"):
        PluginHost.from_environment({"FOUNDRY_STRICT_PLUGINS": "1"})


def test_a_plugin_left_out_by_the_allow_list_is_never_imported(installed: Path) -> None:
    (installed / "halfway_plugin.py").write_text("raise SystemExit('imported')\n")
    host = PluginHost.from_environment({"FOUNDRY_PLUGINS": "acme"})
    assert host.failures == ()
    assert "halfway" in {left.name for left in host.left_out}
    assert "halfway_plugin" not in sys.modules


def test_making_the_catalog_imports_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from foundry_sdk.plugin.host import PluginHost\n"
        "PluginHost.load([]).catalog()\n"
        "heavy = {'torch', 'transformers', 'streaming', 'datasets', 'accelerate', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
