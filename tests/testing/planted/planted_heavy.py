"""A component whose module loads torch when it is imported."""

import attrs
import torch

from foundry_sdk.data.contract import Preprocess, PreprocessorSpec


@attrs.frozen(kw_only=True)
class Heavy(PreprocessorSpec):
    """Loads torch before it is asked for."""

    kind = "heavy"
    number: int = torch.iinfo(torch.int8).max

    def build(self) -> Preprocess:
        raise NotImplementedError
