"""Each check finds the fault that it is for, and says what to do."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foundry_sdk.losses.specs import CrossEntropySpec
from foundry_sdk.optim.schedules import CosineWithWarmupSpec
from foundry_sdk.testing import (
    ConformanceError,
    check_component,
    tiny_context,
    tiny_run,
    tiny_tokenizer,
)

PLANTED = Path(__file__).parent / "planted"
ROW = {"q": "1 + 1?", "a": "2"}


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    sys.path.append(str(PLANTED))
    yield
    sys.path.remove(str(PLANTED))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_context(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def planted(module: str) -> ModuleType:
    return importlib.import_module(f"planted_{module}")


def refused(words: str, component: Any, **arguments: Any) -> None:
    with pytest.raises(ConformanceError, match=re.escape(words)):
        check_component(component, **arguments)


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "Plain": "decorate the class with @attrs.frozen",
        "Unnamed": 'set kind = "..."',
        "Spaced": "has a space in it",
        "Elsewhere": "family is 'optimizer'; leave it as PreprocessorSpec sets it",
        "Abstract": "implement build",
        "Positional": "number can be given by position",
        "Mutable": "can be changed after it was made",
        "Tagged": "name must not be a field",
        "Silent": "write a docstring",
        "Mumbling": "make it one whole sentence",
        "Demanding": "build takes (tokenizer), but runs call it as PreprocessorSpec says: build()",
        "Homeless": "the module 'no_such_module' cannot be imported",
        "Untyped": "give number a type annotation",
        "Unreadable": "cannot be written as YAML",
        "Mistyped": "it is refused (number: expected a whole number",
        "Growing": "written as YAML and read again, it is another spec",
        "Unequal": "leave out eq=False",
        "Local": "cannot be sent to the processes that load data",
    }.items(),
)
def test_declarations(name: str, words: str) -> None:
    refused(words, getattr(planted("declarations"), name), row=ROW)


def test_a_heavy_import() -> None:
    refused("loads torch; import it inside build()", planted("heavy").Heavy, row=ROW)


FAULTS = {
    "Rows": {
        "list": "return a dict with prompt and response",
        "extra": "an example has the keys prompt and response, or messages alone; got ['id'",
        "number": "response must be text, got int",
        "empty": "response is empty",
        "mutates": "it changes the row",
        "random": "the same row gives",
        "lenient": "of the wrong row",
        "one message": "messages must be a list of at least two",
        "no role": "messages[0] must have role and content",
        "user last": "the last message is of 'user'",
    },
    "Ramp": {
        "end": "the multiplier before step 101 of 100 is nan",
        "negative": "return a finite number >= 0 for every step",
        "counts": "depends on when or how often it is asked for",
        "nothing": "0 at every step",
    },
    "Loss": {
        "tuple": "return LossOutput(loss_sum, token_count), got tuple",
        "double": "loss_sum must be one float32 number, got torch.float64",
        "count": "token_count must be int64, the number of labels other than -100 (5)",
        "state": "keep no state in forward",
        "mean": "return the sum over labels, not a mean",
        "nan": "do not divide by the number of labels",
        "learns all": "where no label counts, loss and gradients must be 0",
        "half": "compute the softmax and the sum in float32",
        "gradient": "correct its backward",
    },
    "Model": {
        "dtype": "embed.weight: parameters are made in float32",
        "parameters": "parameters() says 1, but the model has 88",
        "vocabulary": "vocabulary() says 12",
        "blocks": "must return modules of the model itself",
        "config": "config() is no JSON",
        "shape": "forward must return hidden states (2, 8, 'H'), got (2, 7, 4)",
        "logits": "logits must be (2, 8, 11), got (2, 8, 10)",
        "random": "apply dropout only where self.training",
        "head": "a fused loss would train another model",
        "copy": "no copy or transpose of it",
        "constant": "hidden states depend neither",
        "causal": "mask the attention causally",
        "device": "embed.weight, head.weight is elsewhere; pass device on",
        "global": "gives other values for embed.weight, head.weight",
        "forgets": "gives other values for head.weight",
        "seed": "the same values for two seeds",
        "buffer": "let init_weights fill buffers too",
        "unused": "embed.weight gets no gradient",
    },
    "Optimizer": {
        "loses": "in two groups and holds 3",
        "initial": "set initial_lr to each group's lr",
        "noise": "the same gradients give other parameters the second time",
        "explodes": "after a few steps parameters are not finite",
        "fixed": "parameters move although the loop set group['lr'] to 0",
        "restless": "parameters without a gradient move",
        "normalizes": "a gradient of zeros makes parameters NaN",
        "secret": "after load_state_dict it goes on otherwise",
        "floats": "state_floats() says 2 numbers per parameter, the state has 1",
        "coupled": "is updated otherwise when it is alone",
    },
    "Callback": {
        "deaf": "it hears of nothing",
        "unmarked": "step_finished would never be called; mark it with @hookimpl",
        "misspelt": "step_ended",
        "half": "only one of state_dict and load_state_dict",
        "raises": "failed at step_finished: RuntimeError: no",
        "answer": "answered step_finished with str",
        "metric": "a metric is a string and a Python number",
        "tensor": "its state is saved as JSON",
        "tuple": "use lists instead of tuples",
        "ignores": "load_state_dict does not bring back",
        "forgets": "put all that answers depend on into state_dict",
    },
    "Loader": {
        "short": "a batch has 3 sequences",
        "long": "sequences of 17 tokens, more than context.max_seq_len = 16",
        "dtype": "input_ids must be int64",
        "vocabulary": "input_ids must lie in the tokenizer's 258 tokens",
        "labels": "labels must be token ids or IGNORE_INDEX",
        "shape": "labels have the shape (4, 15)",
        "unshifted": "shift them by one",
        "few": "only 2 batches of an epoch came",
        "order": "take the order from context.seed alone",
        "position": "does not go on with batch 3",
        "keys": "state_dict must be JSON values",
    },
}


def arguments_of(name: str, context: Any) -> dict[str, Any]:
    return {"Rows": {"row": ROW}, "Loader": {"context": context}}.get(name, {})


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_faults(name: str, fault: str, context: Any) -> None:
    component = getattr(planted("specs"), name)
    refused(FAULTS[name][fault], component(fault=fault), **arguments_of(name, context))


@pytest.mark.parametrize("name", FAULTS)
def test_without_a_fault_they_conform(name: str, context: Any) -> None:
    component = getattr(planted("specs"), name)
    check_component(component, **arguments_of(name, context))


def test_losses_from_hidden_states() -> None:
    loss = planted("specs").Loss
    check_component(loss(head=True), equals=CrossEntropySpec())
    refused("multiply the logits by scale", loss(head=True, fault="scale"))
    refused("softcap=c must make logits", loss(head=True, fault="softcap"))
    for head in (True, False):
        other = loss(head=head, fault="other")
        refused("differ from 'torch_crossentropy'", other, equals=CrossEntropySpec())


def test_arguments_that_are_missing_or_of_no_use() -> None:
    specs = planted("specs")
    with pytest.raises(TypeError, match="a preprocessor is checked with row="):
        check_component(specs.Rows)
    with pytest.raises(TypeError, match="row= is of no use for a loss"):
        check_component(specs.Loss, row=ROW)
    with pytest.raises(TypeError, match="run= is of no use for a model"):
        check_component(specs.Model, run=tiny_run())
    with pytest.raises(TypeError, match="t_warmup has no default; pass a spec"):
        check_component(CosineWithWarmupSpec)
    refused("derive it from a family", dict)
