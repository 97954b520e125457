"""The standing suite for a GPU: what was planned, what is fast, and what takes the time.

    python -m benchmarks.gpu --out FOLDER --part smoke plan recipes peers profile ablation [--minutes 8] [--dry_run]

A part is a table of cells, most telling first. Each cell runs in processes of its own and leaves one line in
`FOLDER/PART.jsonl`: configuration, versions, commit and digest of the code, date, hardware, memory (allocated,
reserved, of the process), tokens a second, MFU and HFU, energy, attention backend, how it ended, an out-of-memory
included. A part starts cells while the minutes last, says what is left, and goes on from there the next time: results
in FOLDER and those that are committed in `benchmarks/results/gpu/` count where cell and code are the same. What has no
result at all comes before what has one of other code.

| part | what |
| --- | --- |
| `smoke` | NF4, a bare PEFT step by formulas, our paths against float32, two steps of every recipe, round trips |
| `plan` | planned against measured peak, and what lies between tensors and the process, part by part |
| `recipes` | full, LoRA, QLoRA: ours beside plain TRL, A B A B, 10 steps of warm-up and 30 timed ones |
| `peers` | ours beside unsloth, from a folder of its own (`--peer_site`); losses are compared before timing |
| `profile` | the slowest step by kernel, in groups |
| `ablation` | ours, and ours without each of its faster paths, in turns on packed documents of many lengths |

`--dry_run` runs every kind of cell on the CPU with tiny models and two steps: do that first.

Without a network. The suite needs torch, transformers, peft, trl, accelerate, bitsandbytes, huggingface_hub, datasets
(with pyarrow, pandas, xxhash, dill and multiprocess), and what `hf_peft_recipes train` needs beside them: typer, rich,
jinja2, pyyaml, psutil, numpy, tqdm, scikit-learn (with scipy) and matplotlib. What an image lacks of these travels as
wheels: `pip download --no-deps` for its Python here, `pip install --no-index --no-deps --target SITE *.whl` there, and
`PYTHONPATH=SITE:$PWD`. An image with torch 2.11, transformers 5.17, accelerate 1.15, huggingface_hub 1.33, pyarrow,
pandas, xxhash and the rest of what `train` needs lacks 7 MB: trl==1.16.0 peft==0.21.2 datasets==5.2.0 dill==0.4.1
multiprocess==0.70.19 typer==0.28.0, and bitsandbytes==0.50.2 with the one CUDA library that is used there. Where the
checkout has come without its git folder, `--commit` says what it is.

Models are made there from a config, with random weights; `--scratch` names a folder that has 64 GB for them. Those that
no later cell needs are removed.
"""
