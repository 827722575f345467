"""Exports trained models for transformers: an MPT as the architecture that equals it."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import attrs
import torch

from foundry_sdk.errors import ExportError
from foundry_sdk.export.architectures import architecture_of, custom_architecture
from foundry_sdk.export.certificate import (
    ROUNDED_TOLERANCE,
    TOLERANCE,
    Certificate,
    compare,
    learned_template,
)
from foundry_sdk.export.files import (
    SHARD_BYTES,
    digests,
    write_config,
    write_json,
    write_weights,
)
from foundry_sdk.export.huggingface import write_transformers
from foundry_sdk.export.trained import load_trained
from foundry_sdk.models.huggingface.model import HFModel
from foundry_sdk.models.mpt.exported import CERTIFICATE
from foundry_sdk.models.mpt.model import MPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_model(
    path: str | Path,
    out: str | Path,
    *,
    precision: Precision = "fp32",
    custom_code: bool = False,
    merge: bool = False,
) -> Certificate:
    """Export the model of a run, or of one of its checkpoints; see ``export_weights``.

    Args:
        path: a run's folder (its newest whole checkpoint is taken), or a checkpoint's.
        out: a folder that does not exist or is empty.
        precision: of the files.
        custom_code: as in ``export_weights``.
        merge: of a model with adapters, write the whole model with the adapters in its weights;
            else the adapters alone.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ExportError: the model cannot be exported, or the files differ from it.
    """
    trained = load_trained(path)
    if isinstance(trained.model, HFModel):
        return export_transformers(
            trained.model, trained.tokenizer, out, precision=precision, merge=merge
        )
    if not isinstance(trained.model, MPT):
        raise ExportError(f"{type(trained.model).__name__} has no export here")
    if merge:
        raise ExportError("--merge: the model has no adapters to merge")
    return export_weights(
        trained.model, trained.tokenizer, out, precision=precision, custom_code=custom_code
    )


def export_weights(
    model: MPT,
    tokenizer: "PreTrainedTokenizerBase | None",
    out: str | Path,
    *,
    precision: Precision = "fp32",
    custom_code: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Certificate:
    """Write ``model`` to ``out`` and prove that transformers reads the same model from there.

    The folder appears complete or not at all. ``model`` stays as it is; its parameters are
    copied once to the CPU.

    Args:
        model: unsharded, on any device.
        tokenizer: saved beside the weights.
        out: a folder that does not exist or is empty.
        precision: of the files; the comparison is with the weights as rounded to it.
        custom_code: write our own architecture and its modelling file, which loads only with
            ``trust_remote_code=True``; every option of MPT has an equal there.
        shard_bytes: largest safetensors file.

    Raises:
        ExportError: no architecture is equal, ``out`` holds something, or the files differ from
            the model.
    """
    target, dtype = _checked(out, precision)
    choose = custom_architecture if custom_code else architecture_of
    architecture = choose(model.spec)
    rounded = _rounded_copy(model, dtype)
    tied = model.spec.tie_word_embeddings
    # folding multiplies rounded weights, and rounds the product
    tolerance = ROUNDED_TOLERANCE if architecture.folded and precision != "fp32" else TOLERANCE
    with _whole_or_not(target) as temporary:
        parameters = dict(rounded.named_parameters())
        tensors = write_weights(
            temporary, architecture, parameters, dtype=dtype, shard_bytes=shard_bytes
        )
        write_config(temporary, architecture, tied=tied, dtype=dtype, tokenizer=tokenizer)
        comparison = compare(
            rounded,
            temporary,
            tensors=tensors,
            tokenizer=tokenizer,
            tolerance=tolerance,
            custom_code=custom_code,
        )
        certificate = Certificate(
            architecture=architecture.name,
            precision=precision,
            parameters=sum(torch.Size(shape).numel() for shape in tensors.values()),
            tensors=len(tensors),
            prompts=comparison.prompts,
            max_abs_difference=comparison.max_abs_difference,
            logit_scale=comparison.logit_scale,
            tolerance=tolerance,
            greedy_tokens=comparison.greedy_tokens,
            ties=comparison.ties,
            versions=comparison.versions,
            sha256=digests(temporary),
            mpt=attrs.asdict(model.spec),
            chat_template=learned_template(tokenizer),
        )
        write_json(temporary / CERTIFICATE, certificate.to_dict())
    return certificate


def export_transformers(
    model: HFModel,
    tokenizer: "PreTrainedTokenizerBase | None",
    out: str | Path,
    *,
    precision: Precision = "fp32",
    merge: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Certificate:
    """Write a model of the transformers library to ``out``, as ``export_weights`` does.

    Args:
        model: unsharded, on the CPU; its values are rounded, and its adapters merged, in place.
        tokenizer: saved beside the weights.
        out: a folder that does not exist or is empty.
        precision: of the files.
        merge: write the adapters into the weights; else only they are written.
        shard_bytes: largest safetensors file.

    Raises:
        ExportError: as ``export_weights``, or there are no adapters to merge.
    """
    target, dtype = _checked(out, precision)
    with _whole_or_not(target) as temporary:
        certificate = write_transformers(
            temporary,
            model.eval(),
            tokenizer,
            precision=precision,
            dtype=dtype,
            merge=merge,
            shard_bytes=shard_bytes,
        )
        write_json(temporary / CERTIFICATE, certificate.to_dict())
    return certificate


def _checked(out: str | Path, precision: str) -> tuple[Path, torch.dtype]:
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target} already holds something; choose a folder that does not exist")
    if precision not in DTYPES:
        raise ExportError(f"precision: expected {', '.join(DTYPES)}, got {precision!r}")
    return target, DTYPES[precision]


@contextmanager
def _whole_or_not(target: Path) -> Iterator[Path]:
    """Give a folder to write to, which gets the name ``target`` once everything is in it."""
    temporary = target.with_name(f"{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rounded_copy(model: MPT, dtype: torch.dtype) -> MPT:
    """Return the model on the CPU in float32, with values that ``dtype`` can hold."""
    copy = model.spec.build(device="cpu").eval()
    values = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(values[name].detach().to(device="cpu", dtype=dtype))
            parameter.requires_grad_(False)
            if not parameter.isfinite().all():
                raise ExportError(
                    f"{name} holds NaN or infinity"
                    + (", or is too large for fp16; export as bf16" * (dtype == torch.float16))
                )
    return copy
