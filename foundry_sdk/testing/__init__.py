"""What the tests of a plugin need: a conformance check of any component, and tiny inputs.

``check_component(MySpec(lr=1e-3))`` under pytest holds a component against everything that a run
relies on; each failure is an ``AssertionError`` with a sentence that says what to fix.
"""

from foundry_sdk.testing.conformance import check_component as check_component
from foundry_sdk.testing.declaration import check_declaration as check_declaration
from foundry_sdk.testing.declaration import check_fields as check_fields
from foundry_sdk.testing.failure import ConformanceError as ConformanceError
from foundry_sdk.testing.moments import tiny_run as tiny_run
from foundry_sdk.testing.moments import tiny_step as tiny_step
from foundry_sdk.testing.tiny import tiny_batches as tiny_batches
from foundry_sdk.testing.tiny import tiny_context as tiny_context
from foundry_sdk.testing.tiny import tiny_mpt_spec as tiny_mpt_spec
from foundry_sdk.testing.tiny import tiny_tokenizer as tiny_tokenizer
from foundry_sdk.testing.tiny import write_tiny_mds as write_tiny_mds
