"""Pretrains a small MPT from Python. Usage: python pretrain.py FOLDER STEPS."""

import sys

import foundry_sdk as foundry

folder, steps = sys.argv[1], int(sys.argv[2])
attention = foundry.AttentionSpec(attn_impl="torch", rope=True, rope_impl="hf")
train = foundry.TextDatasetSpec(local=f"{folder}/data", split="train", shuffle=True)
held_out = foundry.TextDatasetSpec(local=f"{folder}/data", split="val")
spec = foundry.PretrainSpec(
    run_name="from-python",
    model=foundry.MPTSpec(
        d_model=128,
        n_heads=4,
        n_layers=2,
        vocab_size=2048,
        max_seq_len=256,
        learned_pos_emb=False,
        attn_config=attention,
    ),
    tokenizer=foundry.TokenizerSpec(name=f"{folder}/tokenizer"),
    optimizer=foundry.DecoupledLionWSpec(lr=1e-3),
    scheduler=foundry.CosineWithWarmupSpec(t_warmup=foundry.Duration.parse("5ba"), alpha_f=0.1),
    train_loader=foundry.TextDataSpec(dataset=train),
    eval_loader=(foundry.EvalLoader(loader=foundry.TextDataSpec(dataset=held_out)),),
    callbacks=(foundry.SpeedMonitorSpec(window_size=5),),
    max_duration=foundry.Duration.parse(f"{steps}ba"),
    max_seq_len=256,
    global_train_batch_size=8,
    device_train_microbatch_size=4,
    precision="fp32",
)
trainer = foundry.Pretrainer(spec)
print(trainer.plan())
print(trainer.fit())
