"""A catalog of small components, so that specs are tested without the real ones."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Literal

import attrs
import pytest
from attrs import validators

from foundry_sdk.callbacks.contract import CallbackSpec
from foundry_sdk.component import ComponentSpec
from foundry_sdk.data.contract import DataSpec, PreprocessorSpec
from foundry_sdk.hookspecs import hookimpl
from foundry_sdk.loggers.contract import LoggerSpec
from foundry_sdk.losses.contract import LossSpec
from foundry_sdk.models.contract import ModelSpec
from foundry_sdk.optim.contract import OptimizerSpec, SchedulerSpec
from foundry_sdk.plugin.catalog import Catalog
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.plugin.source import PluginSource
from foundry_sdk.specs.run import PretrainSpec
from foundry_sdk.specs.structure import read
from foundry_sdk.units import Duration


class Unbuilt:
    """Its component is never built: only its spec is of interest."""

    def build(self, *_: object, **__: object) -> Any:
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class TinyAttention:
    attn_impl: Literal["torch", "flash"] = "torch"
    alibi: bool = False


@attrs.frozen(kw_only=True)
class TinyModel(Unbuilt, ModelSpec):
    """A model of few fields.

    Attributes:
        d_model: width.
        n_heads: heads of attention, of which
            d_model is a multiple.
    """

    kind = "tiny"
    without_effect: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"init_device": "the device is decided at the start"}
    )
    d_model: int = attrs.field(default=8, validator=validators.gt(0))
    n_heads: int = 2
    max_seq_len: int = 64
    attn: TinyAttention = attrs.field(factory=TinyAttention)
    logit_scale: float | str | None = None
    ratio: float = 4.0

    def __attrs_post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}")

    def max_sequence_length(self) -> int | None:
        return self.max_seq_len

    def notes(self) -> tuple[str, ...]:
        return ("model.attn.alibi: replaces learned positions",) if self.attn.alibi else ()


@attrs.frozen(kw_only=True)
class Momentum(Unbuilt, OptimizerSpec):
    """Plain momentum."""

    kind = "momentum"
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.99))
    decay: float = attrs.field(default=0.0, validator=validators.ge(0))


@attrs.frozen(kw_only=True)
class Cosine(Unbuilt, SchedulerSpec):
    kind = "cosine"
    t_warmup: Duration
    t_max: Duration = attrs.field(factory=lambda: Duration.parse("1dur"))
    alpha_f: float = 0.0


@attrs.frozen(kw_only=True)
class TinyDataset:
    local: str
    remote: str | None = None
    split: str | None = None
    max_seq_len: int | None = None
    streams: Mapping[str, Mapping[str, Any]] | None = None


@attrs.frozen(kw_only=True)
class Shards(Unbuilt, DataSpec):
    kind = "shards"
    dataset: TinyDataset
    num_workers: int = 0
    preprocessor: PreprocessorSpec | None = None


@attrs.frozen(kw_only=True)
class Recipes(Unbuilt, PreprocessorSpec):
    kind = "acme/recipes"
    style: Literal["short", "long"] = "short"


@attrs.frozen(kw_only=True)
class Watch(Unbuilt, CallbackSpec):
    kind = "watch"
    window: int = 100
    keys: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class Bell(Unbuilt, CallbackSpec):
    kind = "bell"


@attrs.frozen(kw_only=True)
class Notebook(Unbuilt, LoggerSpec):
    kind = "notebook"
    name: str | None = None


@attrs.frozen(kw_only=True)
class TorchLoss(Unbuilt, LossSpec):
    kind = "torch_crossentropy"


COMPONENTS: tuple[type[ComponentSpec], ...] = (
    TinyModel,
    Momentum,
    Cosine,
    Shards,
    Recipes,
    Watch,
    Bell,
    Notebook,
    TorchLoss,
)

GOOD = """\
variables:
  seed: 3
  root: /data
max_seq_len: 32
model:
  name: tiny
  d_model: 16
  attn: {attn_impl: flash}
tokenizer:
  name: some/tokenizer
optimizer:
  name: momentum
  lr: 1e-4
  betas: [0.9, 0.95]
scheduler: {name: cosine, t_warmup: 2ba}
train_loader:
  name: shards
  dataset:
    local: ${variables.root}/train
  num_workers: 2
max_duration: 10ba
global_train_batch_size: 8
seed: ${variables.seed}
callbacks:
  watch:
    window: 5
  bell:
"""


def catalog_of_components(*components: type[ComponentSpec]) -> Catalog:
    class Plugin:
        @hookimpl
        def foundry_components(self) -> tuple[type[ComponentSpec], ...]:
            return components

    source = PluginSource(distribution="tiny", name="tiny", version="1.0", load=Plugin)
    host = PluginHost.load([source], builtins=False, strict=True)
    return host.catalog()


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return catalog_of_components(*COMPONENTS)


@pytest.fixture(scope="session")
def good() -> str:
    return GOOD


Reader = Callable[..., tuple[PretrainSpec, tuple[str, ...]]]


@pytest.fixture
def read_text(tmp_path: Path, catalog: Catalog) -> Reader:
    """Return a function that reads YAML text as a spec."""

    def read_it(text: str, *overrides: str) -> tuple[PretrainSpec, tuple[str, ...]]:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return read(path, PretrainSpec, overrides, catalog=catalog)

    return read_it


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return this module, for the component classes in it."""
    return sys.modules[__name__]
